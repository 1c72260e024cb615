"""A pipeline with a clock and a sender, shared by the tests of the line and of the pipeline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.config import ModelConfig
from realtime.pipeline import Pipeline, Tick
from tests.fakes import FakeClock, fake_portrait

Pcm = NDArray[np.int16]
CONFIG = ModelConfig(image_size=64)
FRAME = 1920
AHEAD = FRAME * (1 + CONFIG.right_frames)
PACKET = 960
MS = 48


def noise(count: int, seed: int = 1) -> Pcm:
    """(count,) int16, the same for the same seed."""
    return (np.random.default_rng(seed).normal(size=count) * 3000).astype(np.int16)


class Rig:
    """A pipeline, a clock, and a sender whose packets take `delay_ms` to come."""

    def __init__(self, **options: object) -> None:
        self.clock = FakeClock()
        self.pipeline = Pipeline(
            fake_portrait(), CONFIG, size=64, clock=self.clock, **options  # type: ignore[arg-type]
        )  # fmt: skip
        self.ticks: list[Tick] = []
        self.at: list[int] = []

    def push(self, pcm: Pcm, capture: int) -> list[Tick]:
        return self._keep(self.pipeline.push_audio(pcm, capture))

    def poll(self) -> list[Tick]:
        return self._keep(self.pipeline.poll())

    def _keep(self, ticks: list[Tick]) -> list[Tick]:
        self.ticks += ticks
        self.at += [self.clock()] * len(ticks)
        return ticks

    def wait(self, ms: float) -> None:
        """Let time pass, polling exactly when the pipeline asks for it."""
        end = self.clock() + round(ms * 1e6)
        while (deadline := self.pipeline.next_deadline_ns()) <= end:
            self.clock.advance(max(0, deadline - self.clock()) / 1e6)
            self.poll()
        self.clock.advance((end - self.clock()) / 1e6)

    def talk(self, signal: Pcm, start: int = 0, packet: int = PACKET) -> None:
        """Packets in real time: each is sent when its last sample is taken."""
        for begin in range(0, len(signal), packet):
            self.wait(packet / MS)
            self.push(signal[begin : begin + packet], start + begin)

    @property
    def sound(self) -> Pcm:
        return np.concatenate([t.audio for t in self.ticks])

    def check_line(self) -> None:
        """Ticks are numbered without a hole, each with exactly its own sound."""
        assert [t.frame_index for t in self.ticks] == list(range(len(self.ticks)))
        for tick in self.ticks:
            assert tick.audio.shape == (FRAME,)
            assert tick.audio.dtype == np.int16
            assert tick.pts_ticks == 3600 * tick.frame_index
            assert tick.audio_sample == FRAME * tick.frame_index
            assert tick.job.frame_index == tick.frame_index
            assert tick.job.mel_TM.shape == (CONFIG.mel_window, 80)
