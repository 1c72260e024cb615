"""Checkpoints: the shipped one is whole, small and honest; broken ones are refused."""

import json
import shutil
from pathlib import Path

import pytest

from models.checkpoint import DEFAULT_PATH, NETWORKS, CheckpointError, open_checkpoint

pytestmark = pytest.mark.unit


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEFAULT_PATH, tmp_path / "live"))


def test_the_shipped_checkpoint_is_whole() -> None:
    checkpoint = open_checkpoint()
    assert sum(p.stat().st_size for p in DEFAULT_PATH.iterdir()) < 40e6
    assert all(checkpoint.network(name).exists() for name in NETWORKS)
    manifest = checkpoint.manifest
    assert all(entry["licence"] for entry in manifest["data"])
    assert len(manifest["git_commit"]) == 40
    assert min(manifest["training_steps"].values()) >= 500, "of each network's last stage"
    assert manifest["metrics"], "the manifest says what was measured"


def test_a_changed_file_is_refused(copy: Path) -> None:
    with (copy / "audio.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"audio\.onnx differs"):
        open_checkpoint(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "motion.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"motion\.onnx is missing"):
        open_checkpoint(copy)


def test_another_format_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["format"] = 99
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="format 99"):
        open_checkpoint(copy)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(tmp_path)
