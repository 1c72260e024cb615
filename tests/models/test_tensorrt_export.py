"""`visavis export --engine tensorrt`: what it builds, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import kernels.host
from kernels.driver import DriverMissingError
from models.checkpoint import NETWORKS, open_checkpoint
from models.runtime import build, export_command
from models.runtime.device_network import Device
from models.runtime.engine_cache import EngineManifest, engine_folder
from models.runtime.flavour import FlavourName
from tests.models.host_cuda import GraphFlavour, WatchedCalls

pytestmark = pytest.mark.unit


class Awake(GraphFlavour):
    """Its engines compute from the start."""

    def load(self, plan: bytes):  # type: ignore[no-untyped-def]
        program = super().load(plan)
        self.wake()
        return program


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    """The command on a machine without a card, with a flavour that builds quickly."""
    made = typer.Typer()
    made.command()(lambda: None)
    export_command.register(made)

    def no_card() -> None:
        raise DriverMissingError("none")

    monkeypatch.setattr(export_command.driver, "open_context", no_card)
    monkeypatch.setattr(export_command, "TensorRT", GraphFlavour)
    monkeypatch.setattr(export_command, "installed_flavours", lambda: ["tensorrt_rtx"])
    monkeypatch.setenv("VISAVIS_ENGINES", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    return made


def run(app: typer.Typer, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", "--engine", "tensorrt", *arguments])
    return result.exit_code, result.output


def test_engines_for_several_targets_go_where_serve_looks(app: typer.Typer, tmp_path: Path) -> None:
    code, output = run(app, "--target", "sm86,sm89")
    assert code == 0, output
    for target in ("sm86", "sm89"):
        folder = engine_folder(tmp_path / "cache", "live", "tensorrt_rtx", target)
        assert str(folder) in output
        manifest = EngineManifest.read(folder)
        assert manifest.networks.keys() == set(NETWORKS)
        assert manifest.networks["audio"].parity_error is None
        assert f"audio for {target}" in output


def test_without_a_card_the_target_must_be_named(app: typer.Typer) -> None:
    code, output = run(app)
    assert code == 1
    assert "no NVIDIA card to build for; name the architecture" in output


def test_tensorrt_proper_builds_only_for_its_own_card(app: typer.Typer) -> None:
    code, output = run(app, "--flavour", "tensorrt", "--target", "sm86")
    assert code == 1
    assert "--flavour tensorrt_rtx builds for others" in output


def test_no_flavour_names_both_packages(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command, "installed_flavours", list)
    code, output = run(app, "--target", "sm86")
    assert code == 1
    assert "pip install -e '.[gpu]'" in output
    assert "pip install tensorrt_rtx_cu13" in output


def test_a_folder_that_is_no_checkpoint_is_refused(app: typer.Typer, tmp_path: Path) -> None:
    code, output = run(app, "--target", "sm86", "--checkpoint", str(tmp_path))
    assert code == 1
    assert "is not a checkpoint" in output


def test_on_its_card_the_engine_is_measured(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = WatchedCalls()

    def flavour(name: FlavourName) -> GraphFlavour:
        return Awake(name, calls)

    monkeypatch.setattr(
        export_command.driver, "open_context", lambda: kernels.host.open_context(calls)
    )
    monkeypatch.setattr(export_command, "TensorRT", flavour)
    monkeypatch.setattr(build, "NETWORKS", ("audio",))
    code, output = run(app, "-o", str(tmp_path / "mine"))
    assert code == 0, output
    manifest = EngineManifest.read(engine_folder(tmp_path / "mine", "live", "tensorrt_rtx", "sm86"))
    parity = manifest.networks["audio"].parity_error
    assert parity is not None
    assert 0 < parity["lip"] < 1e-2
    assert calls.released


def test_measuring_sees_a_wrong_engine() -> None:
    calls = WatchedCalls()
    checkpoint = open_checkpoint(verify=False)
    device = Device(kernels.host.open_context(calls))
    flavour = Awake(calls=calls)
    measure = build.measure_on(device, flavour.load, checkpoint)
    good = build.convert(checkpoint, "audio", "sm86").model
    assert measure("audio", good)["lip"] < 1e-2

    class Asleep(GraphFlavour):
        """Computes nothing."""

    measure = build.measure_on(device, Asleep(calls=calls).load, checkpoint)
    assert measure("audio", good)["lip"] > 0.1
