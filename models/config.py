"""Configuration of a set of networks; saved in every checkpoint's manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from models.rates import FRAME_MS, MEL_PER_FRAME


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of one family of networks. Defaults are the `live` configuration.

    `family` chooses the networks: `live` (small, causal, named codes, warping generator) or
    `paper` (METHOD.md section 2, learnt codes of `lip_dim` 500, StyleGAN2-like generator).

    `right_frames` is r of METHOD.md section 1: the audio window of video frame f is mel
    frames [4f - left_mel, 4f + 4 + 4r), so a frame can be drawn `lookahead_ms` after its
    start and never earlier. `left_mel` past mel frames cost no latency.
    `expression_window` is the trailing mean of the expression code in frames; half of it is
    how late a smile comes, so it is shorter than the paper's 13.
    """

    name: str = "live"
    family: Literal["live", "paper"] = "live"
    lip_dim: int = 16
    image_size: int = 256
    face_size: int = 128
    left_mel: int = 20
    right_frames: int = 1
    expression_window: int = 7
    landmarks: int = 152
    flow_size: int = 64

    @property
    def code_dim(self) -> int:
        """Length of a whole motion code: lip, pose 6, eye 6, expression 30."""
        return self.lip_dim + 42

    @property
    def generator_inputs(self) -> tuple[str, ...]:
        """What the generator reads of a portrait and a frame, by name (`Engine.draw`)."""
        if self.family == "paper":
            return ("map", "identity", "driving_code")
        return ("rgb128", "f64", "f32", "identity", "shape", "source_code", "driving_code")

    @property
    def mel_window(self) -> int:
        """Mel frames that the audio encoder sees for one video frame."""
        return self.left_mel + MEL_PER_FRAME * (1 + self.right_frames)

    @property
    def lookahead_ms(self) -> int:
        """Algorithmic latency: from the start of a frame until its audio window is full."""
        return FRAME_MS * (1 + self.right_frames)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for a manifest."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_json`; an unknown key is an error, a missing one takes its default."""
        known = {f.name for f in fields(ModelConfig)}
        unknown = set(data) - known
        if unknown:
            raise ValueError(f"unknown model configuration keys: {sorted(unknown)}")
        return ModelConfig(**data)


def live_config() -> ModelConfig:
    """What ships and streams by default."""
    return ModelConfig()


def paper_config() -> ModelConfig:
    """The published dims: 224 pixels, 500-d lip code, 20 mel frames of which 8 are past, r = 2."""
    return ModelConfig(
        name="paper", family="paper", lip_dim=500, image_size=224, face_size=224, left_mel=8,
        right_frames=2, expression_window=13,
    )  # fmt: skip
