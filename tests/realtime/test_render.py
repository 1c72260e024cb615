"""From files to a file: in sync, complete, marked, and with errors that help."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import realtime.render
from models.codes import MotionCode
from models.config import ModelConfig
from models.mark import mark_place
from models.portrait import Portrait, PortraitError
from models.runtime.engine import Engine, MotionReading, YuvPicture
from models.runtime.frames import CpuFrameRenderer, FrameRequest, FrameResult
from realtime.render import (
    RenderError,
    RenderOptions,
    RenderParts,
    RenderReport,
    render_file,
    render_with_progress,
)
from realtime.sources import Clip, save_clip
from realtime.sources.driver import read_driver, read_video
from tests.fakes import FakeEngine, FakeTracker, Pixels, fake_portrait, paint_face, read_face

pytestmark = pytest.mark.unit

SIZE = 96
CONFIG = ModelConfig(image_size=96)
Pcm = NDArray[np.int16]


def _prepare(image: Pixels, engine: Engine, *, id: str, name: str) -> Portrait:
    if image.mean() < 8:
        raise PortraitError("no_face", "No face was found.")
    return fake_portrait(id, tint=round(float(np.median(image))))


PARTS = RenderParts(
    load=lambda name, checkpoint, threads, precision: FakeEngine(config=CONFIG),
    make_tracker=FakeTracker,  # type: ignore[arg-type]
    prepare=_prepare,
)


def _sound(path: Path, pcm: Pcm, rate: int = 48_000, codec: str = "pcm_s16le") -> Path:
    """Write (n,) or (n, 2) int16 to a file."""
    pcm = pcm.reshape(len(pcm), -1)
    layout = "stereo" if pcm.shape[1] == 2 else "mono"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), "s16", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _video(
    path: Path, codes: Callable[[float], MotionCode | None], seconds: float, fps: int = 25
) -> Path:
    """Write a film of the fake face; None is a black picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        for i in range(round(seconds * fps)):
            code = codes(i / fps)
            image = (
                np.zeros((160, 160, 3), np.uint8) if code is None else paint_face(code, size=160)
            )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _voice(seconds: float, rate: int = 48_000) -> Pcm:
    """A vowel that comes and goes once a second: 0.5 s on, 0.5 s off."""
    t = np.arange(round(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 24))
    return np.asarray(voice * 5000 * (t % 1.0 < 0.5), np.int16)


@pytest.fixture
def portrait(tmp_path: Path) -> str:
    path = tmp_path / "face.png"
    cv2.imwrite(str(path), cv2.cvtColor(fake_portrait(tint=110).image, cv2.COLOR_RGB2BGR))
    return str(path)


def _render(tmp_path: Path, portrait: str, audio: Path, **options: object) -> RenderReport:
    output = tmp_path / "out.mp4"
    made = RenderOptions(portrait, audio, output, size=SIZE, portrait_dirs=(), **options)  # type: ignore[arg-type]
    return render_file(made, parts=PARTS)


