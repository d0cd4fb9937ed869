"""How hands and heads move: minimum-jerk reaches between stances, turns about an axis, the drift of a resting hand, a turning camera.

Everything is in the camera frame of the last observed moment (time 0 s), metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import hands
from pose_tools.types import Side


def minimum_jerk(share: np.ndarray) -> np.ndarray:
    """Share of the way at a share of the time: 10 x³ − 15 x⁴ + 6 x⁵ (Flash and Hogan 1985), 0 before and 1 after."""
    x = np.clip(share, 0.0, 1.0)
    return x**3 * (10 - 15 * x + 6 * x**2)


def time_share(way: float) -> float:
    """The share of the time at which `way` (0..1) of a minimum-jerk move is done: the inverse of `minimum_jerk`."""
    roots = np.roots([6.0, -15.0, 10.0, 0.0, 0.0, -way])
    real = roots[np.abs(roots.imag) < 1e-6].real
    return float(np.clip(real[(real > -1e-6) & (real < 1 + 1e-6)].min(), 0, 1)) if 0 < way < 1 else float(way >= 1)


@dataclass(frozen=True)
class Stance:
    """A hand at rest: `rotation` (3, 3) of the model's hand, place of the `wrist` (3,), `pose` (45,) as its side takes it."""

    rotation: np.ndarray
    wrist: np.ndarray
    pose: np.ndarray

    def towards(self, other: Stance, share: float) -> Stance:
        """The stance at a share of the way to another one."""
        turn = Rotation.from_matrix(other.rotation @ self.rotation.T).as_rotvec()
        rotation = Rotation.from_rotvec(share * turn).as_matrix() @ self.rotation
        return Stance(rotation, self.wrist + share * (other.wrist - self.wrist), self.pose + share * (other.pose - self.pose))


@dataclass(frozen=True)
class Move:
    """A minimum-jerk move `to` a stance, from `start` for `duration` seconds.

    On the way the hand is up to `lift` (3,) metres off the straight line, and its fingers up to `opening` (45,) rad more open.
    """

    to: Stance
    start: float
    duration: float
    lift: np.ndarray
    opening: np.ndarray

    def way(self, times: np.ndarray) -> np.ndarray:
        """(N,) share of the way done at `times` (N,) seconds."""
        return minimum_jerk((times - self.start) / self.duration)


@dataclass(frozen=True)
class Turn:
    """A minimum-jerk turn by `angle` rad about `axis` (3,) through `middle` (3,), from `start` for `duration` seconds."""

    middle: np.ndarray
    axis: np.ndarray
    angle: float
    start: float
    duration: float

    def at(self, times: np.ndarray) -> np.ndarray:
        """(N, 3, 3) rotations about the middle."""
        return Rotation.from_rotvec(self.angle * minimum_jerk((times - self.start) / self.duration)[:, None] * self.axis).as_matrix()


@dataclass(frozen=True)
class Drift:
    """Slow small motion: three sine waves a coordinate, zero at time 0. `size` (D,); `hertz` and `phase` (3, D)."""

    size: np.ndarray
    hertz: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, size: np.ndarray, hertz: tuple[float, float]) -> Drift:
        """Waves of frequencies within `hertz`."""
        shape = (3, len(size))
        return cls(size, rng.uniform(*hertz, shape), rng.uniform(0, 2 * np.pi, shape))

    def at(self, times: np.ndarray) -> np.ndarray:
        """(N, D) at `times` (N,) seconds."""
        wave = np.sin(2 * np.pi * self.hertz * np.asarray(times)[:, None, None] + self.phase) - np.sin(self.phase)
        return self.size * wave.mean(1)


@dataclass(frozen=True)
class Hand:
    """One hand through time: it starts in `first`, does its `moves` one after the other and its `turns`, and drifts (3 metres, 3 radians).

    `offset` (3,): where the wrist of a hand of this shape is before it is moved; a turn about the wrist leaves it there."""

    side: Side
    betas: np.ndarray
    offset: np.ndarray
    first: Stance
    moves: tuple[Move, ...]
    turns: tuple[Turn, ...]
    drift: Drift

    def at(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotations (N, 3, 3), wrists (N, 3) and poses (N, 45) at `times` (N,) seconds."""
        times = np.asarray(times, dtype=float)
        turn = Rotation.from_matrix(np.tile(self.first.rotation, (len(times), 1, 1)))
        wrists, poses = np.tile(self.first.wrist, (len(times), 1)), np.tile(self.first.pose, (len(times), 1))
        before = self.first
        for move in self.moves:
            way = move.way(times)[:, None]
            between = Rotation.from_matrix(move.to.rotation @ before.rotation.T).as_rotvec()
            turn = Rotation.from_rotvec(way * between) * turn
            wrists = wrists + way * (move.to.wrist - before.wrist) + 4 * way * (1 - way) * move.lift
            poses = poses + way * (move.to.pose - before.pose) + 4 * way * (1 - way) * move.opening
            before = move.to
        drift = self.drift.at(times)
        rotations = (Rotation.from_rotvec(drift[:, 3:]) * turn).as_matrix()
        wrists = wrists + drift[:, :3]
        for spin in self.turns:
            about = spin.at(times)
            wrists = spin.middle + np.einsum("nij,nj->ni", about, wrists - spin.middle)
            rotations = about @ rotations
        return rotations, wrists, poses

    def meshes(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vertices (N, 778, 3), joints (N, 21, 3) and axes F, N, T (N, 3, 3), all moments skinned in one pass."""
        rotations, wrists, poses = self.at(times)
        vertices, joints = posed(self.side, rotations, wrists, poses, self.betas, self.offset)
        return vertices, joints, rotations @ hands.skeleton(self.side).axes


def posed(
    side: Side, rotations: np.ndarray, wrists: np.ndarray, poses: np.ndarray, betas: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 778, 3) and joints (N, 21, 3) of a hand in N stances; `betas` (10,) and `offset` (3,) as in `Hand`."""
    turns = Rotation.from_matrix(rotations).as_rotvec()
    return hands.pose_hands(side, turns, poses, np.tile(betas, (len(turns), 1)), wrists - offset)


def turning_camera(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotations from the camera frame at time 0 into that at `times` (N,): a head that looks around by a few degrees.

    A camera that only turns moves every pixel by one homography, whatever its depth. A quarter of the heads are nearly still.
    """
    strength = rng.uniform(0.3, 1.2) if rng.random() >= 0.25 else rng.uniform(0.0, 0.15)
    degrees = strength * np.array([3.0, 4.5, 2.0])
    waves = Drift.draw(rng, np.radians(degrees), (0.08, 0.35))
    return Rotation.from_rotvec(waves.at(times)).as_matrix()
