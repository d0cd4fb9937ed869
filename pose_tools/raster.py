"""A z-buffer rasteriser for triangle meshes: exact depth, face numbers and shaded colours through a pinhole camera.

Corners are snapped to 1/256 pixel, so which pixel belongs to which face is decided in exact arithmetic: neighbouring faces
leave no gap and share no pixel, and the numba kernel and the numpy fallback agree on every face. Depth is that of the face's
plane at the pixel's centre. Camera frame: +z forward, y down, metres; the centre of the top-left pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

try:
    import numba
except ImportError:  # the optional extra [render]
    numba = None

SUBPIXEL = 256.0
LIGHT = (-0.35, -0.65, -0.67)
"""Direction towards the default lamp, camera frame: behind the camera, above and to the left."""


@dataclass(frozen=True)
class Raster:
    """`depth` (H, W) float32 metres along z, inf where nothing is; `face_ids` (H, W) int32, −1 where nothing is; `colour` (H, W, 3)
    float32 0–1 or None."""

    depth: np.ndarray
    face_ids: np.ndarray
    colour: np.ndarray | None = None


def rasterise(
    vertices: np.ndarray,
    faces: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
    *,
    colours: np.ndarray | None = None,
    normals: np.ndarray | None = None,
    light: tuple[float, float, float] | np.ndarray = LIGHT,
    ambient: float = 0.45,
    cull: bool = False,
    near: float = 0.01,
    backend: str = "auto",
) -> Raster:
    """Draw a triangle soup in one pass.

    Args:
        vertices: (V, 3) camera frame, metres. Several meshes go in together: concatenate vertices, faces and colours, and
            read which mesh a pixel shows as `mesh_of_face[face_ids]`.
        faces: (F, 3) vertex numbers, outward when seen anticlockwise in a right-handed frame. Equal depth: the lower number wins.
        intrinsics: (3, 3) pixels. size: (width, height).
        colours: (V, 3) or (F, 3), 0–1; None skips shading.
        normals: (V, 3) for smooth shading of `colours`; None takes `vertex_normals`. Per-face colours are shaded flat.
        light: direction towards the lamp, camera frame. ambient: share of light that comes from everywhere, 0–1.
        cull: leave out faces seen from behind. near: metres; geometry closer than this is cut away.
        backend: "numba", "numpy", or "auto" (numba where installed). Same face numbers from both.

    Raises ValueError for arrays of the wrong shape, face numbers out of range or vertices that are not finite.
    """
    vertices, faces, intrinsics = _checked(vertices, faces, intrinsics)
    width, height = size
    kernel, shader = _kernels(backend)
    corners, source = _clip(vertices, faces, near)
    screen, planes = _project(corners, intrinsics)
    inverse = np.zeros((height, width))
    face_ids = np.full((height, width), -1, np.int32)
    kernel(screen, planes, source, cull, inverse, face_ids)
    with np.errstate(divide="ignore"):
        depth = (1.0 / inverse).astype(np.float32)
    colour = None
    if colours is not None:
        colours = np.ascontiguousarray(colours, np.float64)
        flat = len(colours) == len(faces) and len(colours) != len(vertices)
        if colours.shape not in ((len(vertices), 3), (len(faces), 3)):
            raise ValueError(
                f"colours has shape {colours.shape}: expected one RGB row per vertex ({len(vertices)}, 3) or per face ({len(faces)}, 3)"
            )
        normals = (
            np.zeros((0, 3)) if flat else vertex_normals(vertices, faces) if normals is None else np.ascontiguousarray(normals, np.float64)
        )
        lamp = np.asarray(light, np.float64)
        colour = np.zeros((height, width, 3), np.float32)
        shader(
            face_ids,
            inverse,
            vertices,
            faces,
            colours,
            normals,
            np.linalg.inv(intrinsics),
            lamp / np.linalg.norm(lamp),
            float(ambient),
            flat,
            colour,
        )
    return Raster(depth, face_ids, colour)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3): the area-weighted mean of the faces round each vertex; zero for a vertex without faces."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    flat = faces.ravel()
    total = np.stack([np.bincount(flat, np.repeat(normal[:, k], 3), len(vertices)) for k in range(3)], 1)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-20)


def _checked(vertices: np.ndarray, faces: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vertices = np.ascontiguousarray(vertices, np.float64)
    faces = np.ascontiguousarray(faces, np.int64)
    intrinsics = np.ascontiguousarray(intrinsics, np.float64)
    for name, array, shape in (("vertices", vertices, "(V, 3)"), ("faces", faces, "(F, 3)"), ("intrinsics", intrinsics, "(3, 3)")):
        if array.ndim != 2 or array.shape[1] != 3:
            raise ValueError(f"{name} has shape {array.shape}: expected {shape}")
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(f"faces name vertices {faces.min()}…{faces.max()}, but there are only {len(vertices)} vertices")
    if not np.isfinite(vertices).all():
        raise ValueError(f"{int((~np.isfinite(vertices)).any(1).sum())} of {len(vertices)} vertices are not finite: nothing can be drawn")
    return vertices, faces, intrinsics


def _clip(vertices: np.ndarray, faces: np.ndarray, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners (T, 3, 3) of the triangles in front of the plane z = near, and the face each comes from (T,)."""
    corners = vertices[faces]
    ahead = corners[:, :, 2] >= near
    count = ahead.sum(1)
    whole = count == 3
    kept, source = corners[whole], np.flatnonzero(whole)
    crossing = np.flatnonzero((count > 0) & ~whole)
    if len(crossing) == 0:
        return kept, source.astype(np.int64)
    extra, origin = [], []
    for f in crossing:
        ring = []
        for k in range(3):
            p, q = corners[f, k], corners[f, (k + 1) % 3]
            if p[2] >= near:
                ring.append(p)
            if (p[2] >= near) != (q[2] >= near):
                cut = p + (q - p) * ((near - p[2]) / (q[2] - p[2]))
                cut[2] = near
                ring.append(cut)
        for k in range(1, len(ring) - 1):
            extra.append((ring[0], ring[k], ring[k + 1]))
            origin.append(f)
    return np.concatenate([kept, np.array(extra)]), np.concatenate([source, np.array(origin)]).astype(np.int64)


