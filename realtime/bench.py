"""`visavis bench`: a headless client that measures a server from outside.

It speaks a recording (or speech-like noise) into a session, optionally shows a video, and
reports what a person on the other end would get: how long until connected and until the
first picture, how steadily pictures come, how long voice and picture take through the
server and back; beside it what the server says about itself. Percentiles, never means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import av
import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from models.rates import FPS, WIRE_RATE_HZ
from realtime.protocol import Notice, SessionAnswer, StageMs, Stats, decode_server
from realtime.rtc import AudioBlock, RtcPeer

Pcm = NDArray[np.int16]
Pixels = NDArray[np.uint8]

CHUNK = WIRE_RATE_HZ // 50
CONNECT_TIMEOUT_S = 20.0
SERVER_START_S = 300.0
DRAIN_S = 0.5
#: Where the voice is looked for in what comes back: a recording that is looped is there often.
EARLY_S, LATE_S = 1.0, 4.0
READY = re.compile(r"Visavis is ready: (\S+)")


class BenchError(RuntimeError):
    """The measurement could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure. Without `url` a server is started for the occasion."""

    url: str | None = None
    audio: Path | None = None
    video: Path | None = None
    seconds: float = 10.0
    sessions: int = 1
    portrait: str | None = None
    size: int = 512
    serve_args: tuple[str, ...] = ()


@dataclass(slots=True)
class SessionResult:
    """What one client measured. Milliseconds unless said otherwise."""

    connect_ms: float = 0.0
    first_frame_ms: float = 0.0
    fps: float = 0.0
    frames: int = 0
    interval_ms: StageMs = field(default_factory=lambda: StageMs(0, 0, 0))
    picture_ms: StageMs | None = None
    """From saying the first sample of a frame until its picture is decoded here."""
    voice_ms: StageMs | None = None
    """From saying a sample until it is decoded here again."""
    av_skew_ms: float | None = None
    """Picture minus voice, medians."""
    server: Stats | None = None
    """The server's last statistics."""
    notices: list[str] = field(default_factory=list)


@dataclass(slots=True)
class BenchResult:
    """A whole run."""

    url: str
    seconds: float
    machine: dict[str, str]
    rss_start_mb: float | None
    rss_end_mb: float | None
    sessions: list[SessionResult]

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(msgspec.to_builtins(asdict(self)), indent=2)


# --- one client -----------------------------------------------------------------------


