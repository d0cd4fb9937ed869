"""The rasteriser against rays, its two backends against each other, and what the overlays promise at any picture size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_tools import lettering, raster
from pose_tools.body_models import standin_hand_arrays
from pose_tools.raster import rasterise
from pose_tools.render import SIDE_COLOURS, Canvas, colour_of, contact_sheet
from pose_tools.types import Box, Trajectory

K = np.array([[60.0, 0, 30], [0, 60, 24], [0, 0, 1]])
SIZE = (60, 48)
needs_numba = pytest.mark.skipif(raster.numba is None, reason="numba is not installed (the extra [render])")


def soup(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centre = rng.uniform([-0.4, -0.3, 0.5], [0.4, 0.3, 2.0], (count, 1, 3))
    return (centre + rng.normal(0, 0.15, (count, 3, 3))).reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)


def cast(vertices: np.ndarray, faces: np.ndarray, near: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth and face by casting a ray through every pixel, and the pixels whose answer hangs on less than a snapped corner."""
    col, row = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    rays = np.stack([col, row, np.ones_like(col)], -1).reshape(-1, 3) @ np.linalg.inv(K).T
    depth, ids, unsure = np.full(len(rays), np.inf), np.full(len(rays), -1), np.zeros(len(rays), bool)
    for f, (a, b, c) in enumerate(vertices[faces]):
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = np.linalg.solve(np.stack([a, b, c]).T, rays.T).T  # ray·z = Σ w corner, Σ w = 1 on the face
            z = 1.0 / weights.sum(1)
            weights = weights * z[:, None]
        inside, margin = (weights > 0).all(1) & (z > near), np.abs(weights).min(1)
        edge = (weights > -0.05).all(1) & (margin < 0.02) & (z > 0) & (z < depth + 0.1)
        unsure |= edge
        nearer = inside & (z < depth)
        depth[nearer], ids[nearer] = z[nearer], f
    return depth.reshape(SIZE[::-1]), ids.reshape(SIZE[::-1]), unsure.reshape(SIZE[::-1])


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=needs_numba)])
@pytest.mark.parametrize("seed", range(4))
def test_depth_and_faces_are_those_of_rays(backend, seed):
    vertices, faces = soup(seed)
    drawn = rasterise(vertices, faces, K, SIZE, backend=backend)
    depth, ids, unsure = cast(vertices, faces)
    assert (~unsure).mean() > 0.3 and (ids[~unsure] >= 0).any()
    np.testing.assert_array_equal(drawn.face_ids[~unsure], ids[~unsure])
    seen = ~unsure & (ids >= 0)
    np.testing.assert_allclose(drawn.depth[seen], depth[seen], rtol=1e-6)
    assert np.isinf(drawn.depth[drawn.face_ids < 0]).all()


