"""The tool `estimate_hand_pose`: what a language model calls to learn how the hands are held, in three dimensions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pose_tools import detect
from pose_tools.tool_protocol import BackendMissing, Tool, ToolCard, ToolResult
from pose_tools.types import SIDES, HandPose, Media, Side

if TYPE_CHECKING:
    from pose_tools.body_models import Mano
    from pose_tools.mano.estimate import EstimatedHand, HandInPicture

FIELD_OF_VIEW = 60.0
"""Degrees across the longer side of a picture whose camera is not known."""
SURE = 0.4
"""Confidence below which landmarks are fitted too (the network expects joints to be off by 15 mm)."""
TOKEN_WIDTH = 153
STRAIGHT, BENT = 40.0, 110.0
"""Degrees between a finger's first and last bone: below it is straight, above it is bent, half bent between."""


def estimate_hand_pose(media: Media, *, image: int = 0, hand: Literal["left", "right", "both"] = "both") -> ToolResult:
    """Finds how the hands in a picture are held: distance, palm direction and the bend of every finger.

    Args:
        media: the pictures of the conversation.
        image: Number of the picture, the first is 0.
        hand: Which hand to look at.
    """
    picture = media.images[image]
    given = media.intrinsics[image] if image < len(media.intrinsics) else None
    found = detect.detect_hands(picture)
    best = {side: detect.best_of_side(found, side) for side in (SIDES if hand == "both" else (hand,))}
    return describe(picture, best, given, image=image)


def describe(
    picture: np.ndarray, hands: Mapping[Side, detect.HandDetection | None], intrinsics: np.ndarray | None = None, *, image: int = 0
) -> ToolResult:
    """The tool's result for hands that have been found already. `intrinsics` (3, 3) pixels of `picture`, None if unknown."""
    from pose_tools.mano.crops import assumed_intrinsics

    size = (picture.shape[1], picture.shape[0])
    camera = assumed_intrinsics(size, FIELD_OF_VIEW) if intrinsics is None else np.asarray(intrinsics, float)
    seen = {side: one for side, one in hands.items() if one is not None}
    estimates = dict(zip(seen, _estimates(picture, list(seen.values()), camera), strict=True))
    records = {side: _record(*estimates[side], seen[side]) if side in estimates else None for side in hands}
    data = {
        "image": image, "image_size": list(size), "frame": "camera: x right, y down, z forward", "unit": "metre",
        "intrinsics": camera.tolist(), "intrinsics_from": "given" if intrinsics is not None else f"assumed {FIELD_OF_VIEW:.0f} degrees",
        "depth": "metric" if intrinsics is not None else "assumed", "hand_model": os.environ.get("HANDVLM_MANO") or "stand-in",
        "hands": records,
    }  # fmt: skip
    confidences = [one["confidence"] for one in records.values() if one is not None]
    tokens = {"mano": hand_tokens({side: hand.pose for side, (hand, _) in estimates.items()}, camera)}
    return ToolResult(data=data, text=_text(records), tokens=tokens, confidence=min(confidences, default=None))


def _estimates(picture: np.ndarray, found: Sequence[detect.HandDetection], camera: np.ndarray) -> list[tuple[EstimatedHand, str]]:
    """For each hand its estimate and what it comes from: "network" or "landmarks", whichever re-projects better."""
    from pose_tools.mano.estimate import HandInPicture, estimate, joints_box
    from pose_tools.mano.loading import load_regressor

    if not found:
        return []
    boxes = [joints_box(np.asarray(one.bbox_xyxy)) if one.keypoints_2d is None else box_of(one.keypoints_2d) for one in found]
    places = [HandInPicture(picture, box, one.side, camera) for box, one in zip(boxes, found, strict=True)]
    answers = []
    for place, one, network in zip(places, found, estimate(load_regressor(), places), strict=True):
        landmarks = one.keypoints_2d
        if landmarks is None and network.pose.confidence is not None and network.pose.confidence < SURE:
            landmarks = network.key_points
        answers.append((network, "network") if landmarks is None else _better(place, np.asarray(landmarks, float), network))
    return answers


def box_of(points: np.ndarray) -> np.ndarray:
    """The tight box (4,) xyxy of points (N, 2), at least a pixel wide and high."""
    low, high = np.asarray(points, float).min(0), np.asarray(points, float).max(0)
    return np.concatenate([low, np.maximum(high, low + 1)])


