"""Everything that can be set about a server, with the defaults that ship."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.portrait import MAX_IMAGE_BYTES
from realtime.rtc import IceServer

EngineChoice = Literal["auto", "openvino", "tensorrt", "torch"]
PrecisionChoice = Literal["auto", "float32", "int8"]
_ORIGIN = re.compile(r"^https?://[\w.-]+(:\d{1,5})?$|^https?://\[[0-9a-fA-F:]+\](:\d{1,5})?$")
RtcChoice = Literal["visavis", "stock"]
MIN_VIDEO_BPS = 100_000
#: Up to so many cores, one is left to event loop and codecs.
SMALL_CORES = 4
ROOT = Path(__file__).resolve().parent.parent
WEB_DIR = ROOT / "web"


@dataclass(frozen=True, slots=True)
class Settings:
    """One server's settings; times end in `_s`, sizes in `_bytes` or `_px`."""

    host: str = "127.0.0.1"
    port: int = 8080
    engine: EngineChoice = "auto"
    checkpoint: Path | None = None
    precision: PrecisionChoice = "auto"
    """`auto`: INT8 where checkpoint and processor have it."""
    threads: int = 0
    """Inference threads; 0: see `inference_threads`."""
    max_size_px: int = 512
    max_sessions: int = 4
    """Upper bound; fewer are let in where they were measured not to fit (`realtime.admission`)."""
    max_sessions_per_address: int = 0
    """0: no limit besides `max_sessions`."""
    requests_per_s: float = 50.0
    """Of one address, with bursts of four seconds' worth; 0: no limit."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For is believed; none by default."""
    allowed_origins: tuple[str, ...] = ()
    """Other sites, as `https://name[:port]`, whose pages may use this server; none by default."""
    processes: int = 1
    """Server processes behind the one URL (`realtime.cluster`)."""
    session_prefix: str = ""
    """What session and upload ids begin with: the process that they live in."""
    idle_s: float = 1800.0
    """A session in which nobody speaks, moves or clicks for so long is closed; 0: never."""
    connect_s: float = 15.0
    watchdog_s: float = 4.0
    """A peer that sends nothing for so long has vanished; its place is free again."""
    resume_s: float = 30.0
    """How long a session waits for a vanished peer to come back; 0: not at all."""
    web_dir: Path = WEB_DIR
    portrait_dirs: tuple[Path, ...] = ()
    clip_dirs: tuple[Path, ...] = ()
    max_uploads: int = 32
    max_image_bytes: int = MAX_IMAGE_BYTES
    ice_servers: tuple[IceServer, ...] = ()
    public_ip: str | None = None
    udp_ports: tuple[int, int] | None = None
    """First and last UDP port for media; None: any."""
    max_video_bps: int = 0
    """Most that one session's pictures may take; 0: by their size."""
    playout_delay_ms: tuple[int, int] | None = None
    """Smallest and largest delay that viewers shall add; None: their own choice."""
    rtc: RtcChoice = "visavis"
    """`stock`: aiortc's own media layer, for comparisons."""
    allowed_hosts: tuple[str, ...] = ()
    """Further Host headers to answer; any when not bound to loopback and empty."""
    encode_threads: int = 2
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    stamp: bool = False
    """Draw every frame's number into its picture: for measurements, never in ordinary use."""
    mark: bool = False
    """Lay the visible mark over every picture; no session can switch it off then."""
    trace: bool = False
    """Begin a trace with every session."""
    prepare_portraits: bool = True
    """Prepare bundled portraits in the background after start-up."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if self.max_sessions < 1:
            raise ValueError(f"max_sessions must be at least 1, got {self.max_sessions}")
        if self.max_size_px not in (256, 384, 512):
            raise ValueError(f"size must be 256, 384 or 512, got {self.max_size_px}")
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")
        for origin in self.allowed_origins:
            if not _ORIGIN.match(origin):
                raise ValueError(f"an origin is https://name[:port], got {origin!r}")
        for proxy in self.trusted_proxies:
            ipaddress.ip_address(proxy)
        if self.public_ip is not None:
            ipaddress.ip_address(self.public_ip)
        if self.udp_ports is not None:
            first, last = self.udp_ports
            if not 1024 <= first <= last <= 65535:
                raise ValueError(f"UDP ports must be 1024 to 65535 in order, got {first}-{last}")
        if self.max_video_bps and self.max_video_bps < MIN_VIDEO_BPS:
            raise ValueError(f"video needs at least {MIN_VIDEO_BPS // 1000} kbit/s")
        if self.playout_delay_ms is not None:
            low, high = self.playout_delay_ms
            if not 0 <= low <= high <= 10_000:
                raise ValueError(f"playout delay must be 0 to 10000 ms in order, got {low}-{high}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs both a certificate and a key")

    @property
    def inference_threads(self) -> int:
        """`threads`; for 0 on a small processor all cores but one, else 0: the engine chooses.

        Two threads that wait for each other after every layer, on two cores that event loop and
        codecs need as well, are no faster in the middle and twice as slow at the 95th percentile
        as one thread (measured; realtime/DESIGN.md).
        """
        cores = os.cpu_count() or 1
        return self.threads or (max(1, cores - 1) if cores <= SMALL_CORES else 0)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        scheme = "https" if self.tls_certificate else "http"
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a client may send."""

    json_bytes: int = 98_304
    messages_per_s: float = 50.0
    message_burst: int = 100
    message_abuse: int = 2000
    """A session that sends so many messages too many is closed."""
    header_s: float = 10.0
    """A request's head must be there so soon after its first byte, or the connection."""
    json_s: float = 10.0
    upload_s: float = 60.0
    """A body must be there so soon."""
    url_bytes: int = 2048
    connections_per_address: int = 64
    subscribers: int = 4
    event_queue: int = 64
    event_messages: int = 8
    """A listener has nothing to say: a WebSocket that sends more than so many is closed."""
    parked: int = 64
    """Sessions that wait for their peers; the oldest ends when there are more."""
    name_chars: int = 64


LIMITS = Limits()


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
