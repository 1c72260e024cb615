"""The evaluation around the metrics: choice of clips, drawing, measuring, report, history."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from models.codes import CODE_DIM, FACTOR_SLICES
from tests.trainer.talking import PORTRAITS, speech, talking_frames, the_engine
from trainer import lab_commands
from trainer.evaluate import history, report, score
from trainer.evaluate.codes import factors_of
from trainer.evaluate.measuring import Cached, ExternalMeasure, MeasureError, OwnMeasure
from trainer.evaluate.score import Result, judge, summarise
from trainer.evaluate.studio import Studio, at_size, calmest, lip_codes, swapped, trailing
from trainer.evaluate.suite import Counts, SuiteError, build, liveliest
from trainer.frames import FrameCache
from trainer.prepare.faces import FaceClip, read_clip
from trainer.prepare.media import pictures, write_clip

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def clip() -> FaceClip:
    """A talking head as the evaluation reads it."""
    return read_clip(list(talking_frames("mei", 4.4)[:40]), the_engine())


# --- drawing --------------------------------------------------------------------------


def test_clips_are_read_in_one_canonical_crop(clip: FaceClip) -> None:
    assert len(clip.crops) == 40
    assert clip.crops[0].shape == (256, 256, 3)
    middle = clip.landmarks.mean(0)
    assert middle[56:88].mean(0) == pytest.approx([0.5, 0.44], abs=0.01)
    with pytest.raises(ValueError, match="a face was seen in 0 of 12"):
        read_clip([np.full((120, 160, 3), 90, np.uint8)] * 12, the_engine())


def test_lip_codes_are_those_of_the_stream(clip: FaceClip) -> None:
    whole = lip_codes(speech(2.0), 50, the_engine())
    part = lip_codes(speech(1.6), 40, the_engine())
    assert np.array_equal(whole[:36], part[:36]), "the end hears silence instead of what follows"
    assert np.abs(whole).max() > 0.3


def test_the_expression_is_the_trailing_mean_and_nothing_else_changes() -> None:
    codes = np.random.default_rng(0).random((20, CODE_DIM)).astype(np.float32)
    out = trailing(codes, the_engine().config)
    exp = FACTOR_SLICES["exp"]
    length = the_engine().config.expression_window
    assert out[15, exp] == pytest.approx(codes[16 - length : 16, exp].mean(0), abs=1e-5)
    assert np.array_equal(out[:, : exp.start], codes[:, : exp.start])


def test_swapping_replaces_exactly_one_factor() -> None:
    a, b = np.zeros((5, CODE_DIM), np.float32), np.ones((4, CODE_DIM), np.float32)
    out = swapped(a, b, ["pose"])
    assert out.shape == (4, CODE_DIM)
    assert out[:, FACTOR_SLICES["pose"]].min() == 1
    assert out.sum() == 4 * 6


def test_the_calmest_frame_is_the_one_with_closed_lips_and_open_eyes(clip: FaceClip) -> None:
    codes = clip.codes.copy()
    codes[:, FACTOR_SLICES["eye"].start] += 1
    codes[7, FACTOR_SLICES["eye"].start] -= 1
    assert calmest(FaceClip(clip.crops, codes, np.stack([clip.landmarks[0]] * 40))) == 7


def test_nothing_is_drawn_twice(tmp_path: Path, clip: FaceClip) -> None:
    studio = Studio(the_engine(), None, "d" * 10, tmp_path)
    crop = clip.crops[0]
    place = studio.place("x", PORTRAITS / "mei.jpg")
    codes = np.stack([clip.codes[0]] * 3)
    appearance = the_engine().appearance(crop)
    studio.drawn(place, appearance, crop, codes)
    before = place.stat().st_mtime_ns
    studio.drawn(place, appearance, crop, codes)
    assert place.stat().st_mtime_ns == before
    other = Studio(the_engine(), None, "e" * 10, tmp_path)
    assert other.place("x", PORTRAITS / "mei.jpg") != place, "another checkpoint, another video"
    back = list(pictures(place))
    assert len(back) == 3
    # The same codes give the same portrait back, and the file is lossless.
    assert np.abs(back[0].astype(int) - back[2].astype(int)).max() == 0
    assert cv2.PSNR(back[0], at_size(crop)) > 28


# --- measuring ------------------------------------------------------------------------


def test_own_measure_reads_motion_and_says_that_it_is_not_independent(
    tmp_path: Path, clip: FaceClip
) -> None:
    video = tmp_path / "v.mp4"
    write_clip(video, clip.crops, lossless=True)
    calls: list[int] = []
    measure = Cached(OwnMeasure(the_engine()), tmp_path / "m", "1")
    assert not measure.independent
    found = measure.read([video], lambda: calls.append(1))[video]
    assert len(calls) == 1
    assert found["landmarks"].shape == (40, 152, 2)
    assert found["yaw"] == pytest.approx(
        np.degrees(clip.codes[:, FACTOR_SLICES["pose"].start]), abs=0.6
    )
    assert np.ptp(found["mouth_gap"]) > 0.01
    video_again = tmp_path / "copy.mp4"
    video_again.write_bytes(video.read_bytes())

    class Never:
        name, independent = "never", False

        def read(self, videos: object, on_done: object = None) -> dict[Path, dict[str, np.ndarray]]:
            raise AssertionError("measured again")

    again = Cached(Never(), tmp_path / "m", "1").read([video_again])[video_again]  # type: ignore[arg-type]
    assert np.array_equal(again["yaw"], found["yaw"])


def test_a_measuring_python_that_cannot_measure_says_why(tmp_path: Path, clip: FaceClip) -> None:
    video = tmp_path / "v.mp4"
    write_clip(video, clip.crops[:2], lossless=True)
    model = tmp_path / "face_landmarker.task"
    model.write_bytes(b"no model")
    measure = ExternalMeasure(Path(sys.executable), model, tmp_path / "s")
    with pytest.raises(MeasureError, match="mediapipe"):
        measure.read([video])
    with pytest.raises(MeasureError, match="cannot measure"):
        ExternalMeasure(tmp_path / "nopython", model, tmp_path / "s").read([video])


# --- suite ----------------------------------------------------------------------------


@pytest.fixture
def pack(tmp_path: Path) -> tuple[FrameCache, Path]:
    """A made-up cache of labels only, with empty media files under the names it knows."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(45):
        rows += [("synth", f"clips/p{i}.mp4", f"p{i}")] * 4
        rows += [("synth", f"clips/p{i}__pose.mp4", f"p{i}")] * 4
    rows += [("grid", f"grid/s1/c{i}.mp4", "s1") for i in range(70)]
    rows += [("grid", f"grid/misc/m{i}.mp4", f"m{i}") for i in range(6)]
    rows += [("still", f"stills/q{i}.jpg", f"stills/q{i}.jpg") for i in range(70)]
    for _, name, _ in rows:
        place = tmp_path / "synth" / name if name.startswith("clips/") else tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    columns = list(zip(*rows, strict=True))
    face = the_engine().face
    folder = tmp_path / "cache"
    folder.mkdir()
    count = len(rows)
    np.savez(
        folder / "labels.npz", kind=np.array(columns[0]), clip=np.array(columns[1]),
        person=np.array(columns[2]), frame=np.arange(count), landmarks=np.zeros((count, 152, 2)),
        code=rng.random((count, CODE_DIM)).astype(np.float32), shape=np.zeros((count, 152, 3)),
    )  # fmt: skip
    np.savez(folder / "face_model.npz", mean=face.mean, basis=face.basis,
             landmark_mirror=np.arange(152))  # fmt: skip
    with (folder / "frames.u8").open("wb") as file:
        file.truncate(count * 256 * 256 * 3)
    return FrameCache(folder), tmp_path


