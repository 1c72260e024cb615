"""The HTTP API as a client sees it: statuses, problems, tokens, bounds."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import websockets

from models.codes import MotionCode
from models.runtime.engine import Appearance, Drawing
from realtime.admission import admit
from realtime.rtc import IceServer
from realtime.server import OWNER_COOKIE
from realtime.settings import Settings
from tests.fakes import FakeEngine, paint_base
from tests.serving import FAKE_PARTS, Running, client, make_web, png, serving, until

pytestmark = pytest.mark.unit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    web = make_web(tmp_path / "web", {"grey": 120, "dark": 70})
    return Settings(web_dir=web, max_sessions=1, max_uploads=2, max_image_bytes=200_000)


def is_problem(response: httpx.Response, status: int, code: str = "") -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["title"]
    assert "Traceback" not in response.text
    if code:
        assert body["type"] == f"/problems/{code}"
    return body


async def post_portrait(http: httpx.AsyncClient, **query: str) -> httpx.Response:
    return await http.post("/api/portraits", params=query, content=png(paint_base(300, 90)))


async def test_state_of_the_server(settings: Settings) -> None:
    async with serving(settings) as running:
        health = (await running.http.get("/healthz")).json()
        assert health["engine"] == {"name": "fake", "reason": "fake"}
        assert (await running.http.get("/readyz")).json() == {"status": "ready"}
        text = (await running.http.get("/metrics")).text
        assert "visavis_engine_ready 1.0" in text


async def test_an_engine_that_cannot_run_is_told_and_not_hidden(settings: Settings) -> None:
    def broken() -> Any:
        raise RuntimeError("no weights here")

    async with serving(settings, engine_factory=broken, wait=False) as running:
        await until(lambda: running.hub.engine_error)
        health = await running.http.get("/healthz")
        assert health.status_code == 200
        assert health.json()["engine"] == {"name": "none", "reason": "no weights here"}
        problem = is_problem(await running.http.get("/readyz"), 503, "engine-unusable")
        assert problem["detail"] == "no weights here"
        async with client(running) as made:
            refused = await made.open("grey")
        is_problem(refused, 503, "engine-unusable")
        assert "retry-after" not in refused.headers, "waiting does not help"
        is_problem(await post_portrait(running.http, consent="yes"), 503, "engine-unusable")


async def test_an_engine_that_loads_is_worth_waiting_for(settings: Settings) -> None:
    may_load = threading.Event()

    def slow() -> Any:
        may_load.wait(10)
        return FakeEngine()

    async with serving(settings, engine_factory=slow, wait=False) as running:
        refused = await running.http.get("/readyz")
        is_problem(refused, 503, "not-ready")
        assert refused.headers["retry-after"].isdigit()
        may_load.set()
        await until(lambda: running.hub.engine)
        assert (await running.http.get("/readyz")).status_code == 200


async def test_unknown_routes_methods_and_bodies_are_problems(settings: Settings) -> None:
    async with serving(settings) as running:
        http = running.http
        is_problem(await http.get("/nowhere"), 404)
        is_problem(await http.get("/api/nowhere"), 404)
        is_problem(await http.put("/api/sessions"), 405)
        is_problem(await http.get("/api/sessions"), 405)
        is_problem(await http.post("/api/sessions", content=b"{"), 400, "json-unusable")
        is_problem(await http.post("/api/sessions", content=b"\xff\xfe"), 400, "json-unusable")
        is_problem(await http.post("/api/sessions", json={"sdp": "x"}), 400, "json-unusable")
        big = json.dumps({"sdp": "x" * 200_000})
        is_problem(await http.post("/api/sessions", content=big), 413, "body-too-large")

        async def endless() -> Any:
            for _ in range(100):
                yield b"x" * 10_000

        is_problem(await http.post("/api/sessions", content=endless()), 413, "body-too-large")


async def test_bad_offers_unknown_portraits_and_sources(settings: Settings) -> None:
    async with serving(settings) as running:
        body = {"sdp": "v=0\r\n", "type": "offer", "portrait": "grey"}
        is_problem(await running.http.post("/api/sessions", json=body), 400, "sdp-unusable")
        body = {"sdp": "v=0\r\n", "type": "offer", "portrait": "nobody"}
        is_problem(await running.http.post("/api/sessions", json=body), 404, "portrait-unknown")
        async with client(running) as made:
            refused = await made.open("grey", sources={"pose": {"source": "mic"}})
        problem = is_problem(refused, 400, "source-unusable")
        assert "mic" in problem["detail"]
        assert running.hub.session_count == 0


async def test_a_used_up_port_range_is_a_full_server_and_not_a_bad_offer(
    settings: Settings,
) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", 0))
        port = taken.getsockname()[1]
        one_port = replace(settings, udp_ports=(port, port))
        async with serving(one_port) as running, client(running) as made:
            refused = await made.open("grey", size=256)
            problem = is_problem(refused, 503, "no-socket")
            assert str(port) in problem["detail"]
            assert int(refused.headers["retry-after"]) >= 1
            assert running.hub.session_count == 0
            told = (await running.http.get("/metrics")).text
            assert 'visavis_sessions_refused_total{reason="no_socket"} 1.0' in told


async def test_a_slow_machine_says_so_before_it_drew_a_frame_for_anybody(
    settings: Settings,
) -> None:
    """25 frames of 60 ms do not fit into a second twice, nor once; one person is let in."""

    class Slow(FakeEngine):
        def draw(self, appearance: Appearance, driving: MotionCode) -> Drawing:
            time.sleep(0.060)
            return super().draw(appearance, driving)

    places = replace(settings, max_sessions=4)
    parts = replace(FAKE_PARTS, admit=admit)
    async with serving(places, engine_factory=Slow, parts=parts) as running:
        hub = running.hub
        assert hub.demand().worker.frame_ns >= 60e6
        assert hub.demand().encode_ns > 0
        async with client(running) as made, client(running) as other:
            assert (await made.open("grey", size=256)).status_code == 201
            refused = await other.open("grey", size=256)
            problem = is_problem(refused, 503, "full")
            assert "time to draw" in problem["detail"]
            assert int(refused.headers["retry-after"]) >= 1


async def test_tokens_places_and_the_end(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made, client(running) as other:
        http = running.http
        created = await made.open("grey", size=256)
        path = created.headers["location"]
        assert created.status_code == 201
        assert path == f"/api/sessions/{made.session_id}"
        assert created.headers["cache-control"] == "no-store"
        assert len(made.token) >= 40
        full = await other.open("dark")
        problem = is_problem(full, 503, "full")
        assert problem["detail"] == "The only place is taken."
        assert int(full.headers["retry-after"]) >= 1

        candidate = {"candidate": "candidate:1 1 udp 1 192.0.2.9 9 typ host", "sdpMid": "0"}
        right = {"Authorization": f"Bearer {made.token}"}
        missing = await http.delete(path)
        is_problem(missing, 401, "token-missing")
        assert missing.headers["www-authenticate"] == "Bearer"
        wrong = {"Authorization": "Bearer nonsense"}
        is_problem(await http.delete(path, headers=wrong), 403, "token-wrong")
        trickle = await http.post(f"{path}/candidates", json=candidate, headers=right)
        assert trickle.status_code == 204
        end_of_candidates = {"candidate": ""}
        done = await http.post(f"{path}/candidates", json=end_of_candidates, headers=right)
        assert done.status_code == 204
        bad = {"candidate": "candidate:nonsense"}
        is_problem(await http.post(f"{path}/candidates", json=bad, headers=right), 400)
        is_problem(await http.post(f"{path}/candidates", json=candidate, headers=wrong), 403)
        is_problem(await http.post(f"{path}/candidates", json={}, headers=right), 400)

        assert (await http.delete(path, headers=right)).status_code == 204
        is_problem(await http.delete(path, headers=right), 404, "session-unknown")
        async with asyncio.timeout(3):
            await made.closed.wait()
        assert 'reason="ended_by_the_client"' in (await http.get("/metrics")).text


async def test_sessions_per_address(settings: Settings, tmp_path: Path) -> None:
    limited = Settings(web_dir=settings.web_dir, max_sessions=5, max_sessions_per_address=1)
    async with serving(limited) as running, client(running) as one, client(running) as two:
        assert (await one.open("grey", size=256)).status_code == 201
        is_problem(await two.open("grey"), 429, "too-many-sessions")


async def test_ice_servers_are_told_in_link_headers(settings: Settings) -> None:
    turn = IceServer("turn:192.0.2.1:3478", "me", "secret")
    served = Settings(web_dir=settings.web_dir, ice_servers=(IceServer("stun:192.0.2.1"), turn))
    async with serving(served) as running, client(running) as made:
        created = await made.open("grey", size=256)
        assert created.headers["link"] == (
            '<stun:192.0.2.1>; rel="ice-server", <turn:192.0.2.1:3478>; rel="ice-server"; '
            'username="me"; credential="secret"; credential-type="password"'
        )


async def test_portraits_are_listed_enrolled_seen_and_forgotten(settings: Settings) -> None:
    async with serving(settings) as running:
        http = running.http
        listed = (await http.get("/api/portraits")).json()
        assert [(p["id"], p["kind"]) for p in listed] == [
            ("grey", "bundled"),
            ("dark", "bundled"),
        ]
        picture = await http.get(listed[0]["thumbnail"])
        assert picture.headers["content-type"] == "image/jpeg"
        pixels = cv2.imdecode(np.frombuffer(picture.content, np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape == (512, 512, 3), "sharp enough for the stage"

        made = await post_portrait(http, name="  Aunt   May ", consent="true")
        assert made.status_code == 201
        info = made.json()
        assert info["name"] == "Aunt May"
        assert info["kind"] == "uploaded"
        cookie = made.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert [p["id"] for p in (await http.get("/api/portraits")).json()][-1] == info["id"]
        assert (await http.get(info["thumbnail"])).status_code == 200

        async with httpx.AsyncClient(base_url=running.url) as stranger:
            assert info["id"] not in (await stranger.get("/api/portraits")).text
            stranger.cookies.set(OWNER_COOKIE, "x" * 32)
            assert info["id"] not in (await stranger.get("/api/portraits")).text
            # Whoever was told the id may use it.
            assert (await stranger.get(info["thumbnail"])).status_code == 200
        async with client(running) as speaker:
            assert (await speaker.open(info["id"], size=256)).status_code == 201
            assert (await speaker.message("hello"))["portrait"] == "Aunt May"

        for name in ("b", "c"):
            await post_portrait(http, name=name, consent="yes")
        is_problem(await http.get(info["thumbnail"]), 404, "portrait-unknown")
        assert "visavis_portraits_uploaded 2.0" in (await http.get("/metrics")).text


async def test_pictures_that_cannot_be_used(settings: Settings) -> None:
    async with serving(settings) as running:
        http = running.http
        is_problem(await post_portrait(http), 400, "consent-missing")
        is_problem(await post_portrait(http, consent="no"), 400, "consent-missing")

        async def send(data: bytes, **headers: str) -> httpx.Response:
            return await http.post(
                "/api/portraits", content=data, headers={"Consent": "yes", **headers}
            )

        assert (await send(png(paint_base(300, 90)))).status_code == 201
        is_problem(await send(b"no picture"), 422, "image-unknown")
        is_problem(await send(png(paint_base(300, 90))[:200]), 422, "image-damaged")
        is_problem(await send(b""), 422)
        is_problem(await send(png(np.zeros((300, 300, 3), np.uint8))), 422, "no-face")
        is_problem(await send(b"x" * 300_000), 413, "body-too-large")
        bomb = b"\x89PNG\r\n\x1a\n" + bytes(8) + (60_000).to_bytes(4) * 2
        is_problem(await send(bomb), 422, "image-too-large")


async def test_pictures_in_forms(settings: Settings) -> None:
    async with serving(settings) as running:
        http = running.http
        picture = {"image": ("me.png", png(paint_base(300, 90)), "image/png")}
        fields = {"name": "Form", "consent": "yes"}
        made = await http.post("/api/portraits", files=picture, data=fields)
        assert made.status_code == 201
        assert made.json()["name"] == "Form"
        is_problem(
            await http.post("/api/portraits", files=picture, data={"name": "Form"}),
            400,
            "consent-missing",
        )
        is_problem(
            await http.post("/api/portraits", files={"x": (None, "y")}, data=fields),
            400,
            "picture-missing",
        )
        broken = await http.post(
            "/api/portraits",
            content=b"nonsense",
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        )
        assert broken.status_code == 400
        no_boundary = await http.post(
            "/api/portraits", content=b"x", headers={"Content-Type": "multipart/form-data"}
        )
        is_problem(no_boundary, 400, "form-unusable")


async def listen(running: Running, session_id: str, token: str) -> list[dict[str, Any]]:
    url = running.url.replace("http", "ws")
    messages = []
    async with websockets.connect(f"{url}/api/sessions/{session_id}/events?token={token}") as ws:
        async for data in ws:
            messages.append(json.loads(data))
            if messages[-1]["type"] == "stats":
                break
    return messages


async def test_events_over_a_websocket(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        await made.open("grey", size=256)
        messages = await listen(running, made.session_id, made.token)
        assert messages[0]["type"] == "hello"
        assert messages[0]["session_id"] == made.session_id
        for token, status in (("", 401), ("nonsense", 403)):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await listen(running, made.session_id, token)
            assert refused.value.response.status_code == status
        with pytest.raises(websockets.InvalidStatus) as refused:
            await listen(running, "nobody", made.token)
        assert refused.value.response.status_code == 404


async def test_the_event_stream_ends_with_its_session(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        await made.open("grey", size=256)
        url = running.url.replace("http", "ws")
        path = f"/api/sessions/{made.session_id}"
        async with websockets.connect(f"{url}{path}/events?token={made.token}") as ws:
            await ws.recv()
            await running.http.delete(path, headers={"Authorization": f"Bearer {made.token}"})
            async with asyncio.timeout(3):
                async for _ in ws:
                    pass
            assert ws.close_code == 1000
