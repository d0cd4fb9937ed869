"""What happens in a clip: who is there, what stands on the table, and one or several actions that begin from the same observed frames.

The story of a clip:
    "rest"    a hand rests (it may have come there before); each action is a reach that begins now, for another hand or goal
    "moving"  a hand is on its way to its goal, up to 0.6 of the way
    "pause"   the hands stay where they are, whatever they hold
    "turn"    both hands turn a thing that they hold
A reach may be a "miss": it stops before its goal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import draw, factors, world
from data.synthetic.clip_goals import Reacher, goal_stance, reach
from data.synthetic.clip_motion import Drift, Hand, Move, Stance, Turn, posed, time_share
from data.synthetic.frame import Frame
from data.synthetic.placing import PlacedObject, Thing, put_between, put_in_hand, put_on_table, two_handed_size
from data.synthetic.reaching import Person, PlacedHand, hold_together, reach_in
from pose_tools.types import SIDES, Side

ACTIONS = (3, 1, 4, 1, 2, 1)
"""How many actions clips 0, 1, … 5, 6, … have: those with several begin at rest. Fixed, so that an action's number is known at once."""
REACHING = ("take", "touch", "reach for", "grab", "push", "pick up")
MISSING = ("stop before", "almost touch")
MISS_SHARE = 0.12
FARTHEST = 0.6
"""The largest share of the way that is done when the observation ends."""


@dataclass(frozen=True)
class ClipPlan:
    """What a clip is to show, drawn once; only the geometry is drawn again when it does not work out."""

    split: factors.Split
    story: str
    count: int
    hands: tuple[Side, ...]
    holder: str | None
    """Side that holds `held`, or "both"."""
    held: Thing | None
    free: tuple[Thing, ...]
    background: int
    camera_bin: int


@dataclass(frozen=True)
class Action:
    """One future: `kind` reach, miss, pause or turn, said as `verb`; `side` acts (None: both) on object number `goal` (None: nothing)."""

    kind: str
    verb: str
    side: Side | None
    goal: int | None
    moves: tuple[Move, ...] = ()
    turn: Turn | None = None
    direction: str | None = None


@dataclass(frozen=True)
class Story:
    """A clip before it is drawn. `hands`: as placed at time 0 or, when moving, where the reach began; `motions` of the same hands
    up to time 0; `objects`, of which the first is held if `holder` says so."""

    frame: Frame
    person: Person
    light: draw.Light
    hands: tuple[PlacedHand, ...]
    motions: tuple[Hand, ...]
    objects: tuple[PlacedObject, ...]
    actions: tuple[Action, ...]

    def motion(self, hand: int, action: Action) -> Hand:
        """How a hand moves when an action is done."""
        motion = self.motions[hand]
        if action.turn is not None:
            return replace(motion, turns=(action.turn,))
        return replace(motion, moves=motion.moves + action.moves) if motion.side == action.side else motion


def count_before(index: int) -> int:
    """How many actions the clips before number `index` have together."""
    rounds, rest = divmod(index, len(ACTIONS))
    return rounds * sum(ACTIONS) + sum(ACTIONS[:rest])


def draw_plan(rng: np.random.Generator, split: factors.Split, index: int) -> ClipPlan:
    """Who and what: a hand is missing in three tenths of the clips, three to five things stand on the table, no two called the same."""
    count = ACTIONS[index % len(ACTIONS)]
    story = "rest" if count > 1 else str(rng.choice(["moving", "pause", "turn"], p=[0.72, 0.14, 0.14]))
    hands: tuple[Side, ...] = SIDES if story == "turn" or rng.random() < (0.9 if count > 2 else 0.7) else (SIDES[rng.integers(2)],)
    choice, present = factors.pairs(split), list[tuple[str, str]]()
    holder, held = None, None
    if story == "turn":
        wide = [pair for pair in choice if pair[0] in ("bowl", "plate", "ball")]
        holder, held = "both", Thing.draw(rng, wide[rng.integers(len(wide))], split)
    elif rng.random() < (0.5 if story == "pause" else 0.25 if len(hands) == 2 and count < 3 else 0):
        holder, held = str(rng.choice(hands)), Thing.draw(rng, choice[rng.integers(len(choice))], split)
    if held is not None:
        present.append((held.name, held.colour))
    for _ in range(int(rng.integers(4, 6) if count > 2 else rng.integers(3, 5))):
        pair = world.another_pair(rng, choice, present)
        if pair not in present:
            present.append(pair)
    free = tuple(Thing.draw(rng, pair, split) for pair in present[held is not None :])
    return ClipPlan(
        split,
        story,
        count,
        hands,
        holder,
        held,
        free,
        factors.draw_background_seed(rng, split),
        int(rng.choice(factors.camera_bins(split))),
    )


