"""All networks that are trained together, and how weights get in and out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import open_checkpoint
from models.codes import FACTORS
from models.config import ModelConfig
from models.face import FaceModel
from models.networks import Networks, build, load_networks
from models.networks.audio import AudioEncoder
from models.networks.discriminator import Discriminator
from models.networks.generator import AppearanceEncoder, Generator
from models.networks.motion import MotionEncoder
from models.networks.paper import appearance as paper_appearance
from models.networks.paper import audio as paper_audio
from models.networks.paper import generator as paper_generator
from models.networks.paper import motion as paper_motion
from trainer.gains import amplify_reading
from trainer.recipes.config import Recipe
from trainer.synthesis.inside import mouth_pictures

AnyMotion = MotionEncoder | paper_motion.MotionEncoder
AnyAudio = AudioEncoder | paper_audio.AudioEncoder
AnyAppearance = AppearanceEncoder | paper_appearance.AppearanceEncoder
AnyGenerator = Generator | paper_generator.Generator


class StartError(ValueError):
    """A file holds nothing that these networks can begin from."""


class System(nn.Module):
    """Encoders, generators and discriminator of one recipe.

    `first` is the generator of stage 1: the published one is driven by the trunk's whole
    feature and thrown away; the warping generator is the same in both stages.
    """

    motion: AnyMotion
    audio: AnyAudio
    appearance: AnyAppearance
    generator: AnyGenerator

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.config: ModelConfig = recipe.model
        networks = build(recipe.model)
        for name, exported in networks.named():
            self.add_module(name, exported.net)
        if recipe.model.family == "paper":
            self.stage1_generator = paper_generator.Generator(recipe.model, driving=512)
        self.judge = Discriminator(recipe.judge_width, recipe.judge_layers)
        self.who = nn.Linear(2048, recipe.identities) if recipe.identities else None

    @property
    def first(self) -> AnyGenerator:
        """The generator of stage 1."""
        if self.config.family == "paper":
            return self.stage1_generator
        return self.generator

    def load_face(self, face: FaceModel, landmarks_K2: Tensor) -> None:
        """Give geometry, teeth and landmark head what the data knows."""
        if isinstance(self.generator, Generator):
            self.generator.geometry.load_face_model(face)
            self.generator.mouth.picture.copy_(mouth_pictures())
        self.motion.mean_landmarks.copy_(landmarks_K2)

    def networks(self) -> Networks:
        """Copies of the four networks that are exported, in evaluation mode."""
        made = build(self.config)
        for name, exported in made.named():
            exported.net.load_state_dict(self.get_submodule(name).state_dict())
        return made.eval()


def codes(motion: AnyMotion, feature_BD: Tensor) -> Tensor:
    """All four heads on the trunk's feature: (B, config.code_dim), in the order of `FACTORS`."""
    return torch.cat([motion.heads[f](feature_BD) for f in FACTORS], 1)


def load_start(system: System, source: str) -> list[str]:
    """Begin from a file: of a stage here, or of `eye_stage`, `motion_stage`, `audio_stage`,
    `generator_stage`. Returns the names of the networks that took something.

    `source` is a path, or `part=path` to take one part only, as in `motion.heads.eye=...`. A path
    may also be a checkpoint folder, and `shipped` is the one that ships. A stage's moving
    averages are taken where it has them: they are its better weights.

    Raises:
        StartError: nothing in it fits.
    """
    part, _, name = source.rpartition("=")
    path = Path(name)
    shipped = name == "shipped" or path.is_dir()
    state = {} if shipped else torch.load(path, weights_only=True, map_location="cpu")
    found: dict[str, dict[str, Any]] = {}
    if shipped:
        found = _exported(None if name == "shipped" else path)
    elif "system" in state:
        flat: dict[str, Tensor] = dict(state["system"])
        flat |= state.get("average", {}).get("values", {})
        found["system"] = flat
    elif "encoder" in state and "net" in state:
        found = {"appearance": state["encoder"], "generator": state["net"]}
        _apply_average(system, found, state.get("average"))
    elif "reader" in state:
        found["motion"] = {f"eye.{k}": v for k, v in state["reader"].items()}
    elif "net" in state:
        found["audio" if "right_frames" in state else "motion"] = state["net"]
    taken = []
    for name, values in found.items():
        net = system if name == "system" else system.get_submodule(name)
        own = net.state_dict()
        top = "" if name == "system" else f"{name}."
        fits = {
            k: v
            for k, v in values.items()
            if k in own and own[k].shape == v.shape and f"{top}{k}.".startswith(part and f"{part}.")
        }
        if fits:
            net.load_state_dict({**own, **fits})
            taken += sorted({k.split(".")[0] for k in fits}) if name == "system" else [name]
    if not taken:
        raise StartError(f"{path.name} holds nothing that fits a {system.config.name} system")
    return taken


def _exported(folder: Path | None) -> dict[str, dict[str, Any]]:
    """The networks of a checkpoint folder, without the gains that its export gave them."""
    checkpoint = open_checkpoint(folder)
    networks = load_networks(checkpoint)
    encoder = networks.audio.net
    if isinstance(encoder, AudioEncoder):
        gain = float(checkpoint.manifest.get("audio_gain", 1.0))
        with torch.no_grad():
            encoder.lip.weight.div_(gain)
            encoder.lip.bias.div_(gain)
    reader = networks.motion.net
    if isinstance(reader, MotionEncoder):
        # Earlier exports knew one gain only.
        old = {"pitch": float(checkpoint.manifest.get("pitch_gain", 1.0))}
        gains = checkpoint.manifest.get("reading_gain", old)
        amplify_reading(reader, {name: 1 / gain for name, gain in gains.items()})
    return {name: exported.net.state_dict() for name, exported in networks.named()}


def _apply_average(
    system: System, found: dict[str, dict[str, Any]], average: list[Tensor] | None
) -> None:
    """Replace parameters by the running average of `generator_stage`, kept as a plain list."""
    if average is None:
        return
    names = [
        (part, name)
        for part in ("appearance", "generator")
        for name, _ in system.get_submodule(part).named_parameters()
    ]
    if len(names) != len(average):
        raise StartError("the moving average belongs to other networks")
    for (part, name), value in zip(names, average, strict=True):
        found[part] = {**found[part], name: value}
