"""Contrastive batches larger than memory: gradients with respect to the projections first, then chunk by chunk through the network.

Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Chunk = TypeVar("Chunk")
_Norm = nn.modules.batchnorm._BatchNorm


def cached_backward(
    model: nn.Module,
    encode: Callable[[Chunk], Tensor],
    chunks: Sequence[Chunk],
    loss: Callable[[Tensor], Tensor],
    *,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Adds to the parameters' .grad what `loss(torch.cat([encode(c) for c in chunks])).backward()` would; returns the loss.

    `encode(chunk)` (n, …) runs `model`; only one chunk's activations are kept at a time, and every chunk runs twice. Batch norm uses
    each chunk's own statistics, as it would in the plain form, and its running averages move once; dropout draws the same mask
    in both runs. `no_sync` (DistributedDataParallel's) surrounds every chunk's backward pass but the last one's.
    """
    if not chunks:
        raise ValueError("cached_backward: no chunks")
    states, outputs = [], []
    with torch.no_grad(), _running_averages_kept(model):
        for chunk in chunks:
            states.append(_random_state(model))
            outputs.append(encode(chunk))
    leaf = torch.cat(outputs).detach().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    after = _random_state(model)
    for number, (chunk, state, grad) in enumerate(zip(chunks, states, leaf.grad.split([len(o) for o in outputs]), strict=True)):
        _set_random_state(model, state)
        with no_sync() if number + 1 < len(chunks) else nullcontext():
            output = encode(chunk)
            output.backward(grad.to(output.dtype))
    _set_random_state(model, after)
    return value.detach()


@contextmanager
def _running_averages_kept(model: nn.Module) -> Iterator[None]:
    buffers = [b for m in model.modules() if isinstance(m, _Norm) for b in m.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _random_state(model: nn.Module) -> tuple[Tensor, Any]:
    device = _device(model)
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(model: nn.Module, state: tuple[Tensor, Any]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], _device(model))
