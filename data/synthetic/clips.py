"""Clips of the egocentric world: ten observed frames, and where each hand goes in the next second for every action that could follow.

Points are the middle of a hand's amodal box (all vertices, without the forearm), moved to pixels of the last observed frame by the
frames' homographies. Hands are ordered left, right. Times are seconds from the last observed frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.synthetic import draw, factors, world
from data.synthetic.clip_frames import Drawn, Stage, draw_frame, homography, within_canvas
from data.synthetic.clip_motion import Hand, turning_camera
from data.synthetic.clip_stories import Action, ClipPlan, Story, draw_plan, tell
from data.synthetic.frame import Frame
from data.synthetic.hands import mano_faces
from data.synthetic.placing import OBJECT_ID
from data.synthetic.reaching import HAND_IDS, dress
from pose_tools.raster import vertex_normals
from pose_tools.types import SIDES

OBSERVED = np.arange(-9, 1) / 4
FUTURE = np.arange(21) / 20
STREAM = 20_000
"""Streams of `world.picture_rng` from here on are the clips'."""
PLANS, ATTEMPTS = 9, 40
"""A plan is given up after so many attempts, a clip after so many plans."""


@dataclass(frozen=True)
class ClipScene:
    """A drawn clip: `frames` (10) of (H, W, 3) uint8 RGB, `record` as written to clips.jsonl without ids and paths."""

    frames: list[np.ndarray]
    record: dict[str, Any]


@dataclass(frozen=True)
class Filmed:
    """The hands of a story at the observed moments, camera of the last: per hand vertices (10, 778, 3), joints (10, 21, 3) and axes
    (10, 3, 3), and the camera's rotations (10, 3, 3) from the last frame's."""

    meshes: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    rotations: np.ndarray


def make_clip(seed: int, split: factors.Split, index: int, size: tuple[int, int] = world.SIZE) -> ClipScene:
    """Clip number `index` of a split, `size` (width, height); a function of its arguments alone."""
    for number in range(PLANS):  # some plans have no geometry: as many far apart goals as they want may not be there
        plan = draw_plan(world.picture_rng(seed, split, index, STREAM + 1000 * number), split, index)
        for attempt in range(1, ATTEMPTS):
            clip = _try_clip(plan, world.picture_rng(seed, split, index, STREAM + 1000 * number + attempt), size)
            if clip is not None:
                return clip
    raise world.SceneError(f"{split} clip {index} (seed {seed}): no valid clip of {PLANS} plans in {ATTEMPTS} attempts each, last {plan}")


def _try_clip(plan: ClipPlan, rng: np.random.Generator, size: tuple[int, int]) -> ClipScene | None:
    story = tell(plan, rng, size)
    if story is None:
        return None
    observed = [story.motion(k, story.actions[0]).meshes(OBSERVED) for k in range(len(story.hands))]
    if min(float(vertices[:, :, 2].min()) for vertices, _, _ in observed) < 0.13:
        return None
    idle = [hand_path(story.motions[k], story.frame) for k in range(len(story.hands))]
    actions = [future_of(story, action, idle) for action in story.actions]
    if any(action is None for action in actions):
        return None
    rotations = within_canvas(story.frame, turning_camera(rng, OBSERVED))
    parts = [thing.part(k) for k, thing in enumerate(story.objects) if not thing.held_by]
    stage = Stage.build(plan.background, story.frame, parts, story.light, rng.uniform(0.15, 0.5))
    return _film(plan, story, stage, Filmed(observed, rotations), actions, rng)


