"""The soak scenarios in full: `make soak`, an hour and more.

VISAVIS_SOAK_SECONDS (3600), VISAVIS_SOAK_CYCLES (200) and VISAVIS_SOAK_KILLS (20) set the lengths.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from realtime.bench.impair import Impairment
from realtime.bench.path import PathLoop
from tests.soak.scenarios import cycles, killed, shaken, speech, stall, wall_clock_steps

SECONDS = float(os.environ.get("VISAVIS_SOAK_SECONDS", "3600"))
CYCLES = int(os.environ.get("VISAVIS_SOAK_CYCLES", "200"))
KILLS = int(os.environ.get("VISAVIS_SOAK_KILLS", "20"))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 3600)]

#: Latency and skew after trouble, against before; ms.
SAME_MS = 5.0
SKEW_MS = 20.0
#: A tenth of a megabyte in ten minutes is noise of the allocator.
RSS_BYTES_PER_S = 1_000_000 / 600


def test_an_hour_of_speech_with_loss_and_jitter(tmp_path: Path) -> None:
    impairment = Impairment(loss=3.0, jitter=30.0)
    with asyncio.Runner(loop_factory=PathLoop) as runner:
        figures = runner.run(speech(tmp_path, SECONDS, impairment, keep_frames=False))
    quarter = SECONDS / 4
    assert figures.added(3 * quarter, SECONDS) < figures.added(5, quarter) + SAME_MS
    skews = [ms for at, ms in figures.skew_ms if at > 10]
    assert max(map(abs, skews)) <= SKEW_MS
    drift = figures.skew(3 * quarter, SECONDS) - figures.skew(10, quarter)
    assert abs(drift) <= SKEW_MS
    assert figures.rss_slope(quarter) < RSS_BYTES_PER_S


def test_a_burst_of_loss_leaves_no_latency_behind(tmp_path: Path) -> None:
    burst = Impairment(loss=20.0, from_s=20.0, to_s=22.0)
    with asyncio.Runner(loop_factory=PathLoop) as runner:
        figures = runner.run(speech(tmp_path, 90.0, burst, keep_frames=False))
    assert abs(figures.added(80, 90) - figures.added(10, 20)) <= SAME_MS
    assert abs(figures.skew(80, 90)) <= SKEW_MS


async def test_connecting_and_leaving_again_and_again(tmp_path: Path) -> None:
    left = await cycles(tmp_path, CYCLES)
    assert left["tasks"] <= 0
    assert left["threads"] <= 0
    assert left["boxes"] == 0
    assert left["rss"] < CYCLES * 50_000 + 20 * 2**20


async def test_the_render_thread_is_killed_again_and_again(tmp_path: Path) -> None:
    gaps = await killed(tmp_path, KILLS)
    # Kills in a row wait longer on purpose (`RestartDelay`); the first is what a person meets.
    assert gaps[0] < 2.0


async def test_stalls_and_clock_steps(tmp_path: Path) -> None:
    figures = await shaken(tmp_path, 90.0, stall, 10)
    assert abs(figures.added(75, 90) - figures.added(10, 30)) <= SAME_MS
    with wall_clock_steps() as step:
        figures = await shaken(tmp_path / "steps", 60.0, step, 10)
    assert abs(figures.added(45, 60) - figures.added(5, 20)) <= SAME_MS
    assert abs(figures.skew(45, 60)) <= SKEW_MS


def test_a_path_that_gets_narrow_costs_picture_and_gives_it_back(tmp_path: Path) -> None:
    narrow = Impairment(rate=260.0, from_s=15.0, to_s=45.0)
    with asyncio.Runner(loop_factory=PathLoop) as runner:
        figures = runner.run(speech(tmp_path, 120.0, narrow, keep_frames=False))
    assert max(level for at, level in figures.levels if 15 < at < 50) >= 2
    assert figures.levels[-1][1] == 0
