"""Scenes of the egocentric world: who is there, what is held, where everything stands, and the exact labels of the drawn result.

Camera frame: x right, y down, z forward, metres; pictures are square, the principal point is their middle.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.synthetic import draw, factors
from data.synthetic.placing import Frame, PlacedHand, PlacedObject, place_free_object, place_hand, place_held_object, place_held_together
from pose_tools.types import SIDES

SIZE = 192
ATTEMPTS = 60
HAND_IDS = {"left": 1, "right": 2}
FOREARM_IDS = {"left": 3, "right": 4}
OBJECT_ID = 10


class SceneError(RuntimeError):
    """No valid scene came out of a plan; the message names the picture."""


@dataclass(frozen=True)
class Plan:
    """What a scene is to show, drawn once per picture; only the geometry is drawn again when it does not work out."""

    split: factors.Split
    hands: tuple[str, ...]
    crossed: bool
    holds: dict[str, tuple[str, str]]
    """Side → (name, colour) it holds; "both" for one object in two hands."""
    free: tuple[tuple[str, str], ...]
    background: int
    camera_bin: int


@dataclass
class Scene:
    """A drawn scene: `picture` (S, S, 3) uint8 RGB, `mask` (S, S) uint8 ids, `record` as written to scenes.jsonl without id and paths."""

    picture: np.ndarray
    mask: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)


def picture_rng(seed: int, split: factors.Split, index: int, stream: int) -> np.random.Generator:
    """The generator of one purpose of one picture: the same whatever was drawn before it."""
    return np.random.default_rng([seed, factors.SPLITS.index(split), index, stream])


def draw_plan(rng: np.random.Generator, split: factors.Split) -> Plan:
    """Who and what: each hand is missing in a fifth of the scenes, half of the hands hold something, one to five objects."""
    hands = tuple(side for side in SIDES if rng.random() >= 0.2)
    both = len(hands) == 2
    crossed = both and rng.random() < 0.1
    choice = factors.pairs(split)
    holds: dict[str, tuple[str, str]] = {}
    if both and not crossed and rng.random() < 0.0:
        wide = [pair for pair in choice if pair[0] in ("bowl", "plate", "box", "ball")]
        holds["both"] = wide[rng.integers(len(wide))]
    else:
        holds = {side: choice[rng.integers(len(choice))] for side in hands if rng.random() < 0.5}
    free: list[tuple[str, str]] = []
    for _ in range(int(rng.integers(1 if holds else 2, 5 - len(holds)))):
        free.append(_another_pair(rng, choice, [*holds.values(), *free]))
    bins = factors.camera_bins(split)
    return Plan(split, hands, crossed, holds, tuple(free), factors.draw_background_seed(rng, split), int(rng.choice(bins)))


def _another_pair(rng: np.random.Generator, choice: tuple[tuple[str, str], ...], present: list[tuple[str, str]]) -> tuple[str, str]:
    """A pair for one more object; often one that shares the name or the colour with an object already there."""
    if present and (roll := rng.random()) < 0.5:
        name, colour = present[rng.integers(len(present))]
        related = [p for p in choice if (p[0] == name) != (p[1] == colour) and (p[0] == name if roll < 0.3 else p[1] == colour)]
        if related:
            return related[rng.integers(len(related))]
    fresh = [p for p in choice if p not in present]
    return fresh[rng.integers(len(fresh))] if fresh and rng.random() < 0.93 else choice[rng.integers(len(choice))]


def make_scene(seed: int, split: factors.Split, index: int, size: int = SIZE) -> Scene:
    """Picture number `index` of a split, complete with labels; a function of its arguments alone."""
    plan = draw_plan(picture_rng(seed, split, index, 0), split)
    for attempt in range(1, ATTEMPTS + 1):
        scene = _try_scene(plan, picture_rng(seed, split, index, attempt), size)
        if scene is not None:
            return scene
    raise SceneError(f"{split} picture {index} (seed {seed}): no valid scene in {ATTEMPTS} attempts for {plan}")


def _try_scene(plan: Plan, rng: np.random.Generator, size: int) -> Scene | None:
    frame = Frame.draw(rng, plan.camera_bin, size)
    light = _light(rng, frame)
    hands = [hand for side in plan.hands if (hand := place_hand(rng, frame, side, plan)) is not None]
    if len(hands) < len(plan.hands):
        return None
    if "both" in plan.holds:
        held = place_held_together(rng, frame, hands, plan)
    else:
        held = [place_held_object(rng, frame, hand, plan) for hand in hands if hand.side in plan.holds]
    if any(thing is None for thing in held):
        return None
    holder = {side: k for k, thing in enumerate(held) for side in thing.held_by}
    hands = [replace(hand, held=holder.get(hand.side), touches=hand.side in holder) for hand in hands]
    frame = frame.with_table_below(rng, hands, held)
    layers: list[draw.Layer] = []
    for part in [p for hand in hands for p in hand.parts] + [thing.part(k) for k, thing in enumerate(held)]:
        layer = draw.draw_layer(part, frame.focal, size, light)
        if layer is None and part.id not in FOREARM_IDS.values():
            return None
        if layer is not None:
            layers.append(layer)
    objects: list[PlacedObject] = list(held)
    for pair in plan.free:
        thing = place_free_object(rng, frame, pair, plan.split, layers)
        layer = draw.draw_layer(thing.part(len(objects)), frame.focal, size, light) if thing else None
        if layer is not None:
            objects.append(thing)
            layers.append(layer)
    objects, layers = _drop_hidden(objects, layers, len(held), size)
    owner, _ = draw.lay_together(layers, size)
    mask = draw.id_mask(layers, owner)
    labels = _labels(plan, frame, hands, objects, layers, owner, mask)
    if labels is None:
        return None
    behind = draw.table(plan.background, size, frame.focal, frame.up, frame.height)
    behind = draw.cast_shadows(behind, [layer.part for layer in layers], frame.focal, frame.up, frame.height, light, rng.uniform(0.15, 0.5))
    return Scene(draw.look(draw.paint(layers, owner, behind), rng), mask, labels)


def _light(rng: np.random.Generator, frame: Frame) -> draw.Light:
    direction = frame.up + rng.normal(0, 0.45, 3) + np.array([0, 0, -0.35])
    return draw.Light(direction / np.linalg.norm(direction), float(rng.uniform(0.38, 0.62)))


def _seen(layers: list[draw.Layer], owner: np.ndarray) -> np.ndarray:
    """(layers,) share of each layer's pixels that is seen: occlusion and the border both count."""
    counts = np.bincount(owner[owner >= 0].ravel(), minlength=len(layers))
    return counts / np.array([max(layer.area, 1) for layer in layers])


