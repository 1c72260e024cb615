"""What stands before every request: rates, origins, sizes, patience."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import websockets

from realtime import listening, reading
from realtime.admission import Demand, Verdict, admit
from realtime.load import WorkerLoad
from realtime.settings import LIMITS, Settings
from tests.serving import FAKE_PARTS, client, make_web, serving, until

pytestmark = pytest.mark.unit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(web_dir=make_web(tmp_path / "web", {"grey": 120}), max_sessions=4)


def is_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"/problems/{code}"


async def count(http: httpx.AsyncClient, kind: str) -> float:
    """How often something was refused, as the metrics say."""
    for line in (await http.get("/metrics")).text.splitlines():
        if line.startswith(f'visavis_abuse_total{{kind="{kind}"}}'):
            return float(line.split()[-1])
    return 0.0


async def test_one_address_may_ask_only_so_often(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    slow = dataclasses.replace(settings, requests_per_s=2.0)
    async with serving(slow) as running:
        answers = [await running.http.get("/healthz") for _ in range(12)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 8 <= sum(answer.status_code == 200 for answer in answers) <= 9
        is_problem(refused[0], 429, "too-many-requests")
        assert refused[0].headers["retry-after"] == "1"
        assert "refused (rate)" in caplog.text
        assert "127.0.0.1" not in caplog.text
        await asyncio.sleep(0.6)
        assert await count(running.http, "rate") == len(refused)


async def test_sessions_of_one_address_are_bounded_and_proxies_told_apart(
    settings: Settings,
) -> None:
    one_each = dataclasses.replace(
        settings, max_sessions_per_address=1, trusted_proxies=("127.0.0.1",)
    )
    async with serving(one_each) as running:
        offers = []
        async with client(running) as first, client(running) as second:
            for made in (first, second):
                offers.append(await made.peer.offer())

            async def post(offer: str, address: str) -> httpx.Response:
                body = {"sdp": offer, "type": "offer", "portrait": "grey"}
                headers = {"X-Forwarded-For": address}
                return await running.http.post("/api/sessions", json=body, headers=headers)

            assert (await post(offers[0], "2001:db8:1:2::1")).status_code == 201
            is_problem(await post(offers[1], "2001:db8:1:2::99"), 429, "too-many-sessions")
            is_problem(await post(offers[1], "9.9.9.9, 2001:db8:1:2::5"), 429, "too-many-sessions")
            assert (await post(offers[1], "2001:db8:1:3::1")).status_code == 201


async def test_other_sites_are_let_in_only_when_named(settings: Settings) -> None:
    friend, foe = "https://friend.example", "https://foe.example"
    async with serving(dataclasses.replace(settings, allowed_origins=(friend,))) as running:
        http = running.http
        asked = {"Origin": friend, "Access-Control-Request-Method": "POST"}
        preflight = await http.options("/api/sessions", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == friend
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in preflight.headers
        post = await http.post("/api/sessions", headers={"Origin": friend}, content=b"{}")
        assert post.status_code == 400, "it got through to the reading of the body"
        assert post.headers["access-control-allow-origin"] == friend
        assert "Origin" in post.headers["vary"]
        for method in ("POST", "OPTIONS"):
            headers = {**asked, "Origin": foe}
            refused = await http.request(method, "/api/sessions", headers=headers)
            is_problem(refused, 403, "foreign-origin")
            assert "access-control-allow-origin" not in refused.headers
    for nonsense in ("*", "friend.example", "https://friend.example/path", "null"):
        with pytest.raises(ValueError, match="origin"):
            Settings(allowed_origins=(nonsense,))


async def test_addresses_and_heads_are_bounded(settings: Settings) -> None:
    async with serving(settings) as running:
        long = await running.http.get("/healthz?" + "a" * LIMITS.url_bytes)
        is_problem(long, 414, "url-too-long")
        nasty = await running.http.get("/healthz", headers={"Host": "[::1"})
        assert nasty.status_code == 403
        nasty = await running.http.post("/api/sessions", headers={"Origin": "http://[x"})
        assert nasty.status_code == 403


async def test_who_sends_slowly_is_not_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = dataclasses.replace(LIMITS, header_s=0.3, json_s=0.3, connections_per_address=5)
    monkeypatch.setattr(listening, "LIMITS", quick)
    monkeypatch.setattr(reading, "LIMITS", quick)
    async with serving(settings) as running:
        where = urlsplit(running.url)
        loop = asyncio.get_running_loop()

        async def open_with(data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            writer.write(data)
            return reader, writer

        for head in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            began = loop.time()
            reader, writer = await open_with(head)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            assert 0.2 < loop.time() - began < 3.0
            writer.close()

        reader, writer = await open_with(
            b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
        )
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 5)
        assert b" 408 " in answer
        assert b"/problems/body-too-slow" in answer
        writer.close()

        held = [await open_with(b"") for _ in range(5)]
        closed = 0
        for _ in range(3):
            reader, writer = await open_with(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                closed += await reader.read(1) == b""
            except ConnectionError:
                closed += 1
            writer.close()
        assert closed >= 1, "one address holds only so many connections"
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.1)
        async with httpx.AsyncClient(base_url=running.url) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert await count(http, "slow") >= 2


async def test_a_listener_that_will_not_stop_talking_is_shown_the_door(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        assert (await made.open("grey", size=256)).status_code == 201
        url = f"{running.url.replace('http', 'ws')}/api/sessions/{made.session_id}/events"
        async with websockets.connect(f"{url}?token={made.token}") as chatty:
            for k in range(LIMITS.event_messages):
                await chatty.send(b"\0" if k % 2 else "hello?")
            await asyncio.wait_for(chatty.wait_closed(), 5)
            assert chatty.close_code == 1008
        async with websockets.connect(f"{url}?token={made.token}") as quiet:
            assert '"type":"hello"' in str(await quiet.recv()), "others may still listen"
            await quiet.send("x" * 5000)
            await asyncio.wait_for(quiet.wait_closed(), 5)
            assert quiet.close_code == 1009


async def test_a_flood_of_messages_ends_its_own_session_only(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as bad, client(running) as good:
        for made in (bad, good):
            assert (await made.open("grey", size=256)).status_code == 201
            await made.message("hello", timeout_s=20.0)
        # All but the last few of the many that are forgiven.
        session = running.hub.session(bad.session_id, bad.token)
        session._control._rate.refused = LIMITS.message_abuse - 10
        for _ in range(LIMITS.message_burst + 60):
            # As the channel hands them on; through SCTP a busy machine would be too slow for it.
            session.on_message(b'{"type":"ping","t_ms":1}')
        await until(lambda: running.hub.session_count == 1, 10.0)
        assert await count(running.http, "messages") == 1
        good.send(type="ping", t_ms=7)
        await good.message("pong", t_ms=7)


async def test_a_server_without_headroom_refuses_with_a_time_to_come_back(
    settings: Settings,
) -> None:
    dear = WorkerLoad(0.5, 30e6, 40e6, 0.0, 1, 0)
    measured = dataclasses.replace(
        FAKE_PARTS, admit=lambda demand: admit(dataclasses.replace(demand, worker=dear))
    )
    async with (
        serving(settings, parts=measured) as running,
        client(running) as one,
        client(running) as two,
    ):
        assert (await one.open("grey", size=256)).status_code == 201, "one is always possible"
        refused = await two.open("grey", size=256)
        is_problem(refused, 503, "full")
        assert refused.headers["retry-after"].isdigit()
        assert "time to draw" in refused.json()["detail"]
        text = (await running.http.get("/metrics")).text
        assert "visavis_headroom_ratio" in text
        assert "visavis_worker_busy_ratio" in text


async def test_what_sessions_cost_is_measured_while_they_run(settings: Settings) -> None:
    seen: list[Demand] = []

    def watching(demand: Demand) -> Verdict:
        seen.append(demand)
        return Verdict(True)

    parts = dataclasses.replace(FAKE_PARTS, admit=watching)
    async with (
        serving(settings, parts=parts) as running,
        client(running) as one,
        client(running) as two,
    ):
        webcam = {"source": "webcam"}
        assert (await one.open("grey", size=256, sources={"pose": webcam})).status_code == 201
        await one.speak(np.zeros(48_000, np.int16))
        await until(lambda: len(one.frames) > 5)
        assert (await two.open("grey", size=256)).status_code == 201
    assert (seen[0].sessions, seen[1].sessions) == (0, 1)
    assert seen[1].webcams == 1
    assert seen[1].worker.frame_ns > 0
    assert seen[1].encode_ns > 0
    assert seen[1].loop_busy > 0


async def test_a_smaller_picture_in_the_middle_of_a_conversation_is_decodable(
    settings: Settings,
) -> None:
    async with serving(settings) as running, client(running) as made:
        assert (await made.open("grey", size=512)).status_code == 201
        session = running.hub.session(made.session_id, made.token)
        speaking = asyncio.create_task(made.speak(np.zeros(8 * 48_000, np.int16)))
        degrader = session._adaptation._degrader
        for size in (512, 384, 256, 512):
            degrader.level = next(k for k, rung in enumerate(degrader.rungs) if rung.size == size)
            assert session._link is not None
            session._adaptation._apply(session._link)
            await until(lambda: made.frames and made.frames[-1][1].width == size, 8.0)  # noqa: B023
        assert made.frames[-1][1].height == 512
        degrader.level = 3
        stats = await made.message("stats", timeout_s=8.0)
        assert stats["quality"]["size"] in (512, 384)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