def test_the_suite_is_the_same_every_time_and_only_of_unseen_people(
    pack: tuple[FrameCache, Path],
) -> None:
    cache, root = pack
    counts = Counts(3, 2, 4, 2, 2, 3, 2, 1)
    items = build(cache, root, counts, seed=5)
    assert items == build(cache, root, counts, seed=5)
    assert items != build(cache, root, counts, seed=6)
    kinds = [i.kind for i in items]
    assert [kinds.count(k) for k in ("speech", "driven", "codes", "self", "swap", "exact")] == [
        5, 4, 2, 5, 2, 1,
    ]  # fmt: skip
    test = set(cache.clip[cache.split().test])
    for item in items:
        for clip in item.name.split(" x "):
            assert clip in test
    strangers = [i for i in items if i.kind == "speech" and "/misc/" in i.name]
    assert len(strangers) == 2, "the two speakers that are in no training clip"
    exact = next(i for i in items if i.kind == "exact")
    assert exact.factor == "pose"
    assert exact.name.replace("__pose", "") == f"clips/{exact.driver.name}"


def test_lively_clips_come_first(pack: tuple[FrameCache, Path]) -> None:
    cache, _ = pack
    still, smiling = "clips/p0.mp4", "clips/p1.mp4"
    cache.code[cache.clip == still] = 0
    cache.code[np.flatnonzero(cache.clip == smiling)[0], FACTOR_SLICES["exp"]] = 9
    assert liveliest(cache, [still, smiling, "clips/p2.mp4"], 3)[0] == smiling


