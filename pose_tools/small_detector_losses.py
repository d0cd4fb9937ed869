"""Targets and losses of the small detector, as sums and counts for `pose_tools.training`.

A batch (S the picture's side, C = S/16 cells a side; −1, or 255 in the label map, means: not known, teaches nothing):

    pixel_values   (B, 3, S, S) uint8
    label_map      (B, S/4, S/4) uint8, numbers of `LABELS`
    boxes          (B, 4, 4) xyxy grid pixels of `INSTANCES`; present (B, 4) int8: 1 there, 0 not there
    cell_score     (B, C²) float, 0…1: how central the cell is in the object it shows
    cell_box       (B, C², 4) xyxy grid pixels, cell_name, cell_colour (B, C²) int64 of that object
    states         (B, 4) int8: contact of left and right, holding of left and right
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose_tools.small_detector import LABELS, cell_boxes, cell_centres, label_logits, normalise

IGNORE = 255
LABEL_WEIGHTS = (0.2, 2.0, 2.0, 2.0, 2.0, 0.7)
WEIGHTS = {"label_map": 1.0, "instance_cell": 1.0, "instance_box": 1.5, "object_score": 1.0, "object_box": 1.0, "name": 1.0, "colour": 0.5}
WEIGHTS["states"] = 0.3
SPREAD = 0.5
"""Standard deviation of the centre target, in half box sides."""


def centre_weights(boxes: Tensor, cells: int) -> Tensor:
    """Boxes (…, 4) xyxy grid pixels → (…, cells²): a Gaussian around the centre, 0 at cells outside the box; at least one is inside."""
    points = cell_centres(cells, boxes.device)
    centre = (boxes[..., :2] + boxes[..., 2:]).unsqueeze(-2) / 2
    half = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=8.001).unsqueeze(-2)  # a cell is 16 wide
    offset = (points - centre) / half
    return torch.exp(-offset.square().sum(-1) / (2 * SPREAD**2)) * (offset.abs().amax(-1) <= 1)


def box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes (…, 4) xyxy."""
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = area_a + area_b - inter
    iou = inter / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


def box_loss(predicted: Tensor, target: Tensor, side: float) -> Tensor:
    """(…, 4) → (…,): 1 − generalised IoU, plus the mean distance of the edges in thirds of the picture."""
    return 1 - box_overlap(predicted, target)[1] + (predicted - target).abs().mean(-1) * (3 / side)


def counts(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each loss is divided by, from the labels alone."""
    weights = torch.tensor((*LABEL_WEIGHTS, *[0.0] * (256 - len(LABELS))), device=batch["label_map"].device)
    centred = batch["cell_score"].clamp(min=0).sum()
    present = (batch["present"] == 1).sum()
    return {
        "label_map": weights[batch["label_map"].long()].sum(),
        "instance_cell": (batch["present"] >= 0).sum(),
        "instance_box": present,
        "object_score": centred,
        "object_box": centred,
        "name": (batch["cell_name"] >= 0).sum(),
        "colour": (batch["cell_colour"] >= 0).sum(),
        "states": (batch["states"] >= 0).sum(),
    }


def losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of the losses of `WEIGHTS`."""
    maps = model(normalise(batch["pixel_values"]))
    cells, side = maps["object_score"].shape[-1], float(batch["pixel_values"].shape[-1])
    present = batch["present"]
    centre = centre_weights(batch["boxes"], cells) * (present == 1).unsqueeze(-1)
    centre = centre / centre.sum(-1, keepdim=True).clamp(min=1e-6)  # (B, 4, C²), sums to 1 where present
    instance = box_loss(cell_boxes(maps["instance_box"]), batch["boxes"].unsqueeze(2), side)
    thing = box_loss(cell_boxes(maps["object_box"])[:, 0], batch["cell_box"], side)
    score = batch["cell_score"]
    weights, label_map = torch.tensor(LABEL_WEIGHTS, device=present.device), batch["label_map"].long()
    return {
        "label_map": F.cross_entropy(label_logits(maps["label_map"]), label_map, weights, ignore_index=IGNORE, reduction="sum"),
        "instance_cell": _cell_loss(maps["instance_cell"], centre, present),
        "instance_box": (instance * centre).sum(),
        "object_score": _score_loss(maps["object_score"].flatten(1), score),
        "object_box": (thing * score.clamp(min=0)).sum(),
        "name": F.cross_entropy(maps["name"].flatten(2), batch["cell_name"], ignore_index=-1, reduction="sum"),
        "colour": F.cross_entropy(maps["colour"].flatten(2), batch["cell_colour"], ignore_index=-1, reduction="sum"),
        "states": _state_loss(torch.cat([maps["contact"], maps["holding"]], 1), centre, batch["states"]),
    }


def _cell_loss(logits: Tensor, centre: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy over the cells and "nowhere" (logit 0): where the instance is, or that it is not there."""
    logits = torch.cat([logits.flatten(2), logits.new_zeros(*logits.shape[:2], 1)], -1)
    target = torch.cat([centre, (present == 0).unsqueeze(-1).float()], -1)  # all zero where presence is not known
    return -(target * logits.log_softmax(-1)).sum()


def _score_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Quality focal loss (Li et al. 2020): cross-entropy with a soft target, scaled by the squared error."""
    known = target.clamp(min=0)
    loss = F.binary_cross_entropy_with_logits(logits, known, reduction="none") * (known - logits.sigmoid()).square()
    return (loss * (target >= 0)).sum()


def _state_loss(logits: Tensor, centre: Tensor, states: Tensor) -> Tensor:
    """Contact and holding, asked of the cells of the hand they speak of. Logits (B, 4, C, C): contact left, right, holding left, right."""
    hand = centre[:, :2].repeat(1, 2, 1)
    target = states.clamp(min=0).float().unsqueeze(-1).expand_as(hand)
    loss = F.binary_cross_entropy_with_logits(logits.flatten(2), target, reduction="none")
    return (loss * hand * (states >= 0).unsqueeze(-1)).sum()
