"""Projectors: features of the tower, and of specialists, → the language model's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from vlm.config import HandVLMConfig
from vlm.vision import MERGED, fourier_code, sine_grid, tower_width


class ImageProjector(nn.Module):
    """(B, n, C) → (B, n, D). Parameter names are LLaVA's (`linear_1`, `linear_2`), so a plain variant exports key for key.

    `grid=False` leaves out the code of the place in the picture, for tokens that stand for a whole frame.
    """

    def __init__(self, config: HandVLMConfig) -> None:
        super().__init__()
        self.merged = MERGED[config.token_reducer]
        source, target = tower_width(config.vision_config) * self.merged, config.text_config.hidden_size
        self.norm = nn.LayerNorm(source) if config.projector_norm else None
        self.linear_1 = nn.Linear(source, target)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(target, target) if config.projector_type == "mlp" else None
        self.grid_position = float(config.grid_position)

    def forward(self, features: Tensor, grid: bool = True) -> Tensor:
        if self.norm is not None:
            features = self.norm(features)
        tokens = self.linear_1(features)
        if self.linear_2 is not None:
            tokens = self.linear_2(self.act(tokens))
        return self.placed(tokens) if grid else tokens

    def placed(self, tokens: Tensor) -> Tensor:
        """The tokens (B, n, D) of a picture with the code of their places added, where there is one."""
        if not self.grid_position:
            return tokens
        return tokens + self.grid_position * sine_grid(tokens.shape[1], tokens.shape[2], self.merged).to(tokens)


class PoseProjector(nn.Module):
    """One specialist's features → tokens: (N, n_tokens, dim) → (N, n_tokens, D).

    A row that starts with NaN is a slot in which nothing was found: it becomes a learned "absent" vector of that slot. Boxes
    (four columns from each of `box_columns`, xyxy in units of the picture the model sees) get a Fourier code; a NaN box in a
    present row (a hand without an object) a zero code. Everything goes through LayerNorm and two layers. With `score_column` a
    learned gate of that column's confidence mixes the token with the slot's "absent" vector.
    """

    def __init__(self, dim: int, n_tokens: int, width: int, box_columns: tuple[int, ...] = (), score_column: int | None = None) -> None:
        super().__init__()
        self.score_column = score_column
        self.gate = nn.Linear(1, 1) if score_column is not None else None
        self.box_columns = tuple(box_columns)
        boxes = [c + k for c in self.box_columns for k in range(4)]
        self.plain_columns = [c for c in range(dim) if c not in boxes]
        source = 128 * len(self.box_columns) + len(self.box_columns) + len(self.plain_columns)
        self.norm = nn.LayerNorm(source)
        self.linear_1 = nn.Linear(source, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)
        self.absent = nn.Parameter(torch.randn(n_tokens, width) * 0.02)

    def forward(self, features: Tensor) -> Tensor:
        present = ~features[..., 0].isnan()
        blocks = [features[..., self.plain_columns]]
        for column in self.box_columns:
            box = features[..., column : column + 4]
            known = ~box.isnan().any(-1, keepdim=True)
            blocks += [fourier_code(box.nan_to_num()) * known, known]
        code = torch.cat([block.nan_to_num().float() for block in blocks], -1).to(self.linear_1.weight.dtype)
        tokens = self.linear_2(self.act(self.linear_1(self.norm(code))))
        if self.gate is not None:
            score = features[..., self.score_column].nan_to_num().unsqueeze(-1).to(tokens)
            share = self.gate(score).sigmoid()
            tokens = share * tokens + (1 - share) * self.absent.to(tokens)
        return torch.where(present.unsqueeze(-1), tokens, self.absent.to(tokens))
