"""The command line: what it accepts, what it says, and the bench and doctor behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from realtime import cli, doctor, serve
from realtime.rtc import IceServer
from realtime.settings import Settings
from tests.fakes import FakeEngine

pytestmark = pytest.mark.unit

run = CliRunner().invoke


def test_every_command_explains_itself() -> None:
    for command in ("serve", "render", "bench", "doctor"):
        result = run(cli.app, [command, "--help"])
        assert result.exit_code == 0, result.output
    assert "serve" in run(cli.app, []).output


def test_serve_passes_its_settings_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Settings] = []
    monkeypatch.setattr(serve, "run_server", given.append)
    arguments = [
        "serve", "--host", "0.0.0.0", "--port", "9000", "--engine", "openvino", "--size", "384",
        "--max-sessions", "2", "--portraits", str(tmp_path), "--idle-minutes", "1",
        "--ice-server", "stun:a.example", "--ice-server", "turn:b.example|me|secret",
        "--public-ip", "192.0.2.5",
    ]  # fmt: skip
    result = run(cli.app, arguments)
    assert result.exit_code == 0, result.output
    (settings,) = given
    assert (settings.host, settings.port, settings.engine) == ("0.0.0.0", 9000, "openvino")
    assert (settings.max_size_px, settings.max_sessions, settings.idle_s) == (384, 2, 60)
    assert settings.portrait_dirs == (tmp_path,)
    turn = IceServer("turn:b.example", "me", "secret")
    assert settings.ice_servers == (IceServer("stun:a.example"), turn)
    assert settings.public_ip == "192.0.2.5"


def test_the_mark_is_an_option_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Settings] = []
    monkeypatch.setattr(serve, "run_server", given.append)
    for arguments, variable in (([], ""), (["--mark"], ""), ([], "1")):
        assert run(cli.app, ["serve", *arguments], env={"VISAVIS_MARK": variable}).exit_code == 0
    assert [settings.mark for settings in given] == [False, True, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "500"], "size must be"),
        (["--portraits", "/nowhere"], "is not a folder"),
        (["--ice-server", "http://x"], "no ICE server"),
        (["--tls-key", "key.pem"], "TLS needs both"),
        (["--public-ip", "nonsense"], "nonsense"),
    ],
)
def test_serve_says_what_is_wrong(arguments: list[str], words: str) -> None:
    result = run(cli.app, ["serve", *arguments])
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_render_says_what_is_wrong(tmp_path: Path) -> None:
    result = run(
        cli.app,
        ["render", "--portrait", "nobody", "--audio", "no.wav", "-o", str(tmp_path / "a.mp4")],
    )
    assert result.exit_code == 1
    assert "no.wav" in result.output


def test_other_packages_can_add_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str, works: bool) -> None:
            self.name, self._works = name, works

        def load(self) -> Any:
            if not self._works:
                raise ImportError("torch is missing")
            return lambda app: added.append(app)

    added: list[object] = []
    entries = [Entry("train", True), Entry("broken", False)]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)
    cli.register_others()
    assert added == [cli.app]


def test_doctor_names_every_problem_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "problems", lambda: ["aiortc moved"])
    settings = Settings(web_dir=tmp_path, checkpoint=tmp_path / "none", host="0.0.0.0")
    cheap = (
        doctor.check_machine, doctor.check_packages, doctor.check_page, doctor.check_port,
        doctor.check_addresses, doctor.check_checkpoint, doctor.check_engine,
    )  # fmt: skip
    found = [check for part in cheap for check in part(settings)]
    problems = {check.subject: check for check in found if check.verdict == "problem"}
    assert {"WebRTC adapter", "Page", "Checkpoint", "Engine"} <= problems.keys()
    assert all(check.fix for check in found if check.verdict != "ok")


def test_doctor_says_which_codec_libraries_are_called_directly_and_why_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video, voice = doctor.check_codecs(Settings())
    assert (video.verdict, voice.verdict) == ("ok", "ok")
    assert re.search(r"v?\d+\.\d+.* called directly", video.detail)
    assert "libopus" in voice.detail
    monkeypatch.setattr(doctor.libvpx, "reason", lambda: "no libvpx was found beside PyAV")
    monkeypatch.setattr(doctor.libopus, "reason", lambda: "symbol opus_packet_has_lbrr is missing")
    for check, why in zip(doctor.check_codecs(Settings()), ("no libvpx", "has_lbrr"), strict=True):
        assert check.verdict == "warning"
        assert why in check.detail
        assert "av>=17" in check.fix


def test_doctor_times_the_engine_and_connects_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_engine", lambda *args: _Reasoned())
    (engine,) = doctor.check_engine(Settings())
    assert engine.verdict in ("ok", "warning")
    assert "draws a frame in" in engine.detail
    (connection,) = doctor.check_connection(Settings())
    assert connection.verdict == "ok"


class _Reasoned(FakeEngine):
    reason = "for the test"


def test_doctor_exits_with_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(settings: Settings) -> Iterator[doctor.Check]:
        yield doctor.Check("ok", "Python", "3.11")
        yield doctor.Check("problem", "Port", "taken [by] another", "visavis serve --port 1")

    monkeypatch.setattr(doctor, "examine", examine)
    result = run(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "-> visavis serve --port 1" in result.output
    assert "taken [by] another" in result.output
