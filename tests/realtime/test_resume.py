"""A session outlives its peer: what stays, who may come back, and whose place it is meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from realtime.settings import Settings
from tests.fakes import FakeEngine
from tests.serving import Client, Running, client, make_web, serving, until

pytestmark = pytest.mark.unit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    web = make_web(tmp_path / "web", {"grey": 120})
    return Settings(web_dir=web, max_sessions=1, watchdog_s=0.6, resume_s=4.0)


async def resume(running: Running, made: Client, id: str, token: str) -> httpx.Response:
    """Offer a new peer for a session, and connect it if it is taken."""
    response = await running.http.post(
        f"/api/sessions/{id}/resume",
        json={"sdp": await made.peer.offer(), "type": "offer"},
        headers={"Authorization": f"Bearer {token}"},
    )
    if response.status_code == 200:
        body = response.json()
        made.session_id, made.token = body["session_id"], body["token"]
        await made.peer.set_answer(body["sdp"])
        async with asyncio.timeout(10):
            await made.connected.wait()
    return response


@asynccontextmanager
async def lost_session(running: Running, **body: Any) -> AsyncIterator[Client]:
    """A session whose client changed its settings, spoke, and vanished without a word."""
    async with client(running) as made:
        assert (await made.open("grey", size=256, **body)).status_code == 201
        await made.message("hello")
        made.send(type="set_gain", factor="lip", gain=0.5)
        made.send(type="set_source", factor="pose", source="preset", name="turn_left", fade_ms=0)
        await made.message("state")
        await made.speak(np.zeros(24_000, np.int16))
        await until(lambda: made.frames)
        await made.peer.close("vanished")
        await until(lambda: running.hub.session_count == 0)
        yield made


async def test_a_peer_that_comes_back_finds_everything_as_it_was(settings: Settings) -> None:
    exp = {"exp": {"source": "preset", "name": "smile"}}
    async with serving(settings) as running, lost_session(running, sources=exp) as lost:
        session = running.hub.session(lost.session_id, lost.token)
        assert session.parked
        before = session.pipeline.session_sample
        await asyncio.sleep(0.3)
        assert session.pipeline.session_sample == before, "its clock stands still"
        async with client(running) as back:
            response = await resume(running, back, lost.session_id, lost.token)
            assert response.status_code == 200, response.text
            assert response.json()["session_id"] == lost.session_id
            hello = await back.message("hello")
            factors = {f["factor"]: f for f in hello["factors"]}
            assert factors["lip"]["gain"] == 0.5
            assert (factors["pose"]["source"], factors["pose"]["name"]) == ("preset", "turn_left")
            assert (factors["exp"]["source"], factors["exp"]["name"]) == ("preset", "smile")
            assert hello["session_id"] == lost.session_id
            await back.speak(
                np.full(48_000, 9000, np.int16)
                * np.sign(np.sin(np.arange(48_000) / 40)).astype(np.int16)
            )
            await until(lambda: len(back.frames) > 10)
            assert session.pipeline.stats.skipped_ms == 0, "the break is no sound to catch up"
            late = session.pipeline.session_sample - before
            assert 30_000 < late < 120_000, "the session clock goes on where it was"
            stats = await back.message("stats")
            assert stats["quality"]["level"] == 0
            assert running.hub.session_count == 1
        text = (await running.http.get("/metrics")).text
        assert "visavis_sessions_resumed_total 1.0" in text


async def test_a_vanished_peer_frees_its_place_for_others_and_may_find_it_taken(
    settings: Settings,
) -> None:
    async with serving(settings) as running, lost_session(running) as lost:
        async with client(running) as other:
            assert (await other.open("grey", size=256)).status_code == 201
            async with client(running) as back:
                refused = await resume(running, back, lost.session_id, lost.token)
                assert refused.status_code == 503
                assert refused.headers["retry-after"].isdigit()
        await until(lambda: running.hub.session_count == 0)
        async with client(running) as back:
            again = await resume(running, back, lost.session_id, lost.token)
            assert again.status_code == 200, "it waited; the place is free again"


async def test_a_network_that_stops_carrying_frees_the_place_soon(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        assert (await made.open("grey", size=256)).status_code == 201
        await made.speak(np.zeros(9600, np.int16))
        # The client's packets stop without a word, as when a laptop sleeps.
        for task in list(made.peer._tasks):
            task.cancel()
        transports = {t.receiver.transport for t in made.peer._pc.getTransceivers()}
        for transport in transports:
            await transport.transport._connection.close()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: running.hub.session_count == 0, 5.0)
        assert loop.time() - began < settings.watchdog_s + 1.5
        assert running.hub.session(made.session_id, made.token).parked


async def test_a_client_may_move_to_another_network_before_the_server_notices(
    settings: Settings,
) -> None:
    async with serving(settings) as running, client(running) as first:
        assert (await first.open("grey", size=256)).status_code == 201
        await first.speak(np.zeros(9600, np.int16))
        async with client(running) as second:
            response = await resume(running, second, first.session_id, first.token)
            assert response.status_code == 200
            async with asyncio.timeout(5):
                await first.closed.wait()
            await second.speak(np.zeros(24_000, np.int16))
            await until(lambda: len(second.frames) > 5)
            assert running.hub.session_count == 1


async def test_who_may_not_resume(settings: Settings) -> None:
    async with serving(settings) as running, lost_session(running) as lost:
        path = f"/api/sessions/{lost.session_id}/resume"
        offer = {"sdp": "v=0", "type": "offer"}
        token = {"Authorization": f"Bearer {lost.token}"}
        for status, headers, where in (
            (401, {}, path),
            (403, {"Authorization": "Bearer wrong"}, path),
            (404, token, "/api/sessions/unknown/resume"),
            (400, token, path),
        ):
            response = await running.http.post(where, json=offer, headers=headers)
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"
        bad = await running.http.post(path, json={**offer, "portrait": "grey"}, headers=token)
        assert bad.status_code == 400
        assert running.hub.session(lost.session_id, lost.token).parked, "bad offers change nothing"


async def test_a_peer_that_does_not_come_back_ends_the_session(settings: Settings) -> None:
    short = dataclasses.replace(settings, resume_s=0.3)
    async with serving(short) as running, lost_session(running) as lost:
        async with client(running) as back:
            await asyncio.sleep(0.5)
            assert (await resume(running, back, lost.session_id, lost.token)).status_code == 404
        text = (await running.http.get("/metrics")).text
        assert 'reason="peer_did_not_come_back"' in text
        assert "visavis_sessions_parked 0.0" in text


async def test_a_session_that_was_ended_on_purpose_does_not_wait(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        assert (await made.open("grey", size=256)).status_code == 201
        token = {"Authorization": f"Bearer {made.token}"}
        path = f"/api/sessions/{made.session_id}"
        assert (await running.http.delete(path, headers=token)).status_code == 204
        async with client(running) as back:
            assert (await resume(running, back, made.session_id, made.token)).status_code == 404


async def test_a_parked_session_is_ended_by_its_client_and_by_the_servers_end(
    settings: Settings,
) -> None:
    async with serving(settings) as running, lost_session(running) as lost:
        token = {"Authorization": f"Bearer {lost.token}"}
        path = f"/api/sessions/{lost.session_id}"
        assert (await running.http.delete(path, headers=token)).status_code == 204
        assert (await running.http.delete(path, headers=token)).status_code == 404
        async with lost_session(running) as second:
            assert running.hub.session(second.session_id, second.token).parked
            await running.hub.stop()
            assert running.hub._sessions == {}


async def test_an_engine_that_is_lost_costs_pictures_for_a_moment_and_no_voice(
    settings: Settings,
) -> None:
    engines: list[FakeEngine] = []

    def factory() -> Any:
        engines.append(FakeEngine())
        return engines[-1]

    async with serving(settings, engine_factory=factory) as running, client(running) as made:
        assert (await made.open("grey", size=256)).status_code == 201
        said = (8000 * np.sin(np.arange(4 * 48_000) * 0.03)).astype(np.int16)
        speaking = asyncio.create_task(made.speak(said))
        await until(lambda: len(made.frames) > 20)
        loop = asyncio.get_running_loop()

        def die(*_: object) -> Any:
            raise SystemExit

        seen = len(made.frames)
        killed_at, block = loop.time(), len(made.blocks)
        engines[0].draw = die  # type: ignore[method-assign]
        await until(lambda: len(engines) == 2 and len(made.frames) > seen + 5)
        assert loop.time() - killed_at < 2.0
        await speaking
        await asyncio.sleep(0.3)
        after = np.concatenate([b.pcm for b in made.blocks[block:]])
        loud = np.abs(after[: 48_000 // 480 * 480]).reshape(-1, 480).max(axis=1)
        # A machine that is busy otherwise loses some of it with or without an engine.
        assert (loud > 4000).mean() > 0.8, "the voice went on while the engine was loaded"
        assert (await running.http.get("/readyz")).status_code == 200
