"""The tool `recover_body`: what a language model calls to learn how a person in a scanned room stands or sits, hidden parts included."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pose_tools.tool_protocol import BackendMissing, Range, Tool, ToolCard, ToolError, ToolResult
from pose_tools.types import BodyPose, Media

if TYPE_CHECKING:
    from pose_tools.egohmr.folder import EgoHMR
    from pose_tools.egohmr.recover import Recovered

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "demos" / "assets" / "egohmr_small"
FIELD_OF_VIEW = 65.0
"""Degrees across the longer side of a picture whose camera is not known: a headset's, roughly."""
TOKEN_WIDTH = 258
JOINT_NAMES = (
    "pelvis", "left hip", "right hip", "lower spine", "left knee", "right knee", "middle spine", "left ankle", "right ankle",
    "upper spine", "left foot", "right foot", "neck", "left collar", "right collar", "head", "left shoulder", "right shoulder",
    "left elbow", "right elbow", "left wrist", "right wrist", "left hand", "right hand",
)  # fmt: skip
TOLD = (1, 2, 4, 5, 7, 8, 15, 16, 17, 18, 19, 20, 21)
"""The joints that the text speaks of, by number."""


def recover_body(
    media: Media,
    *,
    image: int = 0,
    person_box: Annotated[list[float] | None, Range(4, 4)] = None,
    samples: Annotated[int, Range(1, 20)] = 5,
) -> ToolResult:
    """Recovers the body of one person in the picture: distance, posture, direction, and which parts are hidden and how sure they are.

    Args:
        media: the pictures of the conversation, with key points, camera and scan where they are known.
        image: Number of the picture, the first is 0.
        person_box: Box [x1, y1, x2, y2] around the person, 0 to 1000 of the picture's width and height; left out: from the key points.
        samples: How many possible bodies to draw.
    """
    from pose_tools.egohmr.recover import bare_floor, box_of_keypoints, recover
    from pose_tools.mano.crops import assumed_intrinsics

    picture = media.images[image]
    size, assumed = (picture.shape[1], picture.shape[0]), []
    keypoints = _of(media.keypoints_2d, image)
    if keypoints is not None and np.shape(keypoints) != (25, 3):
        raise ToolError(f"recover_body: key points have shape {np.shape(keypoints)}; expected BODY_25, (25, 3): x, y, confidence")
    intrinsics = _of(media.intrinsics, image)
    given = {"intrinsics": intrinsics is not None, "keypoints": keypoints is not None, "scene": media.scene is not None}
    if intrinsics is None:
        intrinsics = assumed_intrinsics(size, FIELD_OF_VIEW)
        assumed.append(f"no camera: a field of view of {FIELD_OF_VIEW:.0f} degrees, and distances with it")
    scene = media.scene
    if scene is None:
        scene = bare_floor(intrinsics)
        assumed.append("no scan: a bare floor 1.6 m below a level camera, without furniture")
    box = _box(person_box, size)
    if box is None and keypoints is not None:
        box = box_of_keypoints(np.asarray(keypoints, float), size)
        if box is None:
            return _nobody(image, size, "no key point of a person was seen, and no person_box was given")
    elif box is None:
        box = np.array([0, 0, *size], float)
        assumed.append("no box and no key points: the person fills the picture")
    try:
        found = recover(model(), picture, box, intrinsics, scene, keypoints, samples=samples)
    except BackendMissing:
        raise
    except ValueError as error:
        raise ToolError(f"recover_body: {error}") from error
    return describe(found, image, size, np.asarray(intrinsics, float), box, given, assumed)


def describe(
    found: Recovered, image: int, size: tuple[int, int], camera: np.ndarray, box: np.ndarray, given: Mapping[str, bool], assumed: list[str]
) -> ToolResult:
    """The tool's result for bodies that have been found already."""
    from pose_tools.egohmr.recover import facing, most_common, posture

    stance, agree = most_common([posture(joints, found.up) for joints in found.joints])
    front, _ = most_common([facing(pose, found.up) for pose in found.poses])
    said = [*assumed, *found.assumed]
    body = {
        "bbox_xyxy": box.round(2).tolist(), "posture": stance, "posture_share": round(agree, 3), "facing": front,
        "distance_m": round(float(np.linalg.norm(found.joints[:, 0], axis=-1).mean()), 3),
        "transl_std_m": None if found.transl_std is None else found.transl_std.astype(float).round(4).tolist(),
        "joint_names": list(JOINT_NAMES), "joints_visible": found.visible.tolist(), "spread_mm": (1000 * found.spread).round(1).tolist(),
        "collision": found.collision.astype(float).round(5).tolist(), "contact_m": found.contact.astype(float).round(4).tolist(),
        "samples": [_sample(pose) for pose in found.poses],
    }  # fmt: skip
    data = {
        "image": image, "image_size": list(size), "frame": "camera: x right, y down, z forward", "unit": "metre",
        "intrinsics": camera.tolist(), "up": found.up.round(5).tolist(), "given": dict(given), "assumed": said,
        "body_model": os.environ.get("HANDVLM_SMPL") or "stand-in", "body": body,
    }  # fmt: skip
    return ToolResult(data=data, text=_text(body, said), tokens={"body": body_tokens(found, camera)})


