"""Openings: maps lie where the landmarks are, lids shut and irises move, nothing else does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES
from models.face import GROUPS
from models.networks.generator import Geometry
from models.networks.openings import ApertureMaps, LidWarp, LipWarp, lid_gap
from models.networks.teeth import CHANNELS, GAIN, Teeth, chin_shift

pytestmark = pytest.mark.unit

SIZE = 128
EYE = FACTOR_SLICES["eye"].start


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    geometry = Geometry()
    geometry.load_face_model(open_checkpoint().face)
    return geometry


def points(geometry: Geometry, **codes: float) -> Tensor:
    """Control points of the mean head; keys are left, right (closure), gaze, jaw."""
    slots = {"left": EYE, "right": EYE + 1, "gaze": EYE + 2, "jaw": 0}
    code = torch.zeros(1, CODE_DIM)
    for name, value in codes.items():
        code[0, slots[name]] = value
    return geometry(geometry.mean[None], code)


def box(points: Tensor, name: str) -> tuple[slice, slice]:
    group = points[0, GROUPS[name]] * SIZE
    x0, y0 = group.min(0).values.floor().int().tolist()
    x1, y1 = group.max(0).values.ceil().int().tolist()
    return slice(y0, y1 + 1), slice(x0, x1 + 1)


def test_maps_cover_the_openings_and_nothing_else(geometry: Geometry) -> None:
    open_mouth = points(geometry, jaw=2)
    mouth, eyes, iris = ApertureMaps(SIZE)(open_mouth)[0]
    for drawn, names in (
        (mouth, ("lips_inner",)),
        (eyes, ("eye_left", "eye_right")),
        (iris, ("iris_left", "iris_right")),
    ):
        outside = drawn.clone()
        for name in names:
            assert drawn[box(open_mouth, name)].max() > 0.9
            outside[box(open_mouth, name)] = 0
        assert outside.max() < 0.6, "only the soft edge lies outside"
        assert outside.sum() < 0.35 * drawn.sum()


def test_a_shut_eye_and_mouth_are_not_open(geometry: Geometry) -> None:
    maps = ApertureMaps(SIZE)
    still = maps(points(geometry))[0]
    shut = points(geometry, left=1, right=1)
    assert maps(shut)[0, 1].sum() < 0.35 * still[1].sum()
    assert maps(points(geometry, jaw=2))[0, 0].sum() > 2 * still[0].sum()


def test_the_same_eyes_move_nothing(geometry: Geometry) -> None:
    same = points(geometry)
    found = LidWarp(SIZE)(same, same)[0][0].numpy()
    axis = (np.arange(SIZE) + 0.5) / SIZE
    x, y = np.meshgrid(axis, axis)
    # Inside an opening positions are held within the source's own lids: less than a pixel.
    assert np.abs(found[0] - x).max() < 1e-6
    assert np.abs(found[1] - y).max() < 1.0 / 256


def test_closing_one_eye_pulls_its_lid_down_only(geometry: Geometry) -> None:
    rest, shut = points(geometry), points(geometry, left=1)
    shift = LidWarp(SIZE)(shut, rest)[0][0] - LidWarp(SIZE)(rest, rest)[0][0]
    down = -shift[1]
    left, right = box(rest, "eye_left"), box(rest, "eye_right")
    assert down[left].max() * 256 > 4, "the lid's pixels come from four pixels further up"
    assert down[right].abs().max() * 256 < 0.5
    far = shift.abs().clone()
    rows = slice(left[0].start - 9, left[0].stop + 6)
    far[:, rows, slice(left[1].start - 2, left[1].stop + 2)] = 0
    assert far.max() * 256 < 0.5


def test_gaze_moves_the_iris_by_its_landmarks(geometry: Geometry) -> None:
    rest, right = points(geometry), points(geometry, gaze=0.8)
    wanted = (right - rest)[0, GROUPS["iris_left"]][0, 0]
    positions = LidWarp(SIZE)(right, rest)[0][0]
    x, y = (right[0, GROUPS["iris_left"]][0] * SIZE).int().tolist()
    found = (x + 0.5) / SIZE - positions[0, y, x]
    assert abs(float(found - wanted)) < 0.15 * abs(float(wanted))


def test_both_are_differentiable_and_finite(geometry: Geometry) -> None:
    shape = geometry.mean[None].clone().requires_grad_()
    code = torch.zeros(1, CODE_DIM)
    code[0, EYE] = 1.0
    driving = geometry(shape, code)
    positions, lids = LidWarp(SIZE)(driving, geometry(shape, code * 0))
    (ApertureMaps(SIZE)(driving).sum() + positions.sum() + lids.sum()).backward()
    assert shape.grad is not None
    assert torch.isfinite(shape.grad).all()


def test_wide_eyes_shut_completely_and_others_as_before(geometry: Geometry) -> None:
    wide = geometry.mean[None].clone()
    for name in ("eye_left", "eye_right"):
        eye = wide[0, GROUPS[name]]
        eye[:, 1] = eye[:, 1].mean() + 1.25 * (eye[:, 1] - eye[:, 1].mean())
    code = torch.zeros(1, CODE_DIM)
    open_, before = lid_gap(wide), lid_gap(geometry.mean[None])
    assert (open_ > 1.2 * before).all()
    code[0, EYE : EYE + 2] = 1
    for shape in (wide, geometry.mean[None]):
        shut = geometry(shape, code)[0]
        for name in ("eye_left", "eye_right"):
            lower, upper = shut[GROUPS[name]][4, 1], shut[GROUPS[name]][12, 1]
            assert (lower - upper) * 256 < 0.7, "in pixels; crossing is held by the curves"
    assert (geometry.lid_gain(geometry.mean[None] * 0.9) == 1).all(), "never less than the mean"


def test_the_seam_is_where_lids_meet_that_were_apart(geometry: Geometry) -> None:
    rest, shut, half = (points(geometry, left=c) for c in (0.0, 1.0, 0.4))
    lids = LidWarp(SIZE)
    assert lids(rest, rest)[1][0, 0].max() == 0
    assert lids(half, rest)[1][0, 0, :, SIZE // 2 - 20 : SIZE // 2 - 8].max() < 0.3
    seam, zone = lids(shut, rest)[1][0]
    left, right = box(rest, "eye_left"), box(rest, "eye_right")
    assert seam[left].max() > 0.9
    assert seam[right].max() == 0
    assert (zone[seam > 0.5] > 0.9).all()
    assert zone[box(rest, "nose")].mean() < 0.05
    # The squeezed eye lies where neighbouring rows of the flow are further apart than the eye
    # is high in half; exactly there the seam is drawn.
    rows = lids(shut, rest)[0][0, 1]
    jump = (rows[1:] - rows[:-1]) * 256
    for column in range(left[1].start + 4, left[1].stop - 4):
        if jump[:, column].max() > 4:
            at = int(jump[:, column].argmax())
            assert seam[at : at + 2, column].max() > 0.6, "less towards the corners"


@torch.no_grad()
def teeth_of(geometry: Geometry, teeth: Teeth, yaw: float = 0.0, jaw: float = 0.0) -> Tensor:
    """All maps, as seen through a mouth that is open everywhere."""
    code = torch.zeros(1, CODE_DIM)
    code[0, 0], code[0, FACTOR_SLICES["pose"].start] = jaw, yaw
    pose = code[:, FACTOR_SLICES["pose"]]
    return teeth(
        geometry.mean[None], chin_shift(code, geometry.basis), geometry.camera(pose),
        geometry.shift(pose), torch.ones(1, 1, SIZE, SIZE),
    )[0]  # fmt: skip


def centre(image: Tensor) -> Tensor:
    """(x, y) centre of mass in crop units."""
    weight = image.abs() / image.abs().sum()
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    return torch.stack([(weight.sum(0) * axis).sum(), (weight.sum(1) * axis).sum()])


def test_upper_teeth_stay_in_the_head_and_lower_ones_follow_the_jaw(geometry: Geometry) -> None:
    teeth = Teeth(SIZE)
    with torch.no_grad():
        teeth.rows.fill_(1 / GAIN)
    still, spoken = teeth_of(geometry, teeth), teeth_of(geometry, teeth, jaw=1.5)
    upper, lower = slice(0, CHANNELS), slice(CHANNELS, 2 * CHANNELS)
    torch.testing.assert_close(still[upper], spoken[upper])
    code = torch.zeros(1, CODE_DIM)
    code[0, 0] = 1.5
    wanted = -float(chin_shift(code, geometry.basis)[0, 1])
    moved = centre(spoken[lower].sum(0)) - centre(still[lower].sum(0))
    assert wanted * 256 > 3
    assert float(moved[1]) == pytest.approx(wanted, abs=1 / 256)
    assert abs(float(moved[0])) < 1 / 256


@torch.no_grad()
def test_teeth_turn_with_the_head_and_are_seen_through_the_opening_only(
    geometry: Geometry,
) -> None:
    teeth = Teeth(SIZE)
    with torch.no_grad():
        teeth.rows.fill_(1 / GAIN)
    straight, turned = (teeth_of(geometry, teeth, yaw=y)[0] for y in (0.0, 0.5))
    widths = [float((image > 0.5).any(0).sum()) for image in (straight, turned)]
    assert widths[1] / widths[0] == pytest.approx(np.cos(0.5), abs=0.08)
    mouth = points(geometry, jaw=2)
    opening = ApertureMaps(SIZE)(mouth)[:, :1]
    pose = torch.zeros(1, 6)
    seen = teeth(geometry.mean[None], torch.zeros(1, 3), geometry.camera(pose),
                 geometry.shift(pose), opening)  # fmt: skip
    assert seen[0, :, opening[0, 0] < 1e-4].abs().max() < 1e-3
    assert seen[0, 0][box(mouth, "lips_inner")].max() > 0.9


def grid() -> torch.Tensor:
    """The flow that moves nothing, (1, 2, S, S)."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y])[None]


