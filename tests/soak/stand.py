"""What a soak scenario runs on: fake networks in seconds, or the real ones with their weights."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import CheckpointError, open_checkpoint
from models.runtime import load_engine
from models.runtime.engine import Engine
from realtime.bench.media import load_voice
from realtime.hub import Parts
from realtime.settings import Settings
from tests.conftest import DATA
from tests.fakes import FakeEngine
from tests.serving import FAKE_PARTS, Client, Running, everybody, make_web, serving

RATE = 48_000
#: The first of the bundled portraits.
PORTRAIT = "amara"


def buzz(seconds: float) -> NDArray[np.int16]:
    """A voice-like sound, on and off."""
    at = np.arange(int(seconds * RATE))
    tone = sum(np.sin(2 * np.pi * 140 * k * at / RATE) / k for k in range(1, 9))
    return np.asarray(6000 * tone * (np.sin(2 * np.pi * 1.3 * at / RATE) > -0.3), np.int16)


@dataclass(frozen=True)
class Stand:
    """Networks, portrait, picture size and voice."""

    name: str
    make_engine: Callable[[], Engine]
    parts: Parts
    portrait: str
    size: int
    voice: NDArray[np.int16]
    """(n,) int16 at 48 kHz."""

    @asynccontextmanager
    async def serving(self, folder: Path, **more: Any) -> AsyncIterator[Running]:
        """A server on this stand; the fake one gets a web folder of one portrait."""
        if self.parts is FAKE_PARTS:
            more["web_dir"] = make_web(folder / "web", {self.portrait: 120})
        chosen = Settings(requests_per_s=0.0, prepare_portraits=False, **more)
        async with serving(chosen, engine_factory=self.make_engine, parts=self.parts) as running:
            yield running

    async def open(self, made: Client) -> None:
        """Open the client's session."""
        response = await made.open(self.portrait, size=self.size)
        assert response.status_code == 201, response.text


FAKE = Stand("fake", FakeEngine, FAKE_PARTS, "grey", 256, buzz(10.0))  # type: ignore[arg-type]


def real_stand(engine: str) -> Stand:
    """The networks that `visavis serve --engine` would run, a bundled portrait, real speech."""
    voice = load_voice(DATA / "speech_b_48k.wav").pcm
    parts = Parts(admit=everybody)
    return Stand(engine, lambda: load_engine(engine), parts, PORTRAIT, 512, voice)  # type: ignore[arg-type]


def wanted_stand() -> Stand:
    """VISAVIS_SOAK_ENGINE (`fake`, `openvino`, ...); else OpenVINO where weights are."""
    named = os.environ.get("VISAVIS_SOAK_ENGINE", "")
    if not named:
        try:
            open_checkpoint(None)
        except CheckpointError:
            named = "fake"
    return FAKE if named == "fake" else real_stand(named or "openvino")
