"""Everything that can be set about a server, with the defaults that ship."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.portrait import MAX_IMAGE_BYTES
from realtime.rtc import IceServer

EngineChoice = Literal["auto", "openvino", "torch"]
ROOT = Path(__file__).resolve().parent.parent
WEB_DIR = ROOT / "web"


@dataclass(frozen=True, slots=True)
class Settings:
    """One server's settings; times end in `_s`, sizes in `_bytes` or `_px`."""

    host: str = "127.0.0.1"
    port: int = 8080
    engine: EngineChoice = "auto"
    checkpoint: Path | None = None
    threads: int = 0
    """Inference threads; 0 lets the engine choose."""
    max_size_px: int = 512
    max_sessions: int = 4
    max_sessions_per_address: int = 0
    """0: no limit besides `max_sessions`."""
    idle_s: float = 1800.0
    """A session in which nobody speaks, moves or clicks for so long is closed; 0: never."""
    connect_s: float = 15.0
    watchdog_s: float = 5.0
    web_dir: Path = WEB_DIR
    portrait_dirs: tuple[Path, ...] = ()
    clip_dirs: tuple[Path, ...] = ()
    max_uploads: int = 32
    max_image_bytes: int = MAX_IMAGE_BYTES
    ice_servers: tuple[IceServer, ...] = ()
    public_ip: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    """Further Host headers to answer; any when not bound to loopback and empty."""
    encode_threads: int = 2
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    prepare_portraits: bool = True
    """Prepare bundled portraits in the background after start-up."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0 to 65535, got {self.port}")
        if self.max_sessions < 1:
            raise ValueError(f"max_sessions must be at least 1, got {self.max_sessions}")
        if self.max_size_px not in (256, 384, 512):
            raise ValueError(f"size must be 256, 384 or 512, got {self.max_size_px}")
        if self.public_ip is not None:
            ipaddress.ip_address(self.public_ip)
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs both a certificate and a key")

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
    subscribers: int = 4
    event_queue: int = 64
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
