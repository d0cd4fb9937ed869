"""How good the small detector is on synthetic scenes: its answers beside the truth, scores, and the calibration of its presence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.synthetic.detection import DetectionScenes
from data.synthetic.factors import COLOURS, NAMES
from pose_tools.small_detector import SmallDetector, instances, named_object, normalise, presence_logits
from pose_tools.small_detector_losses import box_overlap
from pose_tools.views import letterbox


@torch.inference_mode()
def answers(model: SmallDetector, scenes: DetectionScenes, batch_size: int = 50) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's answers about every scene, and the truth, both concatenated over scenes."""
    device = next(model.parameters()).device
    found, truth = [], []
    for first in tqdm(range(0, len(scenes), batch_size), desc="evaluating", leave=False, mininterval=2):
        numbers = range(first, min(first + batch_size, len(scenes)))
        batch = scenes.collate([scenes.sample(i) for i in numbers])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cpu" and _fast_bf16()):
            maps = model(normalise(batch.pop("pixel_values").to(device)))
        boxes, score = instances(maps, model.config)
        states = torch.cat([maps["contact"], maps["holding"]], 1)
        best = maps["instance_cell"].flatten(2)[:, :2].argmax(-1).repeat(1, 2)  # (B, 4): where each hand is
        held_states = states.flatten(2).gather(2, best.unsqueeze(-1))[..., 0] > 0
        logits = presence_logits(maps["instance_cell"])
        found.append({"boxes": boxes, "score": score, "logit": logits, "states": held_states} | _names(maps, batch, scenes, numbers))
        truth.append({k: batch[k] for k in ("boxes", "present", "states")})
    return _join(found), _join(truth)


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {k: torch.cat([part[k].cpu() for part in parts]) for k in parts[0]}


def _fast_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def _names(maps: dict[str, Tensor], batch: dict[str, Tensor], scenes: DetectionScenes, numbers: range) -> dict[str, Tensor]:
    """Name and colour at every labelled cell near an object's centre, and "where is the red cup?" for pairs that occur once."""
    sure = batch["cell_score"] > 0.6
    asked, truth = [], []
    for row, i in enumerate(numbers):
        record = scenes.records[i]
        pairs = [(NAMES.index(thing["name"]), COLOURS.index(thing["colour"])) for thing in record["objects"]]
        view = letterbox((record["width"], record["height"]), scenes.image_size)
        for pair, thing in zip(pairs, record["objects"], strict=True):
            if pairs.count(pair) == 1:
                asked.append((row, *pair))
                truth.append(view.box_to_grid(thing["bbox_xyxy"]).tolist())
    rows, name, colour = torch.tensor(asked, dtype=torch.long).reshape(-1, 3).T
    boxes, _ = named_object({k: v[rows] for k, v in maps.items()}, name.to(maps["name"].device), colour.to(maps["name"].device))
    return {
        "name_right": (maps["name"].flatten(2).argmax(1).cpu() == batch["cell_name"])[sure],
        "colour_right": (maps["colour"].flatten(2).argmax(1).cpu() == batch["cell_colour"])[sure],
        "named_iou": box_overlap(boxes.cpu(), torch.tensor(truth).reshape(-1, 4))[0],
    }


def scores(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Box accuracy @0.5 (a present one that is not reported counts as missed), F1 of presence and absence, names, colours, states."""
    there, known = truth["present"] == 1, truth["present"] >= 0
    said = found["score"] >= 0.5
    iou = box_overlap(found["boxes"], truth["boxes"])[0]
    result = {}
    for name, columns in (("hand", slice(0, 2)), ("held", slice(2, 4))):
        t, s, k = there[:, columns], said[:, columns], known[:, columns]
        good = ((iou[:, columns] >= 0.5) & s)[t].float().mean()
        result |= {f"{name}_acc50": good, f"{name}_iou": iou[:, columns][t].mean()}
        result |= {f"{name}_presence_f1": _f1(s[k], t[k]), f"{name}_none_f1": _f1(~s[k], ~t[k])}
    both = there[:, :2].all(1)
    swapped = torch.stack([box_overlap(found["boxes"][:, i], truth["boxes"][:, 1 - i])[0] >= 0.5 for i in (0, 1)], 1)
    result["wrong_side"] = (swapped & (iou[:, :2] < 0.5) & said[:, :2])[both].float().mean()
    states = truth["states"] >= 0
    right = found["states"] == (truth["states"] == 1)
    result |= {"contact_acc": right[:, :2][states[:, :2]].float().mean(), "holding_acc": right[:, 2:][states[:, 2:]].float().mean()}
    result |= {"name_acc": found["name_right"].float().mean(), "colour_acc": found["colour_right"].float().mean()}
    result["named_acc50"] = (found["named_iou"] >= 0.5).float().mean()
    result = {k: float(v) for k, v in result.items()}
    result["overall"] = (result["hand_acc50"] + result["held_acc50"] + result["named_acc50"]) / 3
    return result


def _f1(said: Tensor, true: Tensor) -> Tensor:
    return 2 * (said & true).sum() / (said.sum() + true.sum()).clamp(min=1)


def calibrate(logits: Tensor, present: Tensor) -> tuple[tuple[float, float], ...]:
    """Platt scaling (slope, offset) per instance: logits (N, 4), present (N, 4) with −1 for unknown."""
    return tuple(_platt(logit[label >= 0].double(), label[label >= 0].double()) for logit, label in zip(logits.T, present.T, strict=True))


def _platt(logit: Tensor, label: Tensor) -> tuple[float, float]:
    pair = torch.tensor([1.0, 0.0], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([pair], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(logit * pair[0] + pair[1], label)
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = (round(value, 4) for value in pair.tolist())
    return slope, offset
