"""Scenes of the egocentric world: what a picture is to show, the drawing of it, and the exact labels of the result.

Camera frame: x right, y down, z forward, metres; the principal point is the middle of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.synthetic import background, draw, factors
from data.synthetic.frame import Frame
from data.synthetic.placing import (
    OBJECT_ID,
    PlacedObject,
    Thing,
    put_between,
    put_in_hand,
    put_on_table,
    put_under_fingers,
    two_handed_size,
)
from data.synthetic.reaching import FOREARM_IDS, HAND_IDS, Person, PlacedHand, hold_together, reach_in
from pose_tools.types import SIDES, Side

SIZE = (192, 192)
PLANS, ATTEMPTS = 8, 80
"""A plan is given up after so many attempts, a picture after so many plans."""
WIDEST = 0.42
"""The largest share of the picture's short side that anything to be asked for may take."""


class SceneError(RuntimeError):
    """No valid scene came out of a plan; the message names the picture."""


@dataclass(frozen=True)
class Plan:
    """What a scene is to show, drawn once per picture; only the geometry is drawn again when it does not work out.

    `holds` and `touches` say what which side holds or only touches; the side "both" holds one thing with two hands.
    """

    split: factors.Split
    hands: tuple[Side, ...]
    crossed: bool
    holds: dict[str, Thing]
    touches: dict[str, Thing]
    free: tuple[Thing, ...]
    background: int
    camera_bin: int


@dataclass(frozen=True)
class Scene:
    """A drawn scene: `picture` (H, W, 3) uint8 RGB, `mask` (H, W) uint8 ids, `record` as written to scenes.jsonl without id and paths."""

    picture: np.ndarray
    mask: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)


def picture_rng(seed: int, split: factors.Split, index: int, stream: int) -> np.random.Generator:
    """The generator of one purpose of one picture: the same whatever was drawn before it."""
    return np.random.default_rng([seed, factors.SPLITS.index(split), index, stream])


def draw_plan(rng: np.random.Generator, split: factors.Split) -> Plan:
    """Who and what: each hand is missing in a fifth of the scenes, half of the hands hold something, one to five objects."""
    hands = tuple(side for side in SIDES if rng.random() >= 0.2)
    crossed = len(hands) == 2 and rng.random() < 0.1
    choice = factors.pairs(split)
    holds: dict[str, Thing] = {}
    touches: dict[str, Thing] = {}
    if len(hands) == 2 and not crossed and rng.random() < 0.08:
        wide = [pair for pair in choice if pair[0] in ("bowl", "plate", "ball")]
        holds["both"] = Thing.draw(rng, wide[rng.integers(len(wide))], split)
    else:
        for side in hands:
            group = holds if rng.random() < 0.5 else touches if rng.random() < 0.18 else None
            if group is not None:
                group[side] = Thing.draw(rng, another_pair(rng, choice, _pairs_of(holds, touches)), split)
    free: list[Thing] = []
    there = len(holds) + len(touches)
    for _ in range(int(rng.integers(1 if there else 2, 5 - there))):
        free.append(Thing.draw(rng, another_pair(rng, choice, [*_pairs_of(holds, touches), *((t.name, t.colour) for t in free)]), split))
    camera_bin = int(rng.choice(factors.camera_bins(split)))
    return Plan(split, hands, crossed, holds, touches, tuple(free), factors.draw_background_seed(rng, split), camera_bin)


def _pairs_of(*groups: dict[str, Thing]) -> list[tuple[str, str]]:
    return [(thing.name, thing.colour) for group in groups for thing in group.values()]


def another_pair(rng: np.random.Generator, choice: tuple[tuple[str, str], ...], present: list[tuple[str, str]]) -> tuple[str, str]:
    """A pair for one more object; often one that shares the name or the colour with an object already there."""
    if present and (roll := rng.random()) < 0.5:
        name, colour = present[rng.integers(len(present))]
        related = [p for p in choice if (p[0] == name) != (p[1] == colour) and (p[0] == name if roll < 0.3 else p[1] == colour)]
        if related:
            return related[rng.integers(len(related))]
    fresh = [p for p in choice if p not in present]
    return fresh[rng.integers(len(fresh))] if fresh and rng.random() < 0.93 else choice[rng.integers(len(choice))]


