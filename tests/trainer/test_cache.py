"""Filmed clips of a cache fitted again: new codes in the right rows, everything else as it was."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import trainer.cache as module
from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, DIMS
from trainer.face_fit import Labelled
from trainer.frames import FrameCache

pytestmark = pytest.mark.unit


def test_relabel_puts_codes_into_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = open_checkpoint().face
    old, count = tmp_path / "old", 5
    old.mkdir()
    kind = np.array(["synth", "grid", "grid", "grid", "still"])
    clip = np.array(["synth/a", "grid/s1/y.mp4", "grid/s1/y.mp4", "grid/s1/x.mp4", "stills/b.jpg"])
    np.savez(
        old / "labels.npz", kind=kind, clip=clip, person=clip, frame=np.array([0, 0, 3, 2, 0]),
        landmarks=np.zeros((count, 152, 2), np.float32),
        shape=np.zeros((count, 152, 3), np.float32),
        code=np.full((count, CODE_DIM), -1, np.float32),
    )  # fmt: skip
    np.savez(old / "face_model.npz", mean=face.mean, basis=face.basis, lip=np.eye(DIMS["lip"]),
             lip_names=np.array(["jawOpen"]), landmark_mirror=np.arange(152))  # fmt: skip
    np.zeros((count, 256, 256, 3), np.uint8).tofile(old / "frames.u8")
    # Clips x (3 frames) and y (4 frames): row r of the pack gets the code r everywhere.
    codes = np.repeat(np.arange(7, dtype=np.float32)[:, None], CODE_DIM, 1)
    shapes = np.arange(2, dtype=np.float32)[:, None, None] + np.zeros((2, 152, 3), np.float32)
    np.savez(old / "speech.npz", clip=clip[[3, 1]], offset=np.array([0, 3, 7]),
             samples=np.ones(9, np.float16), lip=np.zeros((7, 16), np.float32))  # fmt: skip
    pack = SimpleNamespace(
        clips={"clip": np.array(["grid/s1/x.mp4", "grid/s1/y.mp4"]), "offset": np.array([0, 3, 7])}
    )
    monkeypatch.setattr(module, "Pack", SimpleNamespace(open=lambda root: pack))
    empty = np.zeros(0, np.float32)
    monkeypatch.setattr(module, "fit_clips", lambda *a: Labelled(empty, empty, codes, shapes))
    module.relabel(tmp_path, old, tmp_path / "new")
    cache = FrameCache(tmp_path / "new")
    assert cache.code[:, 0].tolist() == [-1, 3, 6, 2, -1]
    assert cache.shape[:, 0, 0].tolist() == [0, 1, 1, 0, 0]
    with np.load(tmp_path / "new" / "speech.npz") as z:
        assert z["lip"][:, 5].tolist() == list(range(7))
        assert z["samples"].sum() == 9
    assert FrameCache(old).code.max() == -1, "the old cache is left alone"