def _drop_hidden(objects: list[PlacedObject], layers: list[draw.Layer], n_held: int, size: int):
    """Takes away free objects of which too little is seen, so that every object in the picture is labelled."""
    while True:
        owner, _ = draw.lay_together(layers, size)
        seen = _seen(layers, owner)
        poor = [i for i, layer in enumerate(layers) if layer.part.id >= OBJECT_ID + n_held and seen[i] < 0.4]
        if not poor:
            return objects, layers
        worst = min(poor, key=lambda i: seen[i])
        gone = layers[worst].part.id - OBJECT_ID
        objects = objects[:gone] + objects[gone + 1 :]
        kept = [layer for i, layer in enumerate(layers) if i != worst]
        layers = [draw.renumbered(layer, layer.part.id - 1) if layer.part.id > OBJECT_ID + gone else layer for layer in kept]


def _labels(plan: Plan, frame: Frame, hands: list[PlacedHand], objects: list[PlacedObject], layers, owner, mask) -> dict[str, Any] | None:
    """The record of a scene; None when a hand or a held object is not seen well enough to be asked for."""
    seen = dict(zip([layer.part.id for layer in layers], _seen(layers, owner), strict=True))
    size = mask.shape[0]
    hand_records, object_records = [], []
    for hand in hands:
        box = mask_box(mask, HAND_IDS[hand.side])
        if box is None or seen[HAND_IDS[hand.side]] < 0.45 or not 0.18 <= _span(box, size) <= 0.42:
            return None
        hand_records.append(hand.record(box, seen[HAND_IDS[hand.side]], frame))
    for k, thing in enumerate(objects):
        box = mask_box(mask, OBJECT_ID + k)
        low, least = (0.10, 0.3) if thing.held_by else (0.08, 0.4)
        if box is None or seen[OBJECT_ID + k] < least or not low <= _span(box, size) <= 0.42:
            return None
        object_records.append(thing.record(box, seen[OBJECT_ID + k]))
    return {
        "width": size, "height": size, "camera": {"intrinsics": frame.intrinsics.tolist(), "bin": plan.camera_bin},
        "crossed": plan.crossed, "background": plan.background, "hands": hand_records, "objects": object_records,
    }  # fmt: skip


def _span(box: list[float], size: int) -> float:
    return max(box[2] - box[0], box[3] - box[1]) / size


def mask_box(mask: np.ndarray, id: int) -> list[float] | None:
    """The tight half-open box [x1, y1, x2, y2] of the pixels with an id, or None without any."""
    rows, cols = np.nonzero((mask == id).any(1))[0], np.nonzero((mask == id).any(0))[0]
    return [float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)] if len(rows) else None
