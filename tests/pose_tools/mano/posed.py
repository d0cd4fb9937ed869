"""Annotated hands without a renderer: noise pictures with labels that agree with each other."""

from __future__ import annotations

import numpy as np
import torch

from data.synthetic import hands
from pose_tools.geometry import project
from pose_tools.mano.networks import HandRegressor, RegressorConfig
from pose_tools.types import HandPose, HandSample, Side

RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
       "image_size": 32, "patch_size": 8}  # fmt: skip
KINDS = {"mlp": RESNET, "transformer": RESNET, "query": VIT}


def regressor(trunk: str = "mlp", **changes) -> HandRegressor:
    """A tiny one of a kind, in eval mode; the read-outs are large enough to make hands of all sorts."""
    torch.manual_seed(0)
    settings = {"image_size": 32, "width": 16, "layers": 1, "heads": 2, "dropout": 0.0}
    model = HandRegressor(RegressorConfig(**{"backbone": KINDS[trunk], "trunk": trunk} | settings | changes), hands.mano("right"))
    for layer in model.read_outs.values():
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model.eval()


def sample(seed: int, side: Side = "right", size: tuple[int, int] = (200, 160)) -> HandSample:
    """A hand half a metre away in a picture of noise, `size` (width, height)."""
    rng = np.random.default_rng(seed)
    orient, bend = rng.normal(0, 1.2, 3), hands.for_side(hands.free_pose(rng), side)
    betas, transl = rng.normal(0, 0.7, 10), np.array([*rng.uniform(-0.1, 0.1, 2), rng.uniform(0.4, 0.7)])
    vertices, joints = hands.pose_hand(side, orient, bend, betas, transl)
    intrinsics = np.array([[260.0, 0, size[0] / 2 + 5], [0, 255.0, size[1] / 2 - 3], [0, 0, 1]])
    joints_2d = project(joints, intrinsics)
    picture = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    return HandSample(
        picture, side, np.concatenate([joints_2d.min(0), joints_2d.max(0)]), intrinsics, joints_2d, joints, np.ones(21, bool), vertices,
        HandPose(side, orient, bend, betas, transl, joints), annotation=seed, source={"seed": seed},
    )  # fmt: skip


def mirrored(hand: HandSample) -> HandSample:
    """The same picture and hand in a mirror: a hand of the other side."""
    assert hand.pose is not None and hand.intrinsics is not None
    width, flip = hand.image.shape[1], np.array([-1.0, 1.0, 1.0])
    x1, y1, x2, y2 = hand.bbox_xyxy
    intrinsics = hand.intrinsics.copy()
    intrinsics[0, 2] = width - intrinsics[0, 2]
    side: Side = "left" if hand.side == "right" else "right"
    bend = (hand.pose.hand_pose.reshape(15, 3) * -flip).ravel()
    pose = HandPose(side, hand.pose.global_orient * -flip, bend, hand.pose.betas, hand.pose.transl * flip)
    return HandSample(
        np.ascontiguousarray(hand.image[:, ::-1]), side, np.array([width - x2, y1, width - x1, y2]), intrinsics,
        hand.joints_2d * flip[:2] + [width, 0], hand.joints_3d * flip, hand.joints_valid, hand.vertices * flip, pose,
    )  # fmt: skip