def _of(group: tuple[Any, ...], image: int) -> Any:
    return group[image] if image < len(group) else None


def _box(person_box: list[float] | None, size: tuple[int, int]) -> np.ndarray | None:
    if person_box is None:
        return None
    x1, y1, x2, y2 = person_box
    if not (0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000):
        raise ToolError(f"recover_body: person_box is {person_box}; expected [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1000, and y likewise")
    return np.array(person_box, float) / 1000 * np.array([*size, *size])


def _nobody(image: int, size: tuple[int, int], why: str) -> ToolResult:
    tokens = {"body": np.full((1, TOKEN_WIDTH), np.nan, np.float32)}
    data = {"image": image, "image_size": list(size), "assumed": [], "body": None, "why": why}
    return ToolResult(data=data, text=json.dumps({"body": None, "why": why}), tokens=tokens)


def _sample(pose: BodyPose) -> dict[str, Any]:
    names = ("global_orient", "body_pose", "betas", "transl", "joints_3d")
    return {name: np.asarray(getattr(pose, name), float).round(5).tolist() for name in names}


def _text(body: Mapping[str, Any], assumed: list[str]) -> str:
    """`{"posture": "sitting", "facing": "left", "distance_m": 2.3, "hidden": ["left knee", …], "unsure": ["left ankle", …], …}`."""
    hidden = [JOINT_NAMES[j] for j in TOLD if not body["joints_visible"][j]]
    unsure = [JOINT_NAMES[j] for j in TOLD if body["spread_mm"][j] > 100]
    short: dict[str, Any] = {"posture": body["posture"], "agreement": body["posture_share"], "facing": body["facing"]}
    short |= {"distance_m": round(body["distance_m"], 2)}
    if body["transl_std_m"] is not None:
        short["distance_error_m"] = round(body["transl_std_m"][2], 2)
    short |= {"hidden": hidden, "unsure": unsure}
    return json.dumps(short | ({"assumed": assumed} if assumed else {}))


def body_tokens(found: Recovered, intrinsics: np.ndarray) -> np.ndarray:
    """(1, 258) float32 for a pose encoder of the language model, of the first sample.

    Columns: number of joints seen, of samples, translation (3) and its deviation (3, NaN where unknown), rotations of the 24 joints as 6D
    (144: first column, then second), betas (10), joints in the picture (48: x, y of each, pixels), visible (24), spread in metres (24).
    """
    import torch

    from pose_tools.geometry import axis_angle_to_matrix, matrix_to_rotation_6d, project

    pose = found.poses[0]
    angles = torch.from_numpy(np.concatenate([pose.global_orient, pose.body_pose]).reshape(24, 3))
    turns = matrix_to_rotation_6d(axis_angle_to_matrix(angles)).numpy().ravel()
    std = np.full(3, np.nan) if found.transl_std is None else found.transl_std
    pixels = project(found.joints[0], intrinsics).ravel()
    counts = [found.visible.sum(), len(found.poses)]
    row = np.concatenate([counts, pose.transl, std, turns, pose.betas, pixels, found.visible, found.spread])
    return row[None].astype(np.float32)


def poses(result: ToolResult) -> list[BodyPose]:
    """The samples of a result as BodyPose; [] where nobody was found."""
    body = result.data["body"]
    rows: list[dict[str, Any]] = [] if body is None else [{k: np.array(value) for k, value in one.items()} for one in body["samples"]]
    return [BodyPose(**row) for row in rows]


