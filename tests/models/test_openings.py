"""Openings: maps lie where the landmarks are, lids shut and irises move, nothing else does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES
from models.face import GROUPS
from models.networks.generator import Geometry
from models.networks.mouth import PICTURES, ROWS, WINDOW, MouthInside, chin_shift, light
from models.networks.openings import (
    KEPT,
    KEPT_AT_MOUTH,
    ApertureMaps,
    LidWarp,
    LipWarp,
    kept_by_warp,
    lid_gap,
    lip_rows,
)

pytestmark = pytest.mark.unit

SIZE = 128
EYE = FACTOR_SLICES["eye"].start
#: Middle of the inner edge of either lip.
_UPPER, _LOWER = (lip_rows(upper=u)[5] for u in (True, False))


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


def all_white() -> MouthInside:
    """Every picture filled with opaque white."""
    mouth = MouthInside(SIZE)
    mouth.picture.fill_(1.0)
    return mouth


@torch.no_grad()
def inside_of(
    geometry: Geometry, mouth: MouthInside, code: Tensor, source: Tensor | None = None
) -> Tensor:
    """(4, S, S) of the mean head with a code, its portrait at rest unless given."""
    pose = code[:, FACTOR_SLICES["pose"]]
    shape = geometry.mean[None]
    driving = geometry(shape, code)
    rest = geometry(shape, torch.zeros(1, CODE_DIM)) if source is None else source
    seen: Tensor = mouth(shape, chin_shift(code, geometry.basis), geometry.camera(pose),
                         geometry.shift(pose), driving, rest)[0]  # fmt: skip
    return seen


def spoken(jaw: float, yaw: float = 0.0) -> Tensor:
    code = torch.zeros(1, CODE_DIM)
    code[0, 0], code[0, FACTOR_SLICES["pose"].start] = jaw, yaw
    return code


def only(name: str) -> MouthInside:
    """A single opaque line in the middle of one of the pictures."""
    mouth = MouthInside(SIZE)
    mouth.picture[PICTURES.index(name), :, ROWS // 2 - 1 : ROWS // 2 + 1] = 1
    return mouth


def height(image: Tensor) -> float:
    """Centre of mass from the top, in crop units."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    return float((image.sum(1) * axis).sum() / image.sum())


def test_upper_teeth_stay_in_the_head_the_rest_follows_the_jaw(geometry: Geometry) -> None:
    chin = [-float(chin_shift(spoken(jaw), geometry.basis)[0, 1]) for jaw in (2.0, 3.0)]
    assert (chin[1] - chin[0]) * SIZE > 2
    down = chin[1] - chin[0]
    for name, wanted in (("upper", 0.0), ("lower", down), ("behind", down)):
        a, b = (height(inside_of(geometry, only(name), spoken(jaw))[3]) for jaw in (2.0, 3.0))
        assert b - a == pytest.approx(wanted, abs=0.6 / SIZE)


def test_what_is_behind_fills_the_opening_however_wide_and_lies_under_the_teeth(
    geometry: Geometry,
) -> None:
    """The decoder paints nothing inside a mouth, so nothing that it learnt can be seen there."""
    mouth = MouthInside(SIZE)
    mouth.picture[PICTURES.index("behind")] = torch.tensor([0.2, 0.1, 0.1, 1.0])[:, None, None]
    code = spoken(3.0)
    code[0, FACTOR_SLICES["exp"]][[12, 13]] = 1.0  # smiles: wider than at rest
    opening = ApertureMaps(SIZE)(geometry(geometry.mean[None], code))[0, 0]
    seen = inside_of(geometry, mouth, code)
    assert seen[3, opening > 0.97].min() > 0.9
    assert seen[0, opening > 0.97].max() <= 0.2 + 1e-6
    mouth.picture[PICTURES.index("lower")] = 1.0
    assert inside_of(geometry, mouth, code)[0].max() > 0.99, "teeth stand before it"
    mouth.picture[PICTURES.index("lower")] = 0.0
    mouth.picture[PICTURES.index("upper"), 3] = 1.0
    assert inside_of(geometry, mouth, code)[0].min() == 0, "black teeth hide it"


