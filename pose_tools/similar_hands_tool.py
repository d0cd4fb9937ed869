"""The tool `find_similar_hands`: the hands of an index that are held most alike, with their pictures and what is known of their poses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from pose_tools import detect, embed_hand_tool
from pose_tools.simhand import hand_index
from pose_tools.simhand.hand_embedding import HandEncoder, hand_square
from pose_tools.simhand.hand_index import HandIndex, HandIndexError, load_hand_index
from pose_tools.tool_protocol import Range, Tool, ToolCard, ToolError, ToolResult
from pose_tools.types import Media, Side

MOST = 20
AGREED = 0.8
"""Share of the similar hands that a word is told from on: below it the most frequent word of all hands is as good."""
CELL = 160
"""Pixels of a hand on the sheet."""


def find_similar_hands(
    media: Media, *, image: int = 0, hand: Literal["left", "right", "both"] = "both", count: Annotated[int, Range(1, MOST)] = 5
) -> ToolResult:
    """Finds hands in a collection that are held like the hands in a picture, and tells what most of those agree in.

    Args:
        media: the pictures of the conversation.
        image: Number of the picture, the first is 0.
        hand: Which hand to compare.
        count: How many similar hands to find.
    """
    return describe(media.images[image], embed_hand_tool.find(media.images[image], hand), count, image=image)


def describe(
    picture: np.ndarray,
    hands: Mapping[Side, detect.HandDetection | None],
    count: int = 5,
    *,
    image: int = 0,
    encoder: HandEncoder | None = None,
    index: HandIndex | None = None,
) -> ToolResult:
    """The tool's result for hands that have been found already. `encoder`, `index`: None is what is shipped or set.

    `data`: per hand "similar", the rows of the index with similarity (cosine), nearest first, one a video (fewer of an index with fewer
    videos), and their poses as this hand would hold them, None where unknown. Raises ToolError for an index of another encoder.
    """
    encoder = embed_hand_tool.default_encoder() if encoder is None else encoder
    try:
        index = load_hand_index() if index is None else index
        index.check_encoder(encoder)
    except HandIndexError as error:
        raise ToolError(str(error)) from error
    vectors = embed_hand_tool.embed(encoder, picture, hands)
    records: dict[str, Any] = {}
    for side, one in hands.items():
        records[side] = None
        if one is not None:
            records[side] = embed_hand_tool.record(one) | {"similar": similar_hands(index, vectors[side], count, side)}
    data = {
        "image": image, "image_size": [picture.shape[1], picture.shape[0]], "encoder": encoder.fingerprint,
        "index": {"hands": len(index), "source": index.source, "licence": index.licence}, "hands": records,
    }  # fmt: skip
    scores = [one.score for one in hands.values() if one is not None]
    return ToolResult(data=data, text=_text(records), confidence=min(scores, default=None))


def similar_hands(index: HandIndex, vector: np.ndarray, count: int, side: Side) -> list[dict[str, Any]]:
    """The rows of the index most like an encoder's vector (W,); poses are told for a hand of `side` (the index holds right hands)."""
    rows, cosines = index.search(vector[None], count)
    return [
        {"row": int(row), "hand_id": index.hand_ids[row], "video_id": index.video_ids[row], "similarity": round(float(cosine), 4),
         "pose": pose_words(index.joints_3d[row], side)}
        for row, cosine in zip(rows[0], cosines[0], strict=True)
    ]  # fmt: skip


def pose_words(joints: np.ndarray, side: Side) -> dict[str, str] | None:
    """Palm and fingers of a right hand's joints (21, 3), as a hand of `side` would hold them; None where joints are not known."""
    from pose_tools.hand_pose_tool import finger_bends, palm_direction

    if not np.isfinite(joints).all():
        return None
    joints = joints * np.array([1 if side == "right" else -1, 1, 1], np.float32)
    return {"palm": palm_direction(joints, side)} | finger_bends(joints)


def vote(similar: list[dict[str, Any]]) -> dict[str, str]:
    """The words that four fifths of the similar hands with known poses agree on; the others are left out."""
    poses = [one["pose"] for one in similar if one["pose"] is not None]
    votes = {part: Counter(pose[part] for pose in poses).most_common(1)[0] for part in (poses[0] if poses else {})}
    return {part: word for part, (word, count) in votes.items() if count >= AGREED * len(poses)}


def _text(records: Mapping[str, dict[str, Any] | None]) -> str:
    """`{"left": null, "right": {"similar": 5, "similarity": 0.97, "palm": "down", "thumb": "straight", …}}`: nearest's cosine, vote."""

    def short(one: dict[str, Any]) -> dict[str, Any]:
        similar = one["similar"]
        return {"similar": len(similar), "similarity": round(similar[0]["similarity"], 2) if similar else None} | vote(similar)

    return json.dumps({side: one and short(one) for side, one in records.items()})


def draw(media: Media, result: ToolResult) -> np.ndarray:
    """`sheet` of the picture with the index that is shipped or set."""
    return sheet(media.images[result.data["image"]], result, load_hand_index())


def sheet(picture: np.ndarray, result: ToolResult, index: HandIndex) -> np.ndarray:
    """A row a hand: its crop, then the similar ones, mirrored to its side, with their similarity; RGB uint8."""
    from pose_tools.contact_sheet import contact_sheet
    from pose_tools.render import Canvas

    hands = {side: one for side, one in result.data["hands"].items() if one is not None}
    if not hands:
        return Canvas(picture).caption("no hands found").array()
    cells, captions = [], []
    for side, one in hands.items():
        rows = [similar["row"] for similar in one["similar"]]
        shown = [hand_square(picture, one["bbox_xyxy"], side, CELL), *map(index.thumbnail, rows)]
        cells += [crop if side == "right" else np.ascontiguousarray(crop[:, ::-1]) for crop in shown]
        captions += [f"{side} hand", *(f"{similar['similarity']:.2f}" for similar in one["similar"])]
    return contact_sheet(cells, captions, columns=len(cells) // len(hands), cell=CELL)


def version() -> str:
    """Names detector, encoder and index."""
    file = hand_index.default_path()
    facts = file.stat() if file.is_file() else None
    return f"{embed_hand_tool.version()}; {file} {facts and (facts.st_size, facts.st_mtime_ns)}"


TOOL = Tool(
    function=find_similar_hands,
    card=ToolCard(
        needs="one picture; the small hand encoder and an index of 1,700 rendered hands (shipped), or an index of one's own, built by "
        "scripts/build_hand_index.py and named by HANDVLM_HAND_INDEX",
        cost="on one CPU core 4 ms a hand after finding it",
        licence="Apache-2.0, code, weights and the shipped index; an index of one's own has its pictures' licence",
        failure_modes=(
            "the shipped encoder and index know rendered hands only",
            "the pose that is told is that of the similar hands: wrong, with a low similarity, where the index holds nothing alike",
            "a detector that mistakes left for right finds hands like the mirror image",
        ),
    ),
    draw=draw,
    version=version,
    by_default=False,
)