class _Client:
    """A peer's handler that notes when everything came. Event loop."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.peer = RtcPeer(self, pool)
        self.connected = asyncio.Event()
        self.connected_at = 0.0
        self.closed = ""
        self.frames: list[tuple[float, int]] = []
        self.blocks: list[tuple[float, AudioBlock]] = []
        self.stats: Stats | None = None
        self.notices: list[str] = []
        self.said: list[float] = []

    def on_connected(self) -> None:
        self.connected_at = time.monotonic()
        self.connected.set()

    def on_audio(self, block: AudioBlock) -> None:
        self.blocks.append((time.monotonic(), block))

    def on_video(self, frame: av.VideoFrame) -> None:
        if frame.pts is not None:
            self.frames.append((time.monotonic(), frame.pts))

    def on_channel_open(self) -> None:
        """The server speaks first."""

    def on_message(self, data: bytes) -> None:
        message = decode_server(data)
        if isinstance(message, Stats):
            self.stats = message
        elif isinstance(message, Notice):
            self.notices.append(f"{message.code}: {message.message}")

    def on_closed(self, reason: str) -> None:
        self.closed = reason
        self.connected.set()

    async def speak(self, voice: Pcm, pictures: list[Pixels]) -> None:
        """Send voice in 20 ms chunks and pictures at 25 fps, in real time."""
        start = time.monotonic()
        self.peer.set_capture_origin(0)
        for k, at in enumerate(range(0, len(voice) - CHUNK + 1, CHUNK)):
            due = start + (at + CHUNK) / WIRE_RATE_HZ
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.said.append(time.monotonic())
            self.peer.send_audio(voice[at : at + CHUNK], at)
            if pictures and k % 2 == 0:
                self.peer.send_frame(pictures[(k // 2) % len(pictures)], k // 2)


async def _run_client(
    url: str, options: BenchOptions, portrait: str, voice: Pcm, pictures: list[Pixels]
) -> SessionResult:
    with ThreadPoolExecutor(1, "bench-encode") as pool:
        client = _Client(pool)
        answer: SessionAnswer | None = None
        try:
            offer = await client.peer.offer()
            body = {"sdp": offer, "type": "offer", "portrait": portrait, "size": options.size}
            if pictures:
                webcam = {"source": "webcam"}
                body["sources"] = {"pose": webcam, "eye": webcam, "exp": webcam}
            start = time.monotonic()
            raw = await asyncio.to_thread(_request, "POST", f"{url}/api/sessions", body)
            answer = msgspec.json.decode(raw, type=SessionAnswer)
            await client.peer.set_answer(answer.sdp)
            try:
                await asyncio.wait_for(client.connected.wait(), CONNECT_TIMEOUT_S)
            except TimeoutError:
                raise BenchError("No media path to the server: is UDP blocked?") from None
            if client.closed:
                raise BenchError(f"The connection ended: {client.closed}.")
            await client.speak(voice, pictures)
            await asyncio.sleep(DRAIN_S)
            if client.closed:
                raise BenchError(f"The connection ended: {client.closed}.")
            return _evaluate(client, start, voice)
        finally:
            await client.peer.close()
            if answer is not None:
                await asyncio.to_thread(_end, url, answer)


def _evaluate(client: _Client, start: float, voice: Pcm) -> SessionResult:
    if not client.frames:
        raise BenchError("Connected, but no picture came.")
    times = np.array([at for at, _ in client.frames])
    result = SessionResult(
        connect_ms=(client.connected_at - start) * 1000,
        first_frame_ms=float(times[0] - start) * 1000,
        fps=float((len(times) - 1) / max(times[-1] - times[0], 1e-9)),
        frames=len(times),
        interval_ms=percentiles(np.diff(times) * 1000),
        server=client.stats,
        notices=client.notices,
    )
    shift = _voice_shift([block for _, block in client.blocks], voice)
    if shift is None:
        return result
    said = np.array(client.said)

    def spoken_at(samples: NDArray[np.int64]) -> NDArray[np.float64]:
        """When each sample of the voice was captured: a chunk is sent at its own end."""
        chunk = np.clip(samples // CHUNK, 0, len(said) - 1)
        return said[chunk] - CHUNK / WIRE_RATE_HZ + (samples % CHUNK) / WIRE_RATE_HZ

    heard = [(at, b.index - shift) for at, b in client.blocks if not b.concealed]
    voice_ms = _delays(heard, spoken_at, len(voice))
    shown = []
    for at, pts in client.frames:
        video_s = client.peer.video_time_s(pts)
        audio_s = client.peer.audio_time_s(shift)
        if video_s is not None and audio_s is not None:
            shown.append((at, round((video_s - audio_s) * WIRE_RATE_HZ)))
    picture_ms = _delays(shown, spoken_at, len(voice))
    if len(voice_ms):
        result.voice_ms = percentiles(voice_ms)
    if len(picture_ms):
        result.picture_ms = percentiles(picture_ms)
    if result.voice_ms and result.picture_ms:
        result.av_skew_ms = result.picture_ms.p50 - result.voice_ms.p50
    return result


def _delays(
    events: list[tuple[float, int]],
    spoken_at: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    length: int,
) -> NDArray[np.float64]:
    """Milliseconds from being said to coming back; the first second does not count."""
    inside = [(at, n) for at, n in events if WIRE_RATE_HZ <= n < length]
    if not inside:
        return np.zeros(0)
    at = np.array([at for at, _ in inside])
    return (at - spoken_at(np.array([n for _, n in inside]))) * 1000


def _voice_shift(blocks: list[AudioBlock], voice: Pcm) -> int | None:
    """Index in the heard line minus index in the said one, by correlation; None if unlike."""
    if not blocks:
        return None
    first = blocks[0].index
    heard = np.concatenate([block.pcm for block in blocks]).astype(np.float64)
    middle = len(voice) // 3
    probe = voice[middle : middle + 2 * WIRE_RATE_HZ].astype(np.float64)
    if len(heard) <= len(probe) or not probe.any():
        return None
    size = 1 << (len(heard) + len(probe)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(probe, size))
    dots = np.fft.irfft(spectrum, size)[: len(heard) - len(probe)]
    begin = max(0, middle - int(EARLY_S * WIRE_RATE_HZ))
    near = dots[begin : middle + int(LATE_S * WIRE_RATE_HZ)]
    if not len(near):
        return None
    best = begin + int(np.argmax(near))
    window = heard[best : best + len(probe)]
    likeness = dots[best] / (np.linalg.norm(window) * np.linalg.norm(probe) + 1e-9)
    return first + best - middle if likeness > 0.5 else None


def percentiles(values: NDArray[np.float64]) -> StageMs:
    """p50, p95, p99 of a non-empty array, two decimals."""
    p50, p95, p99 = np.percentile(values, (50, 95, 99)) if len(values) else (0.0, 0.0, 0.0)
    return StageMs(round(float(p50), 2), round(float(p95), 2), round(float(p99), 2))


# --- media ----------------------------------------------------------------------------


def load_voice(path: Path | None, seconds: float) -> Pcm:
    """(n,) int16 at 48 kHz, looped or cut to `seconds`. Raises BenchError."""
    samples = int(seconds * WIRE_RATE_HZ)
    if path is None:
        return speech_like(samples)
    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler("s16", "mono", WIRE_RATE_HZ)
            frames = [
                out for frame in container.decode(audio=0) for out in resampler.resample(frame)
            ]
            frames += resampler.resample(None)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise BenchError(f"{path} holds no sound that can be read.") from error
    voice = np.concatenate([np.asarray(frame.to_ndarray(), np.int16)[0] for frame in frames])
    return np.resize(voice, samples)


def speech_like(samples: int) -> Pcm:
    """Voiced bursts with a gliding pitch and pauses: enough for a mouth to follow."""
    rng = np.random.default_rng(7)
    at = np.arange(samples) / WIRE_RATE_HZ
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.4 * at)
    phase = 2 * np.pi * np.cumsum(pitch) / WIRE_RATE_HZ
    buzz = sum(np.sin(k * phase) / k for k in range(1, 16))
    gate = np.zeros(samples)
    place = 0
    while place < samples:
        on, off = (rng.uniform(0.12, 0.4, 2) * WIRE_RATE_HZ).astype(int)
        gate[place : place + on] = 1.0
        place += on + off
    gate = np.convolve(gate, np.hanning(960) / 480, "same")
    noise = rng.normal(0, 0.05, samples)
    return np.asarray(6000 * (buzz + noise) * gate, np.int16)


def load_pictures(path: Path | None, seconds: float) -> list[Pixels]:
    """I420 pictures of a video at 25 fps, at most 640 wide. Raises BenchError."""
    if path is None:
        return []
    pictures: list[Pixels] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                due = len(pictures) / FPS
                if frame.time + 1e-6 >= due:
                    pictures.append(_i420(frame))
                if len(pictures) >= min(seconds, 60) * FPS:
                    break
    except (av.FFmpegError, IndexError, OSError) as error:
        raise BenchError(f"{path} holds no pictures that can be read.") from error
    return pictures


def _i420(frame: av.VideoFrame) -> Pixels:
    scale = min(1.0, 640 / frame.width)
    width, height = (int(n * scale) // 2 * 2 for n in (frame.width, frame.height))
    rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2YUV_I420), np.uint8)


# --- the server -----------------------------------------------------------------------


def _request(method: str, url: str, body: object = None, token: str = "") -> bytes:
    """One HTTP request; blocks. Raises BenchError with the server's own words."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json"} if data else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30, context=_tls(url)) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        raise BenchError(f"{url} answered {error.code}: {text}") from None
    except OSError as error:
        raise BenchError(f"{url} cannot be reached: {error}") from None


