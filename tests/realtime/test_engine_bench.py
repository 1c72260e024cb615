"""`visavis bench --engine-only`: stages, counts and percentiles, in virtual time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.codes import Array
from models.config import ModelConfig
from models.runtime import load_engine
from models.runtime.base import BaseEngine
from models.runtime.engine import EngineError
from realtime import engine_bench
from realtime.engine_bench import (
    MIN_RUNS,
    device_stages,
    main,
    measure,
    run_engine_bench,
    timed,
)

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def engine() -> BaseEngine:
    return load_engine("openvino", threads=2)


class Ticks:
    """A clock on which every look takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def test_every_stage_is_measured_at_every_batch_size(engine: BaseEngine) -> None:
    figures = measure(engine, [1, 2], 0.0, Ticks())
    assert set(figures.stages) == {
        "audio", "motion", "appearance", "generator", "compose", "convert",
    }  # fmt: skip
    for rows in figures.stages.values():
        assert [row.batch for row in rows] == [1, 2]
        for row in rows:
            assert row.runs == MIN_RUNS
            assert row.p50_ms == row.p95_ms == row.p99_ms == 1.0
            assert row.frames_per_s == row.batch * 1000
    assert (figures.configuration, figures.trained) == ("live", True)
    assert figures.engine == "openvino"
    assert "OpenVINO" in figures.reason
    assert figures.parameters["generator"] > 100_000


def test_a_stage_runs_as_long_as_its_share_and_a_minimum() -> None:
    runs = []
    took = timed(lambda: runs.append(1), 40_000_000, Ticks())
    assert len(runs) == len(took) + 1, "the first is not counted"
    # Two looks at the clock in each of the first five runs, three in each of the others.
    assert len(took) == 5 + (40 - 5 * 2) // 3
    assert len(timed(lambda: None, 0, Ticks())) == MIN_RUNS


def test_inputs_are_pictures_and_sounds_not_zeros(engine: BaseEngine) -> None:
    mel = engine_bench.speech(engine.config, 16)
    assert mel.shape == (16, engine.config.mel_window, 80)
    assert mel.std() > 0.05
    assert len(np.unique(mel.reshape(16, -1)[:, :400], axis=0)) > 8
    pictures = engine_bench.portraits(512, 9)
    assert len(pictures) == 9
    assert all(p.shape == (512, 512, 3) and p.std() > 20 for p in pictures)


def test_it_runs_without_the_command_lines_packages(
    engine: BaseEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(engine_bench, "live_engine", lambda name: engine)
    monkeypatch.setattr(engine_bench, "measure", lambda loaded, *_: measure(loaded, [1], 0.0,
                                                                            Ticks()))  # fmt: skip
    out = tmp_path / "figures.json"
    assert main(["--only", "live", "--batch", "1", "--json", str(out)]) == 0
    assert "generator          x1       1.000 ms p50" in capsys.readouterr().out
    assert json.loads(out.read_text())["configurations"][0]["configuration"] == "live"
    assert main(["--only", "live", "--batch", "17"]) == 1
    assert "batches are 1 to 16" in capsys.readouterr().err


def test_a_fused_renderer_is_timed_whole_and_on_its_device(engine: BaseEngine) -> None:
    from models.runtime.frames import CpuFrameRenderer

    class Fused(CpuFrameRenderer):
        max_batch = 16

        def profile(self, batch: int, size: int, runs: int) -> dict[str, list[float]]:
            return {"generator": [0.5] * runs, "compose": [0.1] * runs}

    class Whole(type(engine)):  # type: ignore[misc]
        def frame_renderer(self) -> Fused:
            return Fused(engine)

    whole = Whole.__new__(Whole)
    whole.__dict__.update(engine.__dict__)
    assert [name for name, _ in engine_bench.stages(whole, 2)] == [
        "audio", "motion", "appearance", "frame",
    ]  # fmt: skip
    found = list(device_stages(whole, [2]))
    assert [(stage, batch) for stage, batch, _ in found] == [
        ("device generator", 2), ("device compose", 2),
    ]  # fmt: skip
    assert set(found[0][2]) == {500_000}
    assert not list(device_stages(engine, [2]))


def test_the_report_names_hardware_and_what_was_not_measured(
    engine: BaseEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def no_paper(name: str) -> BaseEngine:
        raise EngineError("no torch here")

    monkeypatch.setattr(engine_bench, "live_engine", lambda name: engine)
    monkeypatch.setattr(engine_bench, "paper_engine", no_paper)
    run_engine_bench("openvino", [1], 0.0, tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["machine"]["cores"]
    assert "commit" in written["machine"]
    [live] = written["configurations"]
    assert live["stages"]["generator"][0]["p50_ms"] > 0
    assert "paper: not measured: no torch here" in capsys.readouterr().out
    with pytest.raises(EngineError, match="batches are 1 to 16"):
        run_engine_bench("openvino", [17], 0.0, None)


def test_untrained_networks_are_called_so(engine: BaseEngine) -> None:
    class Untrained(BaseEngine):
        name = "fake"

        def __init__(self) -> None:
            self.config = ModelConfig(name="paper", family="paper")
            self.manifest = {"name": "paper, untrained", "parameters": {"audio": 1}}
            self.reason = "none"

        def run(self, network: str, inputs: dict[str, Array]) -> dict[str, Array]:  # type: ignore[override]
            raise AssertionError(network)

    def nothing(engine: BaseEngine, batch: int) -> Iterator[tuple[str, engine_bench.Work]]:
        yield "audio", lambda: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_bench, "stages", nothing)
        figures = measure(Untrained(), [1], 0.0, Ticks())
    assert not figures.trained
    assert "untrained: only its speed means anything" in str(engine_bench._table(figures).title)
