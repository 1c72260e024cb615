"""The synthesis engine on a toy head: exact labels, exact flow, seeds, independent factors."""

import json
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, EXPRESSION_NAMES, FACTOR_SLICES
from models.face import CANONICAL_ORIGIN, GROUPS, FaceModel, rotation
from trainer.face_fit import CM, PIVOT_CM
from trainer.frames import FrameCache
from trainer.synthesis.actor import SIZE, Actor, Rig, make_actor, make_rig, project
from trainer.synthesis.drive import WIDE, drive_clip
from trainer.synthesis.fit import blendshape_prior
from trainer.synthesis.head import SKIN, Head, Parts, read_head
from trainer.synthesis.layers import fill_in, person_mask, spread_depth
from trainer.synthesis.raster import rasterise
from trainer.synthesis.render import Drive, deform, jaw_motion, render, to_affine
from trainer.synthesis.stills import Limits, crown, reject, solidity
from trainer.synthesis.stream import Order, Studio, frames_of, sample_of, stream, within, write
from trainer.voices.lips import LipModel

pytestmark = pytest.mark.unit
NAMES = ("jawOpen", "mouthPucker", "eyeBlink_L", "eyeBlink_R", "eyeWide_L", "eyeWide_R",
         "browInnerUp_L", "browInnerUp_R", "mouthSmile_L", "mouthSmile_R")  # fmt: skip


@pytest.fixture(scope="module")
def face() -> FaceModel:
    return open_checkpoint().face


def toy_head_file(path: Path, face: FaceModel) -> Parts:
    """A smooth shield with holes at eyes and mouth, two balls and a row of blocks for teeth."""
    points = face.mean / CM + PIVOT_CM
    xs, ys = np.meshgrid(np.linspace(-8, 8, 65), np.linspace(-10, 10.5, 83))
    zs = 10.5 - 0.045 * xs**2 - 0.02 * (ys - 1) ** 2
    grid = np.stack([xs, ys, zs], -1)
    number = np.arange(grid.size // 3).reshape(xs.shape)
    quads = np.stack([number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]], -1)
    centres = (grid[:-1, :-1] + grid[1:, 1:]) / 2
    keep = np.ones(quads.shape[:2], bool)
    for group in ("eye_left", "eye_right", "lips_inner"):
        rim = points[GROUPS[group]]
        middle, half = rim.mean(0), np.ptp(rim, 0) / 2 * 0.8 + 0.05
        keep &= (((centres - middle) / half)[..., :2] ** 2).sum(-1) > 1
    skin = grid.reshape(-1, 3)
    vertices, faces = [skin], [quads[keep]]

    def add(block: NDArray[np.float64], cells: NDArray[np.int64]) -> tuple[int, int]:
        first = sum(len(v) for v in vertices)
        vertices.append(block)
        faces.append(cells + first)
        return first, first + len(block)

    plate = np.array([[-2.0, -4.4, 8], [2, -4.4, 8], [2, -3.2, 8], [-2, -3.2, 8]])
    gums = add(plate - (0, 0, 1.0), np.array([[0, 1, 2, 3]]))
    teeth = add(plate, np.array([[0, 1, 2, 3]]))
    balls = []
    for group in ("eye_left", "eye_right"):
        middle = points[GROUPS[group]].mean(0) * (1, 1, 0) + (0, 0, 7.2)
        corner = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1.0]])
        balls.append(add(middle + 1.3 * corner, np.array([[0, 2, 1, 3]])))
    neutral = np.concatenate(vertices)
    shapes = np.zeros((len(NAMES), len(neutral), 3), np.float32)
    x, y = skin[:, 0], skin[:, 1]
    mouth, eye = points[GROUPS["lips_inner"]].mean(0), points[GROUPS["eye_right"]].mean(0)
    below = (y < mouth[1]) & (np.abs(x) < 4)
    shapes[0, : len(skin), 1] = -1.5 * below * np.clip(1 - np.abs(x) / 5, 0, 1)
    shapes[1, : len(skin), 0] = -0.3 * x * np.exp(-((y - mouth[1]) ** 2) / 2 - x**2 / 8)
    for k, side in ((2, 1), (3, -1)):
        near = np.exp(-((x - side * eye[0]) ** 2) / 2) * (np.abs(y - eye[1] - 0.6) < 0.55)
        shapes[k, : len(skin), 1] = -0.8 * near * (y > eye[1])
        shapes[k + 2, : len(skin), 1] = 0.2 * near * (y > eye[1])
        shapes[k + 4, : len(skin), 1] = 0.5 * np.exp(-((x - side * 2) ** 2 + (y - 5.5) ** 2) / 3)
        shapes[k + 6, : len(skin), 1] = 0.5 * np.exp(-((x - side * 2.5) ** 2 + (y + 3.7) ** 2) / 2)
    identity = np.zeros((4, len(neutral), 3), np.float32)
    identity[0, :, 0] = 0.04 * neutral[:, 0]
    identity[1, :, 1] = 0.04 * neutral[:, 1]
    identity[2, :, 2] = 0.1 * np.cos(neutral[:, 0] / 4)
    identity[3, :, 0] = 0.02 * neutral[:, 0] * neutral[:, 1] / 10
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, neutral=neutral.astype(np.float32), identity=identity, expression=shapes,
        expression_names=np.array(NAMES), quads=np.concatenate([f.reshape(-1, 4) for f in faces]),
    )  # fmt: skip
    whole = (0, len(skin))
    return Parts(whole, whole, gums, teeth, balls[0], balls[1])