def moving_parts(story: Story, filmed: Filmed) -> list[list[draw.Part]]:
    """Hands, forearms and what is held at every moment, camera of the last observed frame."""
    moments: list[list[draw.Part]] = [[] for _ in filmed.rotations]
    for hand, (vertices, joints, axes) in zip(story.hands, filmed.meshes, strict=True):
        normals = _normals(vertices, mano_faces(hand.side))
        for moment, parts in enumerate(moments):
            at = (vertices[moment], joints[moment], axes[moment])
            parts += dress(story.frame, story.person, hand.side, hand.forearm, *at, hand.entry, normals[moment])
    holders = [k for k, hand in enumerate(story.hands) if hand.held is not None]
    if holders:
        hand, (_, joints, axes) = story.hands[holders[0]], filmed.meshes[holders[0]]
        part = story.objects[0].part(0)
        for moment, parts in enumerate(moments):
            turn = axes[moment] @ hand.axes.T
            moved = joints[moment, 0] + (part.vertices - hand.joints[0]) @ turn.T
            parts.append(replace(part, vertices=moved, normals=part.normals @ turn.T))
    return moments


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Of several meshes (N, V, 3) with the same faces in one pass."""
    count, size = vertices.shape[:2]
    stacked = (faces[None] + (np.arange(count) * size)[:, None, None]).reshape(-1, 3)
    return vertex_normals(vertices.reshape(-1, 3), stacked).reshape(vertices.shape)


def _objects(story: Story, stage: Stage, last: Drawn) -> list[dict[str, Any]] | None:
    """The objects' records with their boxes in the last frame; None when a goal or another object is not seen well enough there."""
    numbers, goals = stage.object_mask(last.ids), {action.goal for action in story.actions}
    records, standing = [], 0
    for k, thing in enumerate(story.objects):
        if thing.held_by:
            mask, visible = last.ids == OBJECT_ID, last.seen.get(OBJECT_ID, 0.0)
        else:
            mask, standing = numbers == standing, standing + 1
            layer = draw.draw_layer(thing.part(k), story.frame.focal, story.frame.size, story.light)
            visible = min(float(mask.sum()) * draw.SUPERSAMPLE**2 / layer.area, 1.0) if layer else 0.0
        box = world.mask_box(mask.astype(np.uint8), 1)
        if box is None or visible < (0.25 if thing.held_by else 0.5 if k in goals else 0.35):
            return None
        records.append(thing.record(box, visible))
    return records


def _film(plan: ClipPlan, story: Story, stage: Stage, filmed: Filmed, actions, rng: np.random.Generator) -> ClipScene | None:
    """All frames drawn and labelled; None when a hand or an object is hardly seen in the last one."""
    frame, lens = story.frame, draw.Lens.draw(rng)
    tracks = {hand.side: _Track(filmed.meshes[k], filmed.rotations, story) for k, hand in enumerate(story.hands)}
    parts, frames, objects = moving_parts(story, filmed), [], None
    for moment in reversed(range(len(OBSERVED))):
        drawn = draw_frame(stage, filmed.rotations[moment], parts[moment])
        for side, track in tracks.items():
            track.look(moment, drawn.ids, HAND_IDS[side], drawn.seen.get(HAND_IDS[side], 0.0))
        if objects is None:
            objects = _objects(story, stage, drawn)
            if objects is None or any(track.visible[moment] < 0.45 for track in tracks.values()):
                return None
        frames.append(lens.see(drawn.picture, rng))
    record = {
        "width": frame.size[0], "height": frame.size[1], "camera": {"intrinsics": frame.intrinsics.tolist(), "bin": plan.camera_bin},
        "background": plan.background, "story": plan.story, "times": OBSERVED.tolist(),
        "homographies": np.round([homography(frame, r) for r in filmed.rotations], 9).tolist(),
        "hands": [tracks[hand.side].record(hand.side, hand.side in story.person.gloves) for hand in story.hands], "objects": objects,
        "past": [tracks[s].past.round(3).tolist() if s in tracks else None for s in SIDES],
        "past_valid": [tracks[s].valid().tolist() if s in tracks else [False] * len(OBSERVED) for s in SIDES],
        "future_times": FUTURE.tolist(), "actions": actions,
    }  # fmt: skip
    return ClipScene(frames[::-1], record)


