"""The denoiser's graph network: modulated graph convolutions over SMPL's 24 joints (Zou & Tang, ICCV 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pose_tools.body_models.kinematics import SMPL_PARENTS


def skeleton_adjacency() -> Tensor:
    """(24, 24): the skeleton's edges, each row divided by its degree, the diagonal set to 1."""
    adjacency = torch.zeros(len(SMPL_PARENTS), len(SMPL_PARENTS))
    for joint, parent in enumerate(SMPL_PARENTS[1:], 1):
        adjacency[joint, parent] = adjacency[parent, joint] = 1.0
    return (adjacency / adjacency.sum(1, keepdim=True)).fill_diagonal_(1.0)


class GraphConv(nn.Module):
    """(B, 24, width_in) → (B, 24, width): a joint's own features by W[0], its neighbours' by W[1], both modulated joint by joint by M,
    over the skeleton plus a learned `adj2`."""

    def __init__(self, width_in: int, width: int, joints: int = 24):
        super().__init__()
        self.W = nn.Parameter(torch.empty(2, width_in, width))
        self.M = nn.Parameter(torch.empty(joints, width))
        self.adj2 = nn.Parameter(torch.full((joints, joints), 1e-6))
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("adj", skeleton_adjacency(), persistent=False)
        nn.init.xavier_uniform_(self.W, gain=1.414)
        nn.init.xavier_uniform_(self.M, gain=1.414)
        nn.init.uniform_(self.bias, -(width**-0.5), width**-0.5)

    def project(self, features: Tensor, first: int = 0) -> Tensor:
        """A share of the input's channels, those from `first` on: (…, c) → (…, 2 · width), own and neighbours' side by side."""
        weights = self.W[:, first : first + features.shape[-1]]
        return torch.cat([features @ weights[0], features @ weights[1]], -1)

    def gather(self, projected: Tensor) -> Tensor:
        """(B, 24, 2 · width) from `project`, shares added up → (B, 24, width)."""
        own, others = projected.chunk(2, -1)
        graph = self.adj + self.adj2
        graph = 0.5 * (graph + graph.T)
        diagonal = torch.diagonal(graph)
        return torch.addcmul(torch.matmul(graph - torch.diag(diagonal), self.M * others), (diagonal[:, None] * self.M), own) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.gather(self.project(x))


class GraphBlock(nn.Module):
    """Graph convolution, batch norm over channels, relu."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.gconv, self.bn = GraphConv(width_in, width), nn.BatchNorm1d(width)

    def finish(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(x.transpose(1, 2)).transpose(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.gconv(x))


class ResidualGraph(nn.Module):
    """x + two graph blocks of it."""

    def __init__(self, width: int):
        super().__init__()
        self.gconv1, self.gconv2 = GraphBlock(width, width), GraphBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gconv2(self.gconv1(x))


class GraphNet(nn.Module):
    """Joint features (B, 24, width_in) → (B, 24, 6)."""

    def __init__(self, width_in: int, width: int = 1024, blocks: int = 4):
        super().__init__()
        self.gconv_input = nn.Sequential(GraphBlock(width_in, width))
        self.gconv_layers = nn.Sequential(*(ResidualGraph(width) for _ in range(blocks)))
        self.gconv_output = GraphConv(width, 6)

    def project(self, features: Tensor, first: int) -> Tensor:
        """The share of input channels `first` … of the first convolution, before the graph: (…, c) → (…, 2 · width)."""
        return self.gconv_input[0].gconv.project(features, first)

    def finish(self, projected: Tensor) -> Tensor:
        """All that follows, from the sum of the shares (B, 24, 2 · width)."""
        first = self.gconv_input[0]
        return self.gconv_output(self.gconv_layers(first.finish(first.gconv.gather(projected))))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.project(x, 0))