@needs_numba
@pytest.mark.parametrize("options", [{}, {"cull": True}, {"near": 0.9}, {"flat": True}])
def test_both_backends_draw_the_same(options):
    hand = standin_hand_arrays()
    pile, pile_faces = soup(7)
    vertices = np.vstack([hand["v_template"] * 4 + [0, 0, 0.9], pile])
    faces = np.vstack([hand["f"].astype(int), pile_faces + 778])
    count = len(faces) if options.get("flat") else len(vertices)
    colours = np.random.default_rng(0).random((count, 3))
    options = {k: v for k, v in options.items() if k != "flat"}
    a, b = (rasterise(vertices, faces, K, SIZE, colours=colours, backend=backend, **options) for backend in ("numpy", "numba"))
    np.testing.assert_array_equal(a.face_ids, b.face_ids)
    np.testing.assert_array_equal(a.depth, b.depth)
    np.testing.assert_allclose(a.colour, b.colour, atol=1e-5)
    assert (a.face_ids >= 0).sum() > 300


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_neighbouring_faces_leave_no_gap_and_share_no_pixel(seed):
    # A rectangle cut into triangles at random: every pixel inside belongs to exactly one of them, wherever the cuts run.
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1)
    grid[1:-1, 1:-1] += rng.uniform(-0.4, 0.4, grid[1:-1, 1:-1].shape)
    pixels = (grid * [10, 10] + 4 + np.round(rng.uniform(0, 4, 2)) / 2).reshape(-1, 2)  # some corners on pixel centres
    vertices = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(K).T
    number = np.arange(20).reshape(4, 5)
    faces = []
    for r in range(3):
        for c in range(4):
            a, b, d, e = number[r, c], number[r, c + 1], number[r + 1, c], number[r + 1, c + 1]
            faces += [[a, b, e], [a, e, d]] if rng.random() < 0.5 else [[a, b, d], [b, e, d]]
    faces = np.array(faces)
    together = rasterise(vertices, faces, K, SIZE, backend="numpy").face_ids
    hits = sum((rasterise(vertices, faces[i : i + 1], K, SIZE, backend="numpy").face_ids >= 0).astype(int) for i in range(len(faces)))
    assert hits.max() == 1
    np.testing.assert_array_equal(hits == 1, together >= 0)
    assert hits.sum() == 40 * 30


def test_order_of_faces_and_splitting_of_meshes_do_not_matter():
    vertices, faces = soup(3)
    order = np.random.default_rng(1).permutation(len(faces))
    whole, shuffled = rasterise(vertices, faces, K, SIZE), rasterise(vertices, faces[order], K, SIZE)
    np.testing.assert_array_equal(whole.depth, shuffled.depth)
    seen = whole.face_ids >= 0
    np.testing.assert_array_equal(order[shuffled.face_ids[seen]], whole.face_ids[seen])
    parts = [rasterise(vertices, part, K, SIZE).depth for part in (faces[:15], faces[15:])]
    np.testing.assert_array_equal(np.minimum(*parts), whole.depth)


def test_equal_depth_goes_to_the_lower_face_number():
    vertices, _ = soup(0, 1)
    for backend in ("numpy", "auto"):
        drawn = rasterise(vertices, np.array([[0, 1, 2], [0, 1, 2], [2, 1, 0]]), K, SIZE, backend=backend)
        assert set(np.unique(drawn.face_ids)) <= {-1, 0} and (drawn.face_ids == 0).any()


def test_a_floor_under_the_camera_is_cut_at_the_near_plane():
    floor = np.array([[-5, 0.5, -1], [5, 0.5, -1], [5, 0.5, 9], [-5, 0.5, 9]], float)
    drawn = rasterise(floor, np.array([[0, 1, 2], [0, 2, 3]]), K, SIZE, near=0.2)
    row, col = np.nonzero(drawn.face_ids >= 0)
    np.testing.assert_allclose(drawn.depth[row, col], 0.5 * 60 / (row + 0.5 - 24), rtol=1e-5)
    assert row.max() == SIZE[1] - 1 and len(np.unique(row)) > 15
    behind = rasterise(floor - [0, 0, 20], np.array([[0, 1, 2], [0, 2, 3]]), K, SIZE)
    assert (behind.face_ids == -1).all()


def test_culling_leaves_out_faces_seen_from_behind():
    vertices = np.array([[-0.2, -0.2, 1], [0.2, -0.2, 1], [0.0, 0.2, 1]], float)
    away = np.array([[0, 1, 2]])  # seen from the camera this turns clockwise with y down, so its outside is the far side
    normal = np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])
    assert normal[2] > 0
    assert (rasterise(vertices, away, K, SIZE, cull=True).face_ids == -1).all()
    assert (rasterise(vertices, away[:, ::-1], K, SIZE, cull=True).face_ids == 0).any()
    assert (rasterise(vertices, away, K, SIZE).face_ids == 0).any()


