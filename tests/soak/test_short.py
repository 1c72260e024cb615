"""The soak scenarios, seconds long: they work, and nothing is left behind. Figures are for the
full ones; here only gross failures count, since anything may run beside the tests."""

from __future__ import annotations

import asyncio
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
from tests.soak.stand import FAKE

pytestmark = pytest.mark.unit

#: A machine that runs other things beside the tests is late by so much at times.
NOISE_MS = 150.0


def assert_sound(figures: Figures, before: tuple[float, float], after: tuple[float, float]) -> None:
    """Pictures came to the end, no later than at the begin, in step with the voice."""
    assert figures.frames > 15
    assert figures.added(*after) < figures.added(*before) + NOISE_MS
    assert abs(figures.skew(*after)) < NOISE_MS


def test_speech_over_a_bad_path_keeps_its_latency(tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=PathLoop) as runner:
        figures = runner.run(speech(FAKE, tmp_path, 9.0, Impairment(loss=3.0, jitter=30.0)))
    assert_sound(figures, (1, 4), (6, 9))


async def test_stalls_of_the_loop_leave_no_latency_behind(tmp_path: Path) -> None:
    figures = await shaken(FAKE, tmp_path, 9.0, stall, 2)
    assert_sound(figures, (1, 3), (7, 9))


async def test_steps_of_the_wall_clock_do_not_matter(tmp_path: Path) -> None:
    with wall_clock_steps() as step:
        figures = await shaken(FAKE, tmp_path, 6.0, step, 4)
    assert_sound(figures, (1, 2), (4, 6))


async def test_coming_and_going_leaves_nothing_behind(tmp_path: Path) -> None:
    left = await cycles(FAKE, tmp_path, 8)
    assert left["tasks"] <= 0
    assert left["threads"] <= 0
    assert left["boxes"] == 0
    assert left["rss"] < 30 * 2**20


async def test_the_voice_goes_on_while_the_render_thread_is_made_anew(tmp_path: Path) -> None:
    (kill,) = await killed(FAKE, tmp_path, 1)
    assert kill.pictures_s < 2.0 + NOISE_MS / 1000
    assert kill.voice_s > kill.pictures_s - 2 * NOISE_MS / 1000
    assert kill.pause_s < NOISE_MS / 1000


async def test_a_vanished_peers_slot_is_free_within_five_seconds(tmp_path: Path) -> None:
    (wait,) = await vanished(FAKE, tmp_path, 1)
    assert 2.0 < wait < 5.0
