"""The torch networks, as a set that loads, saves and exports together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.checkpoint import Checkpoint, CheckpointError
from models.codes import FACTORS
from models.config import ModelConfig
from models.networks.audio import AudioEncoder
from models.networks.generator import AppearanceEncoder, Generator
from models.networks.motion import MotionEncoder
from models.networks.paper.appearance import AppearanceEncoder as PaperAppearanceEncoder
from models.networks.paper.audio import AudioEncoder as PaperAudioEncoder
from models.networks.paper.generator import Generator as PaperGenerator
from models.networks.paper.motion import MotionEncoder as PaperMotionEncoder


class Exported(nn.Module):
    """A network with positional inputs and outputs, named as in its ONNX file."""

    def __init__(self, net: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.inputs, self.outputs = inputs, outputs

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of `self.outputs`."""
        out = self.net(*args)
        if isinstance(out, dict):
            return tuple(out[name] for name in self.outputs)
        return out if isinstance(out, tuple) else (out,)


class Networks(nn.Module):
    """All networks of one configuration in evaluation mode."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        nets, features = _paper(config) if config.family == "paper" else _live(config)
        audio, motion, appearance, generator = nets
        self.audio = Exported(audio, ("mel",), ("lip",))
        self.motion = Exported(motion, ("face",), (*FACTORS, "landmarks"))
        self.appearance = Exported(appearance, ("source",), features)
        self.generator = Exported(generator, config.generator_inputs, ("flow", "mask", "rgb"))
        self.eval()

    def __getitem__(self, name: str) -> Exported:
        exported = getattr(self, name)
        assert isinstance(exported, Exported)
        return exported

    def named(self) -> Iterator[tuple[str, Exported]]:
        """Name and network, in the order of `models.checkpoint.NETWORKS`."""
        for name in ("audio", "motion", "appearance", "generator"):
            yield name, self[name]


def _live(config: ModelConfig) -> tuple[tuple[nn.Module, ...], tuple[str, ...]]:
    nets = AudioEncoder(config), MotionEncoder(config), AppearanceEncoder(), Generator(config)
    return nets, ("f64", "f32", "identity")


def _paper(config: ModelConfig) -> tuple[tuple[nn.Module, ...], tuple[str, ...]]:
    nets = (
        PaperAudioEncoder(config), PaperMotionEncoder(config), PaperAppearanceEncoder(),
        PaperGenerator(config),
    )  # fmt: skip
    return nets, ("map", "identity")


def build(config: ModelConfig) -> Networks:
    """The four networks of a configuration, untrained, in evaluation mode."""
    return Networks(config)


def load_networks(checkpoint: Checkpoint) -> Networks:
    """Networks with the checkpoint's float16 weights widened to float32."""
    from safetensors.torch import load_file

    networks = Networks(checkpoint.config)
    state = {
        k: v.float() if v.is_floating_point() else v
        for k, v in load_file(checkpoint.weights).items()
    }
    try:
        networks.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.weights.name} does not fit this version: {error}"
        ) from error
    return networks


def half_precision(networks: Networks) -> dict[str, Tensor]:
    """State rounded to float16, as it is saved; also rounds the networks themselves."""
    state = {}
    with torch.no_grad():
        for name, value in networks.state_dict().items():
            if value.is_floating_point():
                half = value.half()
                value.copy_(half.float())
                state[name] = half.contiguous()
            else:
                state[name] = value.contiguous()
    return state