def test_colours_are_interpolated_in_perspective_and_lit_by_the_lamp():
    # On a slanted plane the colour equals the height above the plane's lower edge: linear in 3-D, not in pixels.
    plane = np.array([[-1, 0.2, 1], [1, 0.2, 1], [1, 0.2, 4], [-1, 0.2, 4]], float)
    colours = np.repeat(((plane[:, 2:] - 1) / 3), 3, 1)
    drawn = rasterise(plane, np.array([[0, 1, 2], [0, 2, 3]]), K, SIZE, colours=colours, ambient=1.0)
    seen = drawn.face_ids >= 0
    np.testing.assert_allclose(drawn.colour[seen][:, 0], (drawn.depth[seen] - 1) / 3, atol=1e-5)
    wall = np.array([[-1, -1, 2], [1, -1, 2], [0, 1, 2]], float)
    lit = rasterise(wall, np.array([[0, 1, 2]]), K, SIZE, colours=np.ones((1, 3)), light=(0, 0, -1), ambient=0.4).colour
    dark = rasterise(wall, np.array([[0, 1, 2]]), K, SIZE, colours=np.ones((1, 3)), light=(0, 0, 1), ambient=0.4).colour
    assert lit.max() == pytest.approx(1.0) and dark.max() == pytest.approx(0.4)


def test_wrong_meshes_are_refused_with_the_reason():
    vertices, faces = soup(0)
    for arguments, message in (
        ((vertices[:, :2], faces), r"vertices has shape \(120, 2\)"),
        ((vertices, faces + 1), "faces name vertices 1…120, but there are only 120"),
        ((vertices * np.nan, faces), "120 of 120 vertices are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            rasterise(*arguments, K, SIZE)
    with pytest.raises(ValueError, match="colours has shape"):
        rasterise(vertices, faces, K, SIZE, colours=np.ones((7, 3)))
    with pytest.raises(ValueError, match="backend 'gpu'"):
        rasterise(vertices, faces, K, SIZE, backend="gpu")
    assert (rasterise(vertices[:0], faces[:0], K, SIZE).face_ids == -1).all()


# ---------------------------------------------------------------- overlays


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (192, 192), (1600, 900), (3000, 20)])
def test_small_pictures_are_enlarged_and_large_ones_kept(size):
    image = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    before = image.copy()
    canvas = Canvas(image).boxes([Box((0, 0, *size), "all")]).caption("what is here?")
    drawn = canvas.array()
    np.testing.assert_array_equal(image, before)
    if min(size) >= 512:
        assert drawn.shape == image.shape
    else:
        assert drawn.shape[0] > size[1] or max(size) >= 2048
        assert min(drawn.shape[:2]) == 512 or max(drawn.shape[:2]) >= 2048
    np.testing.assert_array_equal(Canvas(np.tile(image[:1, :1], (600, 600, 1))).array(), np.tile(image[:1, :1], (600, 600, 1)))


@pytest.mark.parametrize("scale", [1, 8])
def test_a_frame_lies_on_its_box(scale):
    width, height = 640 // scale, 512 // scale
    canvas = Canvas(grey(width, height))
    box = np.array([100, 60, 300, 260]) / scale
    drawn = canvas.boxes([Box(tuple(box), "left hand")], colours=[(255, 0, 0)]).array()
    shown = np.argwhere((drawn[:, :, 0] > 200) & (drawn[:, :, 1] < 60))
    x1, y1 = box[:2] * canvas.scale
    x2, y2 = box[2:] * canvas.scale
    below = shown[shown[:, 0] > y1 + 4]
    assert abs(below[:, 1].min() - x1) < 3 and abs(below[:, 1].max() + 1 - x2) < 3 and abs(below[:, 0].max() + 1 - y2) < 3
    middle = drawn[round((y1 + y2) / 2), round((x1 + x2) / 2)]
    np.testing.assert_array_equal(middle, [90, 90, 90])