def tell(plan: ClipPlan, rng: np.random.Generator, size: tuple[int, int]) -> Story | None:
    """A story of the plan, `size` (width, height) pixels; None when the drawn geometry does not allow it."""
    frame = Frame.draw(rng, plan.camera_bin, size)
    person = Person.draw(rng)
    people = _people(rng, frame, person, plan)
    if people is None:
        return None
    hands, handled, pivot = people
    frame = frame.with_table_below([h.vertices for h in hands] + [o.vertices for o in handled], rng.uniform(0.0, 0.05))
    light = world.draw_light(rng, frame)
    objects = _on_table(rng, plan, frame, hands, handled, light)
    if objects is None:
        return None
    steady = _drift(rng) if plan.holder == "both" else None
    reachers = [Reacher.of(hand, frame) for hand in hands]
    motions = tuple(
        Hand(r.side, r.betas, r.offset, *_earlier(rng, r.stance, frame, plan), turns=(), drift=steady or _drift(rng)) for r in reachers
    )
    story = Story(frame, person, light, tuple(hands), motions, tuple(objects), ())
    if plan.story in ("pause", "turn"):
        action = _turn(rng, objects[0], *pivot) if pivot else _pause(rng, plan, len(handled) > 0)
        return replace(story, actions=(action,))
    return _reaches(rng, plan, story, reachers, len(handled))


def _people(rng: np.random.Generator, frame: Frame, person: Person, plan: ClipPlan):
    """Hands, what they hold, and the middle (3,) of a thing held by both; None when there was no room."""
    if plan.holder == "both" and plan.held is not None:
        radius, scale = two_handed_size(rng, plan.held)
        together = hold_together(rng, frame, person, radius)
        if together is None:
            return None
        hands, middle, axis = together
        return [replace(h, held=0) for h in hands], [put_between(rng, plan.held, scale, middle, axis, frame)], (middle,)
    hands, handled = [], []
    for side in plan.hands:
        thing = plan.held if plan.holder == side else None
        hand = reach_in(rng, frame, person, side, thing.grasp if thing else None, bool(thing) and thing.mesh.grip == "rim", False)
        if hand is None:
            return None
        if thing:
            placed = put_in_hand(rng, thing, hand)
            if placed is None:
                return None
            handled, hand = [placed], replace(hand, held=0)
        hands.append(hand)
    return hands, handled, None


def _on_table(rng: np.random.Generator, plan: ClipPlan, frame: Frame, hands, handled, light) -> list[PlacedObject] | None:
    """All objects, held ones first; None when fewer than two stand on the table at a distance the hands can reach."""
    parts = [part for hand in hands for part in hand.parts] + [thing.part(k) for k, thing in enumerate(handled)]
    drawn = [draw.draw_layer(part, frame.focal, frame.size, light) for part in parts]
    if any(layer is None and part.whole for layer, part in zip(drawn, parts, strict=True)):
        return None
    layers = [layer for layer in drawn if layer is not None]
    objects, depth = list(handled), float(np.mean([hand.joints[9, 2] for hand in hands]))
    for thing in plan.free:
        for _ in range(3):
            placed = put_on_table(rng, thing, frame, layers)
            if placed is not None and 0.6 < placed.vertices[:, 2].mean() / depth < 1.5:
                break
        else:
            continue
        layer = draw.draw_layer(placed.part(len(objects)), frame.focal, frame.size, light)
        if layer is not None:
            objects.append(placed)
            layers.append(layer)
    return objects if len(objects) - len(handled) >= 2 else None


def _drift(rng: np.random.Generator) -> Drift:
    """Some millimetres and a degree or two."""
    size = np.array([*(rng.uniform(0.002, 0.007) * np.ones(3)), *(rng.uniform(0.01, 0.05) * np.ones(3))])
    return Drift.draw(rng, size, (0.15, 0.6))