def test_the_inside_is_seen_through_the_opening_only_and_turns_with_the_head(
    geometry: Geometry,
) -> None:
    straight = inside_of(geometry, all_white(), spoken(2.0))[3]
    opening = ApertureMaps(SIZE)(geometry(geometry.mean[None], spoken(2.0)))[0, 0]
    assert straight[opening < 0.25].max() == 0
    assert straight[opening > 0.97].min() > 0.9
    turned = inside_of(geometry, all_white(), spoken(2.0, yaw=0.5))[3]
    widths = [float((image > 0.5).any(0).sum()) for image in (straight, turned)]
    assert widths[1] / widths[0] == pytest.approx(np.cos(0.5), abs=0.1)
    lips = geometry(geometry.mean[None], spoken(-1.0))[0]
    assert lips[_LOWER, 1] <= lips[_UPPER, 1], "they touch"
    assert inside_of(geometry, all_white(), spoken(-1.0))[3].max() < 0.02


def test_a_portrait_that_shows_its_own_teeth_keeps_them(geometry: Geometry) -> None:
    wide = geometry(geometry.mean[None], spoken(2.0))
    assert inside_of(geometry, all_white(), spoken(2.5), source=wide).abs().max() == 0


def test_the_upper_lip_throws_a_shadow(geometry: Geometry) -> None:
    seen = inside_of(geometry, all_white(), spoken(2.5))
    column = SIZE // 2
    lines = (seen[3, :, column] > 0.5).nonzero()[:, 0]
    shade = seen[0, lines, column] / seen[3, lines, column]
    assert shade[0] < 0.9
    assert shade[-1] > 0.95
    assert (shade.diff() > -1e-3).all()


def test_the_inside_fades_before_its_window_ends(geometry: Geometry) -> None:
    code = spoken(2.0)
    code[0, FACTOR_SLICES["pose"].start + 4] = 0.22
    seen = inside_of(geometry, all_white(), code)[3]
    last = round(SIZE * WINDOW[3])
    assert seen[last - 12 : last].max() > 0.05, "the mouth has reached the rim"
    assert seen[last - 1].max() < 0.2
    assert seen[last:].max() == 0


def test_white_is_as_light_as_the_eyes_and_never_darker_than_skin(geometry: Geometry) -> None:
    source = points(geometry)
    picture = torch.full((1, 3, 128, 128), 0.0)
    picture[:, 2] = -0.2
    plain = light(picture, source)[0]
    assert float(plain.mean()) == pytest.approx(1.14 * (0.5 + 0.5 + 0.4) / 3, rel=0.02)
    assert plain[2] < plain[0], "half of the tint stays"
    for name in ("eye_left", "eye_right"):
        rows, columns = box(source, name)
        picture[:, :, rows, columns] = 0.4
    assert light(picture, source).mean() > plain.mean() + 0.1
    assert light(torch.full((1, 3, 128, 128), -1.0), source).mean() >= 0.29
    assert light(torch.ones(1, 3, 128, 128), source).max() <= 0.931


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


@pytest.mark.parametrize(("yaw", "jaw"), [(0.0, 0.0), (0.35, 3.0), (-0.35, 2.0)])
def test_the_decoder_has_more_to_say_at_the_mouth_than_at_the_silhouette(
    geometry: Geometry, yaw: float, jaw: float
) -> None:
    points = geometry(geometry.mean[None], spoken(jaw, yaw))
    kept = kept_by_warp(points, (torch.arange(SIZE) + 0.5) / SIZE)[0, 0]
    lips = (points[0, GROUPS["lips_outer"]] * SIZE).long()
    assert kept[lips[:, 1], lips[:, 0]].max() < KEPT_AT_MOUTH + 0.02
    assert kept[:, [0, -1]].min() == pytest.approx(KEPT), "background"
    oval = (points[0, GROUPS["oval"]] * SIZE).long()
    crown = oval[oval[:, 1] < oval[:, 1].min() + 10]
    assert kept[crown[:, 1], crown[:, 0]].min() == pytest.approx(KEPT)
    assert KEPT_AT_MOUTH <= kept.min() <= kept.max() <= KEPT + 1e-6