def make_scene(seed: int, split: factors.Split, index: int, size: tuple[int, int] = SIZE) -> Scene:
    """Picture number `index` of a split, complete with labels, `size` (width, height); a function of its arguments alone."""
    for number in range(PLANS):  # two hands that cross with much in them may not fit into a narrow picture
        plan = _plan(seed, split, index, number)
        for attempt in range(1, ATTEMPTS + 1):
            scene = _try_scene(plan, picture_rng(seed, split, index, 1000 * number + attempt), size)
            if scene is not None:
                return scene
    raise SceneError(f"{split} picture {index} (seed {seed}): no valid scene of {PLANS} plans in {ATTEMPTS} attempts each, last {plan}")


def _plan(seed: int, split: factors.Split, index: int, number: int) -> Plan:
    """Plan `number` of a picture: all have the hands of the first, which data sets of hands count before anything is drawn."""
    hands = draw_plan(picture_rng(seed, split, index, 0), split).hands
    rng = picture_rng(seed, split, index, 1000 * number)
    while (plan := draw_plan(rng, split)).hands != hands:
        pass
    return plan


def _try_scene(plan: Plan, rng: np.random.Generator, size: tuple[int, int]) -> Scene | None:
    frame = Frame.draw(rng, plan.camera_bin, size)
    people = _place_people(rng, frame, plan)
    if people is None:
        return None
    hands, handled = people
    if hands:
        gap = float(rng.choice([0.003, rng.uniform(0.0, 0.2)])) if not plan.touches else 0.003
        frame = frame.with_table_below([h.vertices for h in hands] + [o.vertices for o in handled], gap)
    light = draw_light(rng, frame)
    parts = [part for hand in hands for part in hand.parts] + [thing.part(k) for k, thing in enumerate(handled)]
    drawn = [draw.draw_layer(part, frame.focal, size, light) for part in parts]
    if any(layer is None and part.id not in FOREARM_IDS.values() for layer, part in zip(drawn, parts, strict=True)):
        return None
    layers = [layer for layer in drawn if layer is not None]
    objects = list(handled)
    for thing in plan.free:
        placed = put_on_table(rng, thing, frame, layers)
        layer = draw.draw_layer(placed.part(len(objects)), frame.focal, size, light) if placed else None
        if placed is not None and layer is not None:
            objects.append(placed)
            layers.append(layer)
    objects, layers, owner = _drop_hidden(objects, layers, len(handled), size)
    mask = draw.id_mask(layers, owner)
    record = _labels(plan, frame, hands, objects, layers, owner, mask)
    if record is None:
        return None
    behind = background.draw(plan.background, size, frame.focal, frame.up, frame.height)
    behind = draw.cast_shadows(behind, [layer.part for layer in layers], frame.focal, frame.up, frame.height, light, rng.uniform(0.15, 0.5))
    return Scene(draw.look(draw.paint(layers, owner, behind), rng), mask, record)


def _place_people(rng: np.random.Generator, frame: Frame, plan: Plan) -> tuple[list[PlacedHand], list[PlacedObject]] | None:
    """The hands with what they hold or touch, None when a hand or thing found no place."""
    person = Person.draw(rng)
    if "both" in plan.holds:
        return _place_two_handed(rng, frame, person, plan.holds["both"])
    hands: list[PlacedHand] = []
    handled: list[PlacedObject] = []
    for side in plan.hands:
        held, touched = plan.holds.get(side), plan.touches.get(side)
        hand = reach_in(rng, frame, person, side, held.grasp if held else None, bool(held) and held.mesh.grip == "rim", plan.crossed)
        if hand is None:
            return None
        placed = put_in_hand(rng, held, hand) if held else put_under_fingers(rng, touched, hand, frame) if touched else None
        if (held or touched) and placed is None:
            return None
        hands.append(replace(hand, held=len(handled) if held else None, touches=placed is not None))
        handled += [placed] if placed else []
    return hands, handled


