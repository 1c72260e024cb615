"""Logs: one JSON object per line, with session and PTS, without media or addresses."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.rates import FRAME_TICKS_90K
from realtime.logs import HIDDEN, configure, hide_addresses
from realtime.settings import Settings
from tests.fakes import FakeEngine
from tests.serving import client, make_web, serving, until

pytestmark = pytest.mark.unit


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_have_the_fields_that_a_search_needs(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    log = logging.getLogger("visavis.session")
    log.warning("a frame was %s", "held", extra={"session": "s1", "pts": 7200, "pcm": b"secret"})
    try:
        raise ValueError("from 203.0.113.9:\nsecond line")
    except ValueError:
        log.exception("it failed", extra={"session": "s2"})
    log.debug("not told")
    first, second = lines(stream)
    assert first["message"] == "a frame was held"
    assert (first["session"], first["pts"], first["level"]) == ("s1", 7200, "warning")
    assert first["logger"] == "visavis.session"
    assert str(first["time"]).endswith("Z")
    assert len(str(first["time"])) == 24
    assert "secret" not in json.dumps(first), "unknown fields stay out"
    assert second["error"] == "ValueError"
    assert "203.0.113.9" not in json.dumps(second)
    assert "second line" in str(second["trace"])


def test_text_is_the_default_and_quiet(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure(stream=stream)
    log = logging.getLogger("visavis.server")
    log.info("not told")
    log.error("peer 192.0.2.77 left", extra={"session": "s1"})
    assert stream.getvalue().count("\n") == 1
    assert "ERROR visavis.server: peer (address) left [session s1]" in stream.getvalue()
    configure(verbose=True, stream=stream)
    log.info("told")
    assert "INFO visavis.server: told" in stream.getvalue()
    assert len(root.handlers) == 1


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "255.255.255.255", "::1", "fe80::1", "2001:db8::8a2e:370:7334"]
)
def test_addresses_are_hidden(address: str) -> None:
    assert hide_addresses(f"from {address} now") == f"from {HIDDEN} now"
    if ":" not in address:
        assert hide_addresses(f"peer {address}:5004.") == f"peer {HIDDEN}:5004."


@pytest.mark.parametrize(
    "text", ["at 12:30:45", "aiortc 1.16.0", "a::b::c?", "v 999.1.1.1", "x: y"]
)
def test_other_text_stays(text: str) -> None:
    assert hide_addresses(text) == text


async def test_a_held_frame_is_told_once_in_a_while_with_session_and_pts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "visavis.link")
    engines: list[FakeEngine] = []

    def factory() -> FakeEngine:
        engines.append(FakeEngine(fail_draws=20))
        return engines[-1]

    settings = Settings(web_dir=make_web(tmp_path / "web", {"grey": 120}))
    async with (
        serving(settings, engine_factory=factory) as running,  # type: ignore[arg-type]
        client(running) as made,
    ):
        assert (await made.open("grey", size=256)).status_code == 201
        await made.message("notice", code="frame_failed")
        await until(lambda: engines[0].fail_draws == 0)
    told = [r for r in caplog.records if r.getMessage() == "a frame was held"]
    assert 1 <= len(told) < 5, "of twenty and more, one every five seconds"
    assert told[0].session == made.session_id
    assert told[0].pts % FRAME_TICKS_90K == 0
    assert told[0].reason in ("failed", "late")
