"""A server on aiortc's own media layer, which the benchmark compares with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realtime.settings import Settings
from tests.serving import client, make_web, serving, until

pytestmark = pytest.mark.e2e


async def test_a_stock_server_returns_pictures_and_the_voice(tmp_path: Path) -> None:
    settings = Settings(web_dir=make_web(tmp_path / "web", {"light": 150}), rtc="stock")
    tone = (8000 * np.sin(2 * np.pi * 220 * np.arange(48_000 * 2) / 48_000)).astype(np.int16)
    async with serving(settings) as running, client(running) as made:
        response = await made.open("light", size=256)
        assert response.status_code == 201, response.text
        assert "a=ptime:10" not in response.json()["sdp"]
        assert "abs-capture-time" not in response.json()["sdp"]
        await made.message("hello")
        await made.speak(tone)
        await until(lambda: len(made.frames) >= 10)
        voice = np.concatenate([block.pcm for block in made.blocks])
        assert int(np.abs(voice).max()) > 3000
        stats = await made.message("stats")
        assert stats["frames"] > 0
