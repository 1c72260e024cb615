"""One headless client: speaks, shows, and notes when everything came. Event loop only."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import av
import msgspec
import numpy as np
from numpy.typing import NDArray

from models.face import CANONICAL_POINTS
from models.rates import FPS, WIRE_RATE_HZ
from realtime.bench.errors import BenchError
from realtime.bench.impair import Impairment
from realtime.bench.media import Pixels, ThinLine, Voice
from realtime.bench.path import UdpPath, use_path
from realtime.bench.web import TraceReader, end_session, request
from realtime.protocol import ClientStats, Notice, SessionAnswer, Stats, decode_server, encode
from realtime.rtc import AudioBlock, RtcPeer
from realtime.stamp import read_stamp

CHUNK = WIRE_RATE_HZ // 100
"""10 ms, as the page sends."""
CHUNKS_PER_PICTURE = WIRE_RATE_HZ // CHUNK // FPS
CONNECT_TIMEOUT_S = 20.0
DRAIN_S = 0.5
TRACE_EVERY_S = 10.0
TRAFFIC_EVERY = 50
#: Side of the mouth's patch that is kept of every picture, and its share of the picture.
PATCH = 12
MOUTH_WIDTH, MOUTH_HEIGHT = 0.26, 0.20


@dataclass(frozen=True, slots=True)
class Seen:
    """One decoded picture."""

    at: float
    """Monotonic seconds."""
    pts: int
    number: int | None
    """The stamp in its pixels."""
    report_s: float | None
    """Its time on the sender's clock by the last sender report."""
    mouth: NDArray[np.float32]
    """(12, 12) luma around the mouth."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One piece of the returned voice."""

    at: float
    index: int
    samples: int
    concealed: bool
    report_s: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one client does."""

    portrait: str
    size: int
    seconds: float
    voice: Voice
    pictures: list[Pixels]
    impairment: Impairment
    seed: int
    delay_s: float = 0.0
    """Clients do not start in lockstep."""


@dataclass(slots=True)
class Record:
    """Everything one client noted; `measure` makes figures of it."""

    plan: Plan
    asked_at: float = 0.0
    connected_at: float = 0.0
    speech_at: float = 0.0
    sent: list[float] = field(default_factory=list)
    """When each 10 ms chunk left."""
    seen: list[Seen] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    line: ThinLine = field(default_factory=ThinLine)
    stats: Stats | None = None
    notices: list[str] = field(default_factory=list)
    path: UdpPath | None = None
    traffic: list[tuple[float, int, int]] = field(default_factory=list)
    """Monotonic seconds, bytes sent and received so far."""
    concealed_ms: float = 0.0
    filled_ms: float = 0.0
    trace: TraceReader | None = None


class Client:
    """A peer's handler. `run` is its whole life."""

    def __init__(self, url: str, plan: Plan) -> None:
        self.record = Record(plan)
        self._url = url
        self._pool = ThreadPoolExecutor(1, "bench-encode")
        self._connected = asyncio.Event()
        self._closed = ""
        self._answer: SessionAnswer | None = None
        self._path = UdpPath(plan.impairment, plan.seed)
        self.record.path = self._path
        use_path(self._path)
        self._peer = RtcPeer(self, self._pool)

    # --- PeerHandler ------------------------------------------------------------------

    def on_connected(self) -> None:
        """Media can flow."""
        self.record.connected_at = time.monotonic()
        self._connected.set()

    def on_audio(self, block: AudioBlock) -> None:
        """The next piece of the returned voice."""
        self.record.line.append(block.pcm, block.index)
        report = self._peer.audio_time_s(block.index)
        heard = Heard(time.monotonic(), block.index, len(block.pcm), block.concealed, report)
        self.record.heard.append(heard)

    def on_video(self, frame: av.VideoFrame) -> None:
        """The latest picture."""
        at = time.monotonic()
        if frame.pts is None:
            return
        luma = luma_plane(frame)
        report = self._peer.video_time_s(frame.pts)
        self.record.seen.append(Seen(at, frame.pts, read_stamp(luma), report, mouth_patch(luma)))

    def on_channel_open(self) -> None:
        """The server speaks first."""

    def on_message(self, data: bytes) -> None:
        """One message of the server; kinds that this client does not know are nobody's fault."""
        try:
            message = decode_server(data)
        except msgspec.DecodeError:
            return
        if isinstance(message, Stats):
            self.record.stats = message
        elif isinstance(message, Notice):
            self.record.notices.append(f"{message.code}: {message.message}")

    def on_closed(self, reason: str) -> None:
        """Whoever closed."""
        self._closed = reason
        self._connected.set()

    # --- life -------------------------------------------------------------------------

    async def run(self) -> Record:
        """Connect, speak, listen, end. Raises BenchError."""
        reader: asyncio.Task[None] | None = None
        record = self.record
        try:
            await asyncio.sleep(record.plan.delay_s)
            answer = await self._open()
            record.trace = TraceReader(self._url, answer)
            await asyncio.to_thread(record.trace.begin)
            reader = asyncio.create_task(self._read_trace(record.trace), name="bench-trace")
            await self._speak()
            await asyncio.sleep(DRAIN_S)
            self._check()
            await asyncio.to_thread(record.trace.read)
            stats = self._peer.stats()
            record.concealed_ms, record.filled_ms = stats.concealed_ms, stats.filled_ms
            return record
        finally:
            if reader is not None:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            await self._peer.close()
            self._path.close()
            self._pool.shutdown()
            if self._answer is not None:
                await asyncio.to_thread(end_session, self._url, self._answer)

    async def _open(self) -> SessionAnswer:
        plan = self.record.plan
        body: dict[str, Any] = {
            "sdp": await self._peer.offer(), "type": "offer", "portrait": plan.portrait,
            "size": plan.size, "sources": sources(bool(plan.pictures)),
        }  # fmt: skip
        self.record.asked_at = time.monotonic()
        answer = await self._ask(body)
        await self._peer.set_answer(answer.sdp)
        try:
            await asyncio.wait_for(self._connected.wait(), CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise BenchError("No media path to the server: is UDP blocked?") from None
        self._check()
        return answer

    async def _ask(self, body: dict[str, Any]) -> SessionAnswer:
        """Post the offer; what was made is known, and ended, even when this is cancelled."""
        post = asyncio.to_thread(request, "POST", f"{self._url}/api/sessions", body)
        asked = asyncio.create_task(post, name="bench-offer")
        try:
            raw = await asyncio.shield(asked)
        except asyncio.CancelledError:
            with contextlib.suppress(BenchError):
                self._answer = msgspec.json.decode(await asked, type=SessionAnswer)
            raise
        self._answer = msgspec.json.decode(raw, type=SessionAnswer)
        return self._answer

    async def _speak(self) -> None:
        """Send voice in 10 ms chunks and pictures at 25 fps, in real time."""
        record, plan = self.record, self.record.plan
        self._path.begin()
        start = record.speech_at = time.monotonic()
        self._peer.set_capture_origin(0)
        for k in range(int(plan.seconds * WIRE_RATE_HZ) // CHUNK):
            due = start + (k + 1) * CHUNK / WIRE_RATE_HZ
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._check()
            record.sent.append(time.monotonic())
            self._peer.send_audio(plan.voice.slice(k * CHUNK, CHUNK), k * CHUNK)
            if plan.pictures and k % CHUNKS_PER_PICTURE == 0:
                frame = k // CHUNKS_PER_PICTURE
                self._peer.send_frame(plan.pictures[frame % len(plan.pictures)], frame)
            if k % TRAFFIC_EVERY == 0:
                up, down = self._path.up.count, self._path.down.count
                record.traffic.append((record.sent[-1], up.bytes, down.bytes))
            if k % 100 == 99:
                self._report()

    def _report(self) -> None:
        """Tell the server what this receiver sees, as the page does."""
        now = time.monotonic()
        recent = [seen for seen in self.record.seen[-60:] if seen.at > now - 1.0]
        rtt_ms = self._peer.stats().round_trip_ms or 0.0
        self._peer.send_message(encode(ClientStats(fps=float(len(recent)), rtt_ms=rtt_ms)))

    async def _read_trace(self, trace: TraceReader) -> None:
        while True:
            await asyncio.sleep(TRACE_EVERY_S)
            await asyncio.to_thread(trace.read)

    def _check(self) -> None:
        if self._closed:
            told = "; ".join(self.record.notices)
            raise BenchError(f"The connection ended: {self._closed}. {told}".strip())


def sources(webcam: bool) -> dict[str, dict[str, str]]:
    """Who moves what: the webcam all but the lips, else nothing moves but the lips, so that
    the mouth's pixels tell of speech and of nothing else."""
    kind = "webcam" if webcam else "slider"
    return {factor: {"source": kind} for factor in ("pose", "eye", "exp")}


def luma_plane(frame: av.VideoFrame) -> Pixels:
    """(H, W) uint8 luma of a decoded yuv420p picture, not copied."""
    plane = frame.planes[0]
    flat: Pixels = np.frombuffer(memoryview(plane), np.uint8)
    lines = flat.reshape(-1, plane.line_size)
    return lines[: frame.height, : frame.width]


def mouth_patch(luma: Pixels) -> NDArray[np.float32]:
    """(12, 12) float32 means around the place where the mouth is in every portrait."""
    height, width = luma.shape
    x, y = float(CANONICAL_POINTS[2][0]), float(CANONICAL_POINTS[2][1])
    cell_w = max(1, int(MOUTH_WIDTH * width) // PATCH)
    cell_h = max(1, int(MOUTH_HEIGHT * height) // PATCH)
    left = int(x * width) - cell_w * PATCH // 2
    top = int(y * height) - cell_h * PATCH // 2
    area = luma[top : top + cell_h * PATCH, left : left + cell_w * PATCH].astype(np.float32)
    return np.asarray(area.reshape(PATCH, cell_h, PATCH, cell_w).mean((1, 3)), np.float32)


async def run_clients(url: str, plans: list[Plan]) -> list[Record]:
    """All at once; the first that fails ends them all. Raises BenchError."""

    async def one(plan: Plan) -> Record:
        return await Client(url, plan).run()

    tasks = [asyncio.create_task(one(plan), name=f"bench-{k}") for k, plan in enumerate(plans)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