def _tls(url: str) -> ssl.SSLContext | None:
    return ssl.create_default_context() if url.startswith("https") else None


def _end(url: str, answer: SessionAnswer) -> None:
    with contextlib.suppress(BenchError):
        _request("DELETE", f"{url}/api/sessions/{answer.session_id}", token=answer.token)


def server_rss_mb(url: str) -> float | None:
    """Resident memory of the server process by its own metrics; None where it does not tell."""
    with contextlib.suppress(BenchError):
        text = _request("GET", f"{url}/metrics").decode()
        found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        if found:
            return round(float(found[1]) / 2**20, 1)
    return None


@contextlib.contextmanager
def own_server(options: BenchOptions) -> Iterator[str]:
    """Start `visavis serve` on a free port in a process of its own; gives its address."""
    command = [sys.executable, "-m", "realtime.cli", "serve", "--port", "0"]
    command += ["--max-sessions", str(options.sessions), *options.serve_args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := READY.search(line):
                yield found[1]
                return
        raise BenchError("The server did not start; `visavis doctor` tells why.")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run_bench(options: BenchOptions) -> BenchResult:
    """Measure; blocks for about `seconds` plus the server's start. Raises BenchError."""
    voice = load_voice(options.audio, options.seconds)
    pictures = load_pictures(options.video, options.seconds)
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(own_server(options))
        url = url.rstrip("/")
        portrait = options.portrait or _first_portrait(url)
        before = server_rss_mb(url)
        sessions = asyncio.run(_run_clients(url, options, portrait, voice, pictures))
        after = server_rss_mb(url)
    return BenchResult(url, options.seconds, machine(), before, after, sessions)


async def _run_clients(
    url: str, options: BenchOptions, portrait: str, voice: Pcm, pictures: list[Pixels]
) -> list[SessionResult]:
    runs = [_run_client(url, options, portrait, voice, pictures) for _ in range(options.sessions)]
    return list(await asyncio.gather(*runs))


def _first_portrait(url: str) -> str:
    portraits = json.loads(_request("GET", f"{url}/api/portraits"))
    if not portraits:
        raise BenchError("The server has no portrait.")
    return str(portraits[0]["id"])


def machine() -> dict[str, str]:
    """Where this was measured."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "visavis": version("visavis"),
        "aiortc": version("aiortc"),
        "openvino": version("openvino"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True,
            timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