def _earlier(rng: np.random.Generator, stance: Stance, frame: Frame, plan: ClipPlan) -> tuple[Stance, tuple[Move, ...]]:
    """Where a hand was when the clip began and how it came to its stance: three fifths moved there and were at rest before time −0.3."""
    if plan.holder == "both" or rng.random() < 0.4:
        return stance, ()
    shift = rng.normal(0, 0.05, 3) + frame.up * rng.uniform(-0.02, 0.06)
    before = Stance(Rotation.from_rotvec(rng.normal(0, 0.25, 3)).as_matrix() @ stance.rotation, stance.wrist + shift, stance.pose)
    start = rng.uniform(-2.5, -1.1)
    return before, (Move(stance, start, min(rng.uniform(0.6, 1.3), -0.3 - start), frame.up * 0.01, np.zeros(45)),)


def _pause(rng: np.random.Generator, plan: ClipPlan, holds: bool) -> Action:
    side = plan.holder if holds else plan.hands[rng.integers(len(plan.hands))]
    return Action("pause", "hold" if holds else str(rng.choice(["wait", "rest"])), side, 0 if holds else None)  # type: ignore[arg-type]


def _turn(rng: np.random.Generator, thing: PlacedObject, middle: np.ndarray) -> Action:
    """Like a steering wheel, about the line of sight: to the right is clockwise as the person sees it."""
    right = rng.random() < 0.5
    axis = middle / np.linalg.norm(middle)
    angle = np.radians(rng.uniform(38, 52)) * (1 if right else -1)
    turn = Turn(middle, axis, angle, rng.uniform(-0.35, 0.05), rng.uniform(0.85, 1.05))
    return Action("turn", "turn", None, 0, turn=turn, direction="right" if right else "left")


def _reaches(rng: np.random.Generator, plan: ClipPlan, story: Story, reachers: list[Reacher], handled: int) -> Story | None:
    """The story with as many reaches as planned, to clearly different places; None when there are not as many."""
    frame, found, ends = story.frame, list[Action](), list[tuple[Side, np.ndarray]]()
    tries = []
    for hand in (reachers[k] for k, placed in enumerate(story.hands) if placed.held is None):
        missed = rng.random(len(story.objects)) < MISS_SHARE
        goals = range(handled, len(story.objects))
        stances = [goal_stance(rng, hand, story.objects[goal], frame) for goal in goals]
        stances = [hand.stance.towards(s, rng.uniform(0.6, 0.7)) if missed[goal] else s for goal, s in zip(goals, stances, strict=True)]
        centres, room = _centres(hand, [hand.stance, *stances], frame)
        tries += [
            (hand, goal, stance, bool(missed[goal]), centre, centres[0])
            for goal, stance, centre, fits in zip(goals, stances, centres[1:], room[1:], strict=True)
            if fits
        ]
    for number in rng.permutation(len(tries)):
        hand, goal, stance, missed_it, end, start = tries[number]
        apart = [np.linalg.norm(end - other) for side, other in ends if side == hand.side]
        if min([np.linalg.norm(end - start), *apart]) < 0.15 * frame.short:
            continue
        move = reach(rng, hand, stance, rng.uniform(0.0, 0.06), frame)
        if plan.story == "moving":
            way = rng.uniform(0.02, FARTHEST)
            move = replace(move, start=-time_share(way) * move.duration)
        kind, verbs = ("miss", MISSING) if missed_it else ("reach", REACHING)
        found.append(Action(kind, verbs[rng.integers(len(verbs))], hand.side, goal, (move,)))
        ends.append((hand.side, end))
        if len(found) == plan.count:
            return _without_hurry(replace(story, actions=tuple(found)), plan)
    return None


def _without_hurry(story: Story, plan: ClipPlan) -> Story:
    """A moving hand had no earlier movement: its reach may have begun before that ended."""
    if plan.story != "moving":
        return story
    side = story.actions[0].side
    still = [replace(m, first=m.moves[-1].to, moves=()) if m.side == side and m.moves else m for m in story.motions]
    return replace(story, motions=tuple(still))


def _centres(hand: Reacher, stances: list[Stance], frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2) of the middle of the hand's box in each stance, and (N,) whether that is well in the picture and of a usual size."""
    rotations, wrists, poses = (np.stack([getattr(s, name) for s in stances]) for name in ("rotation", "wrist", "pose"))
    vertices, _ = posed(hand.side, rotations, wrists, poses, hand.betas, hand.offset)
    points = frame.project(vertices.reshape(-1, 3)).reshape(len(stances), -1, 2)
    low, high = points.min(1), points.max(1)
    centre, span = (low + high) / 2, (high - low).max(1) / frame.short
    inside = ((centre > 0.05 * frame.extent) & (centre < 0.95 * frame.extent)).all(1)
    return centre, (vertices[:, :, 2].min(1) > 0.15) & (span > 0.13) & (span < 0.5) & inside
