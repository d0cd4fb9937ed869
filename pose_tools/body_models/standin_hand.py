"""A procedural right hand in MANO's file format, so that everything runs without the licensed model.

Nothing here was read from MANO's file except its public layout: counts, joint order, axes and the numbers of the
finger-tip vertices. Model frame, metres, as MANO's right hand: fingers along −x, back of the hand +y, thumb +z.
The left hand is the mirror image (`mano.mirror`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pose_tools.body_models import articulation, hand_mesh, hand_shape, meshing
from pose_tools.body_models.kinematics import MANO_FINGERS, MANO_PARENTS, kintree_table

WRIST_IN_MODEL = np.array([0.0957, 0.0064, 0.0062])
"""Where MANO's wrist joint rests: rotating about the root is not rotating about the origin."""


def _to_model(directions: np.ndarray) -> np.ndarray:
    """Design frame (u, v, w) mm → model frame metres, for directions; a rotation, so faces keep their turn."""
    return np.stack([-directions[..., 0], directions[..., 2], directions[..., 1]], -1) * 1e-3


@lru_cache(maxsize=1)
def standin_hand_arrays() -> dict[str, np.ndarray]:
    """The arrays of a MANO file (right hand): v_template (778, 3), f (1538, 3) uint32, J_regressor (16, 778) sparse, J (16, 3),
    weights (778, 16), shapedirs (778, 3, 10), posedirs (778, 3, 135), kintree_table (2, 16), hands_components (45, 45),
    hands_mean (45,), hands_coeffs (1554, 45), bs_style, bs_type. Metres; always the same numbers. Do not write into them."""
    mesh = hand_mesh.build()
    joints, _ = hand_shape.skeleton()
    reach = _Reach(mesh)
    weights = _skin_weights(mesh, reach)
    radius = np.array([9.0] + [hand_shape.finger_chain(name)[1][k] for name in MANO_FINGERS for k in range(3)])
    template = WRIST_IN_MODEL + _to_model(mesh.vertices)
    components = _pose_components()
    arrays = {
        "v_template": template,
        "f": mesh.faces.astype(np.uint32),
        "J_regressor": meshing.fit_regressor(mesh.vertices, joints, radius),
        "weights": weights,
        "shapedirs": _to_model(_shape_directions(mesh, reach).transpose(0, 2, 1)).transpose(0, 2, 1),
        "posedirs": _pose_directions(mesh, reach),
        "kintree_table": kintree_table(MANO_PARENTS),
        "hands_components": components,
        "hands_mean": _mean_pose(),
        "hands_coeffs": _typical_coefficients(components),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }
    arrays["J"] = arrays["J_regressor"] @ template
    return arrays


class _Reach:
    """Where each vertex lies relative to each finger's bones: `along` (778, 5) mm past the finger's first joint (negative: in
    the palm), `away` (778, 5) mm from its axis, `share` (778, 5) how much it follows that finger's first joint, 0–1."""

    def __init__(self, mesh: hand_mesh.HandMesh) -> None:
        count = len(mesh.vertices)
        self.along, self.away = np.zeros((count, 5)), np.zeros((count, 5))
        self.outward = np.zeros((count, 5, 3))
        for k, name in enumerate(MANO_FINGERS):
            chain, _ = hand_shape.finger_chain(name)
            lengths = np.linalg.norm(np.diff(chain, axis=0), axis=1)
            starts = np.concatenate([[0.0], np.cumsum(lengths)])
            best = np.full(count, np.inf)
            for i in range(3):
                axis = (chain[i + 1] - chain[i]) / lengths[i]
                raw = (mesh.vertices - chain[i]) @ axis
                t = np.clip(raw, -200.0 if i == 0 else 0.0, 200.0 if i == 2 else lengths[i])
                off = mesh.vertices - chain[i] - t[:, None] * axis
                distance = np.linalg.norm(off, axis=1)
                closer = distance < best
                best = np.where(closer, distance, best)
                self.along[closer, k] = starts[i] + t[closer]
                self.outward[closer, k] = off[closer] / np.maximum(distance[closer, None], 1e-9)
            self.away[:, k] = best
        own = np.maximum(mesh.owner, 0)
        tube = mesh.owner >= 0
        self.along[tube, own[tube]] = mesh.station[tube]
        self.share = self._share(mesh)

    def _share(self, mesh: hand_mesh.HandMesh) -> np.ndarray:
        begin = np.array([-5.0, -5.0, -5.0, -5.0, -10.0])
        end = np.array([13.0, 13.0, 12.0, 13.0, 20.0])
        active = _step((self.along - begin) / (end - begin))
        closeness = np.exp(-(np.maximum(self.away - 6.0, 0.0) ** 2) / (2 * 4.5**2))
        closeness[:, 4] = _step((30.0 - self.away[:, 4]) / 18.0)
        share = active * closeness
        tube = mesh.owner >= 0
        share[tube] = 0.0
        share[tube, mesh.owner[tube]] = active[tube, mesh.owner[tube]]
        share /= np.maximum(share.sum(1, keepdims=True), 1.0)
        # Even the palm's transition out along the mesh, so no edge bends alone.
        mean = meshing.averaging(mesh.faces, len(share))
        ease = np.where(tube & (mesh.station > 32), 0.0, 0.6)[:, None]
        for _ in range(5):
            share = share + ease * (mean @ share - share)
        return share


