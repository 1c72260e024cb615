"""What all runtimes share: the networks are pure functions, everything else is numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.codes import FACTORS, Array, MotionCode
from models.config import ModelConfig
from models.face import CANONICAL_ORIGIN, LANDMARKS, warp_crop
from models.rates import MEL_BANDS
from models.runtime.engine import Appearance, Drawing, MotionReading

Network = Literal["audio", "motion", "appearance", "generator"]

#: Small crop movements under which a portrait is read and averaged: (dx, dy, zoom).
_READINGS = [(0.0, 0.0, 1.0), (0.015, 0.0, 1.03), (-0.015, 0.01, 0.97), (0.0, -0.015, 1.02),
             (0.01, 0.015, 0.98)]  # fmt: skip


class BaseEngine(ABC):
    """Implements `models.runtime.engine.Engine` on top of `run`."""

    name: str

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config: ModelConfig = checkpoint.config
        self.face = checkpoint.face
        self.manifest = checkpoint.manifest
        self.reason = ""

    @abstractmethod
    def run(self, network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run one network on float32 arrays with a batch axis; returns its named outputs."""

    def warm_up(self) -> None:
        """Run every network once on noise, so that the first real frame is not the slow one."""
        size = self.config.image_size
        image = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
        self.audio(np.zeros((self.config.mel_window, MEL_BANDS), np.float32))
        self.run("motion", {"face": to_network(image)})
        self.run("generator", self.resting(image))

    def resting(self, source_HWC: NDArray[np.uint8]) -> dict[str, Array]:
        """Inputs of the generator for a portrait at rest, whatever the configuration reads."""
        code = np.zeros((1, self.config.code_dim), np.float32)
        named = {
            **self._features(source_HWC),
            "shape": self.face.mean[None],
            "source_code": code,
            "driving_code": code,
        }
        return {name: named[name] for name in self.config.generator_inputs}

    def audio(self, mel_TM: Array) -> Array:
        """See `Engine.audio`."""
        expected = (self.config.mel_window, MEL_BANDS)
        if mel_TM.shape != expected:
            raise ValueError(f"mel window must be {expected}, got {mel_TM.shape}")
        lip: Array = self.run("audio", {"mel": mel_TM[None]})["lip"][0]
        return lip

    def audio_batch(self, mel_BTM: Array) -> Array:
        """See `Engine.audio_batch`; one window after another, so equal to `audio` bit by bit."""
        if mel_BTM.ndim != 3 or not len(mel_BTM):
            raise ValueError(f"mel windows must be (B, T, 80) with B >= 1, got {mel_BTM.shape}")
        return np.stack([self.audio(mel_TM) for mel_TM in mel_BTM])

    def motion(self, face_HWC: NDArray[np.uint8]) -> MotionReading:
        """See `Engine.motion`."""
        return motion_reading(self.run("motion", {"face": to_network(face_HWC)}))

    def motion_batch(self, faces: Sequence[NDArray[np.uint8]]) -> list[MotionReading]:
        """See `Engine.motion_batch`; one crop after another."""
        return [self.motion(face_HWC) for face_HWC in faces]

    def appearance(self, source_HWC: NDArray[np.uint8]) -> Appearance:
        """See `Engine.appearance`; the reading is averaged over small crop movements."""
        code, landmarks = self._read_portrait(source_HWC)
        features = self._features(source_HWC)
        # Learnt codes do not move the landmark model; only their pose has its meaning.
        named = code if self.config.family == "live" else MotionCode(pose=code.pose)
        return Appearance(features, code, self.face.lift(landmarks, named), landmarks)

    def _features(self, source_HWC: NDArray[np.uint8]) -> dict[str, Array]:
        """E_app's maps and the source at half size, batch of 1."""
        features = self.run("appearance", {"source": to_network(source_HWC)})
        half = self.config.image_size // 2
        small = cv2.resize(source_HWC, (half, half), interpolation=cv2.INTER_AREA)
        features["rgb128"] = to_network(np.asarray(small, np.uint8))
        return features

    def _read_portrait(self, source_HWC: NDArray[np.uint8]) -> tuple[MotionCode, Array]:
        size = self.config.image_size
        codes, points = [], np.zeros((LANDMARKS, 2), np.float64)
        for dx, dy, zoom in _READINGS:
            offset = (np.array([dx, dy]) + 0.5 * (1 - zoom)).astype(np.float32)
            move = np.concatenate([np.eye(2, dtype=np.float32) * zoom, offset[:, None] * size], 1)
            reading = self.motion(warp_crop(source_HWC, move.astype(np.float32), size))
            pose = reading.code.pose.copy()
            points += (reading.landmarks - offset) / zoom
            pose[3:5] = _move_back(pose[3:5], offset, zoom)
            pose[5] -= np.float32(np.log(zoom))
            codes.append(reading.code.with_("pose", pose).concat())
        mean = MotionCode.split(np.mean(codes, axis=0, dtype=np.float32))
        return mean, (points / len(_READINGS)).astype(np.float32)

    def draw(self, appearance: Appearance, driving: MotionCode) -> Drawing:
        """See `Engine.draw`."""
        named = generator_inputs(appearance, driving)
        out = self.run("generator", {n: named[n] for n in self.config.generator_inputs})
        # Planes become pixels: OpenCV does this ten times faster than a transposed copy.
        flow, rgb = (np.asarray(cv2.merge(list(out[n][0])), np.float32) for n in ("flow", "rgb"))
        return Drawing(flow, out["mask"][0, 0], rgb)


def motion_reading(outputs: Mapping[str, Array]) -> MotionReading:
    """E_mot's named outputs, batch of 1, as codes and landmarks."""
    code = MotionCode(**{factor: outputs[factor][0] for factor in FACTORS})
    return MotionReading(code, outputs["landmarks"][0])


def motion_readings(outputs: Mapping[str, Array]) -> Iterator[MotionReading]:
    """E_mot's named outputs, one reading per item of the batch."""
    for i in range(len(outputs["landmarks"])):
        yield motion_reading({name: array[i : i + 1] for name, array in outputs.items()})


def generator_inputs(appearance: Appearance, driving: MotionCode) -> dict[str, Array]:
    """What the generator network takes for one frame, by name, with a batch axis of 1.

    Named lip codes say nothing to a generator of learnt ones: its lips stay the portrait's own.
    """
    if driving.lip.size != appearance.code.lip.size:
        driving = driving.with_("lip", appearance.code.lip)
    return {
        **appearance.features,
        "shape": appearance.shape[None],
        "source_code": appearance.code.concat()[None],
        "driving_code": driving.concat()[None],
    }


def _move_back(translation: Array, offset: Array, zoom: float) -> Array:
    """Translation code before the crop was moved by `offset` and `zoom`."""
    moved = translation + CANONICAL_ORIGIN
    return np.asarray((moved - offset) / zoom - CANONICAL_ORIGIN, np.float32)


def to_network(image_HWC: NDArray[np.uint8]) -> Array:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float32 in [-1, 1]."""
    planes = image_HWC.transpose(2, 0, 1)[None].astype(np.float32)
    return planes / np.float32(127.5) - np.float32(1)


__all__ = [
    "BaseEngine", "Network", "generator_inputs", "motion_reading", "motion_readings", "to_network",
]  # fmt: skip
