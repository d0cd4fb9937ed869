"""Both stages' tasks for the one training loop (`pose_tools.training`): published losses, adversary and collision term, honest metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.egohmr import losses
from pose_tools.egohmr.camera import FOCAL_UNIT
from pose_tools.egohmr.collision import CapsuleField
from pose_tools.egohmr.evaluate import in_frame, metrics
from pose_tools.egohmr.prepare import MEAN, SIDE, STD
from pose_tools.egohmr.stage1 import Stage1
from pose_tools.egohmr.stage2 import Stage2
from pose_tools.geometry import axis_angle_to_matrix
from pose_tools.render import Canvas, contact_sheet
from pose_tools.sampling import evenly

DETECTED, LABELLED = (90, 220, 110), (240, 70, 70)

PART = "smpl_params."
"""Entries of a flat batch that belong to the nested dict of parameters."""


class People(Protocol):
    """What a task reads: items as `data.ego_body.EgoBody` gives them."""

    def __len__(self) -> int: ...

    def item(self, index: int, epoch: int = 0) -> dict[str, Any]: ...


def flat(item: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An item without nesting, names and flags: float32 or integer arrays."""
    found = {name: value for name, value in item.items() if not isinstance(value, (dict, str)) and not name.startswith(("transf", "has_"))}
    found |= {PART + name: value for name, value in item["smpl_params"].items()}
    arrays = {name: np.asarray(value) for name, value in found.items()}
    return {name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in arrays.items()}


def nested(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """A flat batch as the stages take it."""
    found: dict[str, Any] = {name: value for name, value in batch.items() if not name.startswith(PART)}
    return found | {"smpl_params": {name.removeprefix(PART): value for name, value in batch.items() if name.startswith(PART)}}


class TrainedStage1(nn.Module):
    """Stage 1 with its adversary: a flat batch → the terms, each with gradients for its own side only."""

    def __init__(self, stage: Stage1, samples: int = 2) -> None:
        super().__init__()
        self.stage, self.samples = stage, samples

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole, judge = nested(batch), self.stage.discriminator
        judge.requires_grad_(False)  # the body learns to please the judge, and must not teach it
        output = self.stage(whole, self.samples)
        terms = self.stage.losses(whole, output)
        judge.requires_grad_(True)
        real = axis_angle_to_matrix(batch["real_pose"].reshape(-1, 23, 3))
        return terms | {"discriminator": self.stage.discriminator_loss(output, real, batch["real_betas"])}


class TrainedStage2(nn.Module):
    """Stage 2: a flat batch → the terms; the scene's penetration from epoch `collision_from` on, None for never.

    `transl_noise` metres: the deviation of what is added to the true translation that the network is told, since it will be told stage 1's.
    `step_power`: steps are T · u^power for uniform u; 1 draws all alike, as published, 0.4 draws nine of twenty among the last fifth, where
    the pose must come from the picture: a short training learns little there otherwise.
    """

    def __init__(self, stage: Stage2, collision_from: int | None = 3, transl_noise: float = 0.0, step_power: float = 1.0) -> None:
        super().__init__()
        self.stage, self.collision_from, self.transl_noise, self.step_power = stage, collision_from, transl_noise, step_power
        self.field = CapsuleField(stage.smpl)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = nested(batch)
        late = self.collision_from is not None and bool((batch["epoch"] >= self.collision_from).any())
        transl = whole["smpl_params"]["transl"]
        if self.transl_noise:
            transl = transl + self.transl_noise * torch.randn_like(transl)
        steps = self.stage.schedule.steps
        t = (steps * torch.rand(len(transl), device=transl.device) ** self.step_power).long().clamp_max(steps - 1)
        terms = self.stage.losses(whole, t=t, transl=transl, field=self.field if late else None)
        return {"penetration": transl.new_zeros(())} | terms


class StageTask:
    """`people` to learn from, `held_out` to be judged by (every `spacing`-th of them).

    `real` {"body_pose" (N, 69), "betas" (N, 10)}: real people's poses for the adversary of stage 1.
    """

    def __init__(
        self, people: People, held_out: People, stage: int, *, real: Mapping[str, np.ndarray] | None = None,
        spacing: int = 1, limit: int | None = None, weights: Mapping[str, float] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.people, self.held_out, self.real, self.seed, self.limit = people, held_out, real, seed, limit
        published = losses.STAGE_1_WEIGHTS | {"discriminator": 1.0} if stage == 1 else losses.STAGE_2_WEIGHTS
        self.weights = dict(published) | dict(weights or {})
        if set(self.weights) != set(published):
            raise ValueError(f"no term is called {', '.join(sorted(set(self.weights) - set(published)))}: expected {', '.join(published)}")
        self.judged = list(range(0, len(held_out), spacing))

    def __len__(self) -> int:
        return len(self.people) if self.limit is None else min(self.limit, len(self.people))

    def sample(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        found = flat(self.people.item(index, epoch)) | {"epoch": np.asarray(epoch)}
        if self.real is not None:
            row = np.random.default_rng([self.seed, index, epoch, 1]).integers(len(self.real["betas"]))
            found |= {"real_pose": self.real["body_pose"][row], "real_betas": self.real["betas"][row]}
        return found

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every term is a mean over pictures."""
        return dict.fromkeys(self.weights, torch.tensor(float(len(batch["img"]))))

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        terms = model(batch)
        absent = batch["img"].new_zeros(())  # such as `transl_nll` of a stage without that head; on the terms' device
        return {name: terms.get(name, absent) * len(batch["img"]) for name in self.weights}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Millimetres on held-out pictures: stage 1's most likely body, or one of stage 2's by DDIM in five steps.

        `accuracy`, for `best_metric`, is −MPJPE (stage 1) or −MPJPE of visible joints (stage 2), as published.
        """
        stage: Any = model.stage
        found = score(*predict(stage, self.held_out, self.judged))
        return {"accuracy": -found["mpjpe" if isinstance(stage, Stage1) else "mpjpe_visible"]} | found


@torch.no_grad()
def predict(stage: Stage1 | Stage2, people: People, numbers: Sequence[int], batch_size: int = 32) -> tuple[dict[str, Any], dict[str, Any]]:
    """One body of each numbered item, and the truth, as `metrics` takes them."""
    device = next(stage.parameters()).device
    found: dict[str, list[Tensor]] = {"joints": [], "truth": [], "visible": []}
    for first in range(0, len(numbers), batch_size):
        rows = [flat(people.item(number)) for number in numbers[first : first + batch_size]]
        batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])).to(device) for name in rows[0]}
        whole = nested(batch)
        if isinstance(stage, Stage1):
            joints = stage(whole, 1)["joints"]
        else:
            noise = torch.randn(1, len(rows), 1, 144, generator=torch.Generator().manual_seed(first)).to(device)
            joints = stage.sample(whole, 1, "ddim5", noise=noise.expand(6, -1, -1, -1))["joints"]
        principal = np.stack([batch["cam_cx"].cpu(), batch["cam_cy"].cpu()], 1)
        size = batch["image_size"].cpu().numpy() if "image_size" in batch else np.array([[1920.0, 1080.0]])
        found["joints"].append(joints.cpu())
        found["truth"].append(batch["keypoints_3d_full"].cpu())
        seen = in_frame(found["truth"][-1], 1500 * batch["fx"].cpu(), principal, tuple(size[0]))
        found["visible"].append(torch.from_numpy(seen))
    return {"joints": torch.cat(found["joints"])}, {"joints": torch.cat(found["truth"]), "visible": torch.cat(found["visible"])}


