"""Openings: maps lie where the landmarks are, lids shut and irises move, nothing else does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES
from models.face import GROUPS
from models.networks.generator import Geometry
from models.networks.openings import ApertureMaps, LidWarp, LipWarp

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
    found = LidWarp(SIZE)(same, same)[0].numpy()
    axis = (np.arange(SIZE) + 0.5) / SIZE
    x, y = np.meshgrid(axis, axis)
    # Inside an opening positions are held within the source's own lids: less than a pixel.
    assert np.abs(found[0] - x).max() < 1e-6
    assert np.abs(found[1] - y).max() < 1.0 / 256


def test_closing_one_eye_pulls_its_lid_down_only(geometry: Geometry) -> None:
    rest, shut = points(geometry), points(geometry, left=1)
    shift = LidWarp(SIZE)(shut, rest)[0] - LidWarp(SIZE)(rest, rest)[0]
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
    positions = LidWarp(SIZE)(right, rest)[0]
    x, y = (right[0, GROUPS["iris_left"]][0] * SIZE).int().tolist()
    found = (x + 0.5) / SIZE - positions[0, y, x]
    assert abs(float(found - wanted)) < 0.15 * abs(float(wanted))


def test_both_are_differentiable_and_finite(geometry: Geometry) -> None:
    shape = geometry.mean[None].clone().requires_grad_()
    code = torch.zeros(1, CODE_DIM)
    code[0, EYE] = 1.0
    driving = geometry(shape, code)
    total = (
        ApertureMaps(SIZE)(driving).sum() + LidWarp(SIZE)(driving, geometry(shape, code * 0)).sum()
    )
    total.backward()
    assert shape.grad is not None
    assert torch.isfinite(shape.grad).all()


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
