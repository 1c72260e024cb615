"""Put the trained stages together into a checkpoint folder."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

from models.config import ModelConfig
from models.export import export_checkpoint
from models.face import FaceModel
from models.networks import Networks
from models.networks.audio import AudioEncoder
from models.networks.motion import MotionEncoder
from trainer import origins
from trainer.gains import READING_GAIN, amplify, amplify_reading
from trainer.joined import cache_of


def assemble(cache: Path, motion: Path, audio: Path, generator: Path) -> tuple[Networks, FaceModel]:
    """Load the stages' files into one set of networks; moving averages are used where there are.

    Each file may be of `trainer.stages` (then only the named network is taken from it) or of the
    single stages; all must be of one configuration.
    """
    networks = Networks(config_of(audio))
    load_part(networks, "audio", audio)
    load_part(networks, "motion", motion)
    load_part(networks, "appearance", generator)
    load_part(networks, "generator", generator)
    with np.load(cache / "face_model.npz", allow_pickle=False) as z:
        face = FaceModel(z["mean"], z["basis"])
    return networks.eval(), face


def config_of(audio: Path) -> ModelConfig:
    """The configuration that a file was trained with."""
    state = torch.load(audio, weights_only=True, map_location="cpu")
    if "about" in state:
        return ModelConfig.from_json(state["about"]["config"])
    return ModelConfig(right_frames=int(state["right_frames"]))


def load_part(networks: Networks, name: str, path: Path) -> None:
    """Fill one network from a file of any stage; shapes must fit exactly."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    net = networks[name].net
    if "system" in state:
        start = f"{name}."
        whole = {**state["system"], **state.get("average", {}).get("values", {})}
        net.load_state_dict({k[len(start) :]: v for k, v in whole.items() if k.startswith(start)})
        return
    if name in ("audio", "motion"):
        net.load_state_dict(state["net"])
        return
    net.load_state_dict(state["encoder" if name == "appearance" else "net"])
    # `generator_stage` keeps one list: the encoder's parameters, then the generator's.
    own = list(net.parameters())
    means = state["average"][: len(own)] if name == "appearance" else state["average"][-len(own) :]
    with torch.no_grad():
        for parameter, mean in zip(own, means, strict=True):
            parameter.copy_(mean)


def export(
    cache: Path, motion: Path, audio: Path, generator: Path, out: Path, version: str = "0.1.0",
    metrics: Path | None = None, audio_gain: float = 1.2,
) -> None:  # fmt: skip
    """Assemble, export, check parity and write the manifest with what all of it was made from."""
    cache = cache_of(cache)
    data = origins.behind(cache, (motion, audio, generator))
    networks, face = assemble(cache, motion, audio, generator)
    encoder = networks.audio.net
    if isinstance(encoder, AudioEncoder):
        amplify(encoder, audio_gain)
    reader = networks.motion.net
    if isinstance(reader, MotionEncoder):
        amplify_reading(reader, READING_GAIN)
    steps = {
        name: int(torch.load(path, weights_only=True)["step"])
        for name, path in (("motion", motion), ("audio", audio), ("generator", generator))
    }
    parity = export_checkpoint(
        networks, face, out,
        about={
            "name": networks.config.name, "version": version, "data": data,
            "git_commit": _commit(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "training_steps": steps, "audio_gain": audio_gain, "reading_gain": READING_GAIN,
            "metrics": json.loads(metrics.read_text()) if metrics else {},
        },
    )  # fmt: skip
    print(json.dumps(parity.errors, indent=1))


def _commit() -> str:
    """Commit of the code; "" where there is no repository, or no git."""
    if shutil.which("git") is None:
        return ""
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return told.stdout.strip()


if __name__ == "__main__":
    import sys

    import typer

    try:
        typer.run(export)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"export: {error}")
