"""SiMHand's annotation file: hands cut from video frames, their key points and their mined positives.

    {"images": [{"id", "file_name", …}],
     "annotations": [{"hand_id", "image_id", "boxes": "[x1, y1, x2, y2]" (a string), "left_right": "Left" | "Right",
                      "keypoint_25d": 63 numbers, "positive_sample": [hand_id, …], "distance": [float, …]}]}

A positive is the hand whose id reads the same: the published loader looks for it as a text, whether it is written as one or as a number.
Key points are 21 × (x, y, z) in the detector's order (MediaPipe's, which is FreiHAND's); x and y in 0…1 of the square crop of
`pose_tools.simhand.views.hand_crop`, as seen, so left hands are not mirrored in the file. A hand's video is its frame's folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from pose_tools.files import atomic_path
from pose_tools.user_error import UserError

if TYPE_CHECKING:
    from data.hand_shards import HandShards

Id = int | str


class AnnotationError(UserError):
    """An annotation file that cannot be used; the message names the file, the hand and what is wrong."""


@dataclass
class HandAnnotations:
    """N hands, column by column, in the file's order."""

    hand_ids: list[Id]
    image_ids: list[Id]
    file_names: list[str]
    """Of each hand's frame: `<video id>/frame_000030.jpg`."""
    boxes: np.ndarray
    """(N, 4) float64 xyxy pixels of the frame."""
    left: np.ndarray
    """(N,) bool."""
    keypoints: np.ndarray
    """(N, 21, 3) float32: x, y in 0…1 of the crop, as seen; z as the detector gave it."""
    positives: list[list[Id]] = field(default_factory=list)
    """Similar hands of each hand, nearest first; empty lists before mining."""
    distances: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.hand_ids)

    @property
    def video_ids(self) -> np.ndarray:
        """(N,) the folder of each frame."""
        return np.array([PurePosixPath(name).parent.as_posix() for name in self.file_names])

    def right_hand_keypoints(self) -> np.ndarray:
        """(N, 21, 2) float32 with left hands mirrored, x → 1 − x: what mining and training compare."""
        points = self.keypoints[..., :2].copy()
        points[self.left, :, 0] = 1 - points[self.left, :, 0]
        return points

    def positive_rows(self) -> np.ndarray:
        """(N,) int64 row of each hand's first positive, −1 without one. Raises AnnotationError for an id that the file lacks."""
        rows = {hand: row for row, hand in enumerate(self.hand_ids)}
        firsts = [near[0] if near else None for near in self.positives]
        unknown = [hand for hand in firsts if hand is not None and hand not in rows]
        if unknown:
            raise AnnotationError(
                f"{len(unknown)} positives are no hands of this file, the first is {unknown[0]!r}: positives never leave their corpus"
            )
        return np.array([-1 if hand is None else rows[hand] for hand in firsts], np.int64)

    def with_positives(self, indices: np.ndarray, distances: np.ndarray) -> HandAnnotations:
        """The same hands with mined positives (N, k) rows, −1 for none, and distances (N, k)."""
        if len(indices) != len(self) or indices.shape != distances.shape:
            raise ValueError(f"{len(self)} hands, but positives {indices.shape} and distances {distances.shape}")
        positives = [[self.hand_ids[i] for i in row if i >= 0] for row in indices]
        kept = [[float(d) for i, d in zip(row, away, strict=True) if i >= 0] for row, away in zip(indices, distances, strict=True)]
        return HandAnnotations(self.hand_ids, self.image_ids, self.file_names, self.boxes, self.left, self.keypoints, positives, kept)


def annotations_of(hands: HandShards) -> HandAnnotations:
    """Hands in shards as the published file has them: key points as seen in 0…1, depths 0; ids and file names from video and frame."""
    names = [f"{video}/frame_{frame:06d}.jpg" for video, frame in zip(hands.video_ids.tolist(), hands.frames.tolist(), strict=True)]
    keypoints = np.zeros((len(hands), 21, 3), np.float32)
    if len(hands):
        keypoints[..., :2] = hands.keypoints / hands.image(0).shape[0]
    keypoints[hands.left, :, 0] = 1 - keypoints[hands.left, :, 0]
    return HandAnnotations(hands.hand_ids.tolist(), list(names), names, hands.boxes.astype(np.float64), hands.left, keypoints)