class _Track:
    """What there is to say about one hand in all observed frames."""

    def __init__(self, meshes: tuple[np.ndarray, np.ndarray, np.ndarray], rotations: np.ndarray, story: Story) -> None:
        vertices, joints, _ = meshes
        frame, turn = story.frame, np.swapaxes(rotations, 1, 2)
        outline = frame.project((vertices @ turn).reshape(-1, 3)).reshape(len(rotations), -1, 2)
        self.joints = frame.project((joints @ turn).reshape(-1, 3)).reshape(len(rotations), -1, 2)
        self.amodal = np.concatenate([outline.min(1), outline.max(1)], axis=1)
        self.centre = (self.amodal[:, :2] + self.amodal[:, 2:]) / 2
        self.inside = ((self.centre >= 0) & (self.centre < frame.extent)).all(1)
        moved = np.stack([homography(frame, r) @ [*c, 1] for r, c in zip(rotations, self.centre, strict=True)])
        self.past = moved[:, :2] / moved[:, 2:]
        self.boxes: list[list[float] | None] = [None] * len(rotations)
        self.visible = np.zeros(len(rotations))

    def look(self, moment: int, ids: np.ndarray, id: int, visible: float) -> None:
        """Notes what is seen of the hand in a frame."""
        self.boxes[moment], self.visible[moment] = world.mask_box(ids, id), visible

    def valid(self) -> np.ndarray:
        """(10,) bool: a quarter of the hand is seen, and its middle is in the picture."""
        return self.inside & (self.visible >= 0.25) & np.array([box is not None for box in self.boxes])

    def record(self, side: str, glove: bool) -> dict[str, Any]:
        """The hand's entry in clips.jsonl: boxes in each frame's own pixels, seen and amodal."""
        return {
            "side": side, "glove": glove, "boxes": self.boxes, "amodal_boxes": self.amodal.round(2).tolist(),
            "visible_fraction": self.visible.round(3).tolist(), "joints_2d": self.joints.round(2).tolist(),
        }  # fmt: skip


def hand_path(motion: Hand, frame: Frame) -> np.ndarray | None:
    """(21, 2) pixels: the middle of the hand's box in the future; None when it comes too near to the lens."""
    vertices, _, _ = motion.meshes(FUTURE)
    if vertices[:, :, 2].min() < 0.13:
        return None
    points = frame.project(vertices.reshape(-1, 3)).reshape(len(FUTURE), -1, 2)
    return (points.min(1) + points.max(1)) / 2


def future_of(story: Story, action: Action, idle: list[np.ndarray | None]) -> dict[str, Any] | None:
    """An action's record: paths (21, 2) of each hand in pixels of the last frame, `idle` those of hands that do nothing.

    None when the acting hand leaves the picture."""
    paths: dict[str, np.ndarray] = {}
    for k, hand in enumerate(story.hands):
        motion = story.motion(k, action)
        path = idle[k] if motion is story.motions[k] else hand_path(motion, story.frame)
        if path is None:
            return None
        paths[hand.side] = path
    inside = {side: ((path >= 0) & (path < story.frame.extent)).all(1) for side, path in paths.items()}
    acting = [action.side] if action.side else list(SIDES)
    if not all(inside[side].all() for side in acting):
        return None
    goal = story.objects[action.goal].thing if action.goal is not None else None
    moves = [move.way(np.zeros(1))[0] for move in action.moves]
    return {
        "kind": action.kind, "verb": action.verb, "side": action.side, "direction": action.direction,
        "goal": {"name": goal.name, "colour": goal.colour, "object": action.goal} if goal else None,
        "nearest": action.side is None or action.side == _nearest(story, action), "phase": round(float(moves[0]), 4) if moves else 0.0,
        "future": [paths[s].round(3).tolist() if s in paths else None for s in SIDES],
        "future_valid": [inside[s].tolist() if s in paths else [False] * len(FUTURE) for s in SIDES],
    }  # fmt: skip


def _nearest(story: Story, action: Action) -> str | None:
    """The side whose hand is nearest to the goal when it starts; the only free hand if the other one holds something."""
    free = [hand for hand in story.hands if hand.held is None]
    if action.goal is None or not free:
        return None if len(story.hands) > 1 else story.hands[0].side
    goal = story.frame.project(story.objects[action.goal].vertices).mean(0)
    return min(free, key=lambda hand: float(np.linalg.norm(story.frame.project(hand.joints).mean(0) - goal))).side
