"""`StockPeer`: the same interface on aiortc's own media layer, for side-by-side measurements.

Written the way an ordinary aiortc server is: tracks with `recv()` that aiortc pulls from,
`await track.recv()` in a loop for what comes in, default encoders, jitter buffers, header
extensions and sender reports. It is not made slower than that either: a frame is handed
over as soon as it is there, without a wall-clock sleep between frames.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from fractions import Fraction
from functools import partial

import av
import numpy as np
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from numpy.typing import NDArray

from models.rates import FRAME_TICKS_90K, VIDEO_CLOCK_HZ, WIRE_RATE_HZ
from realtime.rtc.audio_receive import AudioBlock
from realtime.rtc.connection import IceOptions, tune_ice
from realtime.rtc.description import announce
from realtime.rtc.opus import to_mono
from realtime.rtc.peer import RtcPeer
from realtime.rtc.peer_options import PeerHandler, PeerOptions
from realtime.rtc.stats import FreezeMeter, PeerStats

#: What aiortc's examples and players use.
PACKET_SAMPLES = WIRE_RATE_HZ // 50
MAX_QUEUED = 100


class StockConnection(RTCPeerConnection):
    """aiortc's connection; only candidates are found as everywhere else, so that it connects."""

    def __init__(self, ice: IceOptions) -> None:
        self._ice_options = ice
        servers = [
            RTCIceServer(urls=s.url, username=s.username, credential=s.credential)
            for s in ice.servers
        ]
        super().__init__(RTCConfiguration(iceServers=servers))

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:
        create = super()._RTCPeerConnection__createDtlsTransport  # type: ignore[misc]
        transport: RTCDtlsTransport = create()
        tune_ice(transport.transport.iceGatherer._connection, self._ice_options)
        return transport


class VoiceTrack(MediaStreamTrack):
    """20 ms frames from a queue."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._queue: asyncio.Queue[av.AudioFrame] = asyncio.Queue(MAX_QUEUED)
        self._pending = np.zeros(0, np.int16)
        self._at = 0

    def push(self, pcm: NDArray[np.int16]) -> None:
        """Add (n,) int16 at 48 kHz; drops when nobody reads."""
        self._pending = np.concatenate([self._pending, pcm])
        while len(self._pending) >= PACKET_SAMPLES:
            chunk, self._pending = np.split(self._pending, [PACKET_SAMPLES])
            frame = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
            frame.sample_rate = WIRE_RATE_HZ
            frame.time_base = Fraction(1, WIRE_RATE_HZ)
            frame.pts = self._at
            self._at += PACKET_SAMPLES
            if not self._queue.full():
                self._queue.put_nowait(frame)

    async def recv(self) -> av.AudioFrame:
        """Called by aiortc's sender."""
        if self.readyState != "live":
            raise MediaStreamError
        return await self._queue.get()


class PictureTrack(MediaStreamTrack):
    """Pictures from a queue of a few; tells when aiortc asks for the next one."""

    kind = "video"

    def __init__(self, on_sent: Callable[[int, float, bool], None]) -> None:
        super().__init__()
        self.sent = 0
        self.dropped = 0
        self._on_sent = on_sent
        self._queue: asyncio.Queue[tuple[NDArray[np.uint8], int]] = asyncio.Queue(4)
        self._out: tuple[int, float] | None = None

    def push(self, i420: NDArray[np.uint8], index: int) -> None:
        """Add one picture; drops when nobody reads."""
        if self._queue.full():
            self.dropped += 1
        else:
            self._queue.put_nowait((i420, index))

    async def recv(self) -> av.VideoFrame:
        """Called by aiortc's sender, when the picture before is encoded and sent."""
        if self.readyState != "live":
            raise MediaStreamError
        if self._out is not None:
            index, at = self._out
            self._out = None
            self.sent += 1
            self._on_sent(index, (time.monotonic() - at) * 1000, False)
        i420, index = await self._queue.get()
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(i420), format="yuv420p")
        frame.pts = index * FRAME_TICKS_90K
        frame.time_base = Fraction(1, VIDEO_CLOCK_HZ)
        self._out = (index, time.monotonic())
        return frame


class StockPeer(RtcPeer):
    """See the module's docstring. Keeps `RtcPeer`'s signalling, channel and closing.

    Not there, because aiortc does not tell: the sender's clock of received media, and whether
    a sent picture was a key frame. `on_encoded` comes when aiortc has sent the picture.
    """

    def _make_connection(self) -> RTCPeerConnection:
        self._voice = VoiceTrack()
        self._pictures = PictureTrack(self._on_encoded or (lambda index, ms, key: None))
        self._index = 0
        self._seen = 0
        self._freezes = FreezeMeter()
        connection = StockConnection(self._options.ice)
        connection.on("track", self._on_track)
        return connection

    def _prepare_offer(self) -> None:
        self._pc.addTrack(self._voice)
        self._pc.addTrack(self._pictures)

    def _prepare_answer(self) -> None:
        self._prepare_offer()

    def _finish(self, text: str) -> str:
        return announce(text, self._options.public_ip)

    def set_capture_origin(self, index: int) -> None:
        """aiortc maps RTP time to the time of sending; there is nothing to set."""

    def send_audio(self, pcm: NDArray[np.int16], index: int) -> None:
        """Queue (n,) int16 mono at 48 kHz; aiortc counts samples, `index` is not used."""
        self._voice.push(pcm)

    def send_frame(self, i420: NDArray[np.uint8], frame_index: int) -> None:
        """Queue a picture (H * 3 / 2, W) uint8 I420 of 25 fps frame `frame_index`."""
        self._pictures.push(i420, frame_index)

    def request_key_frame(self) -> None:
        """Make the next sent frame a key frame."""
        for sender in self._pc.getSenders():
            if sender.kind == "video":
                sender._send_keyframe()

    def set_video_ceiling(self, bps: int) -> None:
        """aiortc has no such thing."""

    def audio_time_s(self, index: int) -> float | None:
        """Not told by aiortc."""
        return None

    def video_time_s(self, pts: int) -> float | None:
        """Not told by aiortc."""
        return None

    def stats(self) -> PeerStats:
        """What an application on aiortc knows without waiting."""
        return PeerStats(
            webcam_frames=self._seen,
            frames_sent=self._pictures.sent,
            frames_replaced=self._pictures.dropped,
            freezes=self._freezes.count,
            freeze_ms=self._freezes.total_ms,
            encoder="aiortc",
        )

    def _on_track(self, track: MediaStreamTrack) -> None:
        read = self._read_voice if track.kind == "audio" else self._read_pictures
        self._spawn(read(track), f"stock-{track.kind}")

    async def _read_voice(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame)
                pcm = to_mono(frame)
                block = AudioBlock(self._index, pcm, False, time.monotonic())
                self._index += len(pcm)
                self._guarded(partial(self._handler.on_audio, block))
        except MediaStreamError:
            return

    async def _read_pictures(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.VideoFrame)
                self._seen += 1
                self._freezes.on_frame(time.monotonic())
                self._guarded(partial(self._handler.on_video, frame))
        except MediaStreamError:
            return


def make_peer(
    handler: PeerHandler,
    encode_pool: Executor,
    options: PeerOptions | None = None,
    *,
    on_encoded: Callable[[int, float, bool], None] | None = None,
) -> RtcPeer:
    """The peer that `options.stock` asks for."""
    kind = StockPeer if options is not None and options.stock else RtcPeer
    return kind(handler, encode_pool, options, on_encoded=on_encoded)
