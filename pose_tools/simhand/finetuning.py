"""Fine-tuning as a task of the one training loop (`pose_tools.training`): the 2.5-D net or the detection net on annotated hands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.mano.crops import Augmentation, CropError, HandCrops, assumed_intrinsics
from pose_tools.mano.estimate import HandInPicture
from pose_tools.metrics import mpjpe, pa_mpjpe
from pose_tools.sampling import evenly
from pose_tools.simhand.detnet_training import WEIGHTS, detnet_losses
from pose_tools.simhand.evaluate import root_scale_aligned
from pose_tools.simhand.fine_tuned import BONES, FineTuned, Kind, NetworkSettings, network_input
from pose_tools.simhand.hand_targets import detnet_targets, regression_targets
from pose_tools.types import HandSample

REGRESSION_WEIGHTS = {"key_points": 10.0, "depth": 1.0, "root_depth": 0.02}
"""Of mean absolute errors: key points in widths of the crop, depths in lengths of the reference bone. Ours: PeCLR's are not published."""
TARGETS = {"regression_25d": regression_targets, "detnet": detnet_targets}


class FinetuningTask:
    """`learn` with `augmentation`, judged on at most `judged` hands of `held_out` that have all their 3-D joints.

    The detection net's losses are the published ones, norms of a whole (micro-)batch: accumulated or shared out, they are those of
    the parts. The 2.5-D net's are means, the same for any division.
    """

    def __init__(
        self,
        learn: Sequence[HandSample],
        held_out: Sequence[HandSample],
        network: NetworkSettings,
        *,
        augmentation: Augmentation | None = None,
        bone_length: float = 0.03,
        seed: int = 0,
        judged: int = 500,
    ) -> None:
        self.network, self.bone_length, self.held_out = network, bone_length, held_out
        self.weights: Mapping[str, float] = WEIGHTS if network.kind == "detnet" else REGRESSION_WEIGHTS
        self.crops = HandCrops(learn, network.image_size, scale=network.crop_scale, augmentation=augmentation, seed=seed,
                               targets=TARGETS[network.kind])  # fmt: skip
        self.sample, self.collate = self.crops.sample, self.crops.collate
        self.judged = evenly(len(held_out), judged).tolist()

    def __len__(self) -> int:
        return len(self.crops)

    def counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many values each loss is a mean of."""
        if self.network.kind == "detnet":
            return {name: torch.tensor(float(len(batch["pixels"]))) for name in self.weights}
        return {"key_points": 2 * batch["has_kp2d"].sum(), "depth": batch["has_zrel"].sum(), "root_depth": batch["has_root_depth"].sum()}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of absolute errors; of the detection net the published losses times the number of hands."""
        pixels = network_input(batch["pixels"], self.network.pixels)
        if self.network.kind == "detnet":
            output = model(pixels)
            with torch.autocast(pixels.device.type, enabled=False):
                found = detnet_losses({name: output[name].float() for name in ("h_map", "d_map", "l_map")}, batch)
            return {name: found[name] * len(pixels) for name in self.weights}
        output = model(pixels, batch["intrinsics"])
        with torch.autocast(pixels.device.type, enabled=False):
            return regression_losses({name: value.float() for name, value in output.items()}, batch, self.network.image_size)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Of held-out hands; see `score`."""
        found = FineTuned(model, self.network, self.bone_length)
        return score(found, [self.held_out[number] for number in self.judged])


def regression_losses(output: Mapping[str, Tensor], batch: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Sums of absolute errors over what is known: both coordinates of key_points in widths of the crop, depth and root_depth in bones."""
    key_points = (output["kp2d"] - batch["kp2d"]).abs() * batch["has_kp2d"][..., None] / size
    depth = (output["zrel"][..., 0] - batch["zrel"]).abs() * batch["has_zrel"]
    root = (output["kp3d"][:, 0, 2] - batch["root_depth"]).abs() * batch["has_root_depth"]
    return {"key_points": key_points.sum(), "depth": depth.sum(), "root_depth": root.sum()}


def score(network: FineTuned, hands: Sequence[HandSample], batch_size: int = 64) -> dict[str, float]:
    """Millimetres over the hands with all 3-D joints: PA-MPJPE, MPJPE from the wrist, and the paper's own, aligned by root and the bone
    wrist – middle base, with its AUC of 20–50 mm. `goodness` is −PA-MPJPE. ValueError without such hands."""
    whole = [h for h in hands if h.joints_3d is not None and (h.joints_valid is None or np.all(h.joints_valid))]
    if not whole:
        raise ValueError(f"none of {len(hands)} hands to judge by has all its 3-D joints: nothing can be measured")
    asked = [in_picture(hand) for hand in whole]
    pred = np.concatenate([network.estimate(asked[i : i + batch_size]) for i in range(0, len(asked), batch_size)])
    truth = np.stack([np.asarray(hand.joints_3d, np.float64) for hand in whole])
    aligned, own = float(pa_mpjpe(pred, truth).mean() * 1000), root_scale_aligned(pred, truth)
    return {
        "pa_mpjpe": aligned, "mpjpe": float(mpjpe(pred, truth, root=0).mean() * 1000),
        "root_scale_aligned_mpjpe": own["mean"], "root_scale_aligned_auc_20_50": own["auc_20_50"], "goodness": -aligned,
    }  # fmt: skip


def in_picture(hand: HandSample) -> HandInPicture:
    """What a network is asked about a sample; without intrinsics a camera of 60 degrees is assumed."""
    height, width = hand.image.shape[:2]
    intrinsics = assumed_intrinsics((width, height)) if hand.intrinsics is None else np.asarray(hand.intrinsics, np.float64)
    return HandInPicture(hand.image, np.asarray(hand.bbox_xyxy, np.float64), hand.side, intrinsics)


def mean_bone_length(hands: Sequence[HandSample], kind: Kind, most: int = 200) -> float:
    """Metres of the network's reference bone, the mean over at most `most` hands; CropError where none has both ends of it."""
    first, second = BONES[kind]
    lengths = []
    for number in evenly(len(hands), most).tolist():
        hand = hands[number]
        if hand.joints_3d is not None and (hand.joints_valid is None or np.asarray(hand.joints_valid)[[first, second]].all()):
            lengths.append(float(np.linalg.norm(np.asarray(hand.joints_3d)[first] - np.asarray(hand.joints_3d)[second])))
    if not lengths:
        raise CropError(f"none of {len(hands)} hands has 3-D joints: a 3-D hand network cannot be trained on them")
    return float(np.mean(lengths))
