"""What a peer is told when it is made, and what it tells its owner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import av

from realtime.rtc.audio_receive import AudioBlock
from realtime.rtc.connection import VIDEO_CODECS, IceOptions


class PeerHandler(Protocol):
    """What a peer tells its owner, always on the event loop. Must return quickly."""

    def on_connected(self) -> None:
        """Media can flow."""

    def on_audio(self, block: AudioBlock) -> None:
        """The next block of the unbroken audio line (see `audio_receive`)."""

    def on_video(self, frame: av.VideoFrame) -> None:
        """The latest received picture; `pts` is its unwrapped 90 kHz RTP timestamp."""

    def on_channel_open(self) -> None:
        """`send_message` works from now on."""

    def on_message(self, data: bytes) -> None:
        """One message of the control channel."""

    def on_closed(self, reason: str) -> None:
        """Called once, whoever closed."""


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """Settings of one connection."""

    ice: IceOptions = field(default_factory=IceOptions)
    public_ip: str | None = None
    video_bps: int = 1_500_000
    """Most that the pictures may take; the rate starts there and follows the path."""
    video_codecs: tuple[str, ...] = VIDEO_CODECS
    """In order of preference."""
    playout_delay_ms: tuple[int, int] | None = None
    """Smallest and largest delay that a receiver shall add; None: its own choice."""
    connect_s: float = 15.0
    watchdog_s: float = 4.0
    """Closed after so long without a packet."""
    stock: bool = False
    """Use aiortc's own media layer, for comparisons (see `make_peer`)."""
