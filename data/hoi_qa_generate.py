"""Question/answer pairs in HOI-QA's form, from VISOR's and Ego4D's own annotation files; and a validation split by video.

The published data set does not come with its generator. Question types are its eight (Q1 … Q8), wordings are ours:

    Q1 identify a box · Q2 what is happening · Q3 where is the object in the left/right hand · Q4 what is in it · Q5 does it touch anything
    Q6 where is … · Q7 the action with a grounded noun · Q8 a noun, grounded

    VISOR   {"video_annotations": [{"image": {"name", "image_path"?, "video"}, "annotations": [{"id", "name", "segments": [[[x, y], …], …],
            "in_contact_object"?: id | "hand-not-in-contact" | "glove-not-in-contact" | …, "on_which_hand"?: ["left hand"] | null | …}]}]},
            pixels of 1920 × 1080; frame_mapping.json: {video: {VISOR's picture: the same frame among EPIC-KITCHENS' released ones}}
    Ego4D   fho_main.json: {"videos": [{"video_uid", "video_metadata": {"width", "height"}, "annotated_intervals": [{"clip_uid",
            "narrated_actions": [{"narration_text", "frames": [{"frame_number", "boxes": [{"object_type", "structured_noun",
            "bbox": {x, y, width, height}}]}]}]}]}]}

Ego4D does not say which hand an object is in, so its frames get no Q3, Q4 and Q5. A hand that VISOR's annotators called inconclusive
gets none either.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.hoi_qa import NOMINAL_FRAMES, HOIQAError, read_json
from pose_tools.grounding import format_box

Box = tuple[float, float, float, float]
Pair = tuple[str, str, str]

SIDES = ("left", "right")
NOTHING = "none"


@dataclass(frozen=True)
class Hand:
    """`held`: the touched object's name and box; NOTHING: it touches nothing; None: not known."""

    side: str
    box: Box
    held: tuple[str, Box] | Literal["none"] | None = None


@dataclass(frozen=True)
class Frame:
    """One annotated picture; boxes xyxy in pixels of `size` (width, height). `objects` are those that are no hands. `clips`: names of parts
    of its video, by which HOI-QA's files call Ego4D's frames."""

    image_path: str
    video: str
    size: tuple[int, int]
    hands: tuple[Hand, ...]
    objects: tuple[tuple[str, Box], ...]
    narration: str | None = None
    clips: frozenset[str] = frozenset()