def picture(seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours, so that resampling twice loses little."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(40, 220, (12, 12, 3)).astype(np.float32)
    return np.clip(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), 0, 255).astype(
        np.uint8
    )


@pytest.fixture(scope="module")
def rig(face: FaceModel, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    path = tmp_path_factory.mktemp("ict") / "head.npz"
    parts = toy_head_file(path, face)
    return make_rig(read_head(path, face, parts=parts), face)


@pytest.fixture(scope="module")
def landmarks(rig: Rig) -> NDArray[np.float64]:
    """What a camera sees of the toy head: turned, with a wide face and raised brows."""
    head = rig.head
    shape = head.neutral + np.tensordot([1.0, -0.5, 0.4, 0.3], head.identity, 1)
    at = head.at_landmarks(shape) @ rotation(np.radians([6.0, -4, 3])).T
    scale = SIZE * CM
    middle = CANONICAL_ORIGIN * SIZE - scale * PIVOT_CM[:2] * (1, -1)
    seen = scale * at[:, :2] * (1, -1) + middle
    for iris, eye in (("iris_left", "eye_left"), ("iris_right", "eye_right")):
        centre = seen[GROUPS[eye]].mean(0)
        ring = np.array([[0, 0], [5, 0], [0, -5], [-5, 0], [0, 5.0]])
        seen[GROUPS[iris]] = centre + ring
    return seen


@pytest.fixture(scope="module")
def actor(rig: Rig, landmarks: NDArray[np.float64]) -> Actor:
    return make_actor(rig, picture(), landmarks, np.zeros(len(NAMES)))


def still() -> Drive:
    return Drive(np.zeros(3), np.zeros(2), np.zeros(16), np.zeros(6), np.zeros(30))


def moved() -> Drive:
    exp = np.zeros(30)
    exp[EXPRESSION_NAMES.index("browInnerUp_L")] = 0.7
    lip = np.zeros(16)
    lip[0] = 1.5
    eye = np.array([0.5, 0.2, 0.4, -0.2, 0, 0])
    return Drive(np.radians([8.0, -5, 4]), np.array([0.3, -0.2]), lip, eye, exp)


def test_fit_meets_the_landmarks(actor: Actor, landmarks: NDArray[np.float64]) -> None:
    assert actor.fit.error_px < 1.0
    assert np.degrees(actor.fit.pose) == pytest.approx([6, -4, 3], abs=2.0)
    found = render_landmarks(actor)
    assert np.abs(found[SKIN] - landmarks[SKIN]).max() < 0.35


def render_landmarks(actor: Actor, drive: Drive | None = None) -> NDArray[np.float64]:
    return RIG_RENDER(actor, drive or still()).landmarks.astype(np.float64) * SIZE


def RIG_RENDER(actor: Actor, drive: Drive):
    return render(_RIG[0], actor, drive)


_RIG: list[Rig] = []


@pytest.fixture(autouse=True)
def _remember(rig: Rig) -> None:
    _RIG[:] = [rig]


def test_labels_measured_again_by_projecting(rig: Rig, actor: Actor) -> None:
    """Camera from the pose code, geometry from the mesh: the same landmarks, in crop units."""
    drive = moved()
    frame = render(rig, actor, drive)
    pose = frame.code[FACTOR_SLICES["pose"]].astype(np.float64)
    points = deform(rig, actor, drive)
    number = np.zeros(len(rig.head.neutral), int)
    number[rig.active] = np.arange(len(rig.active))
    at = np.einsum("kvc,kv->kc", points[number[rig.head.corner]], rig.head.share)
    turned = (at - PIVOT_CM) @ rotation(pose[:3]).T * CM * np.exp(pose[5])
    seen = turned[:, :2] * (1, -1) + CANONICAL_ORIGIN + pose[3:5]
    inner = np.setdiff1d(SKIN, np.arange(36))
    np.testing.assert_allclose(frame.landmarks[inner], seen[inner], atol=2e-4)
    np.testing.assert_allclose(pose[:3], actor.fit.pose + drive.turn, atol=1e-6)
    np.testing.assert_array_equal(frame.code[FACTOR_SLICES["exp"]], drive.exp.astype(np.float32))


def test_pixels_lie_where_the_mesh_says(rig: Rig, actor: Actor) -> None:
    """A dot painted on the still at a vertex is found at that vertex's projection."""
    drive = replace(still(), turn=np.radians([7.0, 4, -3]))
    skin = np.unique(actor.skin)
    row = int(skin[np.argmin(np.abs(actor.uv[skin] - (128, 100)).sum(1))])
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    dot = np.exp(-((x - actor.uv[row, 0]) ** 2 + (y - actor.uv[row, 1]) ** 2) / 8)
    image = np.repeat(60 + 190 * dot[..., None], 3, 2).astype(np.float32)
    grey = np.full_like(image, 60)
    layers, backdrop = actor.layers.copy(), actor.backdrop.copy()
    layers[..., :3], backdrop[..., :3] = 60, 60
    # One colour for all that is drawn inside a mouth, too.
    bands = {name: getattr(actor.mouth, name) for name in ("upper", "lower", "tongue")}
    flat = {n: replace(b, texture=np.full_like(b.texture, 60)) for n, b in bands.items()}
    mouth = replace(actor.mouth, dark=np.full(3, 60, np.float32), **{
        n: replace(b, value=np.where([True, True, False], b.value, 0)) for n, b in flat.items()
    })  # fmt: skip
    painted = replace(
        actor, mouth=mouth, source=image, layers=layers, backdrop=backdrop, sclera=grey, iris=grey
    )
    frame = render(rig, painted, drive)
    bright = np.clip(frame.pixels[..., 0].astype(float) - 70, 0, None)
    found = np.array([(bright * x).sum(), (bright * y).sum()]) / bright.sum()
    turn = rotation(actor.fit.pose + drive.turn)
    pivot = rotation(actor.fit.pose) @ PIVOT_CM
    where = project(actor.fit, actor.base[row][None] - PIVOT_CM, turn)[0, :2]
    where = where + actor.fit.scale * pivot[:2] * (1, -1)
    assert np.abs(found - where).max() < 0.5


@pytest.mark.parametrize("drive", [still(), moved()], ids=["still", "moved"])
def test_flow_maps_the_source_to_the_frame(rig: Rig, actor: Actor, drive: Drive) -> None:
    frame = render(rig, actor, drive)
    at = frame.flow - 0.5
    warped = cv2.remap(actor.source, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    valid = frame.validity > 0
    assert valid.mean() > 0.4
    gap = np.abs(warped - frame.pixels.astype(np.float32)).max(2)
    assert np.percentile(gap[valid], 99) < 4
    assert gap[valid].mean() < 1


def test_drawn_mouth_and_eyes_are_not_valid(rig: Rig, actor: Actor) -> None:
    frame = render(rig, actor, moved())
    for group in ("lips_inner", "eye_right"):
        x, y = (frame.landmarks[GROUPS[group]].mean(0) * SIZE).astype(int)
        assert frame.validity[y, x] == 0


def test_lids_meet_and_gaze_moves_the_iris(rig: Rig, actor: Actor) -> None:
    eye = still().eye
    shut, left, right = eye.copy(), eye.copy(), eye.copy()
    shut[:2] = 1
    left[2], right[2] = -0.5, 0.5
    closed = render_landmarks(actor, replace(still(), eye=shut))
    opened = render_landmarks(actor)
    first = GROUPS["eye_left"].start
    before = opened[first + 4, 1] - opened[first + 12, 1]
    after = closed[first + 4, 1] - closed[first + 12, 1]
    assert abs(after) < 0.25 * before
    iris = GROUPS["iris_left"].start
    looks = [render_landmarks(actor, replace(still(), eye=e))[iris, 0] for e in (left, right)]
    assert looks[1] - looks[0] > 3


def test_same_seed_same_frames_and_speed(
    rig: Rig, actor: Actor, record_property: pytest.FixtureRequest
) -> None:
    lips = LipModel.load()
    one = frames_of(rig, lips, actor, (1, 2), 3, stride=5)
    began = time.process_time()
    two = frames_of(rig, lips, actor, (1, 2), 3, stride=5)
    record_property("ms_per_frame", 1e3 * (time.process_time() - began) / 3)  # type: ignore[operator]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.code, b.code)
    other = frames_of(rig, lips, actor, (1, 3), 3, stride=5)
    assert np.abs(other[0].code - one[0].code).max() > 1e-3
    sample = sample_of(actor, one)
    assert sample["pixels"].shape == (4, SIZE, SIZE, 3)
    assert sample["code"].shape == (4, CODE_DIM)
    assert sample["flow"].shape == (3, SIZE, SIZE, 2)


def opened(lip: float, exp: float = 0.0) -> Drive:
    drive = still()
    drive.lip[0] = lip
    return replace(drive, exp=np.full(30, exp))


def mouth_pixels(rig: Rig, actor: Actor, drive: Drive) -> NDArray[np.float64]:
    frame = render(rig, actor, drive)
    ring = frame.landmarks[GROUPS["lips_inner"]] * SIZE
    shape = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(shape, [np.round(ring).astype(np.int32)], (1,))
    return frame.pixels[cv2.erode(shape, np.ones((3, 3), np.uint8)) > 0].astype(float)


def test_a_person_keeps_their_teeth_and_others_have_others(
    rig: Rig, landmarks: NDArray[np.float64]
) -> None:
    def person(seed: int) -> Actor:
        return make_actor(rig, picture(), landmarks, np.zeros(len(NAMES)), seed)

    one, again, other = person(4), person(4), person(5)
    np.testing.assert_array_equal(one.mouth.upper.texture, again.mouth.upper.texture)
    np.testing.assert_array_equal(one.mouth.upper.points, again.mouth.upper.points)
    assert np.abs(one.mouth.upper.texture - other.mouth.upper.texture).mean() > 1
    seen = mouth_pixels(rig, one, opened(3.0))
    light = seen.mean(1)
    assert len(light) > 40
    assert light.max() > 2.5 * light.min(), "teeth are bright, the depth is dark"
    # Crowns are nearly grey, gums and tongue are not.
    texture = one.mouth.upper.texture
    crown = texture[len(texture) // 3, texture.shape[1] // 2 - 60 : texture.shape[1] // 2 + 60]
    assert np.median(crown[:, 2] / crown[:, 0]) > 0.6
    assert texture[0, :, 3].max() < 0.05, "nothing beyond the tips"
    assert texture[-1, :, 3].min() > 0.95, "gums close the row"


def test_lower_teeth_go_with_the_jaw() -> None:
    """A stiff turn about a hinge far behind is found from a few teeth and holds for the others."""
    rng = np.random.default_rng(3)
    teeth = rng.uniform([-3, -0.5, -2], [3, 0.5, 1], (40, 3))
    hinge, turn = np.array([0.0, 3, -9]), rotation(np.array([0.0, np.radians(8.0), 0]))
    found = jaw_motion(teeth, (teeth - hinge) @ turn.T + hinge)
    band = rng.uniform([-3, -0.5, -2], [3, 0.5, 1], (10, 3))
    wanted = (band - hinge) @ turn.T + hinge - band
    np.testing.assert_allclose(to_affine(band) @ found, wanted, atol=0.02)
    assert np.abs(jaw_motion(teeth, teeth)).max() == 0


def test_wide_motion_stays_within_what_heads_do(rig: Rig, actor: Actor) -> None:
    most = np.radians(WIDE.whole_deg)
    for sign in (-1, 1):
        drive = replace(still(), turn=sign * np.radians([30.0, 30, 30]))
        turned = actor.fit.pose + within(drive, actor, WIDE).turn
        assert (np.abs(turned) <= most + 1e-9).all()
    small = replace(still(), turn=np.radians([5.0, -4, 3]))
    np.testing.assert_allclose(within(small, actor, WIDE).turn, small.turn)


def test_outlines_without_hair_are_seen(actor: Actor) -> None:
    oval = actor.landmarks[GROUPS["oval"]]
    middle, half = oval.mean(0), np.ptp(oval, 0) / 2

    def head(above: float, bite: bool = False) -> Actor:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        at = (round(middle[0]), round(middle[1] - above * half[1]))
        cv2.ellipse(mask, at, (round(half[0] * 1.1), round(half[1])), 0, 0, 360, (1,), -1)
        if bite:
            cv2.circle(mask, (at[0], at[1] - round(half[1])), round(0.9 * half[0]), (0,), -1)
        return replace(actor, mask=mask.astype(np.float32))

    assert crown(head(0.5)) == pytest.approx(0.25, abs=0.06)
    assert crown(head(0.0)) < 0.05, "the hair was taken for background"
    assert solidity(head(0.4)) > 0.97 > 0.93 > solidity(head(0.4, bite=True))


def test_factors_are_independent(face: FaceModel) -> None:
    """Over many clips no factor predicts another."""
    lips = LipModel.load()
    rows = []
    for clip in range(250):
        for d in drive_clip((9, clip), 30, lips, face)[::15]:
            smile = d.exp[EXPRESSION_NAMES.index("mouthSmile_L")]
            brow = d.exp[EXPRESSION_NAMES.index("browInnerUp_L")]
            rows.append(
                [*d.turn, *d.shift_cm, *d.eye[:4:2], d.eye[3], d.eye[4], smile, brow, d.lip[0]]
            )
    r = np.corrcoef(np.array(rows).T)
    # brow and smile are two values of one factor
    r[9, 10] = r[10, 9] = 0
    np.fill_diagonal(r, 0)
    assert np.abs(r).max() < 0.18


def test_rasteriser_interpolates_and_hides() -> None:
    xy = np.array([[0, 0], [8, 0], [0, 8], [0, 0], [8, 0], [0, 8]], np.float32)
    z = np.array([0, 0, 0, 1, 1, 1], np.float32)
    value = np.array([[0], [8], [0], [50], [50], [50]], np.float32)
    back = np.array([[0, 2, 1]], np.int32)
    out, depth = rasterise(xy, z, back, value, 8)
    assert out[1, 2, 0] == pytest.approx(2.5)
    assert depth[7, 7] < -1e5
    out, _ = rasterise(xy, z, np.array([[3, 5, 4], [0, 2, 1]], np.int32), value, 8)
    assert out[1, 2, 0] == 50, "the nearer one wins, whatever the order"
    turned_away, _ = rasterise(xy, z, np.array([[0, 1, 2]], np.int32), value, 8)
    assert turned_away.max() == 0


def test_layers() -> None:
    image = np.full((64, 64, 3), 100, np.float32)
    image[20:40, 20:40] = 255
    known = np.ones((64, 64), np.float32)
    known[20:40, 20:40] = 0
    np.testing.assert_allclose(fill_in(image, known), 100, atol=1)
    depth = np.zeros((32, 32), np.float32)
    depth[10:20, 10:20] = 5
    np.testing.assert_allclose(spread_depth(depth, depth > 0, 1.0), 5, atol=1e-3)
    person = np.full((128, 128, 3), 220, np.uint8)
    cv2.ellipse(person, (64, 60), (26, 38), 0, 0, 360, (90, 60, 40), -1)
    face = np.zeros((128, 128), np.uint8)
    cv2.ellipse(face, (64, 64), (20, 26), 0, 0, 360, (1,), -1)
    mask = person_mask(person, face > 0, 90.0)
    assert mask[60, 64] > 0.9
    assert mask[30, 64] > 0.9, "hair above the face"
    assert mask[5, 5] < 0.1
    with pytest.raises(ValueError, match="no face"):
        person_mask(person, face > 9, 90.0)


def pack_of(root: Path, face: FaceModel, seen: NDArray[np.float64]) -> None:
    """Three stills of the toy head; the third looks away."""
    (root / "stills").mkdir()
    (root / "labels").mkdir()
    for i in range(3):
        cv2.imwrite(str(root / "stills" / f"{i}.png"), picture(i))
    names = ["_neutral", "mouthSmileLeft", "mouthSmileRight"]
    np.savez(
        root / "labels" / "stills.npz", still=np.array([f"stills/{i}.png" for i in range(3)]),
        blendshapes=np.zeros((3, 3), np.uint8), blendshape_names=np.array(names),
        pose_ypr_deg=np.array([[6, -4, 3], [6, -4, 3], [40, 0, 0]], np.float16),
        landmarks_xy=np.round(np.stack([seen] * 3) * 32).astype(np.int16), xy_scale=32,
        valid=np.ones(3, bool), landmark_mirror_perm=np.arange(152, dtype=np.int16),
    )  # fmt: skip


def test_stills_are_judged(landmarks: NDArray[np.float64]) -> None:
    points = landmarks.astype(np.float32)
    stills = {
        "blendshape_names": np.array(["mouthSmileLeft", "mouthSmileRight"]),
        "blendshapes": np.zeros((1, 2)), "pose": np.zeros((1, 3)), "valid": np.array([True]),
        "landmarks": points[None],
    }  # fmt: skip
    limits = Limits(lip_gap=0.2)
    assert reject(stills, 0, limits) is None
    assert reject(stills | {"pose": np.full((1, 3), 0.6)}, 0, limits) == "turned away"
    assert reject(stills | {"blendshapes": np.full((1, 2), 0.9)}, 0, limits) == "smiling"
    assert reject(stills | {"valid": np.array([False])}, 0, limits) == "no face"
    assert reject(stills, 0, Limits(lip_gap=-1)) == "mouth open"
    assert reject(stills, 0, replace(limits, aperture=5.0)) == "eyes shut"


def test_shards_open_as_a_frame_cache_and_stream_repeats(
    rig: Rig, face: FaceModel, landmarks: NDArray[np.float64], tmp_path: Path
) -> None:
    import trainer.synthesis.stream as module
    from trainer.synthesis.stills import read_stills

    pack_of(tmp_path, face, landmarks)
    studio = Studio(tmp_path, read_stills(tmp_path), rig, LipModel.load())
    loose = Limits(lip_gap=0.2, fit_px=20, solidity=0, crown=-1)
    module.Limits = lambda: loose  # type: ignore[assignment,misc]
    try:
        dropped = write(studio, tmp_path / "out", Order(identities=1, frames=2, without=["1"]))
        others = write(studio, tmp_path / "only", Order(identities=3, frames=2, only=["0"]))
    finally:
        module.Limits = Limits  # type: ignore[misc]
    cache = FrameCache(tmp_path / "out")
    assert len(cache.kind) == 3
    assert set(cache.person) == {"0"}, "1 is held out, 2 looks away"
    assert dropped["held out"] == 1
    assert set(FrameCache(tmp_path / "only").person) == {"0"}
    assert others["held out"] == len(studio.stills["still"]) - 1
    assert (tmp_path / "out" / "flow.f16").stat().st_size == 3 * SIZE * SIZE * 2 * 2
    again = [next(stream(studio, [0], driving=1, seed=5, limits=loose)) for _ in range(2)]
    np.testing.assert_array_equal(again[0]["pixels"], again[1]["pixels"])
    with pytest.raises(ValueError, match="no still"):
        next(stream(studio, [2], limits=loose))


def test_prior_by_name(rig: Rig) -> None:
    head: Head = rig.head
    scores = np.array([0.3, 0.6, 0.9])
    prior = blendshape_prior(head, ["eyeBlinkLeft", "browInnerUp", "jawOpen"], scores)
    found = dict(zip(head.names, prior, strict=True))
    assert found["eyeBlink_L"] == 0.3
    assert found["browInnerUp_R"] == 0.6
    assert found["jawOpen"] == 0.9
    assert found["mouthSmile_L"] == 0


def test_vertex_indices_are_used_where_they_lie_beside(face: FaceModel, tmp_path: Path) -> None:
    parts = toy_head_file(tmp_path / "head.npz", face)
    plain = read_head(tmp_path / "head.npz", face, parts=parts)
    # The same 68 vertices that were found anyway: nothing may move far.
    nearest = [0] * 68
    from trainer.synthesis.head import _MULTI_PIE

    for number, row in _MULTI_PIE.items():
        nearest[number] = int(plain.corner[row][plain.share[row].argmax()])
    (tmp_path / "vertex_indices.json").write_text(json.dumps({"idx_to_landmark_verts": nearest}))
    again = read_head(tmp_path / "head.npz", face, parts=parts)
    gap = again.at_landmarks(again.neutral) - plain.at_landmarks(plain.neutral)
    assert np.median(np.abs(gap[SKIN])) < 0.3
