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
from trainer.evaluate import history, report, score, spoken
from trainer.evaluate.codes import factors_of
from trainer.evaluate.measuring import Ahead, Cached, ExternalMeasure, MeasureError, OwnMeasure
from trainer.evaluate.score import Result, judge, summarise
from trainer.evaluate.studio import Studio, at_size, calmest, lip_codes, swapped, trailing
from trainer.evaluate.suite import Counts, SuiteError, build, choose
from trainer.evaluate.truth import FLOORS, Truth, signals_of, truth_of
from trainer.frames import FrameCache
from trainer.prepare.faces import FaceClip, read_clip
from trainer.prepare.media import pictures, sound, write_clip
from trainer.voices import espeak

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


def test_a_driver_is_read_once(tmp_path: Path, clip: FaceClip) -> None:
    video = tmp_path / "v.mp4"
    write_clip(video, clip.crops[:14], speech(0.6))
    first = Studio(the_engine(), None, "d" * 10, tmp_path / "s").driver(video)

    class Blind:
        """An engine that must not be asked again."""

    again = Studio(Blind(), None, "d" * 10, tmp_path / "s").driver(video)  # type: ignore[arg-type]
    assert np.array_equal(again.codes, first.codes)
    assert np.array_equal(again.face.landmarks, first.face.landmarks)
    assert np.array_equal(np.stack(again.face.crops), np.stack(first.face.crops)), "lossless"
    assert again.spoken is not None
    assert np.array_equal(again.spoken, first.spoken)


def test_unheard_voices_come_with_their_mouths(tmp_path: Path) -> None:
    if not espeak.available():
        pytest.skip("espeak-ng is not installed here")
    portraits = [PORTRAITS / "mei.jpg"]
    items = spoken.speak(tmp_path, the_engine().face, portraits, 2, seed=3)
    assert [i.kind for i in items] == ["voice", "voice"]
    mouth, samples = spoken.mouth_of(items[0].driver), sound(items[0].driver)
    assert len(samples) == 640 * len(mouth)
    # Somebody speaks, and the mouth opens and shuts with it.
    loud = np.abs(samples).reshape(-1, 640).max(1)
    assert np.ptp(mouth) > 0.01
    assert mouth[loud > 0.1].mean() > mouth[loud < 0.005].mean() + 0.003
    before = items[0].driver.stat().st_mtime_ns
    assert spoken.speak(tmp_path, the_engine().face, portraits, 2, seed=3) == items
    assert items[0].driver.stat().st_mtime_ns == before, "kept: espeak never speaks twice alike"


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


@pytest.mark.parametrize("independent", [True, False])
def test_videos_are_measured_while_others_are_drawn(tmp_path: Path, independent: bool) -> None:
    groups: list[list[str]] = []

    class Fake:
        name = "fake"

        def read(
            self, videos: list[Path], on_done: object = None
        ) -> dict[Path, dict[str, np.ndarray]]:
            groups.append([v.name for v in videos])
            if any(v.name == "bad" for v in videos):
                raise MeasureError("cannot")
            return {v: {"yaw": np.array([float(v.name)])} for v in videos}

    fake = Fake()
    fake.independent = independent  # type: ignore[attr-defined]
    for name in ("1", "2", "3", "bad"):
        (tmp_path / name).write_text(name)
    measure = Cached(fake, tmp_path / "m", "1")  # type: ignore[arg-type]
    ahead = Ahead(measure, lambda: None, batch=2)
    ahead.add([tmp_path / "1"])
    assert groups == [], "one alone is not worth a process"
    ahead.add([tmp_path / "1", tmp_path / "2"])
    ahead.add([tmp_path / "3"])
    found = ahead.finish()
    assert {p.name: float(a["yaw"][0]) for p, a in found.items()} == {"1": 1, "2": 2, "3": 3}
    assert groups == ([["1", "2"], ["3"]] if independent else [["1", "2", "3"]])
    broken = Ahead(measure, lambda: None, batch=1)
    broken.add([tmp_path / "bad"])
    with pytest.raises(MeasureError):
        broken.finish()


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
    counts = Counts(3, 2, 0, 2, 1, 2, 3, 2, 1)
    items = build(cache, root, counts, seed=5)
    assert items == build(cache, root, counts, seed=5)
    assert items != build(cache, root, counts, seed=6)
    kinds = [i.kind for i in items]
    assert [kinds.count(k) for k in ("speech", "codes", "self", "swap", "exact")] == [
        5, 1, 5, 2, 1,
    ]  # fmt: skip
    test = set(cache.clip[cache.split().test])
    for item in (i for i in items if i.kind != "exact"):
        for clip in item.name.split(" x "):
            assert clip in test
    strangers = [i for i in items if i.kind == "speech" and "/misc/" in i.name]
    assert len(strangers) == 2, "the two speakers that are in no training clip"
    exact = next(i for i in items if i.kind == "exact")
    assert exact.factor == "pose"
    assert exact.name.replace("__pose", "") == f"clips/{exact.driver.name}"


def test_drivers_move_what_they_count_for(pack: tuple[FrameCache, Path]) -> None:
    cache, root = pack
    cache.code[:] = 0
    test = np.unique(cache.clip[cache.split().test])
    yaw, turner = FACTOR_SLICES["pose"].start, next(c for c in test if c.startswith("clips/"))
    cache.code[cache.clip == turner, yaw] = np.radians([0, 9, 0, 9])
    items = build(cache, root, Counts(1, 1, 0, 2, 0, 0, 1, 0, 0))
    driven = [i for i in items if i.kind == "driven"]
    assert [(i.name, i.signals) for i in driven] == [(turner, ("yaw",))], "nobody else moves"


