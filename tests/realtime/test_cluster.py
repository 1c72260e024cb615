"""Several server processes behind one URL: who gets what, and what happens when one dies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from realtime.children import child_of, child_prefix, child_settings
from realtime.cluster import Cluster, create_front, merge_metrics
from realtime.listening import server_config
from realtime.metrics import Metrics
from realtime.settings import Settings
from tests.fakes import paint_base
from tests.realtime.cluster_app import broken_app, fake_app
from tests.serving import Running, _Server, client, make_web, png, until

pytestmark = pytest.mark.unit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    web = make_web(tmp_path / "web", {"grey": 120, "dark": 70})
    return Settings(web_dir=web, max_sessions=3, processes=2, prepare_portraits=False)


@asynccontextmanager
async def clustered(
    settings: Settings, *, wait: bool = True
) -> AsyncIterator[tuple[Running, Cluster]]:
    """A front in this loop with real child processes."""
    app = create_front(settings, fake_app)
    server = _Server(server_config(app, settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(server._serve([listener]), name="uvicorn")
        await server.up.wait()
        cluster: Cluster = app.state.hub
        try:
            if wait:
                await until(lambda: all(child.ready for child in cluster.children), 60.0)
            async with httpx.AsyncClient(base_url=url, timeout=20.0) as http:
                yield Running(url, app.state.hub, http), cluster
        finally:
            server.should_exit = True
            await task


# --- rules ------------------------------------------------------------------------------


def test_an_id_names_its_process() -> None:
    for index in range(12):
        assert child_of(child_prefix(index) + "aB-_9", 12) == index
        assert child_of(f"u-{child_prefix(index)}00ff", 12) == index
    for nobody in ("", "grey", "p", "p-", "p2-x", "px-1", "p01-x", "p٣-x", "q0-x", "p0", "p-1-x"):
        assert child_of(nobody, 2) is None, nobody


@given(st.text(max_size=80), st.integers(1, 64))
def test_no_id_names_a_process_that_is_not_there(id: str, count: int) -> None:
    index = child_of(id, count)
    assert index is None or 0 <= index < count


def test_children_share_places_ports_and_processor(settings: Settings) -> None:
    wide = dataclasses.replace(settings, udp_ports=(40_000, 40_099), max_sessions=5)
    children = [child_settings(wide, index) for index in range(2)]
    assert [child.max_sessions for child in children] == [3, 2]
    assert [child.udp_ports for child in children] == [(40_000, 40_049), (40_050, 40_099)]
    assert {child.processes for child in children} == {1}
    assert children[0].session_prefix != children[1].session_prefix


def test_metrics_of_several_processes_stay_one_valid_exposition() -> None:
    one, two = Metrics(), Metrics()
    one.sessions.set(2)
    two.sessions.set(1)
    one.refused.labels('a "strange"\nreason').inc(3)
    two.stage.labels("draw").observe(0.01)
    text = merge_metrics([("0", one.text()), ("1", two.text())]).decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}
    sessions = {s.labels["process"]: s.value for s in families["visavis_sessions"].samples}
    assert sessions == {"0": 2.0, "1": 1.0}
    (refused,) = [
        s for s in families["visavis_sessions_refused"].samples if s.name.endswith("_total")
    ]
    assert refused.labels == {"reason": 'a "strange"\nreason', "process": "0"}
    assert text.count("# TYPE visavis_stage_seconds histogram") == 1


# --- two real processes ------------------------------------------------------------------


async def test_two_processes_behind_one_url(settings: Settings) -> None:
    async with (
        clustered(settings) as (running, _),
        client(running) as one,
        client(running) as two,
        client(running) as three,
        client(running) as four,
    ):
        http = running.http
        assert (await http.get("/readyz")).json() == {"status": "ready", "processes": 2}
        assert "<title>page</title>" in (await http.get("/")).text
        for made in (one, two, three):
            assert (await made.open("grey", size=256)).status_code == 201
            hello = await made.message("hello", timeout_s=20.0)
            assert hello["session_id"] == made.session_id
        homes = [child_of(made.session_id, 2) for made in (one, two, three)]
        assert sorted(homes[:2]) == [0, 1], "the second goes to the emptier process"
        refused = await four.open("grey", size=256)
        assert refused.status_code == 503
        assert refused.json()["type"] == "/problems/full"
        assert refused.headers["retry-after"].isdigit()
        await one.speak((np.sin(np.arange(24_000) / 9) * 9000).astype(np.int16))
        await until(lambda: one.frames and two.frames)

        # Everything about a session reaches its process, with its token.
        token = {"Authorization": f"Bearer {one.token}"}
        path = f"/api/sessions/{one.session_id}"
        candidate = {"candidate": "", "sdpMid": "0", "sdpMLineIndex": 0}
        trickled = await http.post(f"{path}/candidates", json=candidate, headers=token)
        assert trickled.status_code == 204
        foreign = {"Authorization": f"Bearer {two.token}"}
        assert (await http.delete(path, headers=foreign)).status_code == 403
        events = f"{running.url.replace('http', 'ws')}{path}/events"
        async with websockets.connect(f"{events}?token={one.token}") as listening:
            assert '"type":"hello"' in str(await listening.recv())
        with pytest.raises(websockets.InvalidStatus) as denied:
            async with websockets.connect(f"{events}?token=wrong"):
                pass
        assert denied.value.response.status_code == 403
        for unknown in ("p0-nobody", "p7-nobody", "nobody"):
            assert (await http.delete(f"/api/sessions/{unknown}", headers=token)).status_code == 404

        health = (await http.get("/healthz")).json()
        assert health["sessions"] == 3
        assert health["max_sessions"] == 3
        assert [p["sessions"] for p in health["processes"]] in ([2, 1], [1, 2])
        text = (await http.get("/metrics")).text
        assert 'visavis_sessions{process="0"}' in text
        assert 'visavis_sessions{process="1"}' in text
        assert 'visavis_abuse_total{kind="token-wrong",process="' in text
        assert 'visavis_engine_ready{process="front"}' not in text
        assert (await http.delete(path, headers=token)).status_code == 204
        assert (await http.delete(path, headers=token)).status_code == 404


async def test_uploads_live_in_one_process_and_are_found_there(settings: Settings) -> None:
    async with clustered(settings) as (running, _):
        http = running.http
        ids = []
        for tint in (90, 140):
            async with httpx.AsyncClient(base_url=running.url, timeout=20.0) as person:
                made = await person.post(
                    "/api/portraits", params={"consent": "yes"}, content=png(paint_base(300, tint))
                )
                assert made.status_code == 201
                ids.append(made.json()["id"])
                for _ in range(2):
                    listed = [p["id"] for p in (await person.get("/api/portraits")).json()]
                    assert listed[-1] == ids[-1], "whoever uploaded it sees it"
                assert (await person.get(f"/api/portraits/{ids[-1]}/thumbnail")).status_code == 200
        assert [p["id"] for p in (await http.get("/api/portraits")).json()] == ["grey", "dark"]
        assert (await http.get("/api/portraits/grey/thumbnail")).status_code == 200
        async with client(running) as made_client:
            assert (await made_client.open(ids[0], size=256)).status_code == 201
            assert child_of(made_client.session_id, 2) == child_of(ids[0], 2)


async def test_a_process_that_dies_takes_only_its_own_sessions_and_comes_back(
    settings: Settings,
) -> None:
    async with (
        clustered(settings) as (running, cluster),
        client(running) as one,
        client(running) as two,
    ):
        assert (await one.open("grey", size=256)).status_code == 201
        assert (await two.open("grey", size=256)).status_code == 201
        await one.speak(np.zeros(9600, np.int16))
        victim = cluster.children[child_of(one.session_id, 2) or 0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: not victim.ready)
        gone = await running.http.delete(
            f"/api/sessions/{one.session_id}", headers={"Authorization": f"Bearer {one.token}"}
        )
        assert gone.status_code in (404, 503)
        assert (await running.http.get("/readyz")).status_code == 200, "one is enough"
        seen = len(two.frames)
        await two.speak(np.zeros(24_000, np.int16))
        # The other goes on; starting a process beside it takes what a small machine has.
        await until(lambda: len(two.frames) > seen, 20.0)
        await until(lambda: victim.ready, 60.0)
        assert victim.restarts == 1
        async with client(running) as again:
            assert (await again.open("grey", size=256)).status_code == 201
            assert child_of(again.session_id, 2) == victim.index


def test_a_cluster_whose_engines_cannot_run_says_so(settings: Settings) -> None:
    from realtime.serve import ServeError, run_server

    with pytest.raises(ServeError, match="no weights here"):
        run_server(dataclasses.replace(settings, port=0), make_app=broken_app)