def model() -> EgoHMR:
    """Both stages of the folder at $HANDVLM_EGOHMR, or the shipped small ones; the body of $HANDVLM_SMPL, or the stand-in."""
    folder = Path(os.environ.get("HANDVLM_EGOHMR") or DEFAULT_FOLDER).resolve()
    for name in ("stage1.safetensors", "stage2.safetensors"):
        if not (folder / name).is_file():
            raise BackendMissing(f"EgoHMR's {folder / name} is missing: train it with scripts/train_egohmr.py, or set HANDVLM_EGOHMR")
    return _opened(folder, os.environ.get("HANDVLM_SMPL") or None, (folder / "stage2.safetensors").stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(folder: Path, smpl: str | None, version: int) -> EgoHMR:
    from pose_tools.body_models import load_smpl
    from pose_tools.egohmr.folder import load_folder

    try:
        return load_folder(folder, load_smpl(smpl))
    except (OSError, ValueError) as error:
        raise BackendMissing(f"recover_body: {error}") from error


def _meshes(result: ToolResult) -> tuple[np.ndarray, np.ndarray]:
    """(S, V, 3) vertices and (F, 3) faces of a result's bodies."""
    import torch

    from pose_tools.body_models import load_smpl

    smpl = load_smpl(os.environ.get("HANDVLM_SMPL") or None)
    columns = [torch.tensor([one[name] for one in result.data["body"]["samples"]], dtype=torch.float32)
               for name in ("global_orient", "body_pose", "betas", "transl")]  # fmt: skip
    with torch.no_grad():
        return smpl(*columns).vertices.double().numpy(), smpl.faces.numpy()


def draw(media: Media, result: ToolResult) -> np.ndarray:
    """The picture with the first body, and beside it the bodies in the scan, seen from the side."""
    from pose_tools.egohmr import pictures
    from pose_tools.egohmr.recover import bare_floor
    from pose_tools.render import Canvas

    image, body = media.images[result.data["image"]], result.data["body"]
    if body is None:
        return Canvas(image).caption("nobody found").array()
    camera = np.array(result.data["intrinsics"])
    vertices, faces = _meshes(result)
    over = pictures.in_picture(image, vertices[0], faces, camera, box=body["bbox_xyxy"])
    words = f"{body['posture']}, {body['distance_m']:.1f} m, {sum(body['joints_visible'])} of 24 joints seen"
    scene = bare_floor(camera) if media.scene is None else np.asarray(media.scene, float)
    side = pictures.in_scene(vertices[0], faces, scene[np.isfinite(scene).all(1)], up=result.data["up"], others=list(vertices[1:]))
    return pictures.panels([[Canvas(over).caption(words).array(), side]], over.shape[0])


def export_glb(result: ToolResult, path: str | Path, scene: np.ndarray | None = None) -> None:
    """The bodies of a result, and with them a scan (N, 3), in one glb file; see `egohmr.export.export_bodies`.

    Raises ValueError when nobody was found.
    """
    from pose_tools.egohmr.export import export_bodies

    if result.data["body"] is None:
        raise ValueError("export_glb: nobody was found in the picture, there is nothing to write")
    bodies, faces = _meshes(result)
    export_bodies(path, list(bodies), faces, scene)


def version() -> str:
    """Names what the answer depends on: weights (by size and time) and body model."""
    folder = Path(os.environ.get("HANDVLM_EGOHMR") or DEFAULT_FOLDER)
    facts = [path.stat() for name in ("stage1", "stage2") if (path := folder / f"{name}.safetensors").is_file()]
    return f"{[(f.st_size, f.st_mtime_ns) for f in facts]}; {os.environ.get('HANDVLM_SMPL', '')}"


TOOL = Tool(
    function=recover_body,
    card=ToolCard(
        needs="a picture; better with the person's BODY_25 key points, the camera's intrinsics and a scan in the camera's frame; "
        "the two small stages' weights (shipped); for real people's proportions an SMPL file named by HANDVLM_SMPL",
        cost="about a second on one CPU core for five bodies",
        licence="Apache-2.0, code and weights; the stand-in body is ours, SMPL is not included",
        failure_modes=(
            "the shipped networks have seen rendered rooms and one stand-in body only: in photographs they guess",
            "one person at a time; no key point detector is shipped: without key points every joint counts as visible",
            "without a scan a bare floor is assumed, without intrinsics a field of view of 65 degrees, and distances with it",
            "the translation and the body's shape are not sampled; the distance's error is told beside it",
        ),
    ),
    draw=draw,
    version=version,
    by_default=False,
)