def label_sheet(people: Any, count: int = 20) -> np.ndarray:
    """RGB uint8: crops as the networks get them (mirrored and turned when augmented), with BODY_25 as detected and the labels' joints."""
    pictures = []
    for index in evenly(len(people), count).tolist():
        item = people.item(index)
        pixels = item["img"].transpose(1, 2, 0) * STD + MEAN
        canvas = Canvas((255 * pixels).clip(0, 255).astype(np.uint8), least=320)
        side = item["img"].shape[1]
        canvas.points((item["keypoints_2d"][:, :2] + 0.5) * side, colour=DETECTED, valid=item["keypoints_2d"][:, 2] > 0)
        joints = item["keypoints_3d"]  # of the crop's camera, whose picture is `side` wide whatever the crop's
        flat = joints[:, :2] / joints[:, 2:] * item["fx"] * FOCAL_UNIT / SIDE + 0.5
        canvas.points(flat * side, colour=LABELLED, valid=joints[:, 2] > 0.1)
        pictures.append(canvas.array())
    return contact_sheet(pictures, columns=5, cell=260, title="green: detected key points; red: the labels' joints, projected")


def score(pred: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, float]:
    """A few of `metrics`' numbers under names that logs like, and the MPJPE of the mean pose beside them."""
    all_of = metrics(pred, truth)
    true_joints = truth["joints"] - truth["joints"][:, :1]
    mean = {"joints": true_joints.mean(0).expand_as(true_joints)[:, None]}
    constant = metrics(mean, {"joints": true_joints, "visible": truth["visible"]})
    names = {"mpjpe": "MPJPE", "mpjpe_visible": "MPJPE-vis", "mpjpe_invisible": "MPJPE-invis", "pa_mpjpe": "PA-MPJPE", "global": "G-MPJPE"}
    return {ours: all_of[theirs] for ours, theirs in names.items()} | {"mean_pose_mpjpe": constant["MPJPE"]}