def test_swaps_have_a_third_person_of_whom_real_frames_exist(
    pack: tuple[FrameCache, Path],
) -> None:
    cache, root = pack
    for name in np.unique(cache.person[cache.kind == "synth"]):
        (root / "stills" / f"{name}.jpg").touch()
    swaps = [i for i in build(cache, root, Counts(1, 1, 0, 1, 0, 0, 1, 3, 0)) if i.kind == "swap"]
    assert len(swaps) == 3
    for item in swaps:
        assert item.real is not None
        assert item.portrait is not None
        assert item.real.stem == item.portrait.stem
        assert item.real not in (item.driver, item.other)


def test_few_clips_move_everything() -> None:
    moved = {"a": ("yaw",), "b": ("yaw", "smile", "blink"), "c": ("gaze_x",), "b2": ("gaze_x",)}
    people = {"a": "A", "b": "B", "c": "C", "b2": "B"}
    assert choose(moved, people, 1) == ["b", "c"], "b alone moves three; nobody comes twice"
    assert set(choose(moved, people, 2)) == {"a", "b", "c"}
    assert choose({"x": ()}, {"x": "X"}, 3) == []


def test_labels_become_signals_in_the_measures_units(pack: tuple[FrameCache, Path]) -> None:
    codes = np.zeros((2, CODE_DIM))
    pose, eye = FACTOR_SLICES["pose"].start, FACTOR_SLICES["eye"].start
    codes[1, pose + 1], codes[1, eye], codes[1, eye + 2] = np.radians(8), 1.0, -0.5
    found = signals_of(codes)
    assert found["pitch"][1] == pytest.approx(8)
    assert found["blink"][1] == pytest.approx(0.5), "one of two eyes"
    assert found["gaze_x"][1] == pytest.approx(-10)
    assert set(found) == set(FLOORS)
    truth = truth_of(pack[0], "clips/p3.mp4")
    assert np.all(np.diff(truth.frames) > 0)
    known = Truth(np.array([1, 3]), {"yaw": np.array([2.0, 6.0])}).at_every_frame(5)
    assert known["yaw"].tolist() == [2, 2, 4, 6, 6]
    assert set(truth.at_every_frame(3)) == {*FLOORS, "mouth_gap"}


def test_missing_media_is_told(pack: tuple[FrameCache, Path], tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="No held-out clip"):
        build(pack[0], tmp_path / "elsewhere", Counts(1, 1, 1, 1, 1, 1, 1, 1, 1))


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


def test_labels_decide_which_clips_count_where_there_are_any() -> None:
    figures = {"smile": {"r": 0.2, "driver_std": 0.5}, "yaw": {"r": 0.9, "driver_std": 0.1}}
    summary = summarise([Result("driven", "a", figures, ("yaw",))])
    assert summary["driven.yaw.r"]["count"] == 1, "it turns, whatever the measure saw"
    assert "driven.smile.r" not in summary, "the measure saw a smile where none was drawn"


def test_the_measure_is_judged_by_the_labels(pack: tuple[FrameCache, Path]) -> None:
    frames = np.arange(1, 40, 3)
    wave = 5 * np.sin(np.arange(40) / 4)
    labels = dict.fromkeys(FLOORS, wave[frames])
    truth = Truth(frames, labels)
    seen = dict.fromkeys(FLOORS, 0.7 * wave)
    ours = dict.fromkeys(FLOORS, -wave)
    figures: score.Figures = {name: {"r": 0.9} for name in FLOORS}
    score.add_truth(figures, ours, seen, truth)
    assert figures["pitch"]["measure_r"] == pytest.approx(1)
    assert figures["pitch"]["seen_r"] == 0.9
    assert figures["pitch"]["measure_slope"] == pytest.approx(0.7)
    assert figures["pitch"]["truth_r"] == pytest.approx(-1)
    blind = dict.fromkeys(FLOORS, np.roll(wave, 9))
    score.add_truth(figures, ours, blind, truth)
    assert np.isnan(figures["pitch"]["seen_r"]), "what the measure cannot see of a true face"


def test_targets_are_judged_and_missing_figures_are_no_success() -> None:
    judged = {t["key"]: t for t in judge(summarise(made_results()))}
    assert judged["driven.yaw.r"]["met"]
    assert judged["driven.smile.r"]["met"] is False
    assert judged["driven.blink.r"]["met"] is None
    lag = next(t for t in score.TARGETS if t.key.endswith("lag_frames"))
    assert lag.met(-0.4)
    assert not lag.met(-0.7)


def test_blinks_are_found_by_each_faces_own_range() -> None:
    driver, ours = np.full(75, 0.1), np.full(75, 0.3)
    driver[20:24], ours[21:25] = 0.3, 0.9  # one face hardly shows what the other does
    still = np.random.default_rng(0).uniform(0, 0.02, 75)
    signals = {**dict.fromkeys(score.FOLLOWED, np.sin(np.arange(75.0))), "blink": driver}
    assert score.follow_all({**signals, "blink": ours}, signals)["blink"]["f1"] == 1
    assert score.follow_all({**signals, "blink": still}, signals)["blink"]["f1"] == 0


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
            "pairs": 1, "exact_pairs": 0, "crosstalk_of_the_measure": {},
            "explained": {"lip": {"lip": 0.9, "pose": 0.05, "pose low": 0.0, "pose high": 0.1}},
            "matrix": {"lip": dict.fromkeys(("lip", "pose", "eye", "exp"), 0.1)},
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
    for other in ({"suite": "full"}, {"suite_version": 2}):
        assert history.previous([first], second | other) is None, "other clips, no comparison"
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
    assert page.count("data:image/") == 6, "three matrices, probes, a contact sheet, traces"
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
