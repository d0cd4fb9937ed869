"""Small mesh helpers of the stand-in models: strips between rings, neighbour averages, joint regressors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse


def strip(lower: Sequence[int], upper: Sequence[int]) -> list[tuple[int, int, int]]:
    """Triangles between two closed rings of vertex numbers that start at the same angle; the rings may differ in length.

    Faces look outward when the rings turn anticlockwise about the direction lower → upper.
    """
    n, m = len(lower), len(upper)
    faces, i, j = [], 0, 0
    while i < n or j < m:
        # Advance on the ring that is behind in angle; a tie advances the longer ring so that neither side bunches up.
        if j == m or (i < n and ((i + 1) * m < (j + 1) * n or ((i + 1) * m == (j + 1) * n and (n > m or (n == m and i <= j))))):
            faces.append((lower[i % n], lower[(i + 1) % n], upper[j % m]))
            i += 1
        else:
            faces.append((lower[i % n], upper[(j + 1) % m], upper[j % m]))
            j += 1
    return faces


def fan(ring: Sequence[int], pole: int) -> list[tuple[int, int, int]]:
    """Triangles that close `ring` with the vertex `pole`."""
    return [(ring[i], ring[(i + 1) % len(ring)], pole) for i in range(len(ring))]


def tube_ring(
    chain: np.ndarray,
    radii: np.ndarray,
    station: float,
    angles: np.ndarray,
    *,
    back: np.ndarray,
    reach: float,
    lean: float = 0.0,
    wide: float = 1.0,
) -> np.ndarray:
    """A ring (A, 3) round the polyline `chain` (N, 3), `station` along it, at `angles` (A,) from the direction `back` (3,), anticlockwise
    about the chain. `lean` moves the ring's two sides ± along the chain, `wide` stretches it sideways; `reach`: over what length its
    bends are smoothed."""
    stations = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(chain, axis=0), axis=1))])

    def at(s: np.ndarray | float) -> np.ndarray:
        return np.stack([np.interp(s, stations, chain[:, k]) for k in range(3)], -1)

    # The ring stands across the smoothed direction of the bones, so rings at a joint share the bend.
    axis = at(station + reach) - at(station - reach)
    axis /= np.linalg.norm(axis)
    up = back - axis * (axis @ back)
    up /= np.linalg.norm(up)
    side = np.cross(axis, up)
    radius = np.interp(station, stations, radii)
    return at(station + lean * np.sin(angles)) + radius * (np.cos(angles)[:, None] * up + wide * np.sin(angles)[:, None] * side)


def subdivide(faces: np.ndarray, count: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Every triangle cut into four at its edges' middles: new faces, and the matrix (new, `count`) that carries vertex values over."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, where = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = where.reshape(3, -1) + count
    a, b, c = faces.T
    new = np.concatenate([np.stack(f, 1) for f in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return new, _with_middles(unique, count)


def split_longest(points: np.ndarray, faces: np.ndarray, extra: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """`extra` new vertices in the middle of the longest edges, one per triangle at most, to reach an exact count; as `subdivide`."""
    count = len(points)
    owner: dict[tuple[int, int], int] = {}
    for f, (a, b, c) in enumerate(faces.tolist()):
        for edge in ((a, b), (b, c), (c, a)):
            owner[edge] = f
    edges = np.array([edge for edge in owner if edge[0] < edge[1]])
    order = np.argsort(-np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1), kind="stable")
    used: set[int] = set()
    chosen = []
    for a, b in edges[order].tolist():
        pair = {owner[a, b], owner[b, a]}
        if len(chosen) < extra and not pair & used:
            used |= pair
            chosen.append((a, b))
    if len(chosen) < extra:
        raise ValueError(f"only {len(chosen)} edges can be split, {extra} are needed")
    kept = [list(faces[f]) for f in range(len(faces)) if f not in used]
    for new, (a, b) in enumerate(chosen, start=count):
        for f in (owner[a, b], owner[b, a]):
            i, j, k = faces[f].tolist()
            while (i, j) not in ((a, b), (b, a)):
                i, j, k = j, k, i
            kept += [[i, new, k], [new, j, k]]
    return np.array(kept), _with_middles(np.array(chosen), count)


def _with_middles(edges: np.ndarray, count: int) -> sparse.csr_matrix:
    half = sparse.csr_matrix(
        (np.full(2 * len(edges), 0.5), (np.repeat(np.arange(len(edges)), 2), edges.ravel())), shape=(len(edges), count)
    )
    return sparse.vstack([sparse.identity(count), half]).tocsr()


def averaging(faces: np.ndarray, count: int) -> sparse.csr_matrix:
    """(count, count) matrix that replaces each vertex value by the mean of its neighbours'."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    links = sparse.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    links.data[:] = 1.0
    return sparse.diags(1.0 / np.maximum(np.asarray(links.sum(1)).ravel(), 1.0)) @ links


def fit_regressor(vertices: np.ndarray, joints: np.ndarray, radius: np.ndarray, rounds: int = 20) -> sparse.csc_matrix:
    """Non-negative weights (J, V), rows summing to 1, with `weights @ vertices == joints`; only vertices near a joint take part.

    A Gaussian of width `radius` (J,) round each joint is corrected by the smallest weighted change that meets the constraints;
    weights that turn negative are dropped and the rest solved again. Raises ValueError when a joint cannot be reached.
    """
    rows = np.zeros((len(joints), len(vertices)))
    for k, joint in enumerate(joints):
        square = ((vertices - joint) ** 2).sum(1)
        start = np.exp(-(square - square.min()) / (2 * radius[k] ** 2))
        start[start < 1e-3] = 0.0
        start /= start.sum()
        weight = start
        for _ in range(rounds):
            system = np.vstack([(vertices - joint).T, np.ones(len(vertices))])
            spread = system * start
            gap = np.array([0.0, 0.0, 0.0, 1.0]) - system @ start
            weight = start + spread.T @ np.linalg.lstsq(spread @ system.T, gap, rcond=None)[0]
            if weight.min() >= 0:
                break
            start = np.where(weight < 0, 0.0, start)
        if weight.min() < 0 or np.abs(weight @ vertices - joint).max() > 1e-6 * max(1.0, radius[k]):
            raise ValueError(f"joint {k} at {joint} is not inside the vertices near it: no regressor; widen its radius {radius[k]}")
        rows[k] = weight
    return sparse.csc_matrix(rows)
