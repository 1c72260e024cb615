"""From somebody's folder of videos to a training cache, with everything that goes wrong."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from models.codes import FACTOR_SLICES
from tests.trainer.talking import declare, the_engine, write_empty_room, write_talking
from trainer.frames import FrameCache
from trainer.prepare.media import MediaError, pictures, sound
from trainer.prepare.prepare import Options, PrepareError, prepare
from trainer.prepare.report import Report
from trainer.prepare.shards import landmark_mirror, read_shard

pytestmark = [pytest.mark.unit, pytest.mark.timeout(400)]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos: good, late lips, nobody there, damaged; and something that is no video."""
    root = tmp_path_factory.mktemp("videos")
    declare(root)
    write_talking(root / "mei" / "good.mp4", "mei")
    write_talking(root / "mei" / "late lips.mp4", "mei", late_frames=3)
    write_empty_room(root / "room.mp4")
    (root / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40)
    (root / "notes.txt").write_text("no video")
    return root


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    place = tmp_path_factory.mktemp("shards")
    return place, prepare(Options(folder, place), QUIET, the_engine())


def of(report: Report, name: str) -> object:
    return next(f for f in report.files if f.file == name)


def test_good_videos_are_kept_and_late_lips_corrected(out: tuple[Path, Report]) -> None:
    _, report = out
    good, late = of(report, "mei/good.mp4"), of(report, "mei/late lips.mp4")
    assert good.kept_s == pytest.approx(4.4, abs=0.1)
    assert good.offset_frames == pytest.approx(0, abs=0.7)
    assert good.sync_r > 0.5
    assert late.kept_s == pytest.approx(4.4, abs=0.1)
    assert late.offset_frames == pytest.approx(3, abs=0.7)