def _place_two_handed(
    rng: np.random.Generator, frame: Frame, person: Person, thing: Thing
) -> tuple[list[PlacedHand], list[PlacedObject]] | None:
    radius, scale = two_handed_size(rng, thing)
    together = hold_together(rng, frame, person, radius)
    if together is None:
        return None
    hands, middle, axis = together
    return [replace(h, held=0, touches=True) for h in hands], [put_between(rng, thing, scale, middle, axis, frame)]


def draw_light(rng: np.random.Generator, frame: Frame) -> draw.Light:
    """Light from above, most often from behind the camera."""
    direction = frame.up + rng.normal(0, 0.45, 3) + np.array([0, 0, -0.35])
    return draw.Light(direction / np.linalg.norm(direction), float(rng.uniform(0.38, 0.62)))


def _drop_hidden(objects: list[PlacedObject], layers: list[draw.Layer], handled: int, size: tuple[int, int]):
    """Takes away free objects of which too little is seen, so that every object in the picture is labelled; and who owns which pixel."""
    while True:
        owner = draw.lay_together(layers, size)
        seen = draw.seen_shares(layers, owner)
        poor = [i for i, layer in enumerate(layers) if layer.part.id >= OBJECT_ID + handled and seen[i] < 0.4]
        if not poor:
            return objects, layers, owner
        worst = min(poor, key=lambda i: seen[i])
        gone = layers[worst].part.id - OBJECT_ID
        objects = objects[:gone] + objects[gone + 1 :]
        kept = [layer for i, layer in enumerate(layers) if i != worst]
        layers = [draw.renumbered(layer, layer.part.id - 1) if layer.part.id > OBJECT_ID + gone else layer for layer in kept]


def _labels(plan: Plan, frame: Frame, hands: list[PlacedHand], objects: list[PlacedObject], layers, owner, mask) -> dict[str, Any] | None:
    """The record of a scene; None when something to be asked for is not seen well enough or has the wrong size."""
    seen = dict(zip([layer.part.id for layer in layers], draw.seen_shares(layers, owner), strict=True))
    hand_records, object_records = [], []
    for hand in hands:
        box, visible = mask_box(mask, HAND_IDS[hand.side]), seen[HAND_IDS[hand.side]]
        if box is None or visible < 0.45 or not 0.18 <= _span(box, frame.short) <= WIDEST:
            return None
        hand_records.append(hand.record(box, visible, frame))
    for k, placed in enumerate(objects):
        box, visible = mask_box(mask, OBJECT_ID + k), seen[OBJECT_ID + k]
        if (
            box is None
            or visible < (0.3 if placed.touched_by else 0.4)
            or not (0.10 if placed.touched_by else 0.08) <= _span(box, frame.short) <= WIDEST
        ):
            return None
        object_records.append(placed.record(box, visible))
    return {
        "width": frame.size[0], "height": frame.size[1], "camera": {"intrinsics": frame.intrinsics.tolist(), "bin": plan.camera_bin},
        "crossed": plan.crossed, "background": plan.background, "hands": hand_records, "objects": object_records,
    }  # fmt: skip


def _span(box: list[float], size: int) -> float:
    return max(box[2] - box[0], box[3] - box[1]) / size


def mask_box(mask: np.ndarray, id: int) -> list[float] | None:
    """The tight half-open box [x1, y1, x2, y2] of the pixels with an id, or None without any."""
    rows, cols = np.nonzero((mask == id).any(1))[0], np.nonzero((mask == id).any(0))[0]
    return [float(cols[0]), float(rows[0]), float(cols[-1] + 1), float(rows[-1] + 1)] if len(rows) else None
