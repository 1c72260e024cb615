"""`visavis doctor`: what would run here, what would not, and the command that changes it."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av

from models.checkpoint import CheckpointError, open_checkpoint
from models.rates import FRAME_MS
from models.runtime import load_engine
from models.runtime.engine import EngineError
from models.runtime.frames import FrameRequest, frame_renderer
from realtime.finding import Check
from realtime.reach import check_ice_servers, check_udp_ports
from realtime.rtc import (
    AudioBlock,
    IceOptions,
    NoResourcesError,
    RtcPeer,
    libopus,
    libvpx,
    local_addresses,
    problems,
)
from realtime.settings import Settings

CONNECT_TIMEOUT_S = 5.0
_PACKAGES = (
    "aiortc", "aioice", "av", "numpy", "opencv-python-headless", "openvino", "starlette",
    "uvicorn", "uvloop", "websockets", "webrtcvad-wheels", "msgspec",
)  # fmt: skip


def examine(settings: Settings) -> Iterator[Check]:
    """Yield findings one after another; slow ones (engine, connection) come last."""
    checks: tuple[Callable[[Settings], Iterator[Check]], ...] = (
        check_machine, check_packages, check_codecs, check_gpu, check_page, check_port,
        check_addresses, check_udp_ports, check_ice_servers, check_checkpoint, check_engine,
        check_connection,
    )  # fmt: skip
    for check in checks:
        yield from check(settings)


def check_machine(settings: Settings) -> Iterator[Check]:
    """Python, cores, vector instructions."""
    supported = sys.version_info >= (3, 11)
    yield Check(
        "ok" if supported else "problem",
        "Python",
        platform.python_version(),
        "" if supported else "Install Python 3.11 or newer.",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = _cpu_flags()
    known = [
        name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags
    ]
    few = (cores or 1) < 2
    yield Check(
        "warning" if few else "ok",
        "CPU",
        f"{cores} cores, {platform.machine()}" + (f", {' '.join(known)}" if known else ""),
        "One core is too few for 25 pictures a second." if few else "",
    )


def check_packages(settings: Settings) -> Iterator[Check]:
    """Installed versions, and whether the WebRTC adapter fits its library."""
    missing = []
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if not (name == "uvloop" and sys.platform == "win32"):
                missing.append(name)
    yield Check("ok", "Packages", ", ".join(found))
    if missing:
        yield Check("problem", "Packages", f"missing: {', '.join(missing)}", "pip install -e .")
    for problem in problems():
        yield Check("problem", "WebRTC adapter", problem, "pip install 'aiortc==1.16.*'")


def check_codecs(settings: Settings) -> Iterator[Check]:
    """Whether libvpx and libopus are called directly; FFmpeg's wrappers work, but do less."""
    parts = (
        ("VP8", libvpx, "bit rate changes in place", "every change of bit rate costs a key frame"),
        ("Opus", libopus, "lost voice is won back from the next packet", "lost voice is invented"),
    )
    for subject, library, gain, price in parts:
        why = library.reason()
        if why is None:
            yield Check("ok", subject, f"{library.version()}, called directly: {gain}")
        else:
            detail = f"FFmpeg's wrapper, because {why}: {price}"
            yield Check("warning", subject, detail, "pip install --only-binary :all: 'av>=17'")


def check_gpu(settings: Settings) -> Iterator[Check]:
    """NVIDIA driver, card, TensorRT and built engines; one line where there is no driver."""
    from models.runtime.gpu_report import gpu_facts

    try:
        checkpoint = open_checkpoint(settings.checkpoint, verify=False)
    except CheckpointError:
        # `check_checkpoint` says what is wrong with it.
        checkpoint = None
    for fact in gpu_facts(checkpoint):
        yield Check(fact.verdict, fact.subject, fact.detail, fact.fix)


def check_page(settings: Settings) -> Iterator[Check]:
    """The page and the portraits."""
    page = settings.web_dir / "index.html"
    if not page.is_file():
        yield Check(
            "problem", "Page", f"{page.name} is missing", "pip install -e . in a full checkout"
        )
    folders = [settings.web_dir / "portraits", *settings.portrait_dirs]
    count = sum(len([*f.glob("*.jpg"), *f.glob("*.png"), *f.glob("*.webp")]) for f in folders)
    yield Check(
        "ok" if count else "warning",
        "Portraits",
        f"{count} pictures",
        "" if count else "visavis serve --portraits FOLDER",
    )


def check_port(settings: Settings) -> Iterator[Check]:
    """Whether the HTTP port is free."""
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as error:
        yield Check(
            "problem",
            "Port",
            f"{settings.host}:{settings.port} cannot be used: {error.strerror}",
            f"visavis serve --port {settings.port + 1}",
        )
    else:
        yield Check("ok", "Port", f"{settings.host}:{settings.port} is free")
    if not settings.loopback and settings.tls_certificate is None:
        yield Check(
            "warning",
            "TLS",
            "browsers give the microphone only to https pages of other machines",
            "visavis serve --tls-certificate CERT.pem --tls-key KEY.pem",
        )