def test_a_video_that_breaks_off_says_so(folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "videos"
    declare(cut)
    # The index first, so that a half can be opened.
    with (
        av.open(str(folder / "mei" / "good.mp4")) as source,
        av.open(str(tmp_path / "whole.mp4"), "w", options={"movflags": "faststart"}) as whole,
    ):
        copies = {s.index: whole.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                whole.mux(packet)
    data = (tmp_path / "whole.mp4").read_bytes()
    (cut / "half.mp4").write_bytes(data[: len(data) // 2])
    found = of(prepare(Options(cut, tmp_path / "out"), QUIET, the_engine()), "half.mp4")
    lost = found.dropped_s["not to be decoded: the file is damaged or cut off"]
    assert 1 < lost < 4
    assert found.seconds == pytest.approx(4.4, abs=0.2), "what it says that it has"


def test_what_cannot_be_used_is_told_by_file_and_reason(out: tuple[Path, Report]) -> None:
    place, report = out
    room, broken = of(report, "room.mp4"), of(report, "broken.mp4")
    assert room.clips == 0
    assert room.dropped_s == {"no face": pytest.approx(2.4, abs=0.1)}
    assert "no face" in room.error
    assert "broken.mp4" in broken.error
    text = (place / "report.txt").read_text()
    for part in ("no face", "broken.mp4", "lips were", "ms late", "kept"):
        assert part in text
    assert json.loads((place / "report.json").read_text())["people"] == {"mei": 8.8}


def test_the_cache_opens_as_training_opens_it(out: tuple[Path, Report]) -> None:
    place, _ = out
    cache = FrameCache(place / "cache")
    assert set(cache.person) == {"mei"}
    assert set(cache.kind) == {"grid"}
    count = len(cache.kind)
    assert count == pytest.approx(2 * 110 / 3, abs=2)
    assert np.asarray(cache.pixels[count - 1]).std() > 20
    eyes = cache.landmarks[:, 56:88].mean((0, 1))
    assert eyes == pytest.approx([0.5, 0.44], abs=0.02), "canonical crops"
    # The head that was fitted projects to the landmarks that were seen.
    from models.codes import MotionCode

    row = count // 2
    seen = cache.face.project(cache.shape[row], MotionCode.split(cache.code[row]))
    assert np.abs(seen - cache.landmarks[row]).mean() * 256 < 1.5
    assert np.ptp(cache.code[:, FACTOR_SLICES["pose"].start]) > 0.06


def test_sound_of_the_cache_is_in_step_with_its_lips(out: tuple[Path, Report]) -> None:
    place, _ = out
    with np.load(place / "cache" / "speech.npz") as z:
        offset, samples, lip, names = z["offset"], z["samples"], z["lip"], z["clip"]
    assert len(samples) == 640 * offset[-1]
    assert len(lip) == offset[-1]
    good, late = (
        next(i for i, n in enumerate(names) if word in str(n)) for word in ("good", "late")
    )
    a = samples[offset[good] * 640 : offset[good + 1] * 640].astype(np.float32)
    b = samples[offset[late] * 640 : offset[late + 1] * 640].astype(np.float32)
    count = min(len(a), len(b))
    spectrum = np.fft.rfft(a[:count], 2 * count) * np.conj(np.fft.rfft(b[:count], 2 * count))
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    lag -= 2 * count if lag > count else 0
    assert abs(lag) < 0.6 * 640, "both sounds belong to the same lips now"


def test_manifest_names_licences_split_and_hashes(out: tuple[Path, Report]) -> None:
    place, _ = out
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["data"] == [{"name": "drawn by the tests", "licence": "Apache-2.0"}]
    assert len(manifest["clips"]) == 2
    assert {c["split"] for c in manifest["clips"]} == {"train", "held out"}
    for clip in manifest["clips"]:
        shard = read_shard(place, clip["shard"].removeprefix("shards/").removesuffix(".npz"))
        assert (place / clip["clip"]).is_file()
        assert len(shard.samples) == 640 * len(shard.code)


class Unused:
    """An engine that must not be asked."""

    def __getattr__(self, name: str) -> object:
        if name == "face":
            return the_engine().face
        raise AssertionError(f"engine.{name} was used")


def test_a_second_run_reads_nothing_again(folder: Path, out: tuple[Path, Report]) -> None:
    place, first = out
    again = prepare(Options(folder, place), QUIET, Unused())  # type: ignore[arg-type]
    assert again.resumed == 4
    assert [f.kept_s for f in again.files] == [f.kept_s for f in first.files]


def test_an_interrupted_run_goes_on_after_the_last_finished_file(
    folder: Path, out: tuple[Path, Report]
) -> None:
    place, _ = out
    records = sorted((place / "done").iterdir())
    room = next(r for r in records if "room.mp4" in r.read_text())
    room.write_text(room.read_text()[:40])  # the record was being written
    again = prepare(Options(folder, place), QUIET, the_engine())
    assert again.resumed == 3
    assert of(again, "room.mp4").dropped_s == {"no face": pytest.approx(2.4, abs=0.1)}


def test_a_single_clip_leaves_nobody_to_measure_on_and_the_report_says_so(
    folder: Path, out: tuple[Path, Report], tmp_path: Path
) -> None:
    place = tmp_path / "one"
    shutil.copytree(out[0], place)
    late = next(r for r in (place / "done").iterdir() if "late lips" in r.read_text())
    late.write_text(json.dumps(json.loads(late.read_text()) | {"shards": []}))
    report = prepare(Options(folder, place), QUIET, Unused())  # type: ignore[arg-type]
    assert report.split == "One clip only: nothing is held out, so nothing can be measured."
    assert len(FrameCache(place / "cache").split().test) == 0


def test_nothing_is_used_without_a_declaration(tmp_path: Path) -> None:
    videos = tmp_path / "v"
    (videos / "a").mkdir(parents=True)
    (videos / "a" / "x.mp4").write_bytes(b"x")
    with pytest.raises(PrepareError, match=r"a/x\.mp4: no licence\.toml"):
        prepare(Options(videos, tmp_path / "o"), QUIET, the_engine())
    (videos / "licence.toml").write_text('licence = "mine"\nsource = "me"\nconsent = false\n')
    with pytest.raises(PrepareError, match="consent is not true"):
        prepare(Options(videos, tmp_path / "o"), QUIET, the_engine())
    (videos / "licence.toml").write_text("licence = \n")
    with pytest.raises(PrepareError, match="cannot be read"):
        prepare(Options(videos, tmp_path / "o"), QUIET, the_engine())


def test_an_empty_or_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="holds no videos"):
        prepare(Options(tmp_path, tmp_path / "o"), QUIET, the_engine())
    with pytest.raises(PrepareError, match="no folder"):
        prepare(Options(tmp_path / "nowhere", tmp_path / "o"), QUIET, the_engine())


def test_pictures_and_sound_share_one_clock(folder: Path) -> None:
    path = folder / "mei" / "good.mp4"
    assert len(list(pictures(path))) == 110
    assert len(sound(path)) == pytest.approx(4.4 * 16_000, abs=2048)
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        next(pictures(folder / "broken.mp4"))


def test_the_mirror_of_the_landmarks_is_an_involution() -> None:
    mirror = landmark_mirror(the_engine().face)
    assert sorted(mirror) == list(range(152))
    assert (mirror[mirror] == np.arange(152)).all()


def test_a_prepared_folder_can_be_evaluated(out: tuple[Path, Report], tmp_path: Path) -> None:
    """From the held-out clip to a report, through the product's own command line."""
    from trainer.evaluate import evaluate
    from trainer.evaluate.suite import Counts

    place, _ = out
    options = evaluate.Options(
        data=place, cache=place / "cache", out=tmp_path, quick=True, threads=1,
        counts=Counts(1, 0, 0, 0, 0, 0, 0, 0, 0),
    )  # fmt: skip
    result, files = evaluate.run(options, QUIET)
    assert result["skipped"] == []
    kinds = {item["kind"]: item["figures"] for item in result["items"]}
    assert kinds["speech"]["mouth_gap"]["r"] > 0.6, "drawn from the same sound by the same networks"
    assert abs(kinds["speech"]["mouth_gap"]["lag_frames"]) < 1.5
    assert not result["protocol"]["independent"]
    assert all(f.stat().st_size > 2000 for f in files)
    saved = json.loads(files[0].read_text())
    assert saved["checkpoint"]["digest"] == result["checkpoint"]["digest"]
