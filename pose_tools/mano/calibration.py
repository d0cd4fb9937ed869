"""A trained regressor's doubt about itself, fitted after the training: how large its error from the wrist will be, crop by crop.

While a regressor trains, its read-out of the expected error follows joints that move on, through one linear layer, and for a small
part of the loss. Here the network stays as it is; `HandRegressor.doubt`, two layers on what the read-outs see, learns by how much the
mean error exceeds the one expected so far, from hands of the training set and other crops of them, and is judged by held-out hands.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.mano.crops import HandCrops
from pose_tools.mano.evaluate import doubtful_ratio
from pose_tools.mano.networks import HandRegressor, RegressorError
from pose_tools.mano.training_task import predict

_BATCH = 128
_LEARNING_RATE, _DECAY = 2e-3, 0.1


@dataclass(frozen=True)
class DoubtReport:
    """`learnt_mm`, `held_out_mm`: mean error of the hands fitted to and of those held out; where they differ much, the network knows the
    former by heart and its doubt will be too small. `before`, `after`: how many times the error of the rest that of the least confident
    fifth is, of those held out, and `expected` the expected over the true mean error."""

    learnt_mm: float
    held_out_mm: float
    before: float
    after: float
    expected: float

    def __str__(self) -> str:
        """For people."""
        return (
            f"mean error {self.learnt_mm:.1f} mm (held out {self.held_out_mm:.1f} mm), expected {self.expected:.2f} of it; "
            f"the least confident fifth's is {self.after:.2f} times the rest's (before: {self.before:.2f})"
        )


@dataclass(frozen=True)
class Observed:
    """What the doubt is fitted to: `vectors` (N, width) that the read-outs see, `errors` (N,) metres, mean over the joints from the
    wrist, and `logs` (N, 21) of the scales expected without the doubt."""

    vectors: Tensor
    errors: Tensor
    logs: Tensor

    def expected(self, more: Tensor) -> Tensor:
        """(N,) logarithm of the mean expected error when all scales grow by e^`more` (N,)."""
        return self.logs.exp().mean(1).log() + more


def fit_doubt(
    model: HandRegressor, learn: HandCrops, held_out: HandCrops, *, most: int = 16000, epochs: int = 12, seed: int = 0
) -> DoubtReport:
    """Fits `model.doubt` in place, to `most` crops of `learn`; of all epochs the one is kept whose negative log-likelihood of the
    held-out errors is least. A doubt the model has already is replaced. Deterministic on one machine.

    Raises RegressorError for a model whose config gives the doubt no width, and when fewer than 10 and 5 hands have all joints.
    """
    if model.doubt is None:
        raise RegressorError("the regressor has no doubt to fit: set `doubt` in its config to the hidden width, such as 32")
    numbers = np.random.default_rng(seed).permutation(len(learn))[:most]
    model.eval()
    _start(model.doubt, torch.Generator().manual_seed(seed))
    seen, judged = observe(model, learn, numbers.tolist()), observe(model, held_out, list(range(len(held_out))))
    if len(seen.errors) < 10 or len(judged.errors) < 5:
        counts = f"{len(seen.errors)} hands to fit to and {len(judged.errors)} to judge by"
        raise RegressorError(f"{counts} have all their 3-D joints: 10 and 5 are needed")
    with torch.random.fork_rng(devices=[]):  # dropout draws from the one generator there is
        torch.manual_seed(seed)
        model.doubt.load_state_dict(_learn(copy.deepcopy(model.doubt).requires_grad_(), seen, judged, epochs, seed))
    with torch.no_grad():
        zero, more = torch.zeros(len(judged.errors)), model.doubt(judged.vectors)[:, 0]
    errors = judged.errors.numpy()
    before, after = (doubtful_ratio(errors, -judged.expected(x).numpy()) for x in (zero, more))
    share = float(judged.expected(more).exp().mean() / judged.errors.mean())
    return DoubtReport(1000 * float(seen.errors.mean()), 1000 * float(errors.mean()), before, after, share)


def observe(model: HandRegressor, crops: HandCrops, numbers: list[int]) -> Observed:
    """What the doubt is fitted to, of the numbered samples whose 3-D joints are all known."""
    vectors: list[Tensor] = []
    hook = model.mix.register_forward_hook(lambda _module, _inputs, output: vectors.append(output.detach().float().cpu()))
    try:
        prediction, batch = predict(model, crops, numbers)
    finally:
        hook.remove()
    whole = batch["has_joints_3d"].bool().all(1)
    truth = batch["joints_3d"] - batch["joints_3d"][:, :1]
    errors = torch.linalg.vector_norm(prediction.joints_3d - truth, dim=-1).mean(1)
    return Observed(torch.cat(vectors)[whole], errors[whole], prediction.log_scale_3d[whole])


def _start(doubt: nn.Sequential, generator: torch.Generator) -> None:
    """A doubt that says nothing yet."""
    hidden, out = doubt[0], doubt[-1]
    with torch.no_grad():
        hidden.weight.uniform_(-1, 1, generator=generator).mul_(hidden.in_features**-0.5)
        for parameter in (hidden.bias, out.weight, out.bias):
            parameter.zero_()


def _learn(doubt: nn.Sequential, seen: Observed, judged: Observed, epochs: int, seed: int) -> dict[str, Tensor]:
    """The weights of the best epoch."""
    generator = torch.Generator().manual_seed(seed)
    # the vectors' numbers differ in size; as if they were of equal size, without another layer
    size = seen.vectors.std(0).clamp(min=1e-3)
    optimizer = torch.optim.AdamW(doubt.parameters(), _LEARNING_RATE, weight_decay=_DECAY)
    best, weights = float("inf"), dict(doubt.state_dict())
    for _ in range(epochs):
        doubt.train()
        for part in torch.randperm(len(seen.errors), generator=generator).split(_BATCH):
            some = Observed(seen.vectors[part], seen.errors[part], seen.logs[part])
            optimizer.zero_grad()
            _likelihood(some, doubt(some.vectors / size)[:, 0]).backward()
            optimizer.step()
        doubt.eval()
        with torch.no_grad():
            value = float(_likelihood(judged, doubt(judged.vectors / size)[:, 0]))
        if value < best:
            best, weights = value, {name: tensor.clone() for name, tensor in doubt.state_dict().items()}
    weights["0.weight"] = weights["0.weight"] / size
    return weights


def _likelihood(observed: Observed, more: Tensor) -> Tensor:
    """Negative logarithm, of errors that are exponentially distributed about the expected one."""
    logs = observed.expected(more)
    return (observed.errors * torch.exp(-logs) + logs).mean()