@pytest.mark.parametrize(("source_jaw", "driving_jaw"), [(0.0, 1.5), (1.5, 0.0), (0.3, 0.6)])
def test_every_lip_line_comes_from_its_own_line(
    geometry: Geometry, source_jaw: float, driving_jaw: float
) -> None:
    source, driving = points(geometry, jaw=source_jaw), points(geometry, jaw=driving_jaw)
    warp = LipWarp(SIZE)
    flow = warp(grid(), driving, source)
    lines = driving[:, warp.lines]
    found = torch.nn.functional.grid_sample(flow, lines * 2 - 1, align_corners=False)
    missed = (found.permute(0, 2, 3, 1) - source[:, warp.lines]).norm(dim=-1) * 256
    before = (lines - source[:, warp.lines]).norm(dim=-1) * 256
    # Corners, where four lines meet in a point, are smoothed.
    middle = slice(2, 9)
    if before.max() > 2:
        assert missed[0, :, middle].mean() < 0.25 * before[0, :, middle].mean()
    assert missed[0, :, middle].max() < 1.5


def test_lips_in_place_and_the_rest_of_the_face_stay(geometry: Geometry) -> None:
    same = points(geometry)
    assert (LipWarp(SIZE)(grid(), same, same) - grid()).abs().max() * 256 < 0.2
    shift = (LipWarp(SIZE)(grid(), points(geometry, jaw=1.5), same) - grid())[0].abs()
    for name in ("eye_left", "eye_right", "brow_left"):
        assert shift[:, *box(same, name)].max() * 256 < 0.01
