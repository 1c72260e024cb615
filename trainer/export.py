"""Put the trained stages together into a checkpoint folder."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path

import numpy as np
import torch
import typer

from models.config import ModelConfig
from models.export import export_checkpoint
from models.face import FaceModel
from models.networks import Networks
from models.networks.audio import AudioEncoder

#: What the shipped weights were trained on; goes into the manifest.
DATA = [
    {"name": "GRID audio-visual sentence corpus, speaker s1 and others", "licence": "CC-BY-4.0",
     "note": "Cooke, Barker, Cunningham, Shao, JASA 2006; licence known at second hand"},
    {"name": "clips of AI-generated faces re-rendered with ICT-FaceKit", "licence": "MIT"},
    {"name": "AI-generated stills (SFHQ-T2I, SFHQ)", "licence": "MIT"},
    {"name": "AI-generated stills (faker assets-person-portrait)", "licence": "CC0-1.0"},
    {"name": "labels by MediaPipe FaceLandmarker", "licence": "Apache-2.0"},
]  # fmt: skip


def assemble(cache: Path, motion: Path, audio: Path, generator: Path) -> tuple[Networks, FaceModel]:
    """Load the stages' files into one set of networks; the generator's moving average is used."""
    audio_state = torch.load(audio, weights_only=True)
    networks = Networks(ModelConfig(right_frames=int(audio_state["right_frames"])))
    networks.audio.net.load_state_dict(audio_state["net"])
    networks.motion.net.load_state_dict(torch.load(motion, weights_only=True)["net"])
    state = torch.load(generator, weights_only=True)
    encoder, net = networks.appearance.net, networks.generator.net
    encoder.load_state_dict(state["encoder"])
    net.load_state_dict(state["net"])
    with torch.no_grad():
        parameters = [*encoder.parameters(), *net.parameters()]
        for parameter, mean in zip(parameters, state["average"], strict=True):
            parameter.copy_(mean)
    with np.load(cache / "face_model.npz", allow_pickle=False) as z:
        face = FaceModel(z["mean"], z["basis"])
    return networks.eval(), face


def amplify(audio: AudioEncoder, gain: float) -> None:
    """Scale E_aud's lip code by `gain`, in its last layer.

    A regression answers with the mean of what could be said, so mouths open too little;
    the paper's released code multiplies its audio code by 1.5 for the same reason.
    """
    with torch.no_grad():
        audio.lip.weight.mul_(gain)
        audio.lip.bias.mul_(gain)


def export(
    cache: Path, motion: Path, audio: Path, generator: Path, out: Path, version: str = "0.1.0",
    metrics: Path | None = None, audio_gain: float = 1.4,
) -> None:  # fmt: skip
    """Assemble, export, check parity and write the manifest."""
    networks, face = assemble(cache, motion, audio, generator)
    assert isinstance(networks.audio.net, AudioEncoder)
    amplify(networks.audio.net, audio_gain)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    steps = {
        name: int(torch.load(path, weights_only=True)["step"])
        for name, path in (("motion", motion), ("audio", audio), ("generator", generator))
    }
    parity = export_checkpoint(
        networks, face, out,
        about={
            "name": "live", "version": version, "data": DATA, "git_commit": commit.stdout.strip(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "training_steps": steps, "audio_gain": audio_gain,
            "metrics": json.loads(metrics.read_text()) if metrics else {},
        },
    )  # fmt: skip
    print(json.dumps(parity.errors, indent=1))


if __name__ == "__main__":
    typer.run(export)
