"""Fakes shared by all tests: a clock, an engine, a face tracker, portraits and pictures.

The fake engine draws motion that tests can read back from pixels, even after a lossy
codec: the mouth is a bright bar whose height follows the first lip dimension, each eye a
dark bar whose height follows its lid, and the whole picture shifts with the pose.
`read_face` is the exact inverse, so `FakeEngine.motion` of a drawn frame returns the
motion that drew it. Nothing here sleeps or reads the real clock.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS, Array, MotionCode
from models.config import ModelConfig
from models.face import CANONICAL_POINTS, GROUPS, LANDMARKS
from models.portrait import Portrait
from models.rates import MEL_BANDS, MEL_PER_FRAME
from models.runtime.engine import Appearance, Drawing, EngineError, MotionReading

Pixels = NDArray[np.uint8]

MOUTH_CENTRE = (0.5, 0.705)
MOUTH_WIDTH = 0.24
#: Height of the bright bar, in picture heights, when lip[0] is `LIP_FULL`.
MOUTH_FULL = 0.20
LIP_FULL = 3.0
EYE_CENTRES = ((0.35, 0.40), (0.65, 0.40))
EYE_WIDTH = 0.10
EYE_FULL = 0.10
#: The picture shifts by this much of its width per radian of yaw (x) and pitch (y, up).
SHIFT_PER_RAD = 0.25
MARKER_CENTRE = (0.5, 0.18)
MARKER_SIZE = 0.08

_FLOW = 64
_BRIGHT = 250
_DARK = 10
#: Mean of the mel frames at which the fake mouth starts to open and is fully open. Speech
#: and noise get there, silence and a lone sine do not.
_QUIET, _LOUD = 0.20, 0.45


class FakeClock:
    """A monotonic clock in nanoseconds that moves only when told to. Thread-safe."""

    def __init__(self, start_ns: int = 1_000_000_000) -> None:
        self._now_ns = start_ns
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """Now, in nanoseconds (the shape of `time.monotonic_ns`)."""
        with self._lock:
            return self._now_ns

    def monotonic(self) -> float:
        """Now, in seconds (the shape of `time.monotonic`)."""
        return self() / 1e9

    def advance(self, ms: float) -> int:
        """Move forward by `ms` milliseconds and return the new time in nanoseconds."""
        if ms < 0:
            raise ValueError("a monotonic clock does not go back")
        with self._lock:
            self._now_ns += round(ms * 1e6)
            return self._now_ns


@dataclass(frozen=True, slots=True)
class FaceState:
    """What `read_face` reads from a picture."""

    mouth: float
    """Mouth opening, 0 shut .. 1 when lip[0] is `LIP_FULL`."""
    lids: tuple[float, float]
    """Closure of the eyes at image left and right, 0 open .. 1 shut."""
    yaw: float
    """Radians, from the horizontal shift of the marker."""
    pitch: float
    """Radians, from the vertical shift of the marker."""
    tint: int
    """Grey level of the background, which names the portrait."""


def _bar(
    centre: tuple[float, float], width: float, height: float, size: int
) -> tuple[slice, slice]:
    x, y = centre
    top, bottom = round((y - height / 2) * size), round((y + height / 2) * size)
    left, right = round((x - width / 2) * size), round((x + width / 2) * size)
    return slice(max(0, top), max(0, bottom)), slice(max(0, left), max(0, right))


def paint_base(size: int = 512, tint: int = 120) -> Pixels:
    """A portrait (size, size, 3) uint8 RGB: grey `tint`, one dark marker on the forehead.

    The background carries a slight chroma so that a swapped RGB order is visible.
    """
    image = np.empty((size, size, 3), np.uint8)
    image[:] = (min(255, tint + 12), tint, max(0, tint - 12))
    image[_bar(MARKER_CENTRE, MARKER_SIZE, MARKER_SIZE, size)] = _DARK
    return image


def paint_face(code: MotionCode | None = None, *, size: int = 256, tint: int = 120) -> Pixels:
    """A picture (size, size, 3) uint8 RGB of a face in the state of `code` (webcam, driver)."""
    code = code or MotionCode()
    image = paint_base(size, tint)
    mask, rgb = _features(code, size)
    image[mask] = (rgb[mask] * 255).astype(np.uint8)
    shift_x, shift_y = _shift(code)
    matrix = np.array([[1, 0, shift_x * size], [0, 1, shift_y * size]], np.float64)
    shifted = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(shifted, np.uint8)


def _shift(code: MotionCode) -> tuple[float, float]:
    return (
        float(code.pose[0]) * SHIFT_PER_RAD + float(code.pose[3]),
        -float(code.pose[1]) * SHIFT_PER_RAD + float(code.pose[4]),
    )


def _features(code: MotionCode, size: int) -> tuple[NDArray[np.bool_], Array]:
    """Where mouth and eyes are painted (size, size) and with what (size, size, 3) in [0, 1]."""
    mask = np.zeros((size, size), np.bool_)
    rgb = np.zeros((size, size, 3), np.float32)
    for index, centre in enumerate(EYE_CENTRES):
        opening = 1.0 - min(1.0, max(0.0, float(code.eye[index])))
        where = _bar(centre, EYE_WIDTH, EYE_FULL * opening, size)
        mask[where] = True
        rgb[where] = _DARK / 255
    opening = min(1.0, max(0.0, float(code.lip[0]) / LIP_FULL))
    where = _bar(MOUTH_CENTRE, MOUTH_WIDTH, MOUTH_FULL * opening, size)
    mask[where] = True
    rgb[where] = _BRIGHT / 255
    return mask, rgb


def read_face(image_HWC: Pixels) -> FaceState:
    """Read the motion back from a drawn, composed or decoded picture (N, N, 3) RGB."""
    size = image_HWC.shape[0]
    luma = image_HWC.astype(np.float32).mean(2)
    tint = float(np.median(luma))
    x, y = _marker(luma, tint)
    dx, dy = x - MARKER_CENTRE[0], y - MARKER_CENTRE[1]
    column = _profile(luma, MOUTH_CENTRE, dx, dy, 0.34)
    mouth = float((column > (tint + _BRIGHT) / 2).sum()) / size / MOUTH_FULL
    lids = []
    for centre in EYE_CENTRES:
        column = _profile(luma, centre, dx, dy, 0.16)
        open_rows = float((column < (tint + _DARK) / 2).sum()) / size
        lids.append(1.0 - min(1.0, open_rows / EYE_FULL))
    return FaceState(
        mouth=min(1.0, mouth),
        lids=(lids[0], lids[1]),
        yaw=dx / SHIFT_PER_RAD,
        pitch=-dy / SHIFT_PER_RAD,
        tint=round(tint),
    )


def _marker(luma: Array, tint: float) -> tuple[float, float]:
    size = luma.shape[0]
    rows = slice(0, int(size * 0.32))
    dark = luma[rows] < (tint + _DARK) / 2
    if not dark.any():
        return MARKER_CENTRE
    ys, xs = np.nonzero(dark)
    return (float(xs.mean()) + 0.5) / size, (float(ys.mean()) + 0.5) / size


def _profile(
    luma: Array, centre: tuple[float, float], dx: float, dy: float, height: float
) -> Array:
    """Mean luma of a narrow vertical strip through a feature, clipped to the picture."""
    size = luma.shape[0]
    x, y = centre[0] + dx, centre[1] + dy
    left = int(np.clip((x - 0.03) * size, 0, size - 1))
    right = max(left + 1, int(np.clip((x + 0.03) * size, 1, size)))
    top = int(np.clip((y - height / 2) * size, 0, size - 1))
    bottom = max(top + 1, int(np.clip((y + height / 2) * size, 1, size)))
    return np.asarray(luma[top:bottom, left:right].mean(1), np.float32)


@dataclass
class FakeEngine:
    """An `Engine` of a few milliseconds a frame; see the module docstring for its pictures.

    It counts its calls, remembers the thread of the first one and refuses every other
    thread, as a real engine's contract demands. `fail_draws` makes the next draws raise.
    With a `clock`, a call named in `cost_ms` takes that much virtual time.
    """

    name: str = "fake"
    config: ModelConfig = field(default_factory=ModelConfig)
    calls: dict[str, int] = field(default_factory=dict)
    fail_draws: int = 0
    thread_id: int | None = None
    clock: FakeClock | None = None
    cost_ms: dict[str, float] = field(default_factory=dict)

    def _count(self, what: str) -> None:
        me = threading.get_ident()
        if self.thread_id is None:
            self.thread_id = me
        if self.thread_id != me:
            raise AssertionError(f"engine.{what} called from a second thread")
        self.calls[what] = self.calls.get(what, 0) + 1
        if self.clock is not None:
            self.clock.advance(self.cost_ms.get(what, 0.0))

    def audio(self, mel_TM: Array) -> Array:
        """lip[0] is the loudness of the frame's own four mel frames, 0 .. `LIP_FULL`."""
        self._count("audio")
        if mel_TM.shape != (self.config.mel_window, MEL_BANDS) or mel_TM.dtype != np.float32:
            raise AssertionError(f"bad mel window {mel_TM.dtype} {mel_TM.shape}")
        start = self.config.left_mel
        mean = float(mel_TM[start : start + MEL_PER_FRAME].mean())
        lip = np.zeros(DIMS["lip"], np.float32)
        lip[0] = LIP_FULL * min(1.0, max(0.0, (mean - _QUIET) / (_LOUD - _QUIET)))
        return lip

    def motion(self, face_HWC: Pixels | Array) -> MotionReading:
        """Inverse of the fake pictures."""
        self._count("motion")
        if face_HWC.shape != (256, 256, 3) or face_HWC.dtype != np.uint8:
            raise AssertionError(f"bad face crop {face_HWC.dtype} {face_HWC.shape}")
        state = read_face(np.asarray(face_HWC, np.uint8))
        lip, pose = np.zeros(DIMS["lip"], np.float32), np.zeros(DIMS["pose"], np.float32)
        eye, exp = np.zeros(DIMS["eye"], np.float32), np.zeros(DIMS["exp"], np.float32)
        lip[0] = state.mouth * LIP_FULL
        pose[0], pose[1] = state.yaw, state.pitch
        eye[0], eye[1] = state.lids
        return MotionReading(MotionCode(lip, pose, eye, exp), fake_landmarks())

    def appearance(self, source_HWC: Pixels | Array) -> Appearance:
        """Features hold the mean colour; the portrait's own code is neutral."""
        self._count("appearance")
        if source_HWC.shape != (256, 256, 3) or source_HWC.dtype != np.uint8:
            raise AssertionError(f"bad source crop {source_HWC.dtype} {source_HWC.shape}")
        return fake_appearance(np.asarray(source_HWC, np.uint8))

    def draw(self, appearance: Appearance, driving: MotionCode) -> Drawing:
        """Flow shifts the source by the pose, the residual paints mouth and eyes."""
        self._count("draw")
        if self.fail_draws > 0:
            self.fail_draws -= 1
            raise EngineError("fake draw failure")
        size = self.config.image_size
        painted, rgb = _features(driving, size)
        shift_x, shift_y = _shift(driving)
        grid = (np.arange(_FLOW, dtype=np.float32) + 0.5) / _FLOW
        flow = np.empty((_FLOW, _FLOW, 2), np.float32)
        flow[..., 0] = grid[None, :] - shift_x
        flow[..., 1] = grid[:, None] - shift_y
        matrix = np.array([[1, 0, shift_x * size], [0, 1, shift_y * size]], np.float64)
        mask = cv2.warpAffine(1.0 - painted.astype(np.float32), matrix, (size, size), borderValue=1)
        moved = cv2.warpAffine(rgb, matrix, (size, size))
        return Drawing(
            flow=np.clip(flow, 0, 1),
            mask=np.asarray(mask, np.float32),
            rgb=np.asarray(moved, np.float32),
        )