def test_boxes_take_their_sides_colour_and_outside_ones_are_left_out():
    assert colour_of("left hand") == SIDE_COLOURS["left"] != colour_of("right hand") == SIDE_COLOURS["right"]
    assert colour_of("red cup", 0) != colour_of("red cup", 1) and colour_of(None) == colour_of("left and right")
    empty = Canvas(grey(600, 600)).array()
    outside = [Box((700, 0, 900, 50), "cup"), Box((-50, -50, -10, -10)), Box((10, 10, 10, 40))]
    np.testing.assert_array_equal(Canvas(grey(600, 600)).boxes(outside).array(), empty)
    partly = Canvas(grey(600, 600)).boxes([Box((-1e9, 300, 200, 1e9), "cup", 0.5)]).array()
    assert (partly != empty).any()
    with pytest.raises(ValueError, match="box cup: .*not finite"):
        Canvas(grey(600, 600)).boxes([Box((0, 0, float("nan"), 5), "cup")])
    with pytest.raises(ValueError, match="1 colours for 2 boxes"):
        Canvas(grey(9, 9)).boxes([Box((0, 0, 1, 1))] * 2, colours=[(0, 0, 0)])
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected RGB uint8"):
            Canvas(wrong)


def test_a_dashed_frame_covers_about_half_of_a_solid_one():
    box = [Box((50, 50, 550, 550))]
    ground = grey(600, 600)
    solid, dashed = ((Canvas(ground).boxes(box, dashed=d).array() != 90).any(2).sum() for d in (False, True))
    assert 0.4 * solid < dashed < 0.85 * solid


