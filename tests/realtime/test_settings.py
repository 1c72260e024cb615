"""`Settings`: what follows from the machine."""

from __future__ import annotations

import os

import pytest

from realtime.settings import Settings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 1), (4, 3), (8, 0), (64, 0)])
def test_a_small_processor_keeps_a_core_for_network_and_codecs(
    cores: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert Settings().inference_threads == threads
    assert Settings(threads=2).inference_threads == 2