def fake_landmarks() -> Array:
    """(152, 2) landmarks of a face that sits in its canonical crop, lips closed."""
    points = np.full((LANDMARKS, 2), 0.5, np.float32)
    points[GROUPS["oval"]] = (0.5, 0.2)
    points[18] = (0.5, 0.85)
    for groups, point in zip(
        (("eye_left", "iris_left"), ("eye_right", "iris_right"), ("lips_outer", "lips_inner")),
        CANONICAL_POINTS,
        strict=True,
    ):
        for group in groups:
            points[GROUPS[group]] = point
    return points


def fake_appearance(source_HWC: Pixels, code: MotionCode | None = None) -> Appearance:
    """Appearance whose features hold the mean colour of the source."""
    mean = source_HWC.reshape(-1, 3).mean(0, dtype=np.float64).astype(np.float32)
    return Appearance(
        features={"mean": mean[None]},
        code=code or MotionCode(),
        shape=np.zeros((LANDMARKS, 3), np.float32),
        landmarks=fake_landmarks(),
    )


def fake_portrait(id: str = "grey", *, tint: int = 120, code: MotionCode | None = None) -> Portrait:
    """A 512 px portrait of the fake face; `tint` (60 .. 180) tells portraits apart."""
    image = paint_base(512, tint)
    return Portrait(id, id.title(), image, fake_appearance(image, code))


class FakeTracker:
    """Same surface as `models.tracking.FaceTracker`; a black frame holds no face."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def update(self, frame_HWC: Pixels) -> MotionReading | None:
        """(H, W, 3) uint8 RGB -> reading of the central square, None without a face."""
        if float(frame_HWC.mean()) < 8.0:
            return None
        height, width = frame_HWC.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = frame_HWC[top : top + side, left : left + side]
        face = cv2.resize(square, (256, 256), interpolation=cv2.INTER_AREA)
        return self._engine.motion(np.asarray(face, np.uint8))
