"""The command line: what it accepts, what it says, and the bench and doctor behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from models.rates import WIRE_RATE_HZ
from realtime import bench, cli, doctor, serve
from realtime.bench import BenchError, BenchOptions
from realtime.rtc import AudioBlock, IceServer
from realtime.settings import Settings
from tests.fakes import FakeEngine, paint_face
from tests.serving import make_web, serving

pytestmark = pytest.mark.unit

run = CliRunner().invoke


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server in a thread of its own, as the bench client needs it."""
    settings = Settings(web_dir=make_web(tmp_path / "web", {"grey": 120}), max_sessions=2)
    up, done, url = threading.Event(), threading.Event(), ""

    async def main() -> None:
        nonlocal url
        async with serving(settings) as running:
            url = running.url
            up.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert up.wait(10)
    yield url
    done.set()
    thread.join(10)
    assert not thread.is_alive()


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


def test_bench_measures_a_running_server(server: str, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    result = run(
        cli.app,
        ["bench", "--url", server, "--seconds", "3", "--size", "256", "--json", str(report)],
    )
    assert result.exit_code == 0, result.output
    assert "said to heard" in result.output
    data = json.loads(report.read_text())
    (session,) = data["sessions"]
    assert session["frames"] > 40
    assert 0 < session["connect_ms"] <= session["first_frame_ms"]
    # 80 ms of lookahead are inherent; a second would be a broken clock.
    assert 80 < session["voice_ms"]["p50"] < 400
    assert 80 < session["picture_ms"]["p50"] < 400
    assert abs(session["av_skew_ms"]) < 100
    assert session["server"]["frames"] > 25
    assert data["rss_end_mb"] > 10
    assert data["machine"]["aiortc"].startswith("1.16")


def test_a_looped_recording_is_found_where_it_was_said() -> None:
    second = WIRE_RATE_HZ
    voice = np.resize(bench.speech_like(6 * second), 20 * second)
    lag = second // 5
    heard = np.concatenate([np.zeros(lag, np.int16), voice])
    blocks = [
        AudioBlock(900 + at, heard[at : at + 480], False, 0.0) for at in range(0, len(heard), 480)
    ]
    assert bench._voice_shift(blocks, voice) == 900 + lag
    assert bench._voice_shift(blocks, voice[::-1]) is None, "something else was heard"


def test_bench_shows_a_video_and_says_why_it_cannot(server: str, tmp_path: Path) -> None:
    video = tmp_path / "webcam.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for _ in range(50):
            for packet in stream.encode(av.VideoFrame.from_ndarray(paint_face(size=256), "rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    options = BenchOptions(url=server, video=video, seconds=2.5, size=256)
    (session,) = bench.run_bench(options).sessions
    assert session.server is not None
    assert session.server.webcam in ("searching", "tracking")
    assert "motion" in session.server.stages
    with pytest.raises(BenchError, match="404"):
        bench.run_bench(BenchOptions(url=server, seconds=2, portrait="nobody"))
    with pytest.raises(BenchError, match="no pictures"):
        bench.load_pictures(tmp_path / "missing.mp4", 1)


def test_bench_without_a_server_says_so() -> None:
    result = run(cli.app, ["bench", "--url", "http://127.0.0.1:9", "--seconds", "2"])
    assert result.exit_code == 1
    assert "cannot be reached" in " ".join(result.output.split())


def test_bench_tells_when_its_own_server_does_not_start(tmp_path: Path) -> None:
    options = BenchOptions(seconds=2, serve_args=("--checkpoint", str(tmp_path / "none")))
    with pytest.raises(BenchError, match="did not start"):
        bench.run_bench(options)


def test_bench_voices(speech_16k: Path, tmp_path: Path) -> None:
    voice = bench.load_voice(speech_16k, 3.0)
    assert voice.shape == (144_000,)
    assert voice.dtype == np.int16
    assert np.abs(voice).max() > 1000
    assert np.abs(bench.load_voice(None, 2.0)).max() > 1000
    with pytest.raises(BenchError, match="no sound"):
        bench.load_voice(tmp_path / "missing.wav", 1.0)


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
