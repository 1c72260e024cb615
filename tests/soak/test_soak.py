"""The soak scenarios in full: `make soak`, an hour and more; each test alone by `-k`.

VISAVIS_SOAK_ENGINE says what draws: `openvino` (where weights are, unless told otherwise), `fake`
or another engine of `visavis serve`. VISAVIS_SOAK_SECONDS (3600), VISAVIS_SOAK_CYCLES (200),
VISAVIS_SOAK_KILLS (20) and VISAVIS_SOAK_VANISHED (10) set the lengths. With `-s` every test prints
what it measured. Client and server share one process here: `visavis bench` measures from outside.
"""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from pathlib import Path

import pytest

from realtime.bench.impair import Impairment
from realtime.bench.path import PathLoop
from tests.soak.scenarios import (
    Figures,
    cycles,
    killed,
    shaken,
    speech,
    stall,
    vanished,
    wall_clock_steps,
)
from tests.soak.stand import Stand, wanted_stand

SECONDS = float(os.environ.get("VISAVIS_SOAK_SECONDS", "3600"))
CYCLES = int(os.environ.get("VISAVIS_SOAK_CYCLES", "200"))
KILLS = int(os.environ.get("VISAVIS_SOAK_KILLS", "20"))
VANISHED = int(os.environ.get("VISAVIS_SOAK_VANISHED", "10"))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 3600)]

#: Latency and skew after trouble, against before; ms.
SAME_MS = 5.0
SKEW_MS = 20.0
#: A tenth of a megabyte in ten minutes is noise of the allocator.
RSS_BYTES_PER_S = 1_000_000 / 600
FRAMES_AGAIN_S = 2.0
SLOT_FREE_S = 5.0
#: Ten packets: what nobody takes for an interruption.
PAUSE_S = 0.1


@pytest.fixture(scope="module")
def stand() -> Stand:
    """What the scenarios run on."""
    return wanted_stand()


def tell(stand: Stand, figures: Figures, *stretches: tuple[float, float]) -> None:
    """Print what was added and the skew in some stretches, for whoever runs this with -s."""
    for begin, end in stretches:
        print(
            f"{stand.name}, {begin:g} to {end:g} s: added {figures.added(begin, end):.1f} ms, "
            f"skew {figures.skew(begin, end):+.1f} ms (medians)"
        )


def test_an_hour_of_speech_with_loss_and_jitter(stand: Stand, tmp_path: Path) -> None:
    impairment = Impairment(loss=3.0, jitter=30.0)
    with asyncio.Runner(loop_factory=PathLoop) as runner:
        figures = runner.run(speech(stand, tmp_path, SECONDS, impairment, keep_frames=False))
    quarter = SECONDS / 4
    tell(stand, figures, (10, quarter), (3 * quarter, SECONDS))
    print(f"memory grows by {figures.rss_slope(quarter) * 3600 / 2**20:+.1f} MB an hour")
    assert figures.added(3 * quarter, SECONDS) < figures.added(5, quarter) + SAME_MS
    skews = [ms for at, ms in figures.skew_ms if at > 10]
    assert max(map(abs, skews)) <= SKEW_MS
    drift = figures.skew(3 * quarter, SECONDS) - figures.skew(10, quarter)
    assert abs(drift) <= SKEW_MS
    assert figures.rss_slope(quarter) < RSS_BYTES_PER_S


def test_a_burst_of_loss_leaves_no_latency_behind(stand: Stand, tmp_path: Path) -> None:
    burst = Impairment(loss=20.0, from_s=20.0, to_s=22.0)
    with asyncio.Runner(loop_factory=PathLoop) as runner:
        figures = runner.run(speech(stand, tmp_path, 92.0, burst, keep_frames=False))
    tell(stand, figures, (10, 20), (20, 22), (82, 92))
    assert abs(figures.added(82, 92) - figures.added(10, 20)) <= SAME_MS
    skews = [abs(ms) for at, ms in figures.skew_ms if at > 10]
    print(f"skew at most {max(skews):.1f} ms throughout")
    assert max(skews) <= SKEW_MS


async def test_connecting_and_leaving_again_and_again(stand: Stand, tmp_path: Path) -> None:
    left = await cycles(stand, tmp_path, CYCLES)
    print(f"{stand.name}, left behind by {CYCLES} conversations: {left}")
    assert left["tasks"] <= 0
    assert left["threads"] <= 0
    assert left["boxes"] == 0
    assert left["rss"] < CYCLES / 2 * 50_000 + 10 * 2**20


async def test_a_vanished_peers_slot_is_free_soon(stand: Stand, tmp_path: Path) -> None:
    waits = await vanished(stand, tmp_path, VANISHED)
    print(f"{stand.name}, seconds until the slot was free: {[round(wait, 2) for wait in waits]}")
    assert max(waits) <= SLOT_FREE_S


async def test_the_render_thread_is_killed_again_and_again(stand: Stand, tmp_path: Path) -> None:
    kills = await killed(stand, tmp_path, KILLS)
    for kill in kills:
        print(
            f"{stand.name}: pictures after {kill.pictures_s:.2f} s, meanwhile {kill.voice_s:.2f} s "
            f"of voice, longest pause {kill.pause_s * 1000:.0f} ms"
        )
    # Kills in a row wait longer on purpose (`RestartDelay`); the first is what a person meets.
    assert kills[0].pictures_s < FRAMES_AGAIN_S
    for kill in kills:
        assert kill.pause_s < PAUSE_S
        assert kill.voice_s > kill.pictures_s - PAUSE_S


async def test_stalls_leave_no_latency_behind(stand: Stand, tmp_path: Path) -> None:
    figures = await shaken(stand, tmp_path, 60.0, stall, 10)
    tell(stand, figures, (8, 20), (50, 60))
    assert abs(figures.added(50, 60) - figures.added(8, 20)) <= SAME_MS


async def test_steps_of_the_wall_clock_do_not_matter(stand: Stand, tmp_path: Path) -> None:
    with wall_clock_steps() as step:
        figures = await shaken(stand, tmp_path, 45.0, step, 10)
    tell(stand, figures, (5, 15), (35, 45))
    assert abs(figures.added(35, 45) - figures.added(5, 15)) <= SAME_MS
    assert abs(figures.skew(35, 45)) <= SKEW_MS


def test_a_path_that_gets_narrow_costs_picture_and_gives_it_back(
    stand: Stand, tmp_path: Path
) -> None:
    narrow = Impairment(rate=260.0, from_s=15.0, to_s=45.0)
    with asyncio.Runner(loop_factory=PathLoop) as runner:
        figures = runner.run(speech(stand, tmp_path, 120.0, narrow, keep_frames=False))
    levels = [(round(at), level) for at, level in figures.levels]
    changes = [levels[0], *(b for a, b in pairwise(levels) if a[1] != b[1])]
    print(f"{stand.name}, (second, level of quality taken away): {changes}")
    assert max(level for at, level in figures.levels if 15 < at < 50) >= 2
    assert figures.levels[-1][1] == 0
