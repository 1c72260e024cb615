"""The adapter's grip on aiortc: fails with words when upstream moves."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiortc.rtcrtpsender import RTCRtpSender

from realtime.rtc import internals

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def test_installed_aiortc_is_what_the_adapter_was_written_against() -> None:
    found = internals.problems()
    assert not found, (
        "aiortc or aioice changed inside; review realtime/rtc before you move the pin:\n  "
        + "\n  ".join(found)
    )


def test_the_requirement_is_pinned_to_the_same_series() -> None:
    assert f'"aiortc=={internals.AIORTC_SERIES}.*"' in (ROOT / "pyproject.toml").read_text()


def test_a_moved_internal_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RTCRtpSender, "_brand_new", lambda self: None, raising=False)
    monkeypatch.setattr("aiortc.__version__", "1.17.0")
    found = " ".join(internals.problems())
    assert "_brand_new" in found
    assert "1.17.0" in found


def test_only_the_adapter_imports_aiortc_or_aioice() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "realtime").rglob("*.py")
        if path.parent.name != "rtc"
        and any(
            line.startswith(("import aiortc", "from aiortc", "import aioice", "from aioice"))
            for line in path.read_text().splitlines()
        )
    ]
    assert offenders == []
