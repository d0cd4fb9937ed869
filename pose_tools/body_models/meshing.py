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
