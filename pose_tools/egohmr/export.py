"""Bodies and their scene as files for other programs: .ply (our camera's frame) and .glb (glTF's: y up, the camera looks along −z)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose_tools.files import atomic_path

BODY_COLOUR, SCENE_COLOUR = (255, 193, 193, 255), (140, 155, 170, 255)


def export_bodies(path: str | Path, bodies: Sequence[np.ndarray], faces: np.ndarray, scene: np.ndarray | None = None) -> None:
    """Meshes (V, 3) in metres, camera frame, and with them the scene's points (N, 3), in one file; whole or not at all.

    A .ply holds the meshes alone, joined; a .glb each of them under "body 0", …, and the points under "scene".
    Raises ValueError for another suffix, and for no bodies.
    """
    import trimesh

    suffix = Path(path).suffix.lower()
    if suffix not in (".ply", ".glb"):
        raise ValueError(f"{path}: a body can be written as .ply or .glb")
    if not len(bodies):
        raise ValueError(f"{path}: there is no body to write")
    flip = np.array([1.0, -1.0, -1.0]) if suffix == ".glb" else np.ones(3)
    meshes = [trimesh.Trimesh(np.asarray(body, float) * flip, faces, process=False, vertex_colors=BODY_COLOUR) for body in bodies]
    if suffix == ".ply":
        content = trimesh.util.concatenate(meshes).export(file_type="ply")
    else:
        whole = trimesh.Scene()
        for number, mesh in enumerate(meshes):
            whole.add_geometry(mesh, node_name=f"body {number}", geom_name=f"body {number}")
        if scene is not None and len(scene):
            cloud = trimesh.PointCloud(np.asarray(scene, float) * flip, colors=np.tile(SCENE_COLOUR, (len(scene), 1)))
            whole.add_geometry(cloud, node_name="scene", geom_name="scene")
        content = whole.export(file_type="glb")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
