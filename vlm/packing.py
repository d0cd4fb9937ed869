"""Packing: several conversations behind one copy of what they share, with a block mask, and the collation of rows.

A row is a dict of lists: `input_ids`, `labels`, `position_ids`, and `branches`, where 0 marks the shared prefix and k = 1, 2, … the
k-th conversation. A token sees what stands before it in the prefix and in its own branch; positions restart behind the prefix
in every branch. So each conversation is computed as if it stood alone, and the picture is paid for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
Row = dict[str, Any]


def pack(sequences: Sequence[tuple[list[int], list[int]]]) -> Row:
    """Packs (input_ids, labels) pairs into one row; a single pair becomes a row without branches."""
    prefix = shared_prefix(sequences)
    first_ids, first_labels = sequences[0]
    row: Row = {
        "input_ids": list(first_ids[:prefix]),
        "labels": list(first_labels[:prefix]),
        "position_ids": list(range(prefix)),
        "branches": [0] * prefix,
    }
    for branch, (ids, labels) in enumerate(sequences, start=1):
        row["input_ids"] += ids[prefix:]
        row["labels"] += labels[prefix:]
        row["position_ids"] += range(prefix, len(ids))
        row["branches"] += [branch] * (len(ids) - prefix)
    return row


def shared_prefix(sequences: Sequence[tuple[list[int], list[int]]]) -> int:
    """Length of what all sequences share, cut so that nothing in it is learnt and no branch opens with a learnt token.

    The second condition matters because the token before a branch's first one stands elsewhere in the row.
    """
    if len(sequences) == 1:
        return len(sequences[0][0])
    shared = 0
    for column in zip(*(ids for ids, _ in sequences)):
        if len(set(column)) > 1:
            break
        shared += 1
    for ids, labels in sequences:
        learnt = next((i for i, label in enumerate(labels) if label != IGNORED), len(ids))
        shared = min(shared, learnt - 1, len(ids) - 1)
    return max(shared, 0)


def collate(rows: Sequence[Row], pad_token_id: int) -> dict[str, Tensor]:
    """Pads rows on the right: `input_ids`, `labels`, `position_ids` (B, L) and `attention_mask`.

    The mask is (B, L) when no row has branches, else (B, 1, L, L) bool: [b, 0, i, j] says whether i may look at j.
    """
    length = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows], dtype=torch.long)

    batch = {"input_ids": padded("input_ids", pad_token_id), "labels": padded("labels", IGNORED), "position_ids": padded("position_ids", 0)}
    branches = padded("branches", -1)
    real = branches >= 0
    if not bool((branches > 0).any()):
        return batch | {"attention_mask": real.long()}
    seen_by = (branches.unsqueeze(2) == branches.unsqueeze(1)) | (branches == 0).unsqueeze(1)  # (B, i, j): own branch or prefix
    mask = seen_by & real.unsqueeze(1) & torch.ones(length, length, dtype=torch.bool).tril()
    mask |= torch.eye(length, dtype=torch.bool)  # padding looks at itself: a row of the softmax may not be empty
    return batch | {"attention_mask": mask.unsqueeze(1)}


def as_attention_bias(mask: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor:
    """A (B, 1, L, L) bool mask in the form the attention implementation takes: bool for sdpa, an additive one for eager."""
    if mask.dtype != torch.bool or implementation == "sdpa":
        return mask
    if implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    raise ValueError(f"packed rows need attn_implementation 'sdpa' or 'eager', got {implementation!r}; or train without packing")