def test_missing_media_is_told(pack: tuple[FrameCache, Path], tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="No held-out clip"):
        build(pack[0], tmp_path / "elsewhere", Counts(1, 1, 1, 1, 1, 1, 1, 1))


def test_factors_are_named_columns_of_the_code() -> None:
    codes = np.arange(2.0 * CODE_DIM).reshape(2, CODE_DIM)
    found = factors_of(codes)
    assert found["pose"][0].tolist() == [16, 17, 18]
    assert found["gaze"][0].tolist() == [24, 25]
    assert found["smile"].shape == (2, 1)


# --- figures --------------------------------------------------------------------------


def made_results() -> list[Result]:
    def signal(r: float, moved: float) -> dict[str, float]:
        return {"r": r, "mae_centred": 3 - 2 * r, "driver_std": moved}

    return [
        Result("driven", "a", {"yaw": signal(0.99, 5.0), "smile": signal(0.9, 0.2)}),
        Result("driven", "b", {"yaw": signal(0.95, 4.0), "smile": signal(0.1, 0.001)}),
        Result("driven", "c", {"yaw": signal(float("nan"), 6.0), "smile": signal(0.5, 0.3)}),
    ]


def test_summaries_count_only_what_the_driver_moved() -> None:
    summary = summarise(made_results())
    assert summary["driven.yaw.r"] == {
        "median": pytest.approx(0.97), "worst": 0.95, "count": 2,
    }  # fmt: skip
    assert summary["driven.smile.r"]["count"] == 2, "the second driver did not smile"
    assert summary["driven.smile.r"]["worst"] == 0.5
    assert summary["driven.yaw.mae_centred"]["worst"] == pytest.approx(1.1)


def test_targets_are_judged_and_missing_figures_are_no_success() -> None:
    judged = {t["key"]: t for t in judge(summarise(made_results()))}
    assert judged["driven.yaw.r"]["met"]
    assert judged["driven.smile.r"]["met"] is False
    assert judged["driven.blink.r"]["met"] is None
    lag = next(t for t in score.TARGETS if t.key.endswith("lag_frames"))
    assert lag.met(-0.4)
    assert not lag.met(-0.7)