def _step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def _skin_weights(mesh: hand_mesh.HandMesh, reach: _Reach) -> np.ndarray:
    weights = np.zeros((len(mesh.vertices), 16))
    weights[:, 0] = 1.0 - reach.share.sum(1)
    for k, name in enumerate(MANO_FINGERS):
        chain, radii = hand_shape.finger_chain(name)
        p, d, _ = np.cumsum(np.linalg.norm(np.diff(chain, axis=0), axis=1))
        past = [_step((reach.along[:, k] - at) / (1.7 * r) + 0.5) for at, r in ((p, radii[1]), (d, radii[2]))]
        weights[:, 3 * k + 1] = reach.share[:, k] * (1 - past[0])
        weights[:, 3 * k + 2] = reach.share[:, k] * past[0] * (1 - past[1])
        weights[:, 3 * k + 3] = reach.share[:, k] * past[0] * past[1]
    # Where tubes grow out of the palm, neighbours on a short edge may belong to far stations: even them out.
    mean = meshing.averaging(mesh.faces, len(weights))
    base = (mesh.owner < 0) | (mesh.station < np.array([27.0, 29.0, 23.5, 27.0, 41.0])[mesh.owner])
    for _ in range(4):
        weights = weights + np.where(base, 0.5, 0.0)[:, None] * (mean @ weights - weights)
    return weights / weights.sum(1, keepdims=True)


def _shape_directions(mesh: hand_mesh.HandMesh, reach: _Reach) -> np.ndarray:
    """Ten shape directions (778, 3, 10) in the design frame, mm per standard deviation."""
    v, share = mesh.vertices, reach.share
    palm = 1.0 - share.sum(1)

    def longer(fingers: dict[str, float]) -> np.ndarray:
        """Stretch fingers along their bones, as a share of their length."""
        move = np.zeros_like(v)
        for name, amount in fingers.items():
            k = MANO_FINGERS.index(name)
            chain, _ = hand_shape.finger_chain(name)
            starts = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(chain, axis=0), axis=1))])
            s = np.clip(reach.along[:, k], 0.0, starts[-1])
            on_bone = np.stack([np.interp(s, starts, chain[:, c]) for c in range(3)], 1)
            move += amount * share[:, k, None] * (on_bone - chain[0])
        return move

    def thicker(grow: np.ndarray) -> np.ndarray:
        """Move the flesh of the fingers away from their bones by `grow` (778, 5) mm."""
        return np.einsum("vk,vk,vkc->vc", share, grow, reach.outward)

    flat = np.ones_like(reach.along)
    towards_tip = np.clip(reach.along / 80.0, 0, 1)
    round_palm = palm[:, None] * np.stack([0 * palm, np.tanh(v[:, 1] / 25), np.tanh(v[:, 2] / 8)], 1)
    width = np.stack([0 * palm, v[:, 1], 0 * palm], 1)
    long_four = ("index", "middle", "ring", "pinky")
    fan = np.clip((v[:, 0] - 20) / 70, 0, 1)
    splay = np.stack([0 * palm, (share @ np.array([1.0, 0.1, -1.5, -0.6, 0.0])) * fan, 0 * palm], 1)
    thumb_off = np.stack([-0.3 * share[:, 4], share[:, 4], 0.2 * share[:, 4]], 1) * np.clip(reach.along[:, 4:] / 40, 0, 1.6)
    directions = [
        0.045 * v,  # size
        thicker(0.75 * flat) + 1.0 * round_palm,  # slim … stout
        longer(dict.fromkeys(long_four, 0.055)) - 0.012 * np.stack([v[:, 0] * palm, 0 * palm, 0 * palm], 1),  # fingers against palm
        0.03 * width,  # broad palm
        longer({"thumb": 0.06}),
        longer({"index": 0.035, "ring": -0.035}),  # which neighbour of the middle finger is longer
        thicker(0.9 * (towards_tip - 0.45)),  # tapering
        longer({"pinky": 0.06, "middle": -0.015}),
        thumb_off * 2.0,  # how far the thumb stands off
        splay * 1.8 + 0.6 * palm[:, None] * np.stack([0 * palm, 0 * palm, np.tanh(v[:, 2] / 8)], 1),  # knuckle line and palm depth
    ]
    return np.stack(directions, 2)


