"""Fixtures for all tests, and the rules of `tests/guards.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.guards import (
    chromium,
    no_leaked_tasks,
    pytest_collection_modifyitems,
    pytest_report_header,
    pytest_terminal_summary,
    task_watch,
)

__all__ = [
    "chromium",
    "no_leaked_tasks",
    "pytest_collection_modifyitems",
    "pytest_report_header",
    "pytest_terminal_summary",
    "task_watch",
]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="session")
def speech_16k() -> Path:
    """A man's voice, 9.2 s, 16 kHz mono WAV, silent from 4.6 to 6.0 s."""
    return DATA / "speech_a_16k.wav"


@pytest.fixture(scope="session")
def speech_48k() -> Path:
    """A woman's voice, about 9 s, 48 kHz mono WAV, silent from 4.1 to 5.5 s."""
    return DATA / "speech_b_48k.wav"


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(20_240_607)
