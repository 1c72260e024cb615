"""A real server in the test's own event loop, with fake networks, and clients for it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from models.portrait import Portrait, PortraitError
from models.runtime.engine import Engine
from realtime.admission import Demand, Verdict
from realtime.hub import Hub, Parts
from realtime.listening import server_config
from realtime.rtc import AudioBlock, RtcPeer
from realtime.server import create_app
from realtime.settings import Settings
from tests.fakes import FakeEngine, FakeTracker, paint_base

Pixels = NDArray[np.uint8]


def fake_prepare(image: Pixels, engine: Engine, *, id: str, name: str) -> Portrait:
    """Any picture is a portrait, unless it is black."""
    if float(image.mean()) < 8.0:
        raise PortraitError("no_face", "No face was found.")
    large = np.asarray(cv2.resize(image, (512, 512), interpolation=cv2.INTER_AREA), np.uint8)
    small = np.asarray(cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA), np.uint8)
    return Portrait(id, name, large, engine.appearance(small))


def everybody(demand: Demand) -> Verdict:
    """Let in as many as there are places: what a busy test machine measures is no matter here."""
    return Verdict(True)


FAKE_PARTS = Parts(make_tracker=FakeTracker, prepare=fake_prepare, admit=everybody)  # type: ignore[arg-type]


def png(image: Pixels) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG bytes."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])


def make_web(folder: Path, tints: dict[str, int]) -> Path:
    """A web folder with a page and portraits of the given background greys."""
    portraits = folder / "portraits"
    portraits.mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>page</title>")
    (folder / "main.js").write_text("export {};\n")
    (folder / "protocol.d.ts").write_text("export {};\n")
    listing = []
    for id, tint in tints.items():
        (portraits / f"{id}.png").write_bytes(png(paint_base(512, tint)))
        listing.append({"id": id, "name": id.title(), "file": f"{id}.png"})
    (portraits / "portraits.json").write_text(json.dumps(listing))
    return folder


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    hub: Hub
    http: httpx.AsyncClient


class _Server(uvicorn.Server):
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@asynccontextmanager
async def serving(
    settings: Settings,
    *,
    engine_factory: Callable[[], Engine] = FakeEngine,  # type: ignore[assignment]
    parts: Parts = FAKE_PARTS,
    wait: bool = True,
) -> AsyncIterator[Running]:
    """Run `create_app` under uvicorn on a free port of 127.0.0.1 until the block ends."""
    app = create_app(settings, engine_factory=engine_factory, parts=parts)
    config = server_config(app, settings)
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(server._serve([listener]), name="uvicorn")
        await server.up.wait()
        hub: Hub = app.state.hub
        assert hub.ready is not None
        if wait:
            await hub.ready
        try:
            async with httpx.AsyncClient(base_url=url, timeout=10.0) as http:
                yield Running(url, hub, http)
        finally:
            server.should_exit = True
            await task


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait until `condition()` is true; it is looked at every 10 ms."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- conditions of many kinds, without events
            await asyncio.sleep(0.01)


@dataclass(eq=False)
class Client:
    """A WebRTC client on this project's own low-latency peer; remembers what comes."""

    http: httpx.AsyncClient
    pool: ThreadPoolExecutor
    keep_frames: bool = True
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    blocks: list[AudioBlock] = field(default_factory=list)
    frames: list[tuple[int, av.VideoFrame]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    said: asyncio.Event = field(default_factory=asyncio.Event)
    session_id: str = ""
    token: str = ""
    peer: RtcPeer = field(init=False)

    def __post_init__(self) -> None:
        self.peer = RtcPeer(self, self.pool)

    def on_connected(self) -> None:
        self.connected.set()

    def on_audio(self, block: AudioBlock) -> None:
        self.blocks.append(block)

    def on_video(self, frame: av.VideoFrame) -> None:
        if self.keep_frames:
            self.frames.append((time.monotonic_ns(), frame))

    def on_channel_open(self) -> None:
        pass

    def on_message(self, data: bytes) -> None:
        self.messages.append(json.loads(data))
        self.said.set()

    def on_closed(self, reason: str) -> None:
        self.closed.set()

    async def open(self, portrait: str, **body: Any) -> httpx.Response:
        """Offer and take the answer; returns the response whatever it is."""
        sdp = await self.peer.offer()
        request = {"sdp": sdp, "type": "offer", "portrait": portrait, **body}
        response = await self.http.post("/api/sessions", json=request)
        if response.status_code == 201:
            answer = response.json()
            self.session_id, self.token = answer["session_id"], answer["token"]
            await self.peer.set_answer(answer["sdp"])
            async with asyncio.timeout(10):
                await self.connected.wait()
        return response

    async def message(self, kind: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
        """Wait for a message of a type whose fields have the given values."""
        async with asyncio.timeout(timeout_s):
            while True:
                for message in self.messages:
                    if message["type"] == kind and fields.items() <= message.items():
                        return message
                self.said.clear()
                await self.said.wait()

    def send(self, **message: Any) -> None:
        self.peer.send_message(json.dumps(message).encode())

    async def speak(self, pcm: NDArray[np.int16], *, chunk: int = 960) -> None:
        """Send (n,) int16 at 48 kHz in real time from sample 0 of this client's clock."""
        start = time.monotonic()
        self.peer.set_capture_origin(0)
        for at in range(0, len(pcm), chunk):
            due = start + (at + chunk) / 48000
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.peer.send_audio(pcm[at : at + chunk], at)


@asynccontextmanager
async def client(running: Running, **options: Any) -> AsyncIterator[Client]:
    """A client that is closed at the end, and its encoder pool with it."""
    pool = ThreadPoolExecutor(1, "client-encode")
    made = Client(running.http, pool, **options)
    try:
        yield made
    finally:
        await made.peer.close("test ends")
        pool.shutdown()