class Film:
    """A decoded output file."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            self.metadata = dict(container.metadata)
            self.video = container.streams.video[0]
            self.codecs = {s.type: s.codec_context.name for s in container.streams}
            self.pix_fmt = self.video.codec_context.pix_fmt
            self.times: list[float] = []
            faces, sound, self.sound_at = [], [], 0.0
            resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000)
            for frame in container.decode():
                if isinstance(frame, av.VideoFrame):
                    self.times.append(float(frame.time))
                    faces.append(read_face(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)))
                elif isinstance(frame, av.AudioFrame):
                    if not sound:
                        self.sound_at = float(frame.time)
                    sound += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        self.mouth = np.array([face.mouth for face in faces])
        self.yaw = np.array([face.yaw for face in faces])
        self.lids = np.array([face.lids[0] for face in faces])
        self.tint = faces[0].tint
        self.sound = np.concatenate(sound)


def test_a_talking_portrait_in_sync_with_its_sound(tmp_path: Path, portrait: str) -> None:
    voice = _voice(3.02)
    report = _render(tmp_path, portrait, _sound(tmp_path / "a.wav", voice))
    film = Film(tmp_path / "out.mp4")
    assert report.frames == len(film.mouth) == 76, "the last frame is begun"
    np.testing.assert_allclose(film.times, np.arange(76) / 25, atol=1e-6)
    assert (film.codecs["video"], film.codecs["audio"]) == ("h264", "aac")
    assert film.pix_fmt == "yuv420p"
    assert abs(film.tint - 110) <= 4
    # The sound starts at 0 and is not delayed against the original.
    start = round(film.sound_at * 48_000)
    length = min(len(film.sound), len(voice) - start - 2000)
    lags = range(-960, 961, 4)
    kept = voice[start + 1000 : start + length - 1000].astype(float)
    match = [float(kept @ film.sound[1000 + lag : 1000 + lag + len(kept)]) for lag in lags]
    assert abs(lags[int(np.argmax(match))]) <= 8
    # The mouth is open while the voice is there.
    middle = (np.arange(76) / 25 + 0.02) % 1.0
    assert film.mouth[(middle > 0.1) & (middle < 0.45)].min() > 0.3
    assert film.mouth[(middle > 0.75) & (middle < 0.95)].max() < 0.05


def test_the_file_says_that_it_is_synthetic_and_starts_at_once(
    tmp_path: Path, portrait: str
) -> None:
    _render(tmp_path, portrait, _sound(tmp_path / "a.wav", _voice(0.5)))
    film = Film(tmp_path / "out.mp4")
    assert "Synthetic" in film.metadata["comment"]
    assert film.metadata["synthetic"] == "true"
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "faststart"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("name", "rate", "codec", "channels"),
    [
        ("a.mp3", 44_100, "libmp3lame", 2),
        ("a.ogg", 48_000, "libopus", 1),
        ("a.wav", 8000, "pcm_s16le", 1),
    ],
)
def test_sound_of_any_format(
    tmp_path: Path, portrait: str, name: str, rate: int, codec: str, channels: int
) -> None:
    voice = _voice(1.0, rate)
    sound = np.stack([voice] * channels, 1) if channels > 1 else voice
    report = _render(tmp_path, portrait, _sound(tmp_path / name, sound, rate, codec))
    assert 25 <= report.frames <= 28, "lossy formats pad"
    assert set(report.stages) == {"audio", "draw", "compose", "convert", "encode"}
    assert report.speed > 1.0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].channels == channels


def _turning(t: float) -> MotionCode:
    return MotionCode(pose=np.array([0.2 * np.sin(2 * np.pi * 0.5 * t), 0, 0, 0, 0, 0], np.float32))


@pytest.mark.parametrize("fps", [25, 30])
def test_the_pose_of_a_video_drives_frame_by_frame(tmp_path: Path, portrait: str, fps: int) -> None:
    driver = _video(tmp_path / "d.mp4", _turning, 4.0, fps)
    _render(tmp_path, portrait, _sound(tmp_path / "a.wav", _voice(4.0)), pose=driver)
    yaw = Film(tmp_path / "out.mp4").yaw
    wanted = np.array([_turning(i / 25).pose[0] for i in range(len(yaw))])
    # Smoothing may delay a moving head by a frame or two, not more.
    errors = [np.abs(yaw[10:-5] - np.roll(wanted, lag)[10:-5]).mean() for lag in range(-2, 6)]
    assert int(np.argmin(errors)) - 2 in (0, 1, 2)
    assert min(errors) < 0.03


def test_each_factor_takes_its_own_driver(tmp_path: Path, portrait: str) -> None:
    def blinking(t: float) -> MotionCode:
        shut = float(1.0 <= t % 2.0 < 1.3)
        return MotionCode(eye=np.array([shut, shut, 0, 0, 0, 0], np.float32))

    def chewing(t: float) -> MotionCode:
        lip = np.zeros(16, np.float32)
        lip[0] = 1.5 + 1.4 * np.sin(2 * np.pi * t)
        return MotionCode(lip=lip)

    silence = _sound(tmp_path / "a.wav", np.zeros(4 * 48_000, np.int16))
    _render(
        tmp_path, portrait, silence,
        eyes=_video(tmp_path / "eyes.mp4", blinking, 4.0),
        lip=str(_video(tmp_path / "lip.mp4", chewing, 4.0)),
        expression="smile",
    )  # fmt: skip
    film = Film(tmp_path / "out.mp4")
    t = np.arange(len(film.lids)) / 25
    assert film.lids[(t % 2 > 1.05) & (t % 2 < 1.25)].min() > 0.8
    assert film.lids[(t % 2 > 0.2) & (t % 2 < 0.9)].max() < 0.2
    assert np.corrcoef(film.mouth, np.sin(2 * np.pi * t))[0, 1] > 0.95
    assert np.abs(film.yaw).max() < 0.07, "the pose idles"


def test_a_short_driver_loops_without_a_jump(tmp_path: Path, portrait: str) -> None:
    def ramp(t: float) -> MotionCode:
        return MotionCode(pose=np.array([0.2 * t - 0.2, 0, 0, 0, 0, 0], np.float32))

    driver = _video(tmp_path / "d.mp4", ramp, 2.0)
    _render(tmp_path, portrait, _sound(tmp_path / "a.wav", _voice(6.0)), pose=driver)
    yaw = Film(tmp_path / "out.mp4").yaw
    assert len(yaw) == 150
    assert np.ptp(yaw[:38]) > 0.2
    assert np.abs(np.diff(yaw)).max() < 0.08


def test_a_driver_as_long_as_the_sound_is_not_bent_towards_its_start(
    tmp_path: Path, portrait: str
) -> None:
    def late(t: float) -> MotionCode:
        return MotionCode(pose=np.array([0.2 * (t > 1.5), 0, 0, 0, 0, 0], np.float32))

    driver = _video(tmp_path / "d.mp4", late, 3.0)
    _render(tmp_path, portrait, _sound(tmp_path / "a.wav", _voice(3.04)), pose=driver)
    yaw = Film(tmp_path / "out.mp4").yaw
    assert (yaw[-8:] - yaw[:8].mean()).min() > 0.17


def test_a_saved_clip_drives_too(tmp_path: Path, portrait: str) -> None:
    codes = np.zeros((60, 58), np.float32)
    codes[:, 16] = 0.15
    save_clip(tmp_path / "turn.npz", Clip(codes))
    _render(tmp_path, portrait, _sound(tmp_path / "a.wav", _voice(1.0)), pose=tmp_path / "turn.npz")
    assert Film(tmp_path / "out.mp4").yaw[-1] == pytest.approx(0.15, abs=0.03)


def test_a_driver_with_a_hidden_face_is_bridged(tmp_path: Path) -> None:
    hidden = _video(tmp_path / "d.mp4", lambda t: None if 1.0 < t < 1.4 else _turning(0.5), 3.0)
    clip = read_driver(hidden, FakeTracker(FakeEngine()).update, CONFIG)
    assert len(clip) == 75
    assert np.abs(clip.codes[:, 16]).max() < 0.02, "constant, so nothing relative"
    frames = [frame for frame, _ in read_video(hidden)]
    assert len(frames) == 75
    assert frames[0].shape == (160, 160, 3)


def test_bundled_portraits_by_id(tmp_path: Path, portrait: str) -> None:
    listing = [{"id": "ada", "name": "Ada", "file": "face.png", "how": "painted"}]
    (tmp_path / "portraits.json").write_text(json.dumps(listing))
    audio = _sound(tmp_path / "a.wav", _voice(0.3))
    options = RenderOptions("ada", audio, tmp_path / "o.mp4", size=SIZE, portrait_dirs=(tmp_path,))
    assert render_file(options, parts=PARTS).frames == 8
    options = RenderOptions("eve", audio, tmp_path / "o.mp4", portrait_dirs=(tmp_path,))
    with pytest.raises(RenderError, match=r"called eve\. Bundled portraits: ada\."):
        render_file(options, parts=PARTS)


def test_errors_are_sentences_and_leave_no_file(tmp_path: Path, portrait: str) -> None:
    audio = _sound(tmp_path / "a.wav", _voice(0.3))
    rubbish = tmp_path / "rubbish.mp4"
    rubbish.write_bytes(b"\x00" * 5000)
    faceless = _video(tmp_path / "black.mp4", lambda t: None, 1.0)
    black = tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros((64, 64, 3), np.uint8))
    gone = tmp_path / "gone.wav"
    out = tmp_path / "out.mp4"
    cases: list[tuple[dict[str, object], str]] = [
        ({"audio": gone}, "There is no file .*gone.wav"),
        ({"audio": rubbish}, "rubbish.mp4 cannot be read as sound"),
        ({"audio": faceless}, "black.mp4 has no sound"),
        ({"pose": gone}, "There is no file"),
        ({"pose": rubbish}, "rubbish.mp4 cannot be read as a video"),
        ({"pose": audio}, "a.wav has no pictures"),
        ({"pose": faceless}, "No face was found in black.mp4"),
        ({"eyes": gone}, "There is no file"),
        ({"lip": str(gone)}, "say 'audio' or name a video"),
        ({"expression": "frobnicate"}, "neither a file nor an expression preset .*smile"),
        ({"portrait": str(gone)}, "no picture and no bundled portrait"),
        ({"portrait": str(rubbish)}, "rubbish.mp4: This is not"),
        ({"portrait": str(black)}, "black.png: No face was found"),
        ({"size": 97}, "even number"),
        ({"size": 8000}, "even number"),
        ({"output": tmp_path / "out.avi"}, "must end in .mp4"),
        ({"output": tmp_path / "nowhere" / "out.mp4"}, "There is no folder"),
    ]
    for changes, message in cases:
        given: dict[str, object] = {
            "portrait": portrait,
            "audio": audio,
            "output": out,
            "size": SIZE,
        }
        with pytest.raises(RenderError, match=message):
            render_file(RenderOptions(**{**given, **changes}), parts=PARTS)  # type: ignore[arg-type]
        assert not out.exists()
    assert not list(tmp_path.glob("*.part"))


class CardEngine(FakeEngine):
    """Draws whole frames, four at once, and reads planes, as an engine on a card does."""

    max_batch = 4

    def __init__(self) -> None:
        super().__init__(config=CONFIG)
        self.batches: list[int] = []
        self.planes = 0

    def audio_batch(self, mel_BTM: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([self.audio(mel_TM) for mel_TM in mel_BTM])

    def frame_renderer(self) -> CardEngine:
        return self

    def render(self, requests: list[FrameRequest]) -> list[FrameResult]:
        self.batches.append(len(requests))
        one = CpuFrameRenderer(self)
        return [FrameResult(one.render([r])[0].i420, {"draw": 4000}) for r in requests]

    def motion_yuv(self, picture: YuvPicture, transform: object) -> MotionReading:
        raise AssertionError("the fake tracker does not ask")

    def motion_yuv_batch(self, crops: list[tuple[YuvPicture, object]]) -> list[MotionReading]:
        raise AssertionError("the fake tracker does not ask")


class CardTracker(FakeTracker):
    def update(self, frame: Pixels | YuvPicture) -> MotionReading | None:
        assert isinstance(frame, YuvPicture), "nothing is converted before it is asked for"
        assert isinstance(self._engine, CardEngine)
        self._engine.planes += 1
        return super().update(frame.to_rgb())


def test_an_engine_on_a_card_draws_and_reads_there(tmp_path: Path, portrait: str) -> None:
    """Same pictures as one by one on the CPU, in batches; driving videos go there as planes."""
    driver = _video(tmp_path / "d.mp4", _turning, 1.0)
    audio = _sound(tmp_path / "a.wav", _voice(1.0))
    reports, films = [], []
    for engine, tracker in ((CardEngine(), CardTracker), (FakeEngine(config=CONFIG), FakeTracker)):
        out = tmp_path / f"{type(engine).__name__}.mp4"
        parts = RenderParts(lambda *_, e=engine: e, tracker, _prepare)  # type: ignore[arg-type,misc]
        options = RenderOptions(portrait, audio, out, pose=driver, size=SIZE)
        reports.append(render_file(options, parts=parts))
        films.append(np.stack([np.asarray(frame) for frame, _ in read_video(out)]).astype(int))
        if isinstance(engine, CardEngine):
            assert engine.batches == [4] * 6 + [1]
            assert engine.planes >= 24
    assert [report.frames for report in reports] == [25, 25]
    assert set(reports[0].stages) == {"audio", "draw", "encode"}
    np.testing.assert_array_equal(films[0], films[1])


@pytest.mark.parametrize("card", [False, True])
def test_a_marked_film_says_ai_in_every_picture(tmp_path: Path, portrait: str, card: bool) -> None:
    audio, films = _sound(tmp_path / "a.wav", _voice(0.4)), []
    for mark in (False, True):
        engine = CardEngine() if card else FakeEngine(config=CONFIG)
        parts = RenderParts(lambda *_, e=engine: e, FakeTracker, _prepare)  # type: ignore[arg-type,misc]
        out = tmp_path / f"{mark}.mp4"
        made = RenderOptions(portrait, audio, out, size=256, mark=mark, portrait_dirs=())
        render_file(made, parts=parts)
        with av.open(str(out)) as film:
            films.append(np.stack([f.to_ndarray() for f in film.decode(video=0)]).astype(int))
    plain, marked = films
    assert plain.shape == marked.shape == (10, 384, 256)
    x, y, width, height = mark_place(256)
    there = (slice(None), slice(y, y + height), slice(x, x + width))
    assert (np.ptp(marked[there], (1, 2)) > 100).all(), "white letters on dark, from the first on"
    away = plain[:, : y - 16, :256] - marked[:, : y - 16, :256]
    assert np.abs(away).mean() < 0.5, "H.264 may differ by a little, the picture does not"


def test_a_failing_engine_leaves_no_file(tmp_path: Path, portrait: str) -> None:
    engine = FakeEngine(config=CONFIG, fail_draws=1)
    parts = RenderParts(lambda *_: engine, FakeTracker, _prepare)  # type: ignore[arg-type]
    audio = _sound(tmp_path / "a.wav", _voice(0.5))
    options = RenderOptions(portrait, audio, tmp_path / "out.mp4", size=SIZE)
    with pytest.raises(RuntimeError, match="fake draw failure"):
        render_file(options, parts=parts)
    assert not list(tmp_path.glob("out*"))


def test_progress_is_told_and_shown(
    tmp_path: Path, portrait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int | None]] = []
    driver = _video(tmp_path / "d.mp4", _turning, 0.5)
    audio = _sound(tmp_path / "a.wav", _voice(1.0))
    options = RenderOptions(portrait, audio, tmp_path / "out.mp4", pose=driver, size=SIZE)
    render_file(options, on_progress=lambda *step: told.append(step), parts=PARTS)
    assert told[-1] == ("rendering", 25, 25)
    assert ("reading d.mp4", 12, 12) in told or ("reading d.mp4", 12, 13) in told
    assert [step[1] for step in told if step[0] == "rendering"] == sorted(
        step[1] for step in told if step[0] == "rendering"
    )
    monkeypatch.setattr(realtime.render, "RenderParts", lambda: PARTS)
    console = Console(file=(tmp_path / "log").open("w"), force_terminal=True, width=80)
    assert render_with_progress(options, console).frames == 25
    console.file.close()
    assert "rendering" in (tmp_path / "log").read_text()