def test_landmark_distance_tells_place_from_shape() -> None:
    points = np.random.default_rng(0).random((5, 152, 2)) * 100
    moved = {"landmarks": points + np.array([3.0, 4.0])}
    found = score.landmark_distance(moved, {"landmarks": points})
    assert found["full"] == pytest.approx(5)
    assert found["mouth"] == pytest.approx(5)
    assert found["mouth_relative"] == pytest.approx(0, abs=1e-9)


# --- history and report ---------------------------------------------------------------


def made_result(when: str, digest: str, yaw: float, identity: float) -> dict[str, object]:
    summary = {
        "driven.yaw.r": {"median": yaw, "worst": yaw, "count": 3},
        "driven.identity.independent": {"median": identity, "worst": identity, "count": 3},
    }
    return {
        "when": when, "commit": "abc", "summary": summary,
        "checkpoint": {"digest": digest, "name": "live"},
        "protocol": {"suite": "quick", "seed": 0, "independent": True, "measure": "m"},
        "targets": judge(summary), "skipped": [{"item": "<x>", "why": "no face"}],
        "leakage": {
            "pairs": 1, "crosstalk_of_the_measure": {},
            "matrix": {"lip": {"lip": 1.0, "pose": 0.1}},
            "signals": {"lip": {"mouth_gap": float("nan"), "yaw": 0.1}},
        },
        "probes": {"lip": {"mouth": 0.5}},
        "speech_in_codes": {"exp": {"top1": 0.02, "chance": 0.02}},
        "drawn": [],
    }  # fmt: skip


def test_a_regression_shows_in_the_history(tmp_path: Path) -> None:
    history.record(made_result("2026-01-01T10:00:00+00:00", "aaaa", 0.95, 0.40), tmp_path)
    history.record(made_result("2026-01-02T10:00:00+00:00", "bbbb", 0.80, 0.30), tmp_path)
    first, second = history.read_index(tmp_path)
    assert history.regressions(first, second) == ["driven.yaw.r"]
    assert history.regressions(second, first) == ["driven.identity.independent"]
    assert history.previous([first, second], second) == first
    other_suite = second | {"suite": "full"}
    assert history.previous([first], other_suite) is None
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(history.table(tmp_path))
    text = console.export_text()
    assert "0.800 worse" in text
    assert "0.300" in text
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"index.json", "2026-01-01-aaaa-quick.json", "2026-01-02-bbbb-quick.json"}
    history.record(made_result("2026-01-02T11:00:00+00:00", "bbbb", 0.9, 0.3), tmp_path)
    assert len(history.read_index(tmp_path)) == 2, "the same day and checkpoint is replaced"


def test_the_report_is_one_file_that_needs_nothing_else(tmp_path: Path, clip: FaceClip) -> None:
    videos = {}
    for name in ("driver", "ours"):
        videos[name] = str(tmp_path / f"{name}.mp4")
        write_clip(Path(videos[name]), clip.crops[:10], lossless=True)
    result = made_result("2026-01-01T10:00:00+00:00", "aaaa", 0.95, 0.40)
    result["drawn"] = [{"kind": "driven", "name": "a & b", "videos": videos}]
    signals = {v: {k: np.sin(np.arange(10.0)) for k in score.FOLLOWED} for v in videos.values()}
    report.write(result, signals, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/") == 5, "two matrices, probes, a contact sheet, traces"
    assert 'src="http' not in page
    assert "a &amp; b" in page
    assert "&lt;x&gt;" in page
    assert "met</span>" in page
    saved = json.dumps(history.rounded(result))
    assert "NaN" not in saved


def test_the_command_needs_data_and_shows_history() -> None:
    app = typer.Typer()
    lab_commands.register(app)
    run = CliRunner()
    shown = run.invoke(app, ["evaluate", "--history"])
    assert shown.exit_code == 0
    assert "driven.yaw.r" in shown.output
    without = run.invoke(app, ["evaluate"])
    assert without.exit_code == 1
    nothing = run.invoke(app, ["prepare", "--videos", "nowhere", "-o", "x", "--people", "nose"])
    assert nothing.exit_code == 1
