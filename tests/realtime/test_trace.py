"""A session's trace: valid by the format's rules, bounded, behind the session's token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from models.rates import FRAME_TICKS_90K
from realtime.metrics import Metrics
from realtime.protocol import ClientStats
from realtime.receiver import ReceiverLog
from realtime.settings import Settings
from realtime.trace import Trace
from tests.serving import client, make_web, serving

pytestmark = pytest.mark.unit

MS = 1_000_000


def check_format(document: dict[str, Any]) -> None:
    """The rules of the Trace Event Format that viewers rely on."""
    events = document["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    times = [e["ts"] for e in events if e["ph"] != "M"]
    assert times == sorted(times)
    open_spans: dict[tuple[Any, ...], float] = {}
    ends: dict[tuple[int, int], list[float]] = {}
    for event in events:
        assert {"ph", "name", "ts", "pid", "tid"} <= event.keys()
        assert isinstance(event["ts"], (int, float))
        assert event["ts"] >= 0
        if event["ph"] == "M":
            continue
        assert event["cat"]
        if event["ph"] in "Xi":
            assert (event["pid"], event["tid"]) in names
        key = (event.get("cat"), event["name"], event.get("id"))
        if event["ph"] == "X":
            assert event["dur"] >= 0
            track = ends.setdefault((event["pid"], event["tid"]), [])
            # A nanosecond is lost to floating point in microseconds of a long uptime.
            while track and track[-1] <= event["ts"] + 0.001:
                track.pop()
            end = event["ts"] + event["dur"]
            assert not track or end <= track[-1] + 0.001, f"{event['name']} overlaps on its track"
            track.append(end)
        elif event["ph"] == "b":
            assert key not in open_spans
            open_spans[key] = event["ts"]
        elif event["ph"] == "e":
            assert open_spans.pop(key) <= event["ts"]
        elif event["ph"] == "i":
            assert event["s"] in "gpt"
        elif event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, (int, float)) for value in event["args"].values())
        else:
            pytest.fail(f"unknown phase {event['ph']}")
    assert not open_spans


def busy_trace(frames: int = 20) -> Trace:
    trace = Trace("abc")
    for f in range(frames):
        ready = (f + 1) * 40 * MS
        spans = {"audio": 2 * MS, "draw": 25 * MS, "queue": 3 * MS, "compose": 4 * MS}
        trace.instant("tick", ready, frame=f, level=100.0)
        trace.stages(f, ready, spans, ready + 35 * MS)
        # Frames overlap: each leaves after the next one came.
        trace.sent(f, (ready - MS, ready, ready + 70 * MS), 5 * MS, key=f == 0)
        trace.counter("skew_ms", ready, skew_ms=1.5)
    return trace


def test_the_export_keeps_the_formats_rules() -> None:
    document = msgspec.json.decode(msgspec.json.encode(busy_trace().export()))
    check_format(document)
    events = document["traceEvents"]
    tracks = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert tracks[:4] == ["network", "queue", "worker", "hop"]
    frame = next(e for e in events if e["name"] == "frame" and e["ph"] == "b" and e["id"] == 7)
    assert frame["args"] == {"frame": 7, "pts": 7 * FRAME_TICKS_90K}
    assert frame["ts"] == 8 * 40_000 - 1000
    assert document["displayTimeUnit"] == "ms"
    assert sum(e["name"] == "key frame" for e in events) == 1


def test_stages_follow_each_other_whatever_their_order_in_the_spans() -> None:
    trace = Trace("abc")
    trace.stages(3, 100 * MS, {"audio": 2 * MS, "draw": 20 * MS, "queue": 5 * MS}, 130 * MS)
    events = [e for e in trace.export()["traceEvents"] if e["ph"] != "M"]
    at = {(e["name"], e["ph"]): (e["ts"], e.get("dur")) for e in events}
    assert at["queue", "b"][0] == 100_000
    assert at["queue", "e"][0] == 105_000
    assert at["audio", "X"] == (105_000, 2000)
    assert at["draw", "X"] == (107_000, 20_000)
    assert at["hop", "b"][0] == 127_000
    assert at["hop", "e"][0] == 130_000


def test_the_ring_is_bounded_and_readers_lose_nothing_they_fetch_in_time() -> None:
    trace = Trace("abc", capacity=100)
    got: list[str] = []
    since = 0
    for k in range(1000):
        trace.instant(f"event {k}", k)
        if k % 60 == 59:
            export = trace.export(since)
            assert export["otherData"]["missed"] == 0
            got += [e["name"] for e in export["traceEvents"] if e["ph"] == "i"]
            since = export["otherData"]["next"]
    got += [e["name"] for e in trace.export(since)["traceEvents"] if e["ph"] == "i"]
    assert got == [f"event {k}" for k in range(1000)]
    assert len(trace) == 100
    late = trace.export(0)
    assert late["otherData"]["missed"] == 900
    assert sum(e["ph"] == "i" for e in late["traceEvents"]) == 100
    assert [e for e in trace.export(5000)["traceEvents"] if e["ph"] == "i"] == []


def test_a_receivers_report_is_taken_once() -> None:
    metrics, trace = Metrics(), Trace("abc")
    log = ReceiverLog(metrics)
    report = ClientStats(fps=25.0, jitter_buffer_ms=42.0, freezes=2)
    for _ in range(3):
        log.take(report, trace, 5 * MS)
    log.take(ClientStats(fps=24.0, jitter_buffer_ms=38.0, freezes=3), trace, 6 * MS)
    log.take(None, trace, 7 * MS)
    text = metrics.text().decode()
    assert 'visavis_receiver_seconds_count{figure="jitter_buffer"} 2.0' in text
    assert 'figure="rtt"' not in text, "zero is unknown"
    assert "visavis_receiver_freezes_total 3.0" in text
    check_format(trace.export())
    fps = [e for e in trace.export()["traceEvents"] if e["name"] == "receiver fps"]
    assert [e["args"]["fps"] for e in fps] == [25.0, 24.0]


@pytest.mark.parametrize(
    "wrong",
    ['"fps":-1', '"fps":1e9', '"fps":25,"freezes":-1', '"fps":25,"glass_ms":1e9', '"fps":"x"'],
)  # fmt: skip
def test_reports_have_bounds(wrong: str) -> None:
    from realtime.protocol import decode_client

    with pytest.raises(msgspec.ValidationError):
        decode_client(f'{{"type":"client_stats",{wrong}}}'.encode())


async def test_a_trace_needs_the_sessions_token_and_starts_when_asked(tmp_path: Path) -> None:
    settings = Settings(web_dir=make_web(tmp_path / "web", {"grey": 120}))
    async with serving(settings) as running, client(running) as made:
        assert (await made.open("grey", size=256)).status_code == 201
        url = f"/api/sessions/{made.session_id}/trace"
        own = {"Authorization": f"Bearer {made.token}"}
        assert (await running.http.get(url)).status_code == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert (await running.http.put(url, headers=wrong)).status_code == 403
        off = await running.http.get(url, headers=own)
        assert off.status_code == 404
        assert off.json()["type"].endswith("trace-off")
        assert (await running.http.put(url, headers=own)).status_code == 204
        made.send(type="client_stats", fps=24.0, jitter_buffer_ms=12.0)
        await made.message("stats")
        await made.message("stats")
        answer = await running.http.get(url, headers=own)
        assert answer.status_code == 200
        document = json.loads(answer.content)
        check_format(document)
        names = {event["name"] for event in document["traceEvents"]}
        assert {"frame", "draw", "encode", "tick", "skew_ms", "receiver fps"} <= names
        then = document["otherData"]["next"]
        later = (await running.http.get(f"{url}?since={then}", headers=own)).json()
        assert all(
            event["ts"] >= document["traceEvents"][-1]["ts"] - 200_000
            for event in later["traceEvents"]
            if event["ph"] == "i"
        )
        for bad in ("-1", "x", "1" * 30, "²"):
            refused = await running.http.get(url, params={"since": bad}, headers=own)
            assert refused.status_code == 400
        assert (await running.http.delete(url, headers=own)).status_code == 204
        assert (await running.http.get(url, headers=own)).status_code == 404
