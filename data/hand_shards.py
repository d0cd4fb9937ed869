"""Hands cut out once: square crops in tar shards (webdataset's layout) with one parquet index, so that training decodes no full frames.

    FOLDER/index.parquet                 one row a hand, in the order of the shards
    FOLDER/shards/<unit>-000.tar         <hand id>.jpg, <hand id>.json, …
    FOLDER/parts/<unit>.parquet          the unit's rows; written last, so a unit (a video, or some of them) is there whole or not at all
    FOLDER/manifest.json                 what the hands were made with

    hands = HandShards(folder)           # the index alone: no picture is read
    hands.keypoints                      # (N, 21, 2) float32, pixels of the crop; also .video_ids (N,), .left (N,), .confidence (N,)
    hands[i].image, hands[i].keypoints   # (S, S, 3) uint8 RGB; (21, 2)
    for hand in stream(folder): …        # shard after shard through webdataset: several machines and loader processes share them out
    data.hand_shards_writer.write_unit   # writes them; data.hand_shards_writer.write_index joins the parts

Every crop shows a right hand: left ones are mirrored, picture, key points and 3-D labels alike (`left` says of which side the person's
hand is). Key points are in FreiHAND's order, (0, 0) the outer corner of the crop's top-left pixel; NaN where the detector gives none.
Columns of the index:

    hand_id  string, of its own          video_id  string              frame     int64, number in the video
    left     bool, so mirrored           confidence  float32           bbox      4 × float32, xyxy pixels of the frame
    crop_box 4 × float32, what the crop shows of the frame             keypoints 42 × float32
    joints_3d 63 × float32, metres, camera frame of the crop, and intrinsics 9 × float32 of the crop: null where there are no labels
    shard    string, the tar's name      offset, length  int64, where the JPEG's bytes lie in the tar
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pose_tools.image_io import ImageError, read_image
from pose_tools.types import Side
from pose_tools.user_error import UserError

if TYPE_CHECKING:
    import pyarrow

INDEX, SHARDS, PARTS, MANIFEST = "index.parquet", "shards", "parts", "manifest.json"
REMEDY = 'pip install "handvlm[mining]"'
_ROWS = 50_000
"""Rows of the index that are in memory at a time while a column is streamed."""


class ShardError(UserError):
    """Shards that cannot be used; the message names the file or hand, what is wrong and what to do."""


@dataclass(frozen=True)
class ShardHand:
    """One hand: `image` (S, S, 3) uint8 RGB, mirrored for a left hand; `keypoints` (21, 2) float32 pixels of that crop, NaN if unknown.

    `bbox_xyxy` (4,) and `crop_box` (4,), pixels of the frame, not mirrored. With labels `joints_3d` (21, 3) metres and `intrinsics`
    (3, 3), both of the crop (mirrored as it is), else None.
    """

    hand_id: str
    video_id: str
    frame: int
    side: Side
    confidence: float
    bbox_xyxy: np.ndarray
    crop_box: np.ndarray
    image: np.ndarray
    keypoints: np.ndarray
    joints_3d: np.ndarray | None = None
    intrinsics: np.ndarray | None = None

    @property
    def mirrored(self) -> bool:
        """Whether the crop shows the hand as in a mirror."""
        return self.side == "left"

    def as_json(self) -> dict[str, Any]:
        """What the .json beside the picture holds."""
        record: dict[str, Any] = {
            "hand_id": self.hand_id, "video_id": self.video_id, "frame": self.frame, "side": self.side, "mirrored": self.mirrored,
            "confidence": round(float(self.confidence), 6),
        }  # fmt: skip
        for name in ("bbox_xyxy", "crop_box", "keypoints", "joints_3d", "intrinsics"):
            value = getattr(self, name)
            if value is not None:
                numbers = np.asarray(value, np.float32)
                record[name] = [None if np.isnan(v) else round(float(v), 6) for v in numbers.ravel()]
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any], image: np.ndarray) -> ShardHand:
        """The hand of a .json and its picture."""

        def numbers(name: str, *shape: int) -> np.ndarray | None:
            return np.array(record[name], np.float32).reshape(shape) if name in record else None

        return cls(
            record["hand_id"], record["video_id"], int(record["frame"]), record["side"], float(record["confidence"]),
            numbers("bbox_xyxy", 4), numbers("crop_box", 4), image, numbers("keypoints", 21, 2),  # type: ignore[arg-type]
            numbers("joints_3d", 21, 3), numbers("intrinsics", 3, 3),
        )  # fmt: skip


class HandShards(Sequence[ShardHand]):
    """The hands of a folder by row of its index. `[i]` reads one picture by its place in the shard; safe in threads and loader processes.

    Args:
        folder: as `data.hand_shards_writer` leaves it.
        damaged: a shard that is missing or shorter than the index says: "refuse" raises ShardError, "skip" leaves its hands out
            (`skipped` counts them).

    Raises ShardError, also for hand ids that occur twice and for an index of other columns.
    """

    def __init__(self, folder: str | Path, *, damaged: Literal["refuse", "skip"] = "refuse") -> None:
        self.folder = Path(folder)
        table = read_table(self.folder / INDEX, [name for name in COLUMNS if name not in ("joints_3d", "intrinsics", "keypoints")])
        self.shard_names, shard = _codes(table["shard"])
        self._offset, self._length = (table[name].to_numpy() for name in ("offset", "length"))
        _refuse_duplicates(self.folder / INDEX, table["hand_id"])
        whole = self._whole(shard, damaged)
        self.rows = np.flatnonzero(whole)
        """(N,) row of the index of each hand: all of them, unless damaged shards were skipped."""
        self.skipped = len(whole) - len(self.rows)
        self._table = table if self.skipped == 0 else table.take(self.rows)
        self._shard, self._offset, self._length = shard[whole], self._offset[whole], self._length[whole]
        self.videos, self.video_numbers = _codes(self._table["video_id"])
        """Names of the videos, and (N,) int32 which of them each hand is of."""
        self._labels: dict[str, np.ndarray | None] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def video_ids(self) -> np.ndarray:
        """(N,) strings."""
        return np.array(self.videos)[self.video_numbers]

    @property
    def hand_ids(self) -> np.ndarray:
        """(N,) strings."""
        return np.array(self._table["hand_id"].to_pylist())

    @property
    def frames(self) -> np.ndarray:
        """(N,) int64."""
        return self._table["frame"].to_numpy()

    @property
    def left(self) -> np.ndarray:
        """(N,) bool: the person's left hands, whose crops are mirrored."""
        return self._table["left"].to_numpy()

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32."""
        return self._table["confidence"].to_numpy()

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32 xyxy pixels of the frames."""
        return _fixed(self._table["bbox"], (4,))

    @property
    def keypoints(self) -> np.ndarray:
        """(N, 21, 2) float32, pixels of the crops; read once and kept. `keypoint_column` streams them."""
        return self._column("keypoints", (21, 2))  # type: ignore[return-value]

    @property
    def joints_3d(self) -> np.ndarray | None:
        """(N, 21, 3) float32 metres, NaN rows for hands without labels; None when none has any."""
        return self._column("joints_3d", (21, 3))

    @property
    def intrinsics(self) -> np.ndarray | None:
        """(N, 3, 3) float32 of the crops, as `joints_3d`."""
        return self._column("intrinsics", (3, 3))

    def keypoint_column(self) -> KeypointColumn:
        """The key points as `mine` takes them, read from the index in parts: for pools that shall not lie in memory."""
        return KeypointColumn(self.folder / INDEX, self.rows)

    def jpeg(self, index: int) -> bytes:
        """The picture's bytes as they lie in the shard."""
        path = self._shard_path(int(self._shard[index]))
        with open(path, "rb") as file:  # anew each time: nothing that processes and threads would have to share
            file.seek(int(self._offset[index]))
            content = file.read(int(self._length[index]))
        if len(content) < self._length[index]:
            raise ShardError(f"{path} was cut off while it was read: write its unit again")
        return content

    def image(self, index: int) -> np.ndarray:
        """(S, S, 3) uint8 RGB."""
        return _decode(self.jpeg(index), f"{self._shard_path(int(self._shard[index]))}, hand {self._table['hand_id'][index]}")

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        index = range(len(self))[index]  # negative numbers and IndexError as of a list
        row = {name: self._table[name][index].as_py() for name in ("hand_id", "video_id", "frame", "left", "confidence")}
        joints, intrinsics = (self._label(name, index) for name in ("joints_3d", "intrinsics"))
        box, crop_box = (np.array(self._table[name][index].as_py(), np.float32) for name in ("bbox", "crop_box"))
        return ShardHand(
            row["hand_id"], row["video_id"], row["frame"], "left" if row["left"] else "right", row["confidence"], box, crop_box,
            self.image(index), self.keypoints[index], joints, intrinsics,
        )  # fmt: skip

    def _label(self, name: str, index: int) -> np.ndarray | None:
        column = getattr(self, name)
        return None if column is None or np.isnan(column[index]).any() else column[index]

    def _shard_path(self, shard: int) -> Path:
        return self.folder / SHARDS / self.shard_names[shard]

    def _column(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if name not in self._labels:
            column = read_table(self.folder / INDEX, [name])[name]
            none = name != "keypoints" and column.null_count == len(column)
            self._labels[name] = None if none else _fixed(column, shape)[self.rows]
        return self._labels[name]

    def _whole(self, shard: np.ndarray, damaged: str) -> np.ndarray:
        """(rows,) bool: the hand's shard is as long as the index says."""
        ends = np.zeros(len(self.shard_names), np.int64)
        np.maximum.at(ends, shard, self._offset + self._length)
        sizes = np.array([path.stat().st_size if (path := self._shard_path(i)).is_file() else -1 for i in range(len(ends))], np.int64)
        broken = np.flatnonzero(sizes < ends)
        if len(broken) and damaged != "skip":
            first, lost = int(broken[0]), int(np.isin(shard, broken).sum())
            state = "is missing" if sizes[first] < 0 else f"has {sizes[first]} bytes, its hands need {ends[first]}"
            raise ShardError(
                f"{self._shard_path(first)} {state} ({len(broken)} damaged shards, {lost} of {len(shard)} hands): run the command that "
                'wrote the folder again, it writes what is damaged anew, or open it with damaged="skip"'
            )
        return ~np.isin(shard, broken)


class KeypointColumn:
    """(N, 21, 2) key points of an index that are read when they are sliced, forward, some ten thousand at a time."""

    def __init__(self, index: Path, rows: np.ndarray) -> None:
        self.index, self.rows, self.shape = index, rows, (len(rows), 21, 2)
        self._parts, self._first, self._part = self._start(), 0, np.empty((0, 21, 2), np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        wanted = self.rows[part]
        found = np.empty((len(wanted), 21, 2), np.float32)
        done = 0
        if len(wanted) and wanted[0] < self._first:
            self._parts, self._first, self._part = self._start(), 0, self._part[:0]
        while done < len(wanted):
            here = int(np.searchsorted(wanted, self._first + len(self._part)))
            found[done:here] = self._part[wanted[done:here] - self._first]
            done = here
            if done < len(wanted):
                self._first += len(self._part)
                self._part = next(self._parts)
        return found

    def _start(self) -> Iterator[np.ndarray]:
        from pyarrow import parquet

        with parquet.ParquetFile(self.index) as file:
            for batch in file.iter_batches(_ROWS, columns=["keypoints"]):
                yield _fixed(batch.column(0), (21, 2))


def stream(folder: str | Path, *, shuffle: int = 0, seed: int = 0) -> Iterator[ShardHand]:
    """All hands once, shard after shard, through webdataset: ranks and loader processes share out the shards.

    `shuffle`: shards in random order and a buffer of so many hands mixed; 0 keeps the order of the index.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ShardError(f"streaming hand shards needs webdataset: {REMEDY}") from error
    shards = [str(Path(folder) / SHARDS / name) for name in _codes(read_table(Path(folder) / INDEX, ["shard"])["shard"])[0]]
    if not shards:
        return
    options: dict[str, Any] = {"shardshuffle": len(shards), "seed": seed} if shuffle else {"shardshuffle": False}
    pipeline = webdataset.WebDataset(shards, nodesplitter=webdataset.split_by_node, empty_check=False, **options)
    pipeline = pipeline.shuffle(shuffle, seed=seed) if shuffle else pipeline
    for sample in pipeline:
        yield ShardHand.from_json(json.loads(sample["json"]), _decode(sample["jpg"], sample["__key__"]))


COLUMNS: dict[str, tuple[str, int]] = {
    "hand_id": ("string", 0), "video_id": ("dictionary", 0), "frame": ("int64", 0), "left": ("bool", 0), "confidence": ("float32", 0),
    "bbox": ("float32", 4), "crop_box": ("float32", 4), "keypoints": ("float32", 42), "joints_3d": ("float32", 63),
    "intrinsics": ("float32", 9), "shard": ("dictionary", 0), "offset": ("int64", 0), "length": ("int64", 0),
}  # fmt: skip
"""Type of each column, and how many of them make one value (0: one)."""


def read_table(path: Path, columns: Sequence[str]) -> pyarrow.Table:
    """Columns of an index or part; ShardError when it is missing, cut off or of another kind."""
    try:
        from pyarrow import lib, parquet
    except ImportError as error:
        raise ShardError(f"hand shards need pyarrow: {REMEDY}") from error
    try:
        table = parquet.read_table(path, columns=list(columns), read_dictionary=["video_id", "shard"])
    except FileNotFoundError as error:
        raise ShardError(
            f"{path} is missing: write the folder with scripts/extract_hands.py or scripts/make_synthetic.py hand-images, to its end"
        ) from error
    except (lib.ArrowException, OSError) as error:
        raise ShardError(f"{path}: not a whole parquet file ({error}); delete it and run the command that wrote it again") from error
    if lacking := [name for name in columns if name not in table.column_names]:
        raise ShardError(f"{path}: lacks the columns {', '.join(lacking)}: it is no index of hand shards")
    return table.combine_chunks()


def _codes(column: pyarrow.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Names of a string column in the order they come, and (N,) int32 which of them each row has."""
    if len(column) == 0:
        return [], np.empty(0, np.int32)
    encoded = column.unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks])
    return encoded.chunk(0).dictionary.to_pylist(), codes.astype(np.int32)


def _fixed(column: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A column of fixed-size lists as (N, *shape) float32; NaN for null."""
    import pyarrow

    column = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    values = np.full((len(column), int(np.prod(shape))), np.nan, np.float32)
    values[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.shape[1])
    return values.reshape(-1, *shape)


def _refuse_duplicates(path: Path, ids: pyarrow.ChunkedArray) -> None:
    from pyarrow import compute

    if compute.count_distinct(ids).as_py() != len(ids):
        counts = compute.value_counts(ids)
        twice = counts.field("values")[int(np.argmax(counts.field("counts").to_numpy()))]
        raise ShardError(f"{path}: hand_id {twice.as_py()!r} occurs more than once: the same video was extracted twice under one name?")


def _decode(content: bytes, name: str) -> np.ndarray:
    try:
        return read_image(content, name=name)
    except ImageError as error:
        raise ShardError(f"{error}: the shard is damaged; run the command that wrote it again") from error
