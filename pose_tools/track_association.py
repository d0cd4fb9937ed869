"""Which of a clip's detections is the left hand, which the right one: the cheapest story for all frames together.

A detector decides each frame on its own, and now and then takes one hand for the other. Here a path per hand runs through the
detections of all frames (Viterbi's algorithm; a path remembers where its hand was last seen), paying for every doubtful step:
for taking what the detector calls the other hand, for leaving out what it saw, for jumps, and for beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pose_tools.detect import HandDetection
from pose_tools.metrics import box_iou
from pose_tools.types import SIDES

MOST = 4
"""So many detections of a frame are considered, the best ones."""


@dataclass(frozen=True)
class Costs:
    """What the steps of a story cost; only the ratios matter.

    `side` and `drop` are for one detection of score 1: given to the other side's path, or to none. Two frames of the wrong side are
    cheaper than a second hand that begins (`begin`), three are not. `resume`: coming back after a frame without. A jump costs its length
    in hand sizes over `slack + speed · seconds`, at most `farthest`. Of two detections that overlap by `double` (IoU) the better is kept.
    """

    side: float = 1.0
    drop: float = 3.0
    begin: float = 2.0
    resume: float = 1.0
    slack: float = 0.25
    speed: float = 3.0
    farthest: float = 3.0
    double: float = 0.7


def associate(detections: Sequence[Sequence[HandDetection]], times: Sequence[float], costs: Costs | None = None) -> np.ndarray:
    """(T, 2) numbers of the left and the right hand's detection in `detections[t]`, −1 for none; `times` (T,) seconds."""
    costs = costs or Costs()
    kept = [_without_doubles(hands, costs.double) for hands in detections]
    stories = _Stories.beginning()
    back: list[tuple[np.ndarray, np.ndarray]] = []
    for hands, numbers, time in zip(detections, kept, times, strict=True):
        candidates = [hands[i] for i in numbers]
        # every pair of different candidates, or none (the last number), for the left and the right hand
        choices = [(a, b) for a in range(len(numbers) + 1) for b in range(len(numbers) + 1) if a != b or a == len(numbers)]
        pairs = np.array(choices)
        parent, stories = stories.extended(candidates, pairs, float(time), costs)
        back.append((parent, np.array([*numbers, -1])[pairs]))
    result = np.full((len(kept), 2), -1)
    story = int(np.argmin(stories.cost))
    for t in range(len(kept) - 1, -1, -1):
        parent, chosen = back[t]
        result[t] = chosen[story]
        story = int(parent[story])
    return result


def _without_doubles(hands: Sequence[HandDetection], overlap: float) -> list[int]:
    """Numbers of the best detections, no two on the same place."""
    kept: list[int] = []
    for i in sorted(range(len(hands)), key=lambda i: -hands[i].score):
        if len(kept) < MOST and all(box_iou(hands[i].bbox_xyxy, hands[j].bbox_xyxy) < overlap for j in kept):
            kept.append(i)
    return kept


@dataclass(frozen=True)
class _Stories:
    """The cheapest story for each choice in the latest frame: its `cost` (S,), and per hand the centre (S, 2, 2), size and time (S, 2)
    where it was last seen (NaN: never) and whether it was `seen` (S, 2) in that frame."""

    cost: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    time: np.ndarray
    seen: np.ndarray

    @staticmethod
    def beginning() -> _Stories:
        never = np.full((1, 2), np.nan)
        return _Stories(np.zeros(1), np.full((1, 2, 2), np.nan), never, never, np.zeros((1, 2), bool))

    def extended(
        self, candidates: Sequence[HandDetection], pairs: np.ndarray, time: float, costs: Costs
    ) -> tuple[np.ndarray, _Stories]:
        """Each of `pairs` (S', 2) with the story it follows best: the numbers (S',) of those, and the new stories."""
        boxes = np.array([hand.bbox_xyxy for hand in candidates], np.float64).reshape(-1, 2, 2)
        centre, size = boxes.mean(1), np.sqrt(np.maximum(np.diff(boxes, axis=1)[:, 0].prod(-1), 1.0))
        scores = np.array([hand.score for hand in candidates])
        total = np.zeros((len(self.cost), len(pairs)))
        for hand, side in enumerate(SIDES):
            distance = np.linalg.norm(centre - self.centre[:, None, hand], axis=-1)
            reach = (costs.slack + costs.speed * (time - self.time[:, hand]))[:, None] * (size + self.size[:, hand, None]) / 2
            step = np.minimum(distance / reach, costs.farthest) + np.where(self.seen[:, hand], 0.0, costs.resume)[:, None]
            step = np.where(np.isnan(self.time[:, hand])[:, None], costs.begin, step)
            step = step + costs.side * scores * [one.side != side for one in candidates]
            total += np.hstack([step, np.zeros((len(step), 1))])[:, pairs[:, hand]]
        left_out = np.ones((len(pairs), len(candidates) + 1), bool)
        left_out[np.arange(len(pairs))[:, None], pairs] = False
        total = total + self.cost[:, None] + costs.drop * (left_out[:, :-1] * scores).sum(1)
        parent = np.argmin(total, axis=0)
        seen = pairs < len(candidates)
        centre, size = np.vstack([centre, [[0, 0]]])[pairs], np.append(size, 0)[pairs]
        return parent, _Stories(
            total[parent, np.arange(len(pairs))],
            np.where(seen[..., None], centre, self.centre[parent]),
            np.where(seen, size, self.size[parent]),
            np.where(seen, time, self.time[parent]),
            seen,
        )
