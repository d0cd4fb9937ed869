"""The tool `embed_hand`: a hand's pose as a vector, for programs, and as a token, for language models that were trained to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from pose_tools import detect
from pose_tools.simhand import hand_embedding
from pose_tools.simhand.hand_embedding import HandEmbeddingError, HandEncoder, hand_square, load_hand_encoder
from pose_tools.tool_protocol import Tool, ToolCard, ToolError, ToolResult
from pose_tools.types import SIDES, Media, Side


def embed_hand(media: Media, *, image: int = 0, hand: Literal["left", "right", "both"] = "both") -> ToolResult:
    """Describes how the hands in a picture are held as vectors that are alike for hands held alike.

    Args:
        media: the pictures of the conversation.
        image: Number of the picture, the first is 0.
        hand: Which hand to describe.
    """
    return describe(media.images[image], find(media.images[image], hand), image=image)


def find(picture: np.ndarray, hand: Literal["left", "right", "both"]) -> dict[Side, detect.HandDetection | None]:
    """The best detection of each wanted side."""
    found = detect.detect_hands(picture)
    return {side: detect.best_of_side(found, side) for side in (SIDES if hand == "both" else (hand,))}


def describe(
    picture: np.ndarray, hands: Mapping[Side, detect.HandDetection | None], *, image: int = 0, encoder: HandEncoder | None = None
) -> ToolResult:
    """The tool's result for hands that have been found already; `encoder` None is the one that is shipped or set.

    `data`: per hand "vector" (D numbers of length 1; a left hand is seen as in a mirror, so both sides compare) or None. The token
    `hand` is (2, D) float32, left, right, a row of NaN for a missing hand.
    """
    encoder = default_encoder() if encoder is None else encoder
    vectors = embed(encoder, picture, hands)
    records = {side: None if one is None else record(one) | {"vector": vectors[side].round(6).tolist()} for side, one in hands.items()}
    tokens = np.full((2, encoder.width), np.nan, np.float32)
    for side, vector in vectors.items():
        tokens[SIDES.index(side)] = vector
    words = {side: one and {"vector": f"{encoder.width} numbers", "score": round(one["score"], 2)} for side, one in records.items()}
    data = {"image": image, "image_size": [picture.shape[1], picture.shape[0]], "encoder": encoder.fingerprint, "hands": records}
    scores = [one.score for one in hands.values() if one is not None]
    return ToolResult(data=data, text=json.dumps(words), tokens={"hand": tokens}, confidence=min(scores, default=None))


def default_encoder() -> HandEncoder:
    """The encoder that is shipped or set; ToolError for one that does not fit."""
    from pose_tools.simhand.checkpoint import CheckpointError  # loads torch

    try:
        return load_hand_encoder()
    except (CheckpointError, HandEmbeddingError) as error:
        raise ToolError(str(error)) from error


def embed(encoder: HandEncoder, picture: np.ndarray, hands: Mapping[Side, detect.HandDetection | None]) -> dict[Side, np.ndarray]:
    """Side → vector (D,) float32 of length 1, for the hands that are there. Raises ToolError for a box outside the picture."""
    seen = {side: one for side, one in hands.items() if one is not None}
    try:
        crops = [hand_square(picture, one.bbox_xyxy, side) for side, one in seen.items()]
    except HandEmbeddingError as error:
        raise ToolError(str(error)) from error
    return dict(zip(seen, encoder.embed(crops), strict=True))


def record(one: detect.HandDetection) -> dict[str, Any]:
    """Where the hand is, and how sure that is."""
    return {"bbox_xyxy": [round(float(v), 2) for v in one.bbox_xyxy], "score": round(float(one.score), 4)}


def version() -> str:
    """Names detector and encoder."""
    return f"{detect.backend_version()}; {hand_embedding.encoder_version()}"


TOOL = Tool(
    function=embed_hand,
    card=ToolCard(
        needs="one picture; the small hand encoder's weights (shipped), or a SiMHand or PeCLR checkpoint named by HANDVLM_HAND_ENCODER",
        cost="on one CPU core 3 ms a hand after finding it (the small encoder)",
        licence="Apache-2.0, code and the small weights",
        failure_modes=(
            "the small encoder has seen rendered hands only; photographs need an encoder that was pre-trained on them",
            "vectors tell poses apart, not people or objects, and are comparable within one encoder only",
            "a detector that mistakes left for right turns the pose into its mirror image",
        ),
    ),
    version=version,
    by_default=False,
)
