"""Contrastive pre-training as a task of the one training loop (`pose_tools.training`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.simhand.experiments import Experiment, LossSettings, contrastive_loss
from pose_tools.simhand.gradient_cache import cached_backward
from pose_tools.simhand.hand_pool import Hand, HandPool
from pose_tools.simhand.probe import embed, pixels_to_input, probe_metrics
from pose_tools.simhand.views import make_view

PLAIN_VIEW: dict[str, Any] = {}
"""No turn, no shift, no colour: what an encoder is judged, and later used, on."""


def plain_pixels(hand: Hand, size: int) -> np.ndarray:
    """The hand's crop around its key points, nothing drawn: uint8 (3, size, size)."""
    return _planes(make_view(hand.image, hand.joints_2d, parameters=PLAIN_VIEW)[0], size)


def _planes(view: np.ndarray, size: int) -> np.ndarray:
    small = view if len(view) == size else cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small.transpose(2, 0, 1))


def _judged(pools: Sequence[HandPool], size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each pool plain crops uint8 (N, 3, size, size) and joints (N, 21, 3) metres of the hands whose joints are known. Where a pool
    has none of them (videos without labels) all hands with their key points (N, 21, 2), fractions of the crop."""
    read = [[(*make_view(hand.image, hand.joints_2d, parameters=PLAIN_VIEW)[:2], hand.joints_3d) for hand in pool] for pool in pools]
    pixels = [np.stack([_planes(view, size) for view, _, _ in pool]) for pool in read]
    joints = [np.stack([labels for _, _, labels in pool]) for pool in read]
    known = [np.isfinite(part).all((1, 2)) for part in joints]
    if all(part.any() for part in known):
        return [(part[there], labels[there]) for part, labels, there in zip(pixels, joints, known, strict=True)]
    return [(part, np.stack([moved / len(view) for view, moved, _ in pool])) for part, pool in zip(pixels, read, strict=True)]


class PretrainingTask:
    """Pairs of views of `pool`'s hands; `partners` (N,) for the mined kinds (−1: left out), judged on hands with 3-D joints.

    `probe`, `held_out`: hands the linear probe is fitted on, and those it and the retrieval are scored on (by their 3-D joints, or, in
    videos without any, by their key points). A batch is one loss, with negatives from all processes: where a process has several
    micro-batches in a step, gradients are cached (`backward_together`), and batch norm sees one micro-batch at a time.
    """

    weights: Mapping[str, float] = {"contrastive": 1.0}

    def __init__(
        self,
        pool: HandPool,
        kind: Experiment,
        probe: HandPool,
        held_out: HandPool,
        *,
        partners: np.ndarray | None = None,
        loss: LossSettings | None = None,
        size: int = 128,
        seed: int = 0,
    ) -> None:
        if kind.mined and (partners is None or len(partners) != len(pool)):
            got = "none" if partners is None else str(len(partners))
            raise ValueError(f"{kind.name} pairs similar hands: expected partners of {len(pool)} hands, got {got}; mine them first")
        self.pool, self.kind, self.partners, self.size, self.seed = pool, kind, partners, size, seed
        self.loss = LossSettings() if loss is None else loss
        self.usable = np.flatnonzero(partners >= 0) if kind.mined and partners is not None else np.arange(len(pool))
        self.judged = _judged((probe, held_out), size)

    def __len__(self) -> int:
        return len(self.usable)

    def sample(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        """Two views: pixels uint8 (2, 3, size, size), joints (2, 21, 2) in 128-px views, jitter (2, 2), angle (2,)."""
        first = int(self.usable[index])
        second = int(self.partners[first]) if self.kind.mined and self.partners is not None else first
        pixels, joints, jitter, angle = [], [], [], []
        for view, number in enumerate((first, second)):
            hand = self.pool[number]
            seed = random.Random(f"{self.seed} {epoch} {index} {view}").getrandbits(63)
            image, moved, _, drawn = make_view(hand.image, hand.joints_2d, seed=seed, steps=self.kind.steps)
            pixels.append(_planes(image, self.size))
            joints.append(moved)
            jitter.append((drawn["jitter_x"], drawn["jitter_y"]))
            angle.append(drawn["angle"] or 0.0)
        return {"pixels": np.stack(pixels), "joints": np.stack(joints).astype(np.float32),
                "jitter": np.array(jitter, np.float32), "angle": np.array(angle, np.float32)}  # fmt: skip

    def collate(self, samples: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}

    def counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"contrastive": torch.tensor(float(len(batch["pixels"])))}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the batch's pairs times their number."""
        projections = self._projections(model, batch)
        with torch.autocast(projections.device.type, enabled=False):
            return {"contrastive": contrastive_loss(self.kind, projections, batch, self.loss) * len(projections)}

    def backward_together(
        self,
        model: nn.Module,
        batches: Sequence[dict[str, Tensor]],
        total: Callable[[dict[str, Tensor]], Tensor],
        *,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        no_sync: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """One loss over all pairs of `batches`, whose activations are in memory one batch after another (`gradient_cache`)."""
        whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if name != "pixels"}

        def encode(batch: dict[str, Tensor]) -> Tensor:
            with autocast():
                return self._projections(model, batch)

        def loss(projections: Tensor) -> Tensor:
            return total({"contrastive": contrastive_loss(self.kind, projections, whole, self.loss) * len(projections)})

        cached_backward(model, encode, batches, loss, no_sync=no_sync)

    def _projections(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(N, 2, D) float32; both views go through the network together."""
        return model(pixels_to_input(batch["pixels"].flatten(0, 1)))[1].float().view(len(batch["pixels"]), 2, -1)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """`probe_metrics` of the encoder on plain crops."""
        (pixels, joints), (queries, truth) = self.judged
        encoder = model.encoder
        assert isinstance(encoder, nn.Module)
        return probe_metrics(embed(encoder, pixels), joints, embed(encoder, queries), truth)