def _pose_directions(mesh: hand_mesh.HandMesh, reach: _Reach) -> np.ndarray:
    """Joint bulges (778, 3, 135), metres: linear skinning flattens the back of a bent joint, so fill it by (1 − cos angle).

    1 − cos = −trace(R − I) / 2, which is linear in the entries of R − I and does not care about the axis.
    """
    out = np.zeros((len(mesh.vertices), 3, 15, 9))
    for k, name in enumerate(MANO_FINGERS):
        chain, radii = hand_shape.finger_chain(name)
        stations = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(chain, axis=0), axis=1))])
        back = np.clip(reach.outward[:, k, 2] + 0.15, 0.0, 1.0)
        for i in range(3):
            near = np.exp(-(((reach.along[:, k] - stations[i]) / (0.62 * radii[i])) ** 2))
            height = (2.0 if i else 1.2) * (0.3 if name == "thumb" and i == 0 else 1.0) * radii[i] / 9.0
            bulge = _to_model((height * near * back * reach.share[:, k])[:, None] * reach.outward[:, k])
            out[:, :, 3 * k + i, [0, 4, 8]] = -0.5 * bulge[:, :, None]
    return out.reshape(len(mesh.vertices), 3, 135)


def _mean_pose() -> np.ndarray:
    """hands_mean (45,): a relaxed, half-open hand."""
    return articulation.named_pose("relaxed")


def _pose_components() -> np.ndarray:
    """hands_components (45, 45), orthonormal rows, the strongest ways a hand moves first: closing, pointing, fanning, opposing …"""
    curl, none = np.array([1.0, 1.2, 0.7]), np.zeros((5, 3))
    moves = []

    def add(flexion: np.ndarray, spread: tuple[float, ...] = (0, 0, 0, 0, 0)) -> None:
        moves.append(articulation.hand_pose(1e-3 * flexion, 1e-3 * np.array(spread, float)))

    def bent(*fingers: int, profile: np.ndarray = curl, scale: tuple[float, ...] = (1.0,) * 5) -> np.ndarray:
        flexion = none.copy()
        for k in fingers:
            flexion[k] = profile * scale[k]
        return flexion

    add(bent(0, 1, 2, 3) + bent(4, profile=np.array([0.2, 0.4, 0.5])))
    add(bent(0, scale=(-1.0,) * 5) + bent(2, 3, profile=0.6 * curl))
    add(bent(0, 1, 2, 3, profile=np.array([1.0, -0.8, -0.4])))
    add(bent(4, profile=np.array([0.2, 0.5, 0.8])), (0, 0, 0, 0, 1.0))
    add(none, (1.0, 0.2, -1.3, -0.5, -0.4))
    add(bent(1, 3) - bent(0, 2))
    add(bent(4, profile=np.array([0.4, 0.8, -1.0])))
    add(bent(2) - bent(1))
    add(none, (0.6, 0.8, 0.6, 0.7, 0.0))
    for k in range(5):
        for profile in (np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])):
            add(bent(k, profile=profile))
        add(none, tuple(float(i == k) for i in range(5)))
    # What is left over (twists) completes the basis.
    basis: list[np.ndarray] = []
    for move in [*moves, *np.eye(45)]:
        rest = move / np.linalg.norm(move)
        for _ in range(2):
            rest = rest - sum((rest @ b) * b for b in basis)
        if np.linalg.norm(rest) > 1e-3:
            basis.append(rest / np.linalg.norm(rest))
    return np.array(basis)


def _typical_coefficients(components: np.ndarray) -> np.ndarray:
    """hands_coeffs (1554, 45): hands between the named poses, as coefficients round the mean; a usable prior on poses."""
    rng = np.random.default_rng(1554)
    anchors = np.array([articulation.named_pose(n) for n in ("flat", "relaxed", "fist", "point", "pinch", "grasp", "spread")])
    share = rng.dirichlet(np.full(len(anchors), 0.6), 1554)
    noise = rng.normal(0.0, 1.0, (1554, 45)) * (0.25 * 0.93 ** np.arange(45))
    return (share @ anchors - _mean_pose()) @ components.T + noise