def test_a_skeleton_is_drawn_at_its_joints_and_without_missing_ones():
    joints = np.array([[100 + 18 * (k % 5), 400 - 22 * (k // 4) - 3 * k] for k in range(21)], float)
    canvas = Canvas(grey(512, 512))
    drawn = canvas.skeleton(joints, side="left").array()
    for x, y in joints.astype(int):
        assert (drawn[y, x] != 90).any()
    np.testing.assert_array_equal(drawn[round(joints[0, 1] - 0.5), round(joints[0, 0] - 0.5)], SIDE_COLOURS["left"])
    valid = np.ones(21, bool)
    valid[8] = False
    missing = joints.copy()
    missing[8] = np.nan
    np.testing.assert_array_equal(
        Canvas(grey(512, 512)).skeleton(missing).array(), Canvas(grey(512, 512)).skeleton(joints, valid=valid).array()
    )
    np.testing.assert_array_equal(Canvas(grey(512, 512)).skeleton(np.full((21, 2), np.nan)).array(), grey(512, 512))
    with pytest.raises(ValueError, match=r"joints_2d has shape \(16, 2\)"):
        canvas.skeleton(joints[:16])


@pytest.mark.parametrize("scale", [1, 4])
def test_a_mesh_covers_what_it_projects_to(scale):
    hand = standin_hand_arrays()
    vertices = hand["v_template"][:, [2, 0, 1]] * [1, 1, -1] + [0, 0, 0.5]  # fingers up, back of the hand to the camera
    camera = np.array([[600.0, 0, 300], [0, 600, 260], [0, 0, scale]]) / scale
    ground = grey(600 // scale, 560 // scale)
    canvas = Canvas(ground)
    drawn = canvas.mesh(vertices, hand["f"], camera, opacity=1.0).array()
    grow = np.diag([canvas.size[0] / ground.shape[1], canvas.size[1] / ground.shape[0], 1.0])
    inside = rasterise(vertices, hand["f"], grow @ camera, canvas.size).face_ids >= 0
    assert inside.mean() > 0.05
    changed = (drawn != 90).any(2)
    assert (changed != inside).sum() < 0.08 * inside.sum(), "only the smoothed rim differs"
    assert changed[inside].mean() > 0.98
    slow = Canvas(ground).mesh(vertices, hand["f"], camera, opacity=1.0, backend="numpy").array()
    assert np.abs(slow.astype(int) - drawn).max() <= 1
    np.testing.assert_array_equal(Canvas(ground).mesh(vertices - [0, 0, 5], hand["f"], camera).array(), Canvas(ground).array())


def test_a_trajectory_runs_from_ring_to_arrow_and_skips_what_is_not_valid():
    points = np.stack([np.linspace(100, 400, 7), np.full(7, 300.0)], 1)
    valid = np.ones(7, bool)
    drawn = Canvas(grey(600, 600)).trajectory(Trajectory(points, valid, "right", 4.0)).array()
    np.testing.assert_array_equal(drawn[299, 99], [255, 255, 255])
    assert (drawn[299, 402] == SIDE_COLOURS["right"]).all() and (drawn[299, 430] == 90).all()
    valid[3] = False
    hole = points.copy()
    hole[3] = np.nan
    a = Canvas(grey(600, 600)).trajectory(Trajectory(hole, valid, "right", 4.0), spread=np.full(7, 9.0)).array()
    b = Canvas(grey(600, 600)).trajectory(np.where(valid[:, None], points, 7), spread=np.full(7, 9.0), colour=SIDE_COLOURS["right"]).array()
    assert (a[289:293, 200:300] != 90).any(), "the band"
    assert (a != b).any(), "the seventh point of b is where it was, its fourth in a corner"
    for few in (points[:0], points[:1], np.repeat(points[:1], 3, 0)):
        Canvas(grey(600, 600)).trajectory(few)
    with pytest.raises(ValueError, match=r"points of shape \(7, 3\)"):
        Canvas(grey(60, 60)).trajectory(np.zeros((7, 3)))


sides = st.floats(-200, 900)


@given(st.lists(st.tuples(sides, sides, st.floats(1, 400), st.floats(1, 400)), min_size=1, max_size=6))
def test_label_plates_stay_in_the_picture(boxes):
    taken: list[lettering.Rectangle] = []
    for x, y, w, h in boxes:
        place = lettering.plate_place((x, y, x + w, y + h), (120, 24), (640, 480), taken)
        assert 0 <= place[0] and 0 <= place[1] and place[2] <= 640 and place[3] <= 480
        taken.append(place)


def test_plates_of_one_box_do_not_cover_each_other():
    taken: list[lettering.Rectangle] = []
    for _ in range(4):
        taken.append(lettering.plate_place((200, 200, 400, 380), (90, 24), (640, 480), taken))
    assert sum(lettering._shared(a, b) for i, a in enumerate(taken) for b in taken[:i]) == 0


@settings(max_examples=30)
@given(st.text(max_size=300), st.integers(30, 400), st.integers(1, 4))
def test_any_text_fits_its_room(text, room, most):
    lines = lettering.wrap(text, 14, room, most)
    assert 1 <= len(lines) <= most
    assert all(lettering.width_of(line, 14) <= room for line in lines)
    assert lettering.width_of(lettering.shorten(text, 14, room), 14) <= room


def test_characters_the_typeface_lacks_are_replaced():
    assert lettering.readable("192×192 left hand…") == "192x192 left hand…"
    assert "?" in lettering.readable("手")


def test_a_contact_sheet_shows_every_picture_in_order():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    images = [np.full((10 + 7 * i, 30, 3), c, np.uint8) for i, c in enumerate(colours)]
    sheet = contact_sheet(images, [f"picture {i}\nsecond line" for i in range(5)], columns=3, cell=100, title="five")
    centres = [np.argwhere((sheet == c).all(2)).mean(0) for c in colours]
    assert [centre[1] < 120 for centre in centres] == [True, False, False, True, False]
    assert centres[0][0] < centres[3][0] and centres[0][1] < centres[1][1] < centres[2][1]
    assert contact_sheet(images[:1]).shape[1] == 320 + 2 * 10
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 captions for 5 pictures"):
        contact_sheet(images, ["a", "b"])
    with pytest.raises(ValueError, match="expected RGB uint8"):
        contact_sheet([np.zeros((4, 4))])
