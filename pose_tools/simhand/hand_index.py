"""An index of hands to look similar ones up in: vectors, thumbnails and, where they are known, poses, in one safetensors file.

    index = load_hand_index()                     # the shipped one, of rendered hands
    near, similarity = index.search(vectors, 5)   # rows and similarities (cosines), most similar first
    index.thumbnail(near[0, 0])                   # uint8 RGB

Every hand is a right one, left ones mirrored. An encoder's vectors have most of their length in common; so they are compared after the
collection's mean is taken off and its principal directions are evened out, half as far as whitening would (variances to their square
roots), which finds like poses better and is a quarter of the size. Tensors: `vectors` (N, D) float16 of length 1 in that space, `centre`
(W,) and `directions` (W, D) float32 from the encoder's vectors to it, `joints_3d` (N, 21, 3) float16 metres in
the camera's frame, FreiHAND order, NaN where unknown, `jpegs` uint8 with `ends` (N,) int64; the header holds the ids, the encoder's
fingerprint, the source and its licence as JSON.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pose_tools.files import atomic_path
from pose_tools.image_io import read_image
from pose_tools.simhand.hand_embedding import DEFAULT_FOLDER, HandEncoder
from pose_tools.tool_protocol import BackendMissing
from pose_tools.user_error import UserError

NAME = "index.safetensors"
VARIABLE = "HANDVLM_HAND_INDEX"
FORMAT = "handvlm hand index 1"
DIMS = 64


class HandIndexError(UserError):
    """An index that cannot be used; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class HandIndex:
    """`vectors` (N, D) float32 of length 1, which `project` makes of those (N, W) of the encoder `fingerprint`; `joints_3d` (N, 21, 3)
    float32 metres or NaN; `jpegs` N pictures of right hands; `hand_ids`, `video_ids` N names; `source`, `licence` for people."""

    vectors: np.ndarray
    centre: np.ndarray
    directions: np.ndarray
    joints_3d: np.ndarray
    jpegs: tuple[bytes, ...]
    hand_ids: tuple[str, ...]
    video_ids: tuple[str, ...]
    fingerprint: str
    source: str
    licence: str

    def __len__(self) -> int:
        return len(self.vectors)

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """An encoder's vectors (Q, W) → (Q, D) float32 of length 1, as `vectors` are."""
        moved = (vectors - self.centre) @ self.directions
        return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """An encoder's vectors (Q, W) → rows (Q, k) int64 and cosines (Q, k) float32 of `project`ed ones, highest first, ties by lower row.

        Each row is of another video, whose other frames would show the same hand again; so k is `count`, or the number of videos if lower.
        """
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != len(self.centre) or count < 1:
            expected = f"(Q, {len(self.centre)}) and 1 or more"
            raise HandIndexError(f"search: got vectors {queries.shape} and count {count}; expected {expected}")
        cosines = np.empty((len(queries), len(self)), np.float32)
        for number, query in enumerate(queries):  # one at a time: the same whatever stands beside it
            cosines[number] = self.vectors @ self.project(query[None])[0]
        videos = np.unique(self.video_ids, return_inverse=True)[1]
        rows = np.empty((len(queries), min(count, int(videos.max()) + 1)), np.int64)
        for number, order in enumerate(np.argsort(-cosines, axis=1, kind="stable")):
            first = np.unique(videos[order], return_index=True)[1]
            rows[number] = order[np.sort(first)[: rows.shape[1]]]
        return rows, np.take_along_axis(cosines, rows, axis=1)

    def thumbnail(self, row: int) -> np.ndarray:
        """The hand's small picture, RGB uint8."""
        return read_image(self.jpegs[row], name=f"thumbnail {row} of the index")

    def check_encoder(self, encoder: HandEncoder) -> None:
        """Raises HandIndexError if the index was made by another encoder."""
        if encoder.fingerprint != self.fingerprint:
            raise HandIndexError(
                f"the index was made by the encoder {self.fingerprint}, this one is {encoder.fingerprint}: vectors of two do not compare. "
                "Build it again with scripts/build_hand_index.py, or name the encoder it was made by"
            )

    def save(self, path: str | Path) -> None:
        """Whole or not at all; `read_hand_index` gives it back."""
        from safetensors.numpy import save_file

        ends = np.cumsum([len(jpeg) for jpeg in self.jpegs], dtype=np.int64)
        tensors: dict[str, np.ndarray] = {
            "vectors": self.vectors.astype(np.float16), "centre": self.centre, "directions": self.directions,
            "joints_3d": self.joints_3d.astype(np.float16),
            "jpegs": np.frombuffer(b"".join(self.jpegs), np.uint8), "ends": ends,
        }  # fmt: skip
        facts = {name: getattr(self, name) for name in ("fingerprint", "source", "licence", "hand_ids", "video_ids")}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:  # one entry of metadata: the order of several is random
            whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
            save_file(whole, temporary, metadata={FORMAT: json.dumps(facts)})


def evened_directions(vectors: np.ndarray, dims: int = DIMS) -> tuple[np.ndarray, np.ndarray]:
    """Centre (W,) and directions (W, D) float32 of a collection (N, W): its first principal ones over the root of their deviation.

    D is `dims`, or as many as the collection has.
    """
    centre = vectors.mean(0, dtype=np.float64)
    _, spread, directions = np.linalg.svd(vectors - centre, full_matrices=False)
    spread = spread[: min(dims, max(1, int((spread > 1e-6 * spread[0]).sum())))]
    scale = 1 / np.sqrt(np.maximum(spread, 1e-12) / np.sqrt(len(vectors)))
    return centre.astype(np.float32), (directions[: len(spread)].T * scale).astype(np.float32)


def load_hand_index(path: str | Path | None = None) -> HandIndex:
    """The index of a file; None is $HANDVLM_HAND_INDEX, or the shipped one. Read once per file and shared.

    Raises BackendMissing for a missing file, HandIndexError for one that is damaged or of another kind.
    """
    file = default_path() if path is None else Path(path)
    if not file.is_file():
        raise BackendMissing(f"the index of hands {file} is missing: build one with scripts/build_hand_index.py, and set {VARIABLE} to it")
    facts = file.stat()
    return _shared(file.resolve(), facts.st_size, facts.st_mtime_ns)


def default_path() -> Path:
    """Where the index is that is taken if none is named."""
    return Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER / NAME)


@lru_cache(maxsize=2)
def _shared(file: Path, size: int, modified: int) -> HandIndex:
    """`size`, `modified` only tell a file that was written again from the one that was read."""
    return read_hand_index(file)


def read_hand_index(file: Path) -> HandIndex:
    """The index as it lies in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            found = opened.metadata() or {}
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise HandIndexError(f"{file}: cannot be read as an index of hands ({error}); is it whole?") from error
    if FORMAT not in found:
        raise HandIndexError(f"{file}: not a file of format {FORMAT!r}, its header has {list(found) or 'nothing'}; build it again with "
                             "scripts/build_hand_index.py")  # fmt: skip
    facts = json.loads(found[FORMAT])
    ends, content = tensors["ends"], tensors["jpegs"].tobytes()
    starts = [0, *ends[:-1].tolist()]
    jpegs = tuple(content[start:end] for start, end in zip(starts, ends.tolist(), strict=True))
    vectors = tensors["vectors"].astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    hand_ids, video_ids = (tuple(facts[name]) for name in ("hand_ids", "video_ids"))
    joints = tensors["joints_3d"].astype(np.float32)
    space = tensors["centre"], tensors["directions"]
    return HandIndex(vectors, *space, joints, jpegs, hand_ids, video_ids, facts["fingerprint"], facts["source"], facts["licence"])
