"""A procedural body in SMPL's file format, so that everything runs without the licensed model.

Nothing here was read from SMPL's file except its public layout: counts, joint order and axes. Metres; +x to the body's left,
+y up, +z ahead; the pelvis rests where SMPL's does, about 0.23 m below the origin. One body serves every gender.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pose_tools.body_models import body_mesh, body_shape, meshing
from pose_tools.body_models.body_shape import LIMB_JOINTS, LIMBS
from pose_tools.body_models.kinematics import SMPL_PARENTS, kintree_table

PELVIS_IN_MODEL = np.array([0.0, -0.23, 0.025])


@lru_cache(maxsize=1)
def standin_body_arrays() -> dict[str, np.ndarray]:
    """The arrays of a SMPL file: v_template (6890, 3), f (13776, 3) uint32, J_regressor (24, 6890) sparse, J (24, 3), weights
    (6890, 24), shapedirs (6890, 3, 10), posedirs (6890, 3, 207), kintree_table (2, 24), bs_style, bs_type. Metres; always the
    same numbers. Do not write into them."""
    mesh = body_mesh.build()
    joints = body_shape.skeleton()
    weights = _skin_weights(mesh)
    arrays = {
        "v_template": mesh.vertices + PELVIS_IN_MODEL,
        "f": mesh.faces.astype(np.uint32),
        "J_regressor": meshing.fit_regressor(mesh.vertices, joints, np.array([0.05] * 24)),
        "weights": weights,
        "shapedirs": _shape_directions(mesh, weights),
        "posedirs": _pose_directions(mesh, joints),
        "kintree_table": kintree_table(SMPL_PARENTS),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }
    arrays["J"] = arrays["J_regressor"] @ arrays["v_template"]
    return arrays


def _step(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def _skin_weights(mesh: body_mesh.BodyMesh) -> np.ndarray:
    """(6890, 24): each joint takes over from its parent within a smooth band round it."""
    v, joints = mesh.vertices, body_shape.skeleton()
    taken = np.zeros((len(v), 24))  # how far a vertex has passed each joint, 0–1
    taken[:, 0] = 1.0
    for joint, width in ((3, 0.10), (6, 0.09), (9, 0.09), (12, 0.07), (15, 0.06)):
        taken[:, joint] = _step((v[:, 1] - joints[joint, 1]) / width + 0.5)
    taken[:, 12] *= _step((0.13 - np.abs(v[:, 0])) / 0.06)
    for side, sign in (("left", 1), ("right", -1)):
        collar, (shoulder, *arm), (hip, *leg) = 13 if sign > 0 else 14, LIMB_JOINTS[f"{side}_arm"], LIMB_JOINTS[f"{side}_leg"]
        x = sign * v[:, 0]
        limb = {kind: mesh.owner == LIMBS.index(f"{side}_{kind}") for kind in ("arm", "leg")}
        taken[:, collar] = _step((x - 0.05) / 0.09) * _step((v[:, 1] - 0.33) / 0.10) * (1 - taken[:, 12])
        taken[:, shoulder] = _step((x - joints[shoulder, 0] * sign) / 0.10 + 0.5) * _step((v[:, 1] - 0.30) / 0.06)
        # A leg takes over along a slanted line: high at the hip's outside, low between the legs.
        taken[:, hip] = np.where(
            limb["leg"] | (mesh.owner < 0), _step((-0.045 - v[:, 1] + 0.25 * (np.abs(v[:, 2]) - 0.05)) / 0.11) * _step(x / 0.05 + 0.5), 0.0
        )
        for kind, chain in (("arm", arm), ("leg", leg)):
            points, _ = body_shape.limb_chain(f"{side}_{kind}")
            at = np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))
            for joint, station, width in zip(chain, at, (0.09, 0.07, 0.05), strict=False):
                taken[:, joint] = np.where(limb[kind], _step((mesh.station - station) / width + 0.5), 0.0)
    # Deepest first: what a joint takes, its ancestors lose.
    weights, left = np.zeros((len(v), 24)), np.ones(len(v))
    for joint in sorted(range(24), key=lambda j: -_depth(j)):
        weights[:, joint] = left * taken[:, joint]
        left = left - weights[:, joint]
    mean = meshing.averaging(mesh.faces, len(v))
    for _ in range(6):
        weights = 0.5 * weights + 0.5 * (mean @ weights)
    weights[weights < 1e-3] = 0.0
    return weights / weights.sum(1, keepdims=True)


def _depth(joint: int) -> int:
    return 0 if SMPL_PARENTS[joint] < 0 else 1 + _depth(SMPL_PARENTS[joint])


def _shape_directions(mesh: body_mesh.BodyMesh, weights: np.ndarray) -> np.ndarray:
    """Ten shape directions (6890, 3, 10), metres per standard deviation."""
    v = mesh.vertices
    zero = np.zeros(len(v))
    normal = _normals(mesh)
    # What belongs to the legs moves down with its length; feet go along without growing.
    down = np.clip(-(v[:, 1] + 0.085), 0.0, 0.79)
    arm_out = np.clip(np.abs(v[:, 0]) - 0.175, 0.0, 0.505) * (v[:, 1] > 0.3)
    head = weights[:, 15]
    # The skin weights blend from part to part, so per-part amounts do too.
    arms = weights[:, 16:24].sum(1)
    flesh = weights @ np.array(
        [1, 0.8, 0.8, 1, 0.45, 0.45, 1, 0.15, 0.15, 1, 0.1, 0.1, 0.8, 1, 1, 0.3, 0.6, 0.6, 0.35, 0.35, 0.1, 0.1, 0.05, 0.05]
    )
    muscle = weights @ np.array([0, 1, 1, 0, 0.8, 0.8, 0, 0, 0, 0, 0, 0, 0, 0.3, 0.3, 0, 1, 1, 0.8, 0.8, 0, 0, 0, 0])
    belly = np.exp(-(((v[:, 1] - 0.10) / 0.13) ** 2)) * (1 - arms)
    shoulders = arms + (1 - arms) * np.exp(-(((v[:, 1] - 0.42) / 0.14) ** 2))
    hips = np.exp(-(((v[:, 1] + 0.05) / 0.14) ** 2)) * (1 - arms)
    pelvic = np.clip(v[:, 0] / 0.15, -1, 1)
    directions = [
        0.045 * v,  # size
        0.010 * normal * flesh[:, None],  # stout
        np.stack([zero, -0.045 * down, zero], 1),  # long legs
        np.stack([0.012 * np.clip(v[:, 0] / 0.16, -1, 1) * shoulders * (v[:, 1] > 0.0), zero, zero], 1),  # broad shoulders
        np.stack([0.012 * pelvic * hips, zero, zero], 1),  # broad hips
        np.stack([zero, zero, 0.016 * belly * np.clip(v[:, 2] / 0.09, -0.2, 1)], 1) + 0.006 * normal * belly[:, None],  # belly
        np.stack([0.045 * np.sign(v[:, 0]) * arm_out, zero, zero], 1),  # long arms
        0.05 * head[:, None] * (v - body_shape.skeleton()[15]),  # large head
        0.004 * normal * muscle[:, None],  # muscular limbs
        np.stack([zero, 0.045 * np.clip(v[:, 1], 0.0, 0.42), zero], 1),  # long trunk
    ]
    return np.stack(directions, 2)


def _normals(mesh: body_mesh.BodyMesh) -> np.ndarray:
    from pose_tools.raster import vertex_normals

    mean = meshing.averaging(mesh.faces, len(mesh.vertices))
    normal = vertex_normals(mesh.vertices, mesh.faces)
    for _ in range(4):
        normal = mean @ normal
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def _pose_directions(mesh: body_mesh.BodyMesh, joints: np.ndarray) -> np.ndarray:
    """Elbows and knees (6890, 3, 207), metres: linear skinning thins a bent joint, so fill its outside by 1 − cos of the angle
    (−trace(R − I) / 2, as for the hand)."""
    out = np.zeros((len(mesh.vertices), 3, 23, 9))
    for joint, behind, height in ((4, (0, 0, 1), 0.018), (5, (0, 0, 1), 0.018), (18, (0, 0, -1), 0.013), (19, (0, 0, -1), 0.013)):
        away = mesh.vertices - joints[joint]
        near = np.exp(-((away / 0.05) ** 2).sum(1) / 2)
        outside = np.clip(away @ np.array(behind, float) / 0.04, 0.0, 1.0)
        bulge = (height * near * outside)[:, None] * np.array(behind, float)
        out[:, :, joint - 1, [0, 4, 8]] = -0.5 * bulge[:, :, None]
    return out.reshape(len(mesh.vertices), 3, 207)
