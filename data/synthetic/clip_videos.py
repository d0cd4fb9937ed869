"""Videos of the egocentric world: a clip's observed frames and its future, filmed on by a camera that goes on turning.

What a label maker has to find out about such a video is known exactly: see `Filming`. The hands of `clips.py`, in its stories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.synthetic import clips, draw, factors, world
from data.synthetic.clip_frames import Stage, draw_frame, homography, within_canvas
from data.synthetic.clip_motion import turning_camera
from data.synthetic.clip_stories import draw_plan, tell

STREAM = 40_000
"""Streams of `world.picture_rng` from here on are these videos'."""
RATE = 20
PAST = 2.25
"""Seconds before the last observed frame; one second follows it."""


@dataclass(frozen=True)
class Filming:
    """A video: `frames` (66) of (H, W, 3) uint8 RGB at RATE Hz, the last observed one is number `last`.

    `homographies` (66, 3, 3) take pixels of a frame to pixels of the last observed one. `future` (2, 21, 2): the middles of the hands'
    amodal boxes from that frame on, every 1/20 s, in its pixels, hands left, right; NaN for a hand that is not there.
    """

    frames: list[np.ndarray]
    last: int
    homographies: np.ndarray
    future: np.ndarray
    narration: str


def make_video(seed: int, split: factors.Split, index: int, size: tuple[int, int] = world.SIZE) -> Filming:
    """Video number `index` of a split, `size` (width, height); a function of its arguments alone."""
    for attempt in range(clips.PLANS * clips.ATTEMPTS):
        plan = draw_plan(world.picture_rng(seed, split, index, STREAM + 1000 * (attempt // clips.ATTEMPTS)), split, index)
        filming = _try_video(plan, world.picture_rng(seed, split, index, STREAM + 1 + attempt), size)
        if filming is not None:
            return filming
    raise world.SceneError(f"{split} video {index} (seed {seed}): no valid video of {clips.PLANS} plans")


def _try_video(plan: clips.ClipPlan, rng: np.random.Generator, size: tuple[int, int]) -> Filming | None:
    from data.synthetic.clip_questions import narration

    story = tell(plan, rng, size)
    if story is None:
        return None
    idle = [clips.hand_path(motion, story.frame) for motion in story.motions]
    action = clips.future_of(story, story.actions[0], idle)
    times = np.arange(-round(PAST * RATE), RATE + 1) / RATE
    meshes = [story.motion(k, story.actions[0]).meshes(times) for k in range(len(story.hands))]
    if action is None or min(float(vertices[:, :, 2].min()) for vertices, _, _ in meshes) < 0.13:
        return None
    filmed = clips.Filmed(meshes, within_canvas(story.frame, turning_camera(rng, times)))
    parts = [thing.part(k) for k, thing in enumerate(story.objects) if not thing.held_by]
    stage = Stage.build(plan.background, story.frame, parts, story.light, rng.uniform(0.15, 0.5))
    lens = draw.Lens.draw(rng)
    moving = clips.moving_parts(story, filmed)
    frames = [lens.see(draw_frame(stage, turn, there).picture, rng) for turn, there in zip(filmed.rotations, moving, strict=True)]
    future = np.array([np.full((len(clips.FUTURE), 2), np.nan) if path is None else path for path in action["future"]])
    homographies = np.stack([homography(story.frame, turn) for turn in filmed.rotations])
    return Filming(frames, round(PAST * RATE), homographies, future, narration(action))