def _better(place: HandInPicture, landmarks: np.ndarray, network: EstimatedHand) -> tuple[EstimatedHand, str]:
    """The network's hand or one fitted to `landmarks` (21, 2) pixels, whichever lies nearer to them in the picture."""
    from pose_tools.geometry import project
    from pose_tools.mano.estimate import fit_landmarks

    fitted = fit_landmarks(place, landmarks, hand_model(place.side), network)
    if fitted is None:
        return network, "network"

    def distance(hand: EstimatedHand) -> float:
        return float(np.linalg.norm(project(np.asarray(hand.pose.joints_3d), place.intrinsics) - landmarks, axis=1).mean())

    return (fitted, "landmarks") if distance(fitted) < distance(network) else (network, "network")


def hand_model(side: Side) -> Mano:
    """The hand that landmarks are fitted with: the user's MANO file or folder at $HANDVLM_MANO, else the stand-in."""
    from pose_tools.body_models import load_mano

    path = os.environ.get("HANDVLM_MANO") or None
    try:
        return load_mano(path, side)
    except (OSError, ValueError) as error:
        raise BackendMissing(f"$HANDVLM_MANO: {error}; unset it to use the stand-in hand") from error


def hand_tokens(hands: Mapping[Side, HandPose], intrinsics: np.ndarray) -> np.ndarray:
    """(2, 153) float32 for a pose encoder of the language model: the left hand, then the right one; a missing hand is a row of NaN.

    Columns: side (−1 left, +1 right), confidence, the wrist's x, y, z (metres), the root's rotation and the 15 joints' as 6D (96: first
    column, then second), betas (10), and the joints in the picture (42: x, y of each, pixels).
    """
    import torch

    from pose_tools.geometry import axis_angle_to_matrix, matrix_to_rotation_6d, project

    tokens = np.full((2, TOKEN_WIDTH), np.nan, np.float32)
    for row, side in enumerate(SIDES):
        if side in hands:
            pose, joints = hands[side], np.asarray(hands[side].joints_3d, float)
            angles = torch.from_numpy(np.concatenate([pose.global_orient, pose.hand_pose]).reshape(16, 3))
            turns = matrix_to_rotation_6d(axis_angle_to_matrix(angles)).numpy().ravel()
            confidence = np.nan if pose.confidence is None else pose.confidence
            pixels = project(joints, intrinsics).ravel()
            tokens[row] = np.concatenate([[2 * row - 1, confidence], joints[0], turns, pose.betas, pixels])
    return tokens


def _record(hand: EstimatedHand, method: str, one: detect.HandDetection) -> dict[str, Any]:
    pose = hand.pose
    joints = np.asarray(pose.joints_3d, float)
    return {
        "method": method, "bbox_xyxy": [round(float(v), 2) for v in one.bbox_xyxy], "score": round(float(one.score), 4),
        "confidence": round(float(pose.confidence or 0.0), 4), "expected_error_mm": round(hand.expected_mm, 1),
        "distance_m": round(float(np.linalg.norm(joints[0])), 4),
        "palm": palm_direction(joints, pose.side), "fingers": finger_bends(joints),
        "joints_3d": joints.round(5).tolist(), "global_orient": pose.global_orient.round(5).tolist(),
        "hand_pose": pose.hand_pose.round(5).tolist(), "betas": pose.betas.round(5).tolist(), "transl": pose.transl.round(5).tolist(),
    }  # fmt: skip


def finger_bends(joints: np.ndarray) -> dict[str, str]:
    """Joints (21, 3), FreiHAND order → "straight", "half bent" or "bent" for each finger; the thumb counts from its second bone."""
    from pose_tools.joints import FINGERS

    bends = {}
    for i, finger in enumerate(FINGERS):
        chain = joints[1 + 4 * i : 5 + 4 * i]
        first, last = chain[1] - chain[0], chain[3] - chain[2]
        cosine = first @ last / max(float(np.linalg.norm(first) * np.linalg.norm(last)), 1e-9)
        angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        bends[finger] = "straight" if angle < STRAIGHT else "bent" if angle > BENT else "half bent"
    return bends


def palm_direction(joints: np.ndarray, side: Side) -> str:
    """Where the palm of joints (21, 3), camera frame, looks: to the camera, away from it, or up, down, left or right in the picture."""
    normal = np.cross(joints[5] - joints[0], joints[17] - joints[0]) * (1 if side == "right" else -1)
    axis = int(np.abs(normal).argmax())
    names = (("left", "right"), ("up", "down"), ("towards the camera", "away from the camera"))
    return names[axis][int(normal[axis] > 0)]


