"""Several caches as one: rows, flow, sound and who stays unseen."""

from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM
from models.config import ModelConfig
from trainer.frames import FrameCache, augmented_flow
from trainer.joined import join
from trainer.recipes.config import Augment
from trainer.stages.sampling import Data, PairPlan, pairs

pytestmark = pytest.mark.unit
SIZE = 256


def write(folder: Path, rows: list[tuple[str, str, str, int]], *, flow: bool = False) -> Path:
    """A cache whose pictures hold their own row number; rows are (kind, clip, person, frame)."""
    folder.mkdir()
    face = open_checkpoint().face
    kind, clip, person, frame = (np.array(c) for c in zip(*rows, strict=True))
    count = len(rows)
    points = face.mean[:, :2] * (1, -1) + 0.5
    np.savez(
        folder / "labels.npz", kind=kind, clip=clip, person=person, frame=frame,
        landmarks=np.repeat(points[None], count, 0).astype(np.float32),
        code=np.zeros((count, CODE_DIM), np.float32),
        shape=np.repeat(face.mean[None], count, 0).astype(np.float32),
    )  # fmt: skip
    np.savez(folder / "face_model.npz", mean=face.mean, basis=face.basis,
             landmark_mirror=np.arange(152))  # fmt: skip
    numbers = np.arange(count, dtype=np.uint8)[:, None, None, None]
    np.broadcast_to(numbers, (count, SIZE, SIZE, 3)).tofile(folder / "frames.u8")
    if flow:
        axis = ((np.arange(SIZE) + 0.5) / SIZE).astype(np.float16)
        own = np.stack(np.meshgrid(axis, axis), -1)
        np.broadcast_to(own, (count, SIZE, SIZE, 2)).tofile(folder / "flow.f16")
        np.full((count, SIZE, SIZE), 255, np.uint8).tofile(folder / "validity.u8")
    return folder


def clip(person: str, kind: str = "synth", frames: int = 3) -> list[tuple[str, str, str, int]]:
    return [(kind, f"{kind}/{person}", person, k) for k in range(frames)]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    old = write(tmp_path / "old", [row for i in range(8) for row in clip(f"p{i}")]
                + [row for i in range(4) for row in clip(f"c{i}", "grid")])  # fmt: skip
    (old / "speech.npz").write_bytes(b"sound")
    held = sorted(FrameCache(old).unseen())
    assert len(held) >= 2
    fresh = write(tmp_path / "new", [*clip(held[0]), *clip("n0"), *clip("n1")], flow=True)
    join(tmp_path / "mixed", [str(old), str(fresh)])
    return tmp_path / "mixed"


def test_rows_of_both_caches(mixed: Path) -> None:
    cache = FrameCache(mixed)
    assert len(cache.kind) == 36 + 9
    assert [int(np.asarray(cache.pixels[k])[0, 0, 0]) for k in (0, 35, 36, 44)] == [0, 35, 0, 8]
    assert cache.person[40] == "n0"
    assert (mixed / "speech.npz").read_bytes() == b"sound"


def test_who_is_unseen_stays_unseen(mixed: Path) -> None:
    before, cache = FrameCache(mixed.parent / "old"), FrameCache(mixed)
    one, both = before.split(), cache.split()
    np.testing.assert_array_equal(both.test[both.test < 36], one.test)
    assert both.test[both.test >= 36].tolist() == [36, 37, 38], "the held-out person's new frames"
    assert not set(cache.person[both.train]) & before.unseen()


def test_flow_only_where_there_is_some(mixed: Path) -> None:
    cache = FrameCache(mixed)
    assert not cache.has_flow(0)
    assert cache.has_flow(40)
    still = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    assert not augmented_flow(cache, 0, still, flip=False, size=16)[1].any()
    flow, valid = augmented_flow(cache, 40, still, flip=False, size=16)
    assert valid.mean() > 0.8
    axis = (np.arange(16) + 0.5) / 16
    wanted = np.stack(np.meshgrid(axis, axis))
    np.testing.assert_allclose((flow * valid), wanted * valid, atol=2e-3)


def test_one_run_draws_both(mixed: Path) -> None:
    (mixed / "speech.npz").unlink()
    make = pairs(
        Data.open(mixed), PairPlan(ModelConfig(), 2, Augment(), synth_share=0.7, flow=True)
    )
    samples = [make(np.random.default_rng(i)) for i in range(40)]
    share = np.mean([bool(s["valid"].any()) for s in samples])
    assert 0.2 < share < 0.8
    assert {s["flow"].shape for s in samples} == {(2, 2, 64, 64)}, "so that they make one batch"


def test_a_cache_cut_to_kinds(mixed: Path, tmp_path: Path) -> None:
    join(tmp_path / "cut", [f"{tmp_path / 'old'}:grid", str(tmp_path / "new")])
    cache = FrameCache(tmp_path / "cut")
    assert cache.kind.tolist() == ["grid"] * 12 + ["synth"] * 9
    assert int(np.asarray(cache.pixels[0])[0, 0, 0]) == 24
    assert set(cache.split().test.tolist()) >= {12, 13, 14}, "held out though not taken itself"


def test_what_cannot_be_joined_is_said(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is no training cache"):
        join(tmp_path / "x", [str(tmp_path / "nothing")])
    with np.load(tmp_path / "new" / "face_model.npz") as z:
        other = {k: z[k] for k in z.files}
    np.savez(tmp_path / "new" / "face_model.npz", **(other | {"basis": other["basis"] + 1}))
    with pytest.raises(ValueError, match="different face models"):
        FrameCache(mixed)


def test_what_prepare_wrote_may_be_named_and_what_is_no_cache_is_refused(
    mixed: Path, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (tmp_path / "old").rename(prepared / "cache")
    join(tmp_path / "again", [str(prepared), str(tmp_path / "new")])
    assert FrameCache(tmp_path / "again").kind.tolist().count("grid") == 12
    with pytest.raises(ValueError, match="is no training cache"):
        join(tmp_path / "no", [str(tmp_path)])
    with pytest.raises(ValueError, match="is joined itself"):
        join(tmp_path / "no", [str(tmp_path / "again")])
