"""A checkpoint: weights, exported networks and a manifest that says where they come from.

Folder layout::

    manifest.json         config, data and licences, commit, metrics, sha256 of every file
    weights.safetensors   all torch parameters in float16, for training and the torch runtime
    face.npz              the landmark model (`models.face.FaceModel`)
    audio.onnx, motion.onnx, appearance.onnx, generator.onnx

Serving on a CPU reads the ONNX files and `face.npz` only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.config import ModelConfig
from models.face import FaceModel

FORMAT = 1
NETWORKS = ("audio", "motion", "appearance", "generator")
DEFAULT_PATH = Path(__file__).parent / "weights" / "live"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another format; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint folder; nothing large is read yet."""

    path: Path
    manifest: dict[str, Any]
    config: ModelConfig
    face: FaceModel

    def network(self, name: str) -> Path:
        """The ONNX file of one network."""
        return self.path / f"{name}.onnx"

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.path / "weights.safetensors"


def open_checkpoint(path: Path | None = None, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint folder (default: the one that ships) and check its hashes.

    Raises:
        CheckpointError: the folder or a file is missing, or a hash does not match.
    """
    folder = path or DEFAULT_PATH
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder.name} is not a checkpoint: it has no manifest.json"
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"manifest.json of {folder.name} is not valid JSON: {error}"
        ) from None
    manifest = migrate(manifest)
    if verify:
        for name, expected in manifest["files"].items():
            file = folder / name
            if not file.exists():
                raise CheckpointError(
                    f"{folder.name}/{name} is missing; restore it from the repository"
                )
            if file_hash(file) != expected:
                raise CheckpointError(
                    f"{folder.name}/{name} differs from the manifest; "
                    "export the checkpoint again or restore it"
                )
    with np.load(folder / "face.npz", allow_pickle=False) as z:
        face = FaceModel(z["mean"], z["basis"])
    return Checkpoint(folder, manifest, ModelConfig.from_json(manifest["config"]), face)


def migrate(manifest: dict[str, Any]) -> dict[str, Any]:
    """Bring a manifest of an older format to the present one; refuse a newer one."""
    found = manifest.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"checkpoint format {found} is not supported by this version (expected {FORMAT})"
        )
    return manifest


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path, config: ModelConfig, **extra: Any) -> None:
    """Write manifest.json over all other files of the folder; `extra` must be JSON-able."""
    files = {p.name: file_hash(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    manifest = {"format": FORMAT, "config": config.to_json(), **extra, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