def _project(corners: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Snapped screen corners (T, 3, 2) in 1/256 pixel, and per triangle (T, 5): 1/z = a·x + b·y + c over pixels, and its bounds."""
    image = corners @ intrinsics.T
    screen = np.rint(image[:, :, :2] / image[:, :, 2:] * SUBPIXEL)
    # Plane n·p = d; with p = z·ray(x, y): 1/z = n·ray / d, which is affine in the pixel.
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    offset = np.einsum("tk,tk->t", normal, corners[:, 0])
    ray = normal @ np.linalg.inv(intrinsics)
    z = corners[:, :, 2]
    lowest, highest = 1.0 / z.max(1, initial=1e-12), 1.0 / z.min(1, initial=np.inf)
    edge_on = np.abs(offset) < 1e-18
    planes = np.where(edge_on[:, None], 0.0, ray / np.where(edge_on, 1.0, offset)[:, None])
    planes[edge_on, 2] = lowest[edge_on]
    return np.ascontiguousarray(screen), np.ascontiguousarray(np.column_stack([planes, lowest, highest]))


def _fill_loops(screen, planes, source, cull, inverse, face_ids):
    height, width = inverse.shape
    for t in range(screen.shape[0]):
        x0, y0, x1, y1, x2, y2 = screen[t, 0, 0], screen[t, 0, 1], screen[t, 1, 0], screen[t, 1, 1], screen[t, 2, 0], screen[t, 2, 1]
        area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
        # y points down: a face that looks at the camera turns with negative area.
        if area == 0.0 or (cull and area > 0.0):
            continue
        if area < 0.0:
            x1, y1, x2, y2 = x2, y2, x1, y1
        left = max(0, int(np.floor(min(x0, x1, x2) / SUBPIXEL - 0.5)))
        right = min(width - 1, int(np.ceil(max(x0, x1, x2) / SUBPIXEL - 0.5)))
        top = max(0, int(np.floor(min(y0, y1, y2) / SUBPIXEL - 0.5)))
        bottom = min(height - 1, int(np.ceil(max(y0, y1, y2) / SUBPIXEL - 0.5)))
        # A pixel on an edge belongs to the face on one side only: the one for which the edge is a left or a top edge.
        own01 = y0 > y1 or (y0 == y1 and x1 > x0)
        own12 = y1 > y2 or (y1 == y2 and x2 > x1)
        own20 = y2 > y0 or (y2 == y0 and x0 > x2)
        a, b, c, lowest, highest = planes[t, 0], planes[t, 1], planes[t, 2], planes[t, 3], planes[t, 4]
        for row in range(top, bottom + 1):
            y = row * SUBPIXEL + 128.0
            for col in range(left, right + 1):
                x = col * SUBPIXEL + 128.0
                e01 = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
                e12 = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
                e20 = (x0 - x2) * (y - y2) - (y0 - y2) * (x - x2)
                if (
                    e01 < 0.0
                    or e12 < 0.0
                    or e20 < 0.0
                    or (e01 == 0.0 and not own01)
                    or (e12 == 0.0 and not own12)
                    or (e20 == 0.0 and not own20)
                ):
                    continue
                near = min(max(a * (col + 0.5) + b * (row + 0.5) + c, lowest), highest)
                if near > inverse[row, col] or (near == inverse[row, col] and source[t] < face_ids[row, col]):
                    inverse[row, col] = near
                    face_ids[row, col] = source[t]


def _fill_arrays(screen, planes, source, cull, inverse, face_ids):
    """The same as `_fill_loops`, a triangle's box at a time."""
    height, width = inverse.shape
    for t in range(len(screen)):
        (x0, y0), (x1, y1), (x2, y2) = screen[t]
        area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
        if area == 0.0 or (cull and area > 0.0):
            continue
        if area < 0.0:
            x1, y1, x2, y2 = x2, y2, x1, y1
        left = max(0, int(np.floor(min(x0, x1, x2) / SUBPIXEL - 0.5)))
        right = min(width - 1, int(np.ceil(max(x0, x1, x2) / SUBPIXEL - 0.5)))
        top = max(0, int(np.floor(min(y0, y1, y2) / SUBPIXEL - 0.5)))
        bottom = min(height - 1, int(np.ceil(max(y0, y1, y2) / SUBPIXEL - 0.5)))
        if left > right or top > bottom:
            continue
        col, row = np.arange(left, right + 1)[None, :], np.arange(top, bottom + 1)[:, None]
        x, y = col * SUBPIXEL + 128.0, row * SUBPIXEL + 128.0
        inside = np.ones((bottom - top + 1, right - left + 1), bool)
        for ax, ay, bx, by in ((x0, y0, x1, y1), (x1, y1, x2, y2), (x2, y2, x0, y0)):
            edge = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
            inside &= (edge >= 0.0) if ay > by or (ay == by and bx > ax) else (edge > 0.0)
        a, b, c, lowest, highest = planes[t]
        near = np.minimum(np.maximum(a * (col + 0.5) + b * (row + 0.5) + c, lowest), highest)
        box = np.s_[top : bottom + 1, left : right + 1]
        inside &= (near > inverse[box]) | ((near == inverse[box]) & (source[t] < face_ids[box]))
        inverse[box][inside] = near[inside]
        face_ids[box][inside] = source[t]


def _shade_loops(face_ids, inverse, vertices, faces, colours, normals, unproject, lamp, ambient, flat, out):
    height, width = face_ids.shape
    for row in range(height):
        for col in range(width):
            f = face_ids[row, col]
            if f < 0:
                continue
            z = 1.0 / inverse[row, col]
            px, py = col + 0.5, row + 0.5
            qx = z * (unproject[0, 0] * px + unproject[0, 1] * py + unproject[0, 2])
            qy = z * (unproject[1, 0] * px + unproject[1, 1] * py + unproject[1, 2])
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            ux, uy, uz = vertices[j, 0] - vertices[i, 0], vertices[j, 1] - vertices[i, 1], vertices[j, 2] - vertices[i, 2]
            vx, vy, vz = vertices[k, 0] - vertices[i, 0], vertices[k, 1] - vertices[i, 1], vertices[k, 2] - vertices[i, 2]
            nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
            if flat:
                red, green, blue = colours[f, 0], colours[f, 1], colours[f, 2]
            else:
                dx, dy, dz = qx - vertices[i, 0], qy - vertices[i, 1], z - vertices[i, 2]
                uu, uv, vv = ux * ux + uy * uy + uz * uz, ux * vx + uy * vy + uz * vz, vx * vx + vy * vy + vz * vz
                du, dv = dx * ux + dy * uy + dz * uz, dx * vx + dy * vy + dz * vz
                scale = uu * vv - uv * uv
                wj = min(max((vv * du - uv * dv) / scale, 0.0), 1.0)
                wk = min(max((uu * dv - uv * du) / scale, 0.0), 1.0 - wj)
                wi = 1.0 - wj - wk
                red = wi * colours[i, 0] + wj * colours[j, 0] + wk * colours[k, 0]
                green = wi * colours[i, 1] + wj * colours[j, 1] + wk * colours[k, 1]
                blue = wi * colours[i, 2] + wj * colours[j, 2] + wk * colours[k, 2]
                nx = wi * normals[i, 0] + wj * normals[j, 0] + wk * normals[k, 0]
                ny = wi * normals[i, 1] + wj * normals[j, 1] + wk * normals[k, 1]
                nz = wi * normals[i, 2] + wj * normals[j, 2] + wk * normals[k, 2]
            length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-20
            # A face seen from behind is lit as if it were turned round.
            facing = -1.0 if nx * qx + ny * qy + nz * z > 0.0 else 1.0
            lit = ambient + (1.0 - ambient) * max(0.0, facing * (nx * lamp[0] + ny * lamp[1] + nz * lamp[2]) / length)
            out[row, col, 0] = red * lit
            out[row, col, 1] = green * lit
            out[row, col, 2] = blue * lit


def _shade_arrays(face_ids, inverse, vertices, faces, colours, normals, unproject, lamp, ambient, flat, out):
    """The same as `_shade_loops`, all pixels at once."""
    row, col = np.nonzero(face_ids >= 0)
    f = face_ids[row, col]
    z = 1.0 / inverse[row, col]
    point = np.stack([col + 0.5, row + 0.5, np.ones(len(row))], 1) @ unproject.T * z[:, None]
    i, j, k = faces[f].T
    u, v = vertices[j] - vertices[i], vertices[k] - vertices[i]
    if flat:
        base, normal = colours[f], np.cross(u, v)
    else:
        d = point - vertices[i]
        uu, uv, vv, du, dv = ((p * q).sum(1) for p, q in ((u, u), (u, v), (v, v), (d, u), (d, v)))
        scale = uu * vv - uv * uv
        wj = np.clip((vv * du - uv * dv) / scale, 0.0, 1.0)
        wk = np.clip((uu * dv - uv * du) / scale, 0.0, 1.0 - wj)
        weights = np.stack([1.0 - wj - wk, wj, wk], 1)
        base, normal = (np.einsum("pk,pkc->pc", weights, values[faces[f]]) for values in (colours, normals))
    normal = normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-20)
    facing = np.where((normal * point).sum(1) > 0, -1.0, 1.0)
    lit = ambient + (1.0 - ambient) * np.maximum(0.0, facing * (normal @ lamp))
    out[row, col] = base * lit[:, None]


if numba is not None:
    _fill_numba = numba.njit(cache=True, nogil=True)(_fill_loops)
    _shade_numba = numba.njit(cache=True, nogil=True)(_shade_loops)


def _kernels(backend: str):
    if backend not in ("auto", "numba", "numpy"):
        raise ValueError(f"backend {backend!r}: expected 'auto', 'numba' or 'numpy'")
    if backend == "numba" and numba is None:
        raise ImportError("the numba rasteriser needs the extra [render]: pip install 'handvlm[render]', or backend='numpy'")
    if backend == "numpy" or numba is None:
        return _fill_arrays, _shade_arrays
    return _fill_numba, _shade_numba
