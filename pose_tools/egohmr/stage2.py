"""Stage 2 (EgoHMR): a diffusion over the body's rotations, conditioned joint by joint on what the picture shows of them, and on the scene.

What depends neither on the step nor on the noise (picture, scene and translation features, body shape, their share of the first graph
convolution) is computed once per picture by `encode`; a step runs the graph network only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from pose_tools.body_models import Smpl
from pose_tools.egohmr import camera, compat, losses
from pose_tools.egohmr.body import BODY_25, bodies_by_gender, decode_pose, keypoints_45, pose_body, true_body, true_pose, visible_joints
from pose_tools.egohmr.collision import BodyField, penetration
from pose_tools.egohmr.diffusion import Schedule
from pose_tools.egohmr.gcn import GraphNet
from pose_tools.egohmr.guidance import Guidance
from pose_tools.egohmr.samplers import Draws, ddim, ddpm, dpm_solver
from pose_tools.egohmr.scene_encoder import SceneEncoder
from pose_tools.egohmr.stage1 import CAMERA_WIDTH, Batch
from pose_tools.geometry import matrix_to_rotation_6d
from pose_tools.simhand.encoder import Encoder


@dataclass(frozen=True)
class Stage2Config:
    """Sizes; the defaults are the published ones."""

    scene_width: int = 512
    scene_hidden: int = 256
    transl_hidden: int = 64
    transl_width: int = 128
    latent_width: int = 512
    gcn_width: int = 1024
    gcn_blocks: int = 4
    betas_hidden: int = 1024
    steps: int = 50
    image_drop: float = 0.01
    """Share of training pictures whose features are left out, so that the network also learns to do without them."""


@dataclass(frozen=True)
class Features:
    """What `encode` finds out about each picture, rows (B, …): `visible` (B, 24) bool, `betas` (B, 10), `transl` (B, 3) metres,
    `points` (B, N, 3) the scene around the body, and the `image_share`, `rest_share` (B, 2 · width) of the first graph convolution."""

    visible: Tensor
    betas: Tensor
    transl: Tensor
    points: Tensor
    image_share: Tensor
    rest_share: Tensor

    def __len__(self) -> int:
        return len(self.betas)

    def repeat(self, times: int, points: bool = True) -> Features:
        """Every row `times` times in turn; without `points` the scenes, by far the largest part, stay as they are."""
        if times == 1:
            return self
        rows = {f.name: getattr(self, f.name) for f in fields(self)}
        return Features(
            **{name: value if name == "points" and not points else value.repeat_interleave(times, 0) for name, value in rows.items()}
        )


def sinusoidal_table(width: int, length: int = 5000) -> Tensor:
    """(length, width): sines on even places, cosines on odd ones, base 10000 (Vaswani et al. 2017)."""
    rate = torch.exp(torch.arange(0, width, 2).float() * (-torch.log(torch.tensor(10000.0)) / width))
    angle = torch.arange(length).float()[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class TranslEncoder(nn.Module):
    """Translations (B, 3) metres → (B, width)."""

    def __init__(self, hidden: int = 64, width: int = 128):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, transl: Tensor) -> Tensor:
        return self.layers(transl)


class BetaHead(nn.Module):
    """Body shape of a picture, as a correction to the mean: features (B, width) → (B, 10)."""

    def __init__(self, width: int, hidden: int = 1024):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        self.register_buffer("init_betas", torch.zeros(1, 10))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features) + self.init_betas


class Stage2(nn.Module):
    """`encode` a batch, `denoise` step by step, or `sample` in one call; poses are 24 × 6D in row order, root first, normalised by
    `mean`, `std` (144,)."""

    def __init__(
        self, smpl: Smpl | Mapping[str, Smpl], mean: Any, std: Any, config: Stage2Config | None = None, backbone: Encoder | None = None
    ):
        super().__init__()
        self.config = c = config or Stage2Config()
        self.backbone = backbone or Encoder()
        self.scene_enc = SceneEncoder(c.scene_width, c.scene_hidden)
        self.transl_enc = TranslEncoder(c.transl_hidden, c.transl_width)
        self.pose_embedding = nn.Linear(6, c.latent_width)
        self.time_embed = nn.Sequential(nn.Linear(c.latent_width, c.latent_width), nn.SiLU(), nn.Linear(c.latent_width, c.latent_width))
        width = self.backbone.width + c.scene_width + c.transl_width + CAMERA_WIDTH
        self.diffusion_model = GraphNet(width + 2 * c.latent_width, c.gcn_width, c.gcn_blocks)
        self.beta_layer = BetaHead(width, c.betas_hidden)
        self.schedule = Schedule(c.steps)
        self.register_buffer("time_table", sinusoidal_table(c.latent_width, c.steps), persistent=False)
        self.register_buffer("mean", _statistic(mean, "mean"), persistent=False)
        self.register_buffer("std", _statistic(std, "std"), persistent=False)
        if not (self.std > 0).all():
            raise ValueError("std has entries that are not above 0")
        self.bodies = nn.ModuleDict(bodies_by_gender(smpl))
        self._offsets = (0, self.backbone.width, width, width + c.latent_width)

    def encode(self, batch: Batch, *, transl: Tensor | None = None, loose: bool | None = None) -> Features:
        """What the samples and steps of each picture share.

        Args:
            batch: as the loader names it: img, scene_pcd_verts_full, orig_keypoints_2d, camera and box.
            transl: (B, 3) metres; None takes the batch's stage1_transl_full, or where it has none the annotated translation.
            loose: the looser map from key points to visible joints; None: in eval mode, as published.
        """
        if transl is None:
            transl = batch["stage1_transl_full"] if "stage1_transl_full" in batch else batch["smpl_params"]["transl"]
        loose = not self.training if loose is None else loose
        points = batch["scene_pcd_verts_full"] - transl[:, None]
        image = self.backbone(batch["img"])
        rest = torch.cat([self.scene_enc(points), self.transl_enc(transl), camera.camera_features(batch)], 1)
        net = self.diffusion_model
        return Features(visible_joints(batch["orig_keypoints_2d"], loose), self.beta_layer(torch.cat([image, rest], 1)), transl, points,
                        net.project(image, self._offsets[0]), net.project(rest, self._offsets[1]))  # fmt: skip

    @property
    def smpl(self) -> Smpl:
        """The neutral body, which predictions are made with."""
        return self.bodies["neutral"]

    def embed_time(self, t: Tensor) -> Tensor:
        """Steps of the full schedule (B,) → (B, latent)."""
        return self.time_embed(self.time_table[t])

    def denoise(self, x_t: Tensor, t: Tensor, features: Features, *, image: bool | Tensor = True, fuse: bool = False) -> Tensor:
        """Noisy normalised poses x_t (B, 24, 6) at steps t (B,) of the full schedule → predicted x_0 (B, 24, 6).

        Args:
            features: of `encode`, for B rows (or B / n: every picture then serves n rows in turn).
            image: False leaves the picture's features out; (B,) bool does so for some.
            fuse: visible joints from the picture and the scene, invisible ones from the scene alone (`diffuse_fuse`).
        """
        if len(features) != len(x_t):
            features = features.repeat(len(x_t) // max(1, len(features)), points=False)
        if x_t.shape[1:] != (24, 6) or len(features) != len(x_t):
            raise ValueError(f"x_t has shape {tuple(x_t.shape)} for {len(features)} pictures: expected (B, 24, 6), B a multiple of that")
        net = self.diffusion_model
        # the pose's embedding and its share are both linear: six rows and the bias go through the large matrix, not 24 B rows
        embedding = torch.cat([self.pose_embedding.weight.T, self.pose_embedding.bias[None]])
        per_number = net.project(embedding, self._offsets[2])
        rest = features.rest_share + net.project(self.embed_time(t), self._offsets[3]) + per_number[6]
        share = x_t @ per_number[:6] + rest[:, None]
        seen = features.visible if isinstance(image, bool) else features.visible & image[:, None]
        if image is False and not fuse:
            return net.finish(share)
        shown = share + seen[..., None] * features.image_share[:, None]
        if not fuse:
            return net.finish(shown)
        with_image, without = net.finish(torch.cat([shown, share])).chunk(2)
        return torch.where(features.visible[..., None], with_image, without)

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised poses (…, 24, 6) → (6D (…, 144), rotations (…, 24, 3, 3))."""
        pose6d = x.flatten(-2) * self.std + self.mean
        return pose6d, decode_pose(pose6d, "row")

    def normalise(self, pose: Tensor) -> Tensor:
        """Rotations (B, 24, 3, 3) → x_0 (B, 24, 6)."""
        return ((matrix_to_rotation_6d(pose, "row").flatten(1) - self.mean) / self.std).unflatten(1, (24, 6))

    @torch.no_grad()
    def sample(
        self,
        batch: Batch | Features,
        num_samples: int = 1,
        sampler: str = "ddpm",
        steps: int = 50,
        fuse: bool = True,
        guidance: Guidance | None = None,
        noise: Tensor | None = None,
        compat: bool | str | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Bodies of a batch (or of its `encode`d features), all pictures and samples at once.

        Args:
            sampler: "ddpm" (`steps` evenly kept ones), "ddim5" ("ddim10" …: the number is the steps'), "dpm++" (`steps`, 15 is plenty).
            guidance: keeps the body out of the scene. compat: the published guidance instead of ours, see `compat.VARIANTS`.
            noise: standard normal (steps + 1, B, n, 144): the start, then one draw per step (DDIM and DPM-Solver++ need the start only).

        Returns: pose (B, n, 24, 3, 3), pose6d (B, n, 144), betas (B, n, 10), transl (B, n, 3), joints (B, n, 24, 3), vertices
        (B, n, 6890, 3) (metres, camera frame, translation added), x0 (B, n, 24, 6) the last normalised prediction, visible (B, 24) bool.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: at least one sample is needed")
        once = batch if isinstance(batch, Features) else self.encode(batch)
        features = once.repeat(num_samples, points=guidance is not None)
        nudge = self._published(guidance, compat, features, len(once))

        def predict(x: Tensor, t: Tensor) -> Tensor:
            x0 = self.denoise(x, t, features, fuse=fuse)
            if guidance is None or nudge is not None:
                return x0
            return guidance.move(x0, int(t[0]), features.betas, features.points, self.smpl, self.mean, self.std, self.schedule)

        shape = (len(features), 24, 6)
        if sampler == "dpm++":
            if nudge is not None:
                raise ValueError("published guidance exists for 'ddpm' and 'ddim5' only; leave compat out for DPM-Solver++")
            x0 = dpm_solver(predict, self.schedule, steps, Draws(shape, once.betas, noise, steps, generator))
        elif sampler == "ddpm":
            schedule = self.schedule if steps == self.schedule.steps else self.schedule.respaced(steps)
            x0 = ddpm(predict, schedule, Draws(shape, once.betas, noise, schedule.steps, generator), nudge)
        elif sampler.startswith("ddim") and sampler[4:].isdigit():
            schedule = self.schedule.respaced(sampler)
            x0 = ddim(predict, schedule, Draws(shape, once.betas, noise, schedule.steps, generator), nudge)
        else:
            raise ValueError(f"sampler={sampler!r}: expected 'ddpm', 'ddim5' (or another number), or 'dpm++'")
        return self._bodies_of(x0, features, num_samples) | {"visible": once.visible}

    def _published(
        self, guidance: Guidance | None, mode: bool | str | None, features: Features, images: int
    ) -> compat.PublishedGuidance | None:
        variant = compat.variant_of(mode)
        if guidance is None or variant is None:
            return None

        def pose(y: Tensor):
            return pose_body(self.smpl, decode_pose(y, "row"), features.betas)

        return compat.PublishedGuidance(guidance, variant, pose, features.points, images, self.mean, self.std)

    def _bodies_of(self, x0: Tensor, features: Features, num_samples: int) -> dict[str, Tensor]:
        pose6d, pose = self.decode(x0)
        body = pose_body(self.smpl, pose, features.betas, features.transl)
        found = {"pose": pose, "pose6d": pose6d, "betas": features.betas, "transl": features.transl, "joints": body.joints,
                 "vertices": body.vertices, "x0": x0}  # fmt: skip
        return {name: value.unflatten(0, (-1, num_samples)) for name, value in found.items()}

    def losses(
        self,
        batch: Batch,
        *,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        x_t: Tensor | None = None,
        drop_image: Tensor | None = None,
        transl: Tensor | None = None,
        field: BodyField | None = None,
        loose: bool = False,
        weights: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """One training step's terms, those of `losses.STAGE_2_WEIGHTS`, and their weighted sum "loss", on the body of the predicted x_0.

        Args:
            t: (B,) steps, noise: (B, 144) standard normal (None draws them); x_t: (B, 24, 6) in place of what they make of the true pose.
            drop_image: (B,) bool, pictures to leave out (None draws them in training mode). transl: (B, 3) metres that the
                network is told (None: the true one). field: adds the scene penetration (from the
            epoch on that the caller chooses). loose: the visibility map; training uses the strict one.
        """
        params = batch["smpl_params"]
        truth = true_body(self.bodies, params, batch["gender"])
        features = self.encode(batch, transl=params["transl"] if transl is None else transl, loose=loose)
        count, device = len(features), features.betas.device
        t = torch.randint(self.schedule.steps, (count,), device=device) if t is None else t
        if x_t is None:
            x0 = self.normalise(truth.pose)
            x_t = self.schedule.q_sample(x0, t, torch.randn_like(x0) if noise is None else noise.reshape(x0.shape))
        if drop_image is None:
            drop_image = torch.rand(count, device=device) < (self.config.image_drop if self.training else 0.0)
        pose6d, pose = self.decode(self.denoise(x_t.reshape(count, 24, 6), t, features, image=~drop_image))
        body = pose_body(self.smpl, pose, features.betas)
        placed = keypoints_45(body) + params["transl"][:, None]
        in_2d = camera.project_normalised(placed[:, list(BODY_25)], batch)[:, None]
        joints = body.joints[:, None]
        terms = {
            "v2v": losses.v2v(body.vertices, body.joints, truth.vertices, truth.joints),
            "keypoints_3d": losses.keypoints_3d(joints, batch["keypoints_3d"], aligned=True).mean(),
            "keypoints_3d_full": losses.keypoints_3d(placed[:, None, :24], batch["keypoints_3d_full"], aligned=False).mean(),
            "keypoints_2d_full": losses.keypoints_2d(in_2d, batch["orig_keypoints_2d"]).mean(),
            "betas": losses.squared(features.betas, params["betas"]),
            "body_pose": losses.squared(pose[:, 1:], truth.pose[:, 1:]),
            "global_orient": losses.squared(pose[:, :1], truth.pose[:, :1]),
            "pose_6d": losses.orthonormality(pose6d, "row"),
        }
        if field is not None:
            terms["penetration"] = penetration(field, body, compat.first_points(body, features.points)).mean()
        return losses.total(terms, dict(losses.STAGE_2_WEIGHTS) | dict(weights or {}))

    def true_x0(self, batch: Batch) -> Tensor:
        """The annotated poses, normalised (B, 24, 6)."""
        return self.normalise(true_pose(batch["smpl_params"]))


def pose_statistics(poses: Tensor) -> tuple[Tensor, Tensor]:
    """`mean`, `std` (144,) of training rotations (n, 24, 3, 3): a mean per number; one deviation for the root's six, one for the others."""
    x = matrix_to_rotation_6d(poses, "row").flatten(1)
    std = x.std(0, unbiased=False)
    return x.mean(0), torch.cat([std[:6].mean().expand(6), std[6:].mean().expand(138)])


def _statistic(value: Any, name: str) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float32).flatten()
    if found.numel() != 144 or not torch.isfinite(found).all():
        raise ValueError(
            f"{name} needs 144 finite numbers (preprocess_stats.npz beside the weights), got shape {tuple(torch.as_tensor(value).shape)}"
        )
    return found.clone()
