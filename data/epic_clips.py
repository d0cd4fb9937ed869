"""Clips and the paths that follow them: an EPIC-KITCHENS folder, real or synthetic, as samples.

Groups of actions that begin from the same observed frames share a clip. What cannot be used (frames that are not there, a label that is
broken or says nothing) is counted, said, and too much of it is an error.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.epic_conversations import WORDINGS, action_question, narration_turns, question_turns, read_paraphrases
from data.epic_kitchens import (
    FRAME_SIZE,
    LATEST,
    Action,
    EpicError,
    clip_frames,
    frame_path,
    frames_before,
    observed_frames,
    read_actions,
    read_questions,
    trajectory_label,
)
from data.json_file import read_json
from data.sample import Sample, Source, assistant, user
from data.synthetic.clip_questions import question
from pose_tools.body_models.read import UnsafePickleError
from pose_tools.image_io import ImageError
from pose_tools.types import SIDES

logger = logging.getLogger(__name__)

LABEL_RATE = 20
"""Points a second in a label."""
ANNOTATION_FILES = ("EPIC_100_train.csv", "EPIC_100_validation.csv")


class FrameError(EpicError, ImageError):
    """A frame that is there and cannot be read."""


@dataclass(frozen=True)
class ClipAction:
    """An action that can be asked about: its row, its label's paths (2, T, 2) in pixels and which points it has (2, T), left, right;
    `now` (2, 2) and `now_valid` (2,) the same of the last observed moment."""

    action: Action
    future: np.ndarray
    valid: np.ndarray
    now: np.ndarray
    now_valid: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)
    """What the synthetic journal says beside: side, goal, kind, phase, nearest."""


@dataclass(frozen=True)
class Clip:
    """Observed frames, first to last, and the actions that begin from them. `name` is the last frame's path under the root; `past`
    (2, frames, 2) pixels of the last frame and `past_valid` (2, frames), hands left, right; None where labels tell its moment alone."""

    name: str
    frames: tuple[Path, ...]
    actions: tuple[ClipAction, ...]
    past: np.ndarray | None = None
    past_valid: np.ndarray | None = None


class EpicClips:
    """The clips of a folder, in the order of its annotation file.

    Args:
        root: the folder with frames `<Pxx>/rgb_frames/…`.
        annotations: the csv file; by default the one in `root`.
        labels: the folder of `label_<uid>.pkl`; by default `root/labels`. Where the published list of uids, `video_info.json`, lies
            beside that folder, actions that are not in it are left out, as published.
        first_uid: rows of the annotation files before this one (validation's uids go on from train's).
        count, rate: observed frames and how many a second; fps of the video; `gap` seconds between the last one and the action.
        steps, step_rate: points of a path and how many a second, after the last observed frame.
        say_goal: answers give the box of the goal, where it is known, before the path.
        limit: only the first so many clips.
        tolerance: largest share of actions that may be unusable.
        wording: None asks in our words; "narration", "reasoning" and "action" hold HandsOnVLM's conversations (see
            `data.epic_conversations`), whose paths count hand by hand, steps outside the frame too, also where a label has no hand.
        questions: for "reasoning", the file of questions; clips that are not in it are left out.
        paraphrases: a file of them; with chance `paraphrase_rate` one stands for a narration ("narration", "action").

    Raises EpicError when files are missing or too much is unusable, UnsafePickleError for a label with code in it.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        annotations: str | Path | None = None,
        labels: str | Path | None = None,
        first_uid: int = 0,
        fps: float = 60.0,
        count: int = 10,
        rate: float = 4.0,
        gap: float = 1.0,
        steps: int = 4,
        step_rate: float = 4.0,
        say_goal: bool = False,
        limit: int | None = None,
        tolerance: float = 0.05,
        wording: str | None = None,
        questions: str | Path | None = None,
        paraphrases: str | Path | None = None,
        paraphrase_rate: float = 0.5,
    ) -> None:
        self.root = Path(root)
        if wording not in (None, *WORDINGS) or (wording == "reasoning") != (questions is not None):
            raise EpicError(
                f"wording {wording!r} with questions {questions}: wording is one of {', '.join(WORDINGS)} or none, and 'reasoning' alone "
                "needs its file of questions"
            )
        self.wording, self.paraphrase_rate = wording, paraphrase_rate
        self.questions = {} if questions is None else read_questions(questions)
        self.paraphrases = {} if paraphrases is None else read_paraphrases(paraphrases)
        self.say_goal = say_goal
        if not (steps > 0 and 0 < step_rate < float("inf") and 0 <= paraphrase_rate <= 1):
            raise EpicError(
                f"{steps} steps at {step_rate} Hz, paraphrase_rate {paraphrase_rate}: expected positive numbers, and a chance from 0 to 1"
            )
        self._set_times(fps, count, rate, gap, steps, step_rate)
        self.labels = Path(labels) if labels is not None else self.root / "labels"
        table = Path(annotations) if annotations is not None else self._annotations()
        actions = read_actions(table, first_uid)
        self.skipped: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self.clips = self._clips(self._listed(actions), self._journal(), limit)
        self._report(actions, tolerance)
        self._warn_of_published_numbers(table, first_uid)

    def __len__(self) -> int:
        return len(self.clips)

    def _set_times(self, fps: float, count: int, rate: float, gap: float, steps: int, step_rate: float) -> None:
        """When a clip's frames and the points of its path are; EpicError for numbers that mean nothing, before any action is looked at."""
        observed_frames(LATEST - 1, fps, count=count, rate=rate, gap=gap)
        self.count, self.rate, self.gap, self.fps = count, rate, gap, fps
        self.times = (np.arange(count) - count + 1) / rate
        self.future_times = np.arange(1, steps + 1) / step_rate
        self.label_steps = [0, *np.round(self.future_times * LABEL_RATE).astype(int).tolist()]
        if self.label_steps[-1] > LABEL_RATE:
            raise EpicError(f"{steps} points at {step_rate} Hz reach beyond the second that labels cover; ask for fewer points")

    def _annotations(self) -> Path:
        found = [self.root / name for name in ANNOTATION_FILES if (self.root / name).is_file()]
        if len(found) != 1:
            which = "several" if found else "no"
            raise EpicError(f"{self.root}: {which} annotation files ({', '.join(ANNOTATION_FILES)}) there; name one with `annotations`")
        return found[0]

    def _listed(self, actions: Sequence[Action]) -> Sequence[Action]:
        """Those that the published list of labels names; all without such a list."""
        file = self.labels.parent / "video_info.json"
        if not file.is_file():
            return actions
        try:
            uids = read_json(file)
        except (OSError, ValueError) as error:
            raise EpicError(f"{file}: not whole json ({error})") from None
        if not isinstance(uids, list) or not all(type(uid) is int for uid in uids):
            raise EpicError(f"{file}: expected a list of uids, whole numbers; the published file came with the labels")
        known = set(uids)
        listed = [action for action in actions if action.uid in known]
        if len(listed) < len(actions):
            logger.info("%s: names %d of %d actions; the others are left out", file, len(listed), len(actions))
        if actions and not listed:
            raise EpicError(
                f"{file}: names none of the actions {actions[0].uid} to {actions[-1].uid}; first_uid must be the number of rows of the "
                "annotation files before this one"
            )
        return listed

    def _journal(self) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
        """uid → (clip's record, action's record) of a synthetic folder; empty for a real one."""
        from data.synthetic.epic_writer import read_clip_records

        if not (self.root / "clips.jsonl").is_file():
            return {}
        return {
            action["uid"]: (record, action | {"goal_box": _goal_box(record, action)})
            for record in read_clip_records(self.root)
            for action in record["actions"]
        }

    def _clips(self, actions: Sequence[Action], known: dict[int, Any], limit: int | None) -> list[Clip]:
        starts: dict[tuple[str, int], list[Action]] = {}
        for action in actions:
            starts.setdefault((action.video_id, action.start_frame), []).append(action)
        clips: list[Clip] = []
        for members in tqdm(starts.values(), desc=f"{self.root.name} clips", unit="clip", disable=None if len(starts) > 2000 else True):
            if limit is not None and len(clips) >= limit:
                break
            if self.wording == "reasoning" and self._asked_of(members[0]) not in self.questions:
                continue
            clip = self._clip(members, known)
            if clip is not None:
                clips.append(clip)
        return clips

    def _asked_of(self, action: Action) -> str | None:
        """The frame that questions about an action are filed under."""
        try:
            last = frames_before(action, self.fps, count=self.count, rate=self.rate, gap=self.gap)[-1]
        except EpicError:
            return None
        return frame_path(action.participant_id, action.video_id, last)

    def _clip(self, members: Sequence[Action], known: dict[int, Any]) -> Clip | None:
        first = members[0]
        try:
            frames_before(first, self.fps, count=self.count, rate=self.rate, gap=self.gap)
        except EpicError as error:
            self._skip("begin before anything is observed", f"action {first.uid}: {error}", len(members))
            return None
        try:
            frames = clip_frames(first, self.root, self.fps, count=self.count, rate=self.rate, gap=self.gap)
        except EpicError as error:
            self._skip("have missing frames", str(error), len(members))
            return None
        actions = [found for action in members if (found := self._action(action, known)) is not None]
        if not actions:
            return None
        record = known[first.uid][0] if first.uid in known else None
        past = None if record is None else np.array([np.full((self.count, 2), np.nan) if p is None else p for p in record["past"]])
        seen = None if record is None else np.array(record["past_valid"], bool)
        return Clip(str(frames[-1].relative_to(self.root).as_posix()), tuple(frames), tuple(actions), past, seen)

    def _action(self, action: Action, known: dict[int, Any]) -> ClipAction | None:
        try:
            label = trajectory_label(self.labels / f"label_{action.uid}.pkl", (1, 1), self.label_steps)
        except UnsafePickleError:
            raise
        except EpicError as error:
            self._skip("have no label, or a broken one", str(error))
            return None
        points, known_points = label["future_hands"].astype(np.float64), label["step_known"]
        future, known_points, now, now_valid = points[:, 1:], known_points[:, 1:], points[:, 0], known_points[:, 0]
        if not known_points.any() and self.wording is None:  # the published conversations are held, and counted, without hands, too
            self._skip("have a label without hands", f"{self.labels / f'label_{action.uid}.pkl'}: no point that is asked for")
            return None
        return ClipAction(action, future, known_points, now, now_valid, known[action.uid][1] if action.uid in known else {})

    def _skip(self, reason: str, problem: str, count: int = 1) -> None:
        logger.debug("%s", problem)
        self.skipped[reason] += count
        self._examples.setdefault(reason, problem)

    def _report(self, actions: Sequence[Action], tolerance: float) -> None:
        lost = sum(self.skipped.values())
        if lost:
            reasons = "; ".join(f"{count} {reason}, such as {self._examples[reason]}" for reason, count in self.skipped.most_common())
            logger.warning("%s: %d of %d actions are left out: %s", self.root, lost, len(actions), reasons)
            if lost > tolerance * len(actions):
                raise EpicError(
                    f"{self.root}: {lost} of {len(actions)} actions cannot be used ({reasons}), more than {tolerance:.0%}. Complete the "
                    "folder, or raise `tolerance`"
                )
        strangers = set(self.questions) - {key for action in actions if (key := self._asked_of(action)) is not None}
        if strangers:
            logger.warning("%s: %d of %d frames with questions are the last observed one of no action here, such as %s; their annotations, "
                           "`fps` and `gap` must be those of the questions", self.root, len(strangers), len(self.questions),
                           min(strangers))  # fmt: skip
        if not self.clips:
            why = f"{lost} are left out" if lost else "none is asked about" if self.wording == "reasoning" else "none is asked for"
            raise EpicError(f"{self.root}: no clip can be used: of {len(actions)} actions {why}")

    def _warn_of_published_numbers(self, table: Path, first_uid: int) -> None:
        """What the published labels take for granted, and what nothing in a folder shows."""
        before = table.with_name(ANNOTATION_FILES[0])
        if table.name == ANNOTATION_FILES[1] and first_uid == 0 and before.is_file():
            logger.warning("%s: its labels are counted from label_0.pkl on; the published ones go on from those of %s: first_uid=%d",
                           table, before.name, len(read_actions(before)))  # fmt: skip
        if any((self.root / own).is_file() for own in ("clips.jsonl", "prepared.json")):
            return
        with suppress(EpicError):  # told when the clip is read
            if (size := _size(self.clips[0].frames[-1])) != FRAME_SIZE:
                logger.warning("%s: its frames are %d x %d; labels count in pixels of them, and the published labels are of 456 x 256. "
                               "Resize the frames if these are published labels", self.root, *size)  # fmt: skip

    def samples(self, index: int, *, split: str, seed: int) -> list[Sample]:
        """All that is asked about clip `index`: a function of the arguments."""
        clip = self.clips[index]
        size = _size(clip.frames[-1])
        return [self._sample(clip, action, size, split, seed) for action in clip.actions]

    def _sample(self, clip: Clip, action: ClipAction, size: tuple[int, int], split: str, seed: int) -> Sample:
        row, about = action.action, action.about
        rng = np.random.default_rng([seed, zlib.crc32(f"{self.root.name}/{row.uid}".encode())])
        side = about.get("side") if about.get("side") in SIDES else None
        both = about.get("kind") == "turn"
        points = action.future
        inside = ((points >= 0) & (points < size)).all(-1)
        valid = action.valid & inside
        video = {"type": "video", "video": [str(path) for path in clip.frames], "times": self.times.tolist()}
        if self.wording is None:
            words = question(row.narration, rng, split, side, name_side=not about.get("nearest", True), plural=both)
            part = {"type": "trajectory", "points": np.where(valid[..., None], points, 0.0), "valid": valid}
            goal = about.get("goal_box") if self.say_goal else None
            messages = [user(video, words), assistant(*([{"type": "box", "bbox_xyxy": goal}] if goal else []), part)]
        else:
            messages = self._published(clip, action, video, rng)
        past: tuple[Any, ...] = (clip.past, clip.past_valid, self.times)
        if clip.past is None:
            past = (action.now[:, None], action.now_valid[:, None], self.times[-1:])
        dataset, licence = ("synthetic clips", "Apache-2.0") if about else ("epic_kitchens", "CC BY-NC 4.0")
        return Sample(
            id=f"{row.video_id}-{row.uid}",
            messages=messages,
            source=Source(dataset, row.video_id, row.start_frame, licence),
            targets={
                "kind": "trajectory", "future": points, "valid": valid, "labelled": action.valid.any(-1), "past": past[0],
                "past_valid": past[1], "past_times": past[2], "future_times": self.future_times, "size": size,
                "narration": row.narration, "side": side, "goal": _goal(about), "goal_point": _middle(about.get("goal_box")),
                "action": about.get("kind"), "start": clip.name, "phase": about.get("phase"),
            },
        )  # fmt: skip

    def _published(self, clip: Clip, action: ClipAction, video: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
        there = np.expand_dims(action.valid.any(1), (1, 2))
        part = {"type": "trajectory", "points": np.where(there, action.future, 0.0), "valid": action.valid}
        if self.wording == "reasoning":
            asked = self.questions[clip.name]
            return question_turns(asked[int(rng.integers(len(asked)))], video, part, rng)
        row, others = action.action, self.paraphrases.get(action.action.narration, ())
        if others and rng.random() < self.paraphrase_rate:
            row = replace(row, narration=others[int(rng.integers(len(others)))])
        if self.wording == "action":
            return question_turns(action_question(row, rng), video, part, rng)
        return narration_turns(row, video, part, rng)


def _size(frame: Path) -> tuple[int, int]:
    """(width, height) of a picture, of its header alone."""
    try:
        with Image.open(frame) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError) as error:  # PIL's, for broken headers
        raise FrameError(f"{frame}: not a picture that can be read ({error}); get it again, or delete it to leave its clips out") from error


def _goal_box(record: dict[str, Any], action: dict[str, Any]) -> list[float] | None:
    """The goal's box in pixels of the last frame."""
    return record["objects"][action["goal"]["object"]]["bbox_xyxy"] if action["goal"] else None


def _middle(box: list[float] | None) -> list[float] | None:
    """Of the goal's box, for evaluation; no question shows it."""
    return None if box is None else [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]


def _goal(about: dict[str, Any]) -> str | None:
    goal = about.get("goal")
    return f"{goal['colour']} {goal['name']}" if goal else None


def read_clips(root: str | Path, *, split: str = "train", seed: int = 0, **options: Any) -> Iterator[Sample]:
    """The samples of all clips of a folder; `options` as for `EpicClips`."""
    clips = EpicClips(root, **options)
    for index in range(len(clips)):
        yield from clips.samples(index, split=split, seed=seed)
