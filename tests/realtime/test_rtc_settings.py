"""ICE and RTC settings: from the command line into the peers."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from realtime import serve
from realtime.cli import app, parse_span
from realtime.hub import Hub
from realtime.rtc import IceServer, PeerOptions, ceiling_bps
from realtime.settings import Settings
from tests.fakes import FakeEngine

pytestmark = pytest.mark.unit


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `visavis serve` would run with."""
    given: list[Settings] = []
    monkeypatch.setattr(serve, "run_server", given.append)
    return given


def options(settings: Settings, size: int = 512) -> PeerOptions:
    return Hub(settings, FakeEngine)._peer_options(size)  # type: ignore[arg-type]


def test_the_command_line_reaches_the_peers(served: list[Settings]) -> None:
    line = (
        "serve --host 0.0.0.0 --udp-ports 40000-40100 --public-ip 198.51.100.7 --video-kbps 800 "
        "--playout-delay 0-200 --rtc stock --ice-server stun:stun.example.org "
        "--ice-server turn:turn.example.org|me|secret"
    )
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    made = options(served[0])
    assert made.ice.udp_ports == (40_000, 40_100)
    assert made.ice.port_range == range(40_000, 40_101)
    assert made.ice.servers[0] == IceServer("stun:stun.example.org")
    assert made.ice.servers[1] == IceServer("turn:turn.example.org", "me", "secret")
    assert not made.ice.loopback
    assert made.ice.gather_s == 0.5
    assert made.public_ip == "198.51.100.7"
    assert made.video_bps == 800_000
    assert made.playout_delay_ms == (0, 200)
    assert made.stock


def test_by_default_nobody_is_asked_and_rates_follow_the_size() -> None:
    made = options(Settings(), 256)
    assert made.ice.servers == ()
    assert made.ice.udp_ports is None
    assert made.ice.loopback
    assert made.video_bps == ceiling_bps(256)
    assert made.playout_delay_ms is None
    assert not made.stock
    # A vanished peer's place is free within five seconds, and a short dropout is survived.
    assert 3.0 <= made.watchdog_s <= 4.5


def test_a_person_s_ceiling_does_not_raise_what_a_size_makes_use_of() -> None:
    assert options(Settings(max_video_bps=9_000_000), 256).video_bps == ceiling_bps(256)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"udp_ports": (80, 90)}, "1024"),
        ({"udp_ports": (5000, 4000)}, "order"),
        ({"max_video_bps": 10}, "100 kbit"),
        ({"playout_delay_ms": (200, 100)}, "order"),
        ({"playout_delay_ms": (0, 50_000)}, "10000"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(**given)


@pytest.mark.parametrize("text", ["", "a-b", "-5", "1-2-3", "1 - 2", "1-", "+1-2"])
def test_a_span_that_is_none_is_refused(text: str) -> None:
    if text == "1-":
        assert parse_span(text, "--x") == (1, 1)
        return
    with pytest.raises(ValueError, match="--x takes FIRST-LAST"):
        parse_span(text, "--x")


def test_a_bad_span_ends_the_command_with_a_sentence(served: list[Settings]) -> None:
    result = CliRunner().invoke(app, ["serve", "--udp-ports", "many"])
    assert result.exit_code == 1
    assert served == []