def _text(records: Mapping[Any, dict[str, Any] | None]) -> str:
    """`{"left": null, "right": {"distance_cm": 45, "palm": "down", "thumb": "straight", …, "confidence": 0.7}}`."""

    def short(one: dict[str, Any]) -> dict[str, Any]:
        place = {"distance_cm": round(100 * one["distance_m"]), "palm": one["palm"]}
        return place | one["fingers"] | {"confidence": round(one["confidence"], 2)}

    return json.dumps({side: one and short(one) for side, one in records.items()})


def _posed(record: Mapping[str, Any], side: Side) -> tuple[np.ndarray, np.ndarray]:
    """(vertices (778, 3), faces (1538, 3)) of a hand in a result."""
    import torch

    mano = hand_model(side) if record["method"] == "landmarks" else _stand_in(side)
    values = [torch.tensor([record[name]], dtype=torch.float32) for name in ("global_orient", "hand_pose", "betas", "transl")]
    with torch.no_grad():
        return mano(*values).vertices[0].double().numpy(), mano.faces.numpy()


def _stand_in(side: Side) -> Mano:
    from pose_tools.body_models import load_mano

    return load_mano(side=side)


def draw(media: Media, result: ToolResult) -> np.ndarray:
    """The picture with each hand's mesh and skeleton, and what it comes from."""
    from pose_tools.geometry import project
    from pose_tools.render import SIDE_COLOURS, Canvas

    canvas, camera = Canvas(media.images[result.data["image"]]), np.array(result.data["intrinsics"])
    hands = {side: one for side, one in result.data["hands"].items() if one is not None}
    for side, one in hands.items():
        vertices, faces = _posed(one, side)
        canvas.mesh(vertices, faces, camera, opacity=0.6)
        canvas.skeleton(project(np.array(one["joints_3d"]), camera), side=side)
    for side, one in hands.items():
        words = f"{side}: {one['method']}, {100 * one['distance_m']:.0f} cm, confidence {one['confidence']:.2f}"
        canvas.caption(words, colour=SIDE_COLOURS[side])
    return (canvas if hands else canvas.caption("no hands found")).array()


def export_glb(result: ToolResult, path: str | Path) -> None:
    """The hands of a result as meshes in one glb file, metres, in glTF's frame (y up, the camera looks along −z); whole or not at all.

    Raises ValueError when the result holds no hand.
    """
    import trimesh

    from pose_tools.files import atomic_path

    hands = {side: one for side, one in result.data["hands"].items() if one is not None}
    if not hands:
        raise ValueError("export_glb: no hand was found in the picture, there is nothing to write")
    scene = trimesh.Scene()
    for side, one in hands.items():
        vertices, faces = _posed(one, side)
        mesh = trimesh.Trimesh(vertices * [1, -1, -1], faces, process=False)
        scene.add_geometry(mesh, node_name=f"{side} hand", geom_name=f"{side} hand")
    with atomic_path(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb"))


def version() -> str:
    """Names what the answer depends on: detector, regressor (by size and time) and hand model."""
    from pose_tools.mano.loading import DEFAULT_FOLDER

    weights = DEFAULT_FOLDER / "model.safetensors"
    facts = weights.stat() if weights.is_file() else None
    regressor = f"{facts.st_size} {facts.st_mtime_ns}" if facts else "none"
    return f"{detect.backend_version()}; {regressor}; {os.environ.get('HANDVLM_MANO', '')}"


TOOL = Tool(
    function=estimate_hand_pose,
    card=ToolCard(
        needs="one picture; the small hand regressor's weights (shipped); for photographs MediaPipe's hand models (fetched on request) "
        "and, for real hands' proportions, a MANO file named by HANDVLM_MANO",
        cost="on one CPU core 20 ms a hand after finding it; 50 ms more where landmarks are fitted",
        licence="Apache-2.0, code and weights; the stand-in hand is ours, MANO is not included",
        failure_modes=(
            "the network has seen rendered hands only: in photographs landmarks are fitted, whose depth is a guess from the hand's size",
            "without the camera's intrinsics a field of view of 60 degrees is assumed, and distances with it",
            "fingers hidden by an object or by the hand are guessed; confidence says how far off a joint is expected to be",
        ),
    ),
    draw=draw,
    version=version,
    by_default=False,
)