def check_addresses(settings: Settings) -> Iterator[Check]:
    """What others can reach us at."""
    addresses = local_addresses(IceOptions(loopback=settings.loopback))
    if not addresses:
        yield Check("problem", "Network", "no address at all", "Connect this machine to a network.")
        return
    yield Check("ok", "Network", f"media go over UDP to {', '.join(addresses)}")
    if not settings.loopback and settings.public_ip is None and not settings.ice_servers:
        yield Check(
            "warning",
            "Network",
            "behind NAT nobody outside reaches these addresses",
            "visavis serve --public-ip ADDRESS, or --ice-server turn:HOST with credentials",
        )


def check_checkpoint(settings: Settings) -> Iterator[Check]:
    """The networks' weights."""
    try:
        checkpoint = open_checkpoint(settings.checkpoint)
    except CheckpointError as error:
        yield Check(
            "problem",
            "Checkpoint",
            str(error),
            "visavis train, or --checkpoint FOLDER, or git pull",
        )
        return
    name = checkpoint.config.name
    detail = f"{name}, lookahead {checkpoint.config.lookahead_ms} ms"
    yield Check("ok", "Checkpoint", detail)


def check_engine(settings: Settings) -> Iterator[Check]:
    """Load the engine and draw for a second."""
    try:
        start = time.perf_counter()
        engine = load_engine(
            settings.engine, settings.checkpoint, settings.threads, settings.precision
        )
        load_s = time.perf_counter() - start
    except (EngineError, CheckpointError) as error:
        yield Check("problem", "Engine", str(error), "visavis doctor --engine openvino")
        return
    import numpy as np

    size = engine.config.image_size
    picture = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    appearance = engine.appearance(picture)
    renderer = frame_renderer(engine)
    large = np.ascontiguousarray(picture.repeat(2, 0).repeat(2, 1))
    request = FrameRequest(appearance, large, appearance.code)
    took = []
    for _ in range(20):
        start = time.perf_counter()
        renderer.render([request])
        took.append((time.perf_counter() - start) * 1000)
    p50, p95 = np.percentile(took, (50, 95))
    slow = p95 > FRAME_MS
    yield Check(
        "warning" if slow else "ok",
        "Engine",
        f"{engine.name} ({engine.reason}); loaded in {load_s:.1f} s, "
        f"draws a frame in {p50:.1f} ms (p95 {p95:.1f})",
        "A frame has 40 ms: fewer sessions, no other work on this machine." if slow else "",
    )


def check_connection(settings: Settings) -> Iterator[Check]:
    """Connect to ourselves over WebRTC, as a browser on this machine would."""
    try:
        ice = IceOptions(settings.ice_servers, udp_ports=settings.udp_ports)
        took_ms = asyncio.run(_connect(ice))
    except NoResourcesError as error:
        yield Check("problem", "Connection", str(error), "visavis serve --udp-ports FIRST-LAST")
    except TimeoutError:
        yield Check(
            "problem",
            "Connection",
            f"two peers on this machine did not connect in {CONNECT_TIMEOUT_S:.0f} s",
            "A local firewall may drop UDP: allow it for Python.",
        )
    else:
        yield Check("ok", "Connection", f"WebRTC to ourselves in {took_ms:.0f} ms")


class _Probe:
    """A peer's handler that only waits to be connected."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()

    def on_connected(self) -> None:
        self.connected.set()

    def on_audio(self, block: AudioBlock) -> None:
        """Nothing is said."""

    def on_video(self, frame: av.VideoFrame) -> None:
        """Nothing is shown."""

    def on_channel_open(self) -> None:
        """Nothing is sent."""

    def on_message(self, data: bytes) -> None:
        """Nothing is received."""

    def on_closed(self, reason: str) -> None:
        """The time limit tells."""


async def _connect(ice: IceOptions) -> float:
    """Milliseconds until two own peers are connected. Raises TimeoutError."""
    from realtime.rtc import PeerOptions

    with ThreadPoolExecutor(1) as pool:
        probes = (_Probe(), _Probe())
        caller, callee = (RtcPeer(probe, pool, PeerOptions(ice=ice)) for probe in probes)
        start = time.perf_counter()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await caller.set_answer(await callee.accept(await caller.offer()))
                await asyncio.gather(*(probe.connected.wait() for probe in probes))
            return (time.perf_counter() - start) * 1000
        finally:
            await caller.close()
            await callee.close()


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(flags.partition(":")[2].split())
