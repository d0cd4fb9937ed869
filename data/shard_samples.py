"""Hands of tar shards as the samples that training takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.hand_shards import HandShards
from pose_tools.types import HandSample


class ShardSamples(Sequence[HandSample]):
    """Each hand of `shards` as the right hand that its crop shows; `whole` (N,) bool: which have all their key points."""

    def __init__(self, shards: HandShards) -> None:
        self.shards = shards
        self.whole = np.isfinite(shards.keypoints).all((1, 2))

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        hand = self.shards[index]
        low, high = np.nan_to_num(hand.keypoints).min(0), np.nan_to_num(hand.keypoints).max(0)
        return HandSample(image=hand.image, side="right", bbox_xyxy=np.concatenate([low, high]), joints_2d=hand.keypoints,
                          joints_3d=hand.joints_3d, intrinsics=hand.intrinsics, source={"hand": hand.hand_id})  # fmt: skip