def read_hand_annotations(path: str | Path) -> HandAnnotations:
    """Reads and checks a file. Raises AnnotationError for damaged JSON, duplicate or missing ids, and records of another shape."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise AnnotationError(f"{path}: not whole JSON ({error}); get the file again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in ("images", "annotations")):
        raise AnnotationError(f"{path}: expected an object with the lists 'images' and 'annotations'")
    names = {
        image["id"]: image["file_name"] for image in content["images"] if isinstance(image, dict) and {"id", "file_name"} <= image.keys()
    }
    if len(names) != len(content["images"]):
        raise AnnotationError(f"{path}: {len(content['images'])} images, but {len(names)} different ids with a file name")
    hands = [_read_hand(path, number, record, names) for number, record in enumerate(content["annotations"])]
    ids = [hand[0] for hand in hands]
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise AnnotationError(f"{path}: hand_id {twice!r} occurs more than once")
    written = {str(hand): hand for hand in ids}
    columns: list[Sequence[Any]] = list(zip(*hands, strict=True)) if hands else [[]] * 7
    return HandAnnotations(
        ids,
        list(columns[1]),
        [names[image] for image in columns[1]],
        np.array(columns[2], np.float64).reshape(-1, 4),
        np.array(columns[3], bool),
        np.array(columns[4], np.float32).reshape(-1, 21, 3),
        [[written.get(str(hand), hand) for hand in near] for near in columns[5]],
        list(columns[6]),
    )


def _read_hand(path: Path, number: int, record: Any, images: dict[Id, str]) -> tuple[Any, ...]:
    """(hand id, image id, box, left, key points, positives, distances) of one record."""
    place = f"{path}: annotation {number}"
    try:
        hand, image, side = record["hand_id"], record["image_id"], record["left_right"]
        box = json.loads(record["boxes"]) if isinstance(record["boxes"], str) else record["boxes"]
        points = np.array(record["keypoint_25d"], np.float32).ravel()
        positives, distances = list(record.get("positive_sample") or []), [float(d) for d in record.get("distance") or []]
        box = [float(v) for v in box]
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(
            f"{place}: {type(error).__name__}: {error}; expected hand_id, image_id, boxes, left_right, keypoint_25d"
        ) from error
    if image not in images:
        raise AnnotationError(f"{place}: image_id {image!r} is not among the images")
    if side not in ("Left", "Right") or len(box) != 4 or points.size != 63:
        raise AnnotationError(
            f"{place}: expected left_right Left or Right, 4 numbers in boxes, 63 in keypoint_25d; got {side!r}, {len(box)}, {points.size}"
        )
    return hand, image, box, side == "Left", points, positives, distances


def write_hand_annotations(path: str | Path, hands: HandAnnotations) -> None:
    """Writes the file, whole or not at all; `read_hand_annotations` reads it back equal."""
    images = dict(zip(hands.image_ids, hands.file_names, strict=True))
    positives: Sequence[list[Id]] = hands.positives or [[]] * len(hands)
    distances: Sequence[list[float]] = hands.distances or [[]] * len(hands)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"images": ')
        json.dump([{"id": image, "file_name": name} for image, name in images.items()], file)
        file.write(', "annotations": [')
        for row in range(len(hands)):  # one by one: the whole text would need several times the pool's memory
            record = {
                "hand_id": hands.hand_ids[row],
                "image_id": hands.image_ids[row],
                "boxes": json.dumps([_number(v) for v in hands.boxes[row]]),
                "left_right": "Left" if hands.left[row] else "Right",
                "keypoint_25d": [float(v) for v in hands.keypoints[row].ravel()],
                "positive_sample": positives[row],
                "distance": distances[row],
            }
            file.write((",\n" if row else "\n") + json.dumps(record))
        file.write("\n]}\n")


def _number(value: float) -> int | float:
    """Whole numbers as such: the published boxes are."""
    return int(value) if float(value).is_integer() else float(value)
