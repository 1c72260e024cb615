"""A thousand malformed offers, messages and pictures: no crash, no leak, each a clear answer.

`VISAVIS_MALFORMED=1000` makes it a thousand of each kind (`make fuzz` does); without it the
thousand requests are half offers and half pictures, and real offers with spoilt lines are fewer.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import tracemalloc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.config import ModelConfig
from realtime.control import Control
from realtime.hub import Hub
from realtime.pipeline import Pipeline
from realtime.protocol import Notice
from realtime.server import create_app
from realtime.settings import Limits, Settings
from tests.fakes import FakeClock, FakeEngine, fake_portrait, paint_base
from tests.fuzz.corpus import (
    bombs,
    image_seeds,
    malformed_requests,
    message_seeds,
    spoil,
    spoil_lines,
)
from tests.serving import FAKE_PARTS, Client, make_web, png

pytestmark = pytest.mark.unit

GROWTH_BYTES = 400_000
EACH = int(os.environ.get("VISAVIS_MALFORMED", "500"))
SPOILT_OFFERS = max(150, EACH if EACH > 500 else 0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    web = make_web(tmp_path / "web", {"grey": 120})
    return Settings(web_dir=web, requests_per_s=0.0, max_image_bytes=200_000, resume_s=0.0)


@asynccontextmanager
async def in_process(settings: Settings) -> AsyncIterator[tuple[httpx.AsyncClient, Hub]]:
    """The real application without a socket."""
    app = create_app(settings, engine_factory=FakeEngine, parts=FAKE_PARTS)  # type: ignore[arg-type]
    async with app.router.lifespan_context(app):
        hub: Hub = app.state.hub
        assert hub.ready is not None
        await hub.ready
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            yield http, hub


async def real_offer(http: httpx.AsyncClient) -> str:
    with ThreadPoolExecutor(1) as pool:
        made = Client(http, pool)
        offer = await made.peer.offer()
        await made.peer.close()
    return offer


def clear(response: httpx.Response, what: object) -> None:
    """A 4xx with a problem document in words, and nothing of our insides."""
    assert 400 <= response.status_code < 500, (what, response.status_code, response.text[:200])
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["title"]
    assert body["status"] == response.status_code
    for inside in ("Traceback", 'File "', "site-packages"):
        assert inside not in response.text


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_a_thousand_malformed_requests_are_refused_and_leave_nothing(
    settings: Settings,
) -> None:
    rng = random.Random(5)
    async with in_process(settings) as (http, hub):
        bodies = malformed_requests(await real_offer(http), rng)
        seeds, images = image_seeds(), bombs()
        assert (
            await http.post("/api/portraits?consent=yes", content=png(paint_base(300)))
        ).status_code == 201

        async def some(count: int) -> None:
            for what, body in islice(bodies, count):
                clear(await http.post("/api/sessions", content=body), what)
            for k in range(count):
                data = (
                    images[k % len(images)]
                    if k % 3 == 0
                    else rng.choice(seeds)[: rng.randrange(30)]
                )
                content = spoil(data, rng) if k % 2 else data
                clear(await http.post("/api/portraits?consent=yes", content=content), content[:40])

        tracemalloc.start()
        try:
            await some(EACH // 5)
            before, tasks = traced(), len(asyncio.all_tasks())
            await some(EACH - EACH // 5)
            grown = traced() - before
        finally:
            tracemalloc.stop()
        assert hub.session_count == 0
        assert len(asyncio.all_tasks()) <= tasks
        assert grown < GROWTH_BYTES, f"{grown} bytes stay after {EACH * 8 // 5} refusals"
        metrics = (await http.get("/metrics")).text
        assert 'visavis_abuse_total{kind="json-unusable"}' in metrics
        assert (await http.get("/readyz")).status_code == 200


async def test_offers_with_spoilt_lines_are_answered_or_refused_and_leave_nothing(
    settings: Settings,
) -> None:
    """Not every change makes an offer useless; what is answered must end like any session."""
    rng = random.Random(9)
    async with in_process(settings) as (http, hub):
        offer = await real_offer(http)
        tasks, statuses = len(asyncio.all_tasks()), []
        for _ in range(SPOILT_OFFERS):
            body = {"sdp": spoil_lines(offer, rng), "type": "offer", "portrait": "grey"}
            response = await http.post("/api/sessions", json=body)
            statuses.append(response.status_code)
            if response.status_code == 201:
                answer = response.json()
                token = {"Authorization": f"Bearer {answer['token']}"}
                path = f"/api/sessions/{answer['session_id']}"
                assert (await http.delete(path, headers=token)).status_code == 204
            else:
                clear(response, body["sdp"])
        assert statuses.count(400) > SPOILT_OFFERS // 3
        assert hub.session_count == 0
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) <= tasks


def test_a_thousand_malformed_messages_are_answered_in_words() -> None:
    rng, clock = random.Random(3), FakeClock()
    pipeline = Pipeline(fake_portrait(), ModelConfig(), size=256, clock=clock)
    generous = Limits(messages_per_s=1e9, message_burst=10**9)
    control = Control(pipeline, clock.monotonic, generous)
    seeds = message_seeds()
    refused = 0
    for k in range(1000):
        data = b"[" * 10_000 if k % 100 == 0 else spoil(rng.choice(seeds), rng)
        replies = control.handle(data)
        notices = [reply for reply in replies if isinstance(reply, Notice)]
        refused += bool(notices)
        assert all(notice.message and "Traceback" not in notice.message for notice in notices)
    assert refused > 700
    control.handle(seeds[3])
    assert pipeline.paused, "it still does what it is told"
