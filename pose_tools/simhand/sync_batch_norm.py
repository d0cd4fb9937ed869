"""Batch norm over the batches of all processes, on any device (torch's own runs on GPUs only)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pose_tools.simhand.gather import gather_rows, world


class SyncedBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d/2d/3d` with statistics over all processes; same parameters and names. x (B, C, …)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncedBatchNorm: expected (B, C, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _sum(torch.cat([x.sum(axes), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        variance = _sum((x - mean.view(shape)).square().sum(axes)) / count  # two passes: no cancellation
        self._average(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normal = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = torch.addcmul(self.bias.view(shape), normal, self.weight.view(shape))
        return normal.to(input.dtype)

    @torch.no_grad()
    def _average(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _sum(local: Tensor) -> Tensor:
    return gather_rows(local[None])[0].sum(0)


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """`model` with every batch norm synchronised over the processes; parameters and buffers are the same tensors."""
    if any(p.is_cuda for p in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
            synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            synced.weight, synced.bias = child.weight, child.bias
            synced.running_mean, synced.running_var = child.running_mean, child.running_var
            synced.num_batches_tracked = child.num_batches_tracked
            synced.train(child.training)
            setattr(model, name, synced)
        else:
            synchronise_batch_norm(child)
    return model