def read_frame_mapping(path: str | Path) -> dict[str, dict[int, int]]:
    """VISOR's frame_mapping.json: {video: {its frame number: that of EPIC-KITCHENS' released frames}}. HOIQAError for another form."""
    try:
        return {video: {_number(own): _number(epic) for own, epic in names.items()} for video, names in read_json(Path(path)).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise error if isinstance(error, HOIQAError) else HOIQAError(f"{path}: not VISOR's frame_mapping.json ({error})") from None


def read_visor(path: str | Path, mapping: Mapping[str, Mapping[int, int]] | None = None) -> Iterator[Frame]:
    """Frames of one of VISOR's annotation files; masks become tight boxes. With `mapping` (`read_frame_mapping`) they are called by the
    numbers of EPIC-KITCHENS' released frames, without it by VISOR's own. Raises HOIQAError for a file or record of another form."""
    path = Path(path)
    for number, record in enumerate(_list(read_json(path), "video_annotations", str(path))):
        where = f"{path.name}, record {number}"
        image = _mapping(record, "image", where)
        name, video = str(image.get("name", "")), str(image.get("video", ""))
        if not _NUMBER.search(name) or not video:
            raise HOIQAError(f"{where}: image has name {name!r} and video {video!r}; expected names such as P01_01_frame_0000000140.jpg")
        frame = _number(name)
        if mapping is not None:
            if frame not in mapping.get(video, {}):
                raise HOIQAError(f"{where}: the frame mapping has no frame {frame} of {video}; give VISOR's whole frame_mapping.json")
            frame = mapping[video][frame]
        with _whole_record(where):
            hands, objects = _visor_things(_list(record, "annotations", where))
        image_path = f"EPIC_Kitchens/frames/{video}/frame_{frame:010d}.jpg"
        yield Frame(image_path, video, NOMINAL_FRAMES["EPIC-KITCHENS"], _sorted(hands), tuple(objects))


def _visor_things(rows: list[Any]) -> tuple[list[Hand], list[tuple[str, Box]]]:
    """Hands and objects of a frame's annotations.

    A glove on one hand belongs to it: the hand reaches as far and touches what the glove touches, and the glove alone stands for a hand
    that cannot be seen. A glove on no hand, or on both, is an object.
    """
    things = {row["id"]: (row["name"], _tight(row["segments"]), row) for row in rows if row.get("segments")}
    worn = {key: side for key, (noun, _, row) in things.items() if (side := _worn_on(noun, row))}
    bare = {key: side for key, (noun, _, _) in things.items() for side in SIDES if noun == f"{side} hand"}
    hands = []
    for key, side in (bare | {key: side for key, side in worn.items() if side not in bare.values()}).items():
        _, box, row = things[key]
        glove = row.get("in_contact_object")
        if key in bare and worn.get(glove) == side:
            _, outer, row = things[glove]
            box = (min(box[0], outer[0]), min(box[1], outer[1]), max(box[2], outer[2]), max(box[3], outer[3]))
        hands.append(Hand(side, box, _touched(row, things)))
    return hands, [(noun, box) for key, (noun, box, _) in things.items() if key not in bare and key not in worn]


def _worn_on(noun: str, row: Mapping[str, Any]) -> str | None:
    """The side of the one hand that a glove is on; two of VISOR's pictures do not say, there the glove's name does."""
    named = next((side for side in SIDES if noun == f"{side} glove"), None)
    hands = row.get("on_which_hand", [f"{named} hand"] if named else None)
    return next((side for side in SIDES if hands == [f"{side} hand"]), None)


def _touched(row: Mapping[str, Any], things: Mapping[Any, tuple[str, Box, Any]]) -> Any:
    touched = row.get("in_contact_object")
    if touched in things:
        return things[touched][:2]
    return NOTHING if touched in ("hand-not-in-contact", "glove-not-in-contact") else None


def read_ego4d(path: str | Path) -> Iterator[Frame]:
    """Frames of Ego4D's fho_main.json that have boxes. Raises HOIQAError for a file or record of another form."""
    path = Path(path)
    for number, video in enumerate(_list(read_json(path), "videos", str(path))):
        where = f"{path.name}, video {number}"
        meta = _mapping(video, "video_metadata", where)
        with _whole_record(where):
            yield from _ego4d_frames(video, (int(meta["width"]), int(meta["height"])))


def _ego4d_frames(video: Mapping[str, Any], size: tuple[int, int]) -> list[Frame]:
    uid, frames = str(video["video_uid"]), []
    clips = frozenset(interval["clip_uid"] for interval in video.get("annotated_intervals", ()) if interval.get("clip_uid"))
    actions = [action for interval in video.get("annotated_intervals", ()) for action in interval.get("narrated_actions", ())]
    for action in actions:
        for frame in action.get("frames") or ():
            hands, objects = [], []
            for row in frame.get("boxes", ()):
                kind, noun = row.get("object_type", ""), row.get("structured_noun")
                b = row["bbox"]
                box = _box(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"])
                if kind in ("left_hand", "right_hand"):
                    hands.append(Hand(kind.removesuffix("_hand"), box))
                elif noun:
                    objects.append((noun.replace("_", " ").split(" (")[0], box))
            if hands or objects:
                image_path = f"Ego4D/v2/frames/{uid}/frame_{int(frame['frame_number']):010d}.jpg"
                frames.append(Frame(image_path, uid, size, _sorted(hands), tuple(objects), action.get("narration_text"), clips))
    return frames


def pairs(frame: Frame) -> list[Pair]:
    """(type, question with its tag, answer) of a frame, of all eight types as far as its annotations allow.

    Only things whose name occurs once are asked for by name. Boxes are hundredths of the frame, truncated as in the published files.
    """
    write = lambda box: format_box(box, frame.size, "minigpt", compat="vlm4hoi")  # noqa: E731
    names = [noun for noun, _ in frame.objects]
    single = [(noun, box) for noun, box in frame.objects if names.count(noun) == 1]
    found: list[Pair] = []
    for noun, box in [(f"{hand.side} hand", hand.box) for hand in frame.hands] + single:
        found.append(("Q1", f"[identify] {write(box)}", noun))
        found.append(("Q6", f"[refer] Where can the {noun} be seen?", write(box)))
        found.append(("Q8", f"[detection] {noun}", f"<p>{noun}</p> {write(box)}"))
    missing = [side for side in SIDES if side not in [hand.side for hand in frame.hands]]
    found += [("Q6", f"[refer] Where can the {side} hand be seen?", NOTHING) for side in missing]
    for hand in frame.hands:
        found += _contact(hand, write)
    found += _holding(frame)
    if frame.narration:
        sentence = _sentence(frame.narration)
        found.append(("Q2", "[vqa] What is the person doing here?", sentence))
        if grounded := _grounded(sentence, single, write):
            found.append(("Q7", "[grounding] Say what the person is doing, with the place of what they use.", grounded))
    elif deeds := [(hand.side, hand.held) for hand in frame.hands if isinstance(hand.held, tuple)]:
        found.append(("Q2", "[vqa] What is the person doing here?", _doing(deeds, lambda noun, box: noun)))
        grounded = _doing(deeds, lambda noun, box: f"<p>{noun}</p> {write(box)}")
        found.append(("Q7", "[grounding] Say what the person is doing, with the place of what they use.", grounded))
    return found


def _contact(hand: Hand, write: Any) -> list[Pair]:
    if hand.held is None:
        return []
    where = f"[refer] Where is the thing that the {hand.side} hand holds?"
    what, touch = f"[vqa] What is held in the {hand.side} hand?", f"[vqa] Does the {hand.side} hand touch something?"
    if not isinstance(hand.held, tuple):
        return [("Q3", where, NOTHING), ("Q4", what, NOTHING), ("Q5", touch, f"No, the {hand.side} hand touches nothing.")]
    noun, box = hand.held
    return [("Q3", where, write(box)), ("Q4", what, noun), ("Q5", touch, f"Yes, the {hand.side} hand touches the {noun}.")]


def _holding(frame: Frame) -> list[Pair]:
    """Which hand, or both, holds each thing; hands of which nothing is known leave the question out, as do two things of one name."""
    if any(hand.held is None for hand in frame.hands):
        return []
    things = list(dict.fromkeys(hand.held for hand in frame.hands if isinstance(hand.held, tuple)))
    found = []
    for noun, box in things:
        if [name for name, _ in things].count(noun) > 1:
            continue
        sides = [hand.side for hand in frame.hands if hand.held == (noun, box)]
        found.append(("Q4", f"[vqa] Which hand holds the {noun}?", "both hands" if len(sides) == 2 else f"{sides[0]} hand"))
    return found


def _doing(deeds: list[tuple[str, Any]], word: Any) -> str:
    return f"The person holds {' and '.join(f'a {word(*held)} in the {side} hand' for side, held in deeds)}."


def _sentence(narration: str) -> str:
    """Ego4D's "#C C picks the knife" as a sentence."""
    words = re.sub(r"#\w+\s*", "", narration).strip().rstrip(".")
    words = re.sub(r"\AC\b", "The person", words)
    return f"{words}."


def _grounded(sentence: str, single: list[tuple[str, Box]], write: Any) -> str | None:
    for noun, box in sorted(single, key=lambda thing: -len(thing[0])):
        if match := re.search(rf"\b{re.escape(noun)}\b", sentence):
            return f"{sentence[: match.start()]}<p>{noun}</p> {write(box)}{sentence[match.end() :]}"
    return None


def conversations(frame: Frame, types: Any = None) -> list[dict[str, Any]]:
    """Training records of a frame in the published form, one pair each; `types` such as ("Q1", "Q6") keeps only these."""
    ego4d = frame.image_path.startswith("Ego4D")
    key, picture = ("image_path", frame.image_path) if ego4d else ("image", frame.image_path.removesuffix(".jpg"))
    stem = f"{frame.video}-{Path(frame.image_path).stem}"
    return [
        {
            "id": f"{stem}-{number}",
            "type": kind,
            key: picture,
            "conversations": [{"from": "human", "value": f"<image>\n{q}"}, {"from": "gpt", "value": a}],
        }
        for number, (kind, q, a) in enumerate(pairs(frame))
        if types is None or kind in types
    ]


def split_of(video: str, val_share: float = 0.05, seed: int = 0) -> Literal["train", "val"]:
    """The split of a whole video: a function of its id and the seed alone, so that no video is ever in two."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{video}".encode()).digest()[:8], "big") / 2**64
    return "val" if number < val_share else "train"


_NUMBER = re.compile(r"(\d+)\.\w+\Z")


def _number(name: str) -> int:
    """The number at the end of a picture's name. ValueError for a name without."""
    if not (found := _NUMBER.search(name)):
        raise ValueError(f"{name!r} is no frame's name")
    return int(found[1])


def _tight(segments: list[list[list[float]]]) -> Box:
    points = [point for polygon in segments for point in polygon]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return _box(min(xs), min(ys), max(xs), max(ys))


def _box(*values: Any) -> Box:
    x1, y1, x2, y2 = map(float, values)
    if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
        raise ValueError(f"{values} is no box")
    return x1, y1, x2, y2


def _sorted(hands: list[Hand]) -> tuple[Hand, ...]:
    """Left before right; a second hand of one side (another person's) is left out."""
    return tuple(next(h for h in hands if h.side == side) for side in SIDES if any(h.side == side for h in hands))


@contextmanager
def _whole_record(where: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HOIQAError(f"{where}: not an annotation of the published form ({type(error).__name__}: {error})") from error


def _list(content: Any, key: str, where: str) -> list[Any]:
    value = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(value, list):
        raise HOIQAError(f"{where}: expected an object with a list under {key!r}, got {type(value).__name__}")
    return value


def _mapping(content: Any, key: str, where: str) -> Mapping[str, Any]:
    value = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(value, Mapping):
        raise HOIQAError(f"{where}: expected an object under {key!r}, got {type(value).__name__}")
    return value
