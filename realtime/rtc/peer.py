"""`RtcPeer`: one WebRTC connection behind a small interface.

The server makes one per session and calls `accept`; the bench client and tests make one
and call `offer` and `set_answer`. Media is pushed in with capture positions and comes out
through a `PeerHandler`. Everything here belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial

import av
import numpy as np
from aiortc import RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcdtlstransport import RTCDtlsTransport
from numpy.typing import NDArray

from models.rates import WIRE_RATE_HZ
from realtime.rtc.audio_receive import AudioBlock, AudioReceiveBuffer
from realtime.rtc.connection import MediaOptions, PeerConnection
from realtime.rtc.description import (
    MAX_CANDIDATES,
    BadDescriptionError,
    NoResourcesError,
    announce,
    check_offer,
    parse_candidate,
    short_packets,
)
from realtime.rtc.media_path import MediaPath
from realtime.rtc.opus import OpusDecoder
from realtime.rtc.peer_options import PeerHandler, PeerOptions
from realtime.rtc.receivers import AudioReceiver, VideoReceiver
from realtime.rtc.rtp_receiver import RtpReceiver
from realtime.rtc.rtp_sender import RtpSender
from realtime.rtc.senders import AudioSender, VideoSender
from realtime.rtc.snapshot import snapshot
from realtime.rtc.stats import PeerStats
from realtime.rtc.timing import CaptureClock

CONTROL_LABEL = "control"
MAX_BUFFERED_BYTES = 262_144
MAX_AUDIO_BLOCKS = 50
_CLOSE_TIMEOUT_S = 3.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRINUSE)


class RtcPeer:
    """See the module's docstring.

    `encode_pool` runs the video encoder: a dedicated pool of the server, never the loop's
    default executor. `on_encoded` is called with (frame index, milliseconds, key frame).
    """

    def __init__(
        self,
        handler: PeerHandler,
        encode_pool: Executor,
        options: PeerOptions | None = None,
        *,
        on_encoded: Callable[[int, float, bool], None] | None = None,
    ) -> None:
        self._handler = handler
        self._options = options or PeerOptions()
        self._pool = encode_pool
        self._on_encoded = on_encoded
        self._audio_out: AudioSender | None = None
        self._video_out: VideoSender | None = None
        self._audio_in: AudioReceiver | None = None
        self._video_in: VideoReceiver | None = None
        self._channel: RTCDataChannel | None = None
        self._capture: CaptureClock | None = None
        self._audio_queue: deque[tuple[NDArray[np.int16], int]] = deque(maxlen=MAX_AUDIO_BLOCKS)
        self._audio_ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._candidates = 0
        self._connected = False
        self._close_task: asyncio.Task[None] | None = None
        self._paths: Callable[[], list[MediaPath]] = list
        self._pc = self._make_connection()
        self._pc.on("connectionstatechange", self._on_state)
        self._pc.on("datachannel", self._on_channel)

    # --- signalling -------------------------------------------------------------------

    async def accept(self, offer: str) -> str:
        """Answer an SDP offer. After BadDescriptionError or NoResourcesError close the peer."""
        cleaned = check_offer(offer)
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(cleaned, "offer"))
            self._prepare_answer()
            await self._pc.setLocalDescription()
        except (BadDescriptionError, NoResourcesError):
            raise
        except OSError as exc:
            if exc.errno in _EXHAUSTED:
                raise NoResourcesError(f"No socket is left: {exc.strerror}.") from exc
            raise BadDescriptionError(f"The offer cannot be answered: {exc}") from exc
        except Exception as exc:
            # aiortc raises many kinds for offers that parse but make no sense.
            raise BadDescriptionError(f"The offer cannot be answered: {exc}") from exc
        self._start()
        return self._finish(self._pc.localDescription.sdp)

    async def offer(self) -> str:
        """Make an offer with audio, video and the control channel (client side)."""
        self._prepare_offer()
        self._wire_channel(self._pc.createDataChannel(CONTROL_LABEL))
        await self._pc.setLocalDescription()
        self._start()
        return self._finish(self._pc.localDescription.sdp)

    async def set_answer(self, answer: str) -> None:
        """Take the answer to `offer`. Raises BadDescriptionError."""
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except Exception as exc:
            raise BadDescriptionError(f"The answer cannot be used: {exc}") from exc

    async def add_candidate(self, candidate: str) -> None:
        """Add a trickled candidate line; an empty one is ignored. Raises BadDescriptionError."""
        parsed = parse_candidate(candidate)
        if parsed is None or self._close_task is not None:
            return
        self._candidates += 1
        if self._candidates > MAX_CANDIDATES:
            raise BadDescriptionError("Too many ICE candidates.")
        transceiver = self._pc.getTransceivers()[0]
        await transceiver.receiver.transport.transport.addRemoteCandidate(parsed)

    # --- media ------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Media can flow now."""
        return self._connected and self._close_task is None

    def set_capture_origin(self, index: int) -> None:
        """Capture sample `index` (48 kHz) is happening now: sender reports follow this clock."""
        self._capture = CaptureClock.starting(index, WIRE_RATE_HZ)
        for sender in (self._audio_out, self._video_out):
            if sender is not None:
                sender.capture = self._capture

    def send_audio(self, pcm: NDArray[np.int16], index: int) -> None:
        """Send (n,) int16 mono captured from 48 kHz sample `index` on."""
        self._audio_queue.append((pcm, index))
        self._audio_ready.set()

    def send_frame(self, i420: NDArray[np.uint8], frame_index: int) -> None:
        """Send a picture (H * 3 / 2, W) uint8 I420 of 25 fps frame `frame_index`.

        Returns at once; a newer frame replaces one that the encoder has not begun.
        """
        if self._video_out is not None and self._close_task is None:
            self._video_out.push(i420, frame_index)

    def send_message(self, data: bytes) -> bool:
        """Send one text message; False if the channel is not open or the peer does not read."""
        channel = self._channel
        if channel is None or channel.readyState != "open":
            return False
        if channel.bufferedAmount > MAX_BUFFERED_BYTES:
            return False
        channel.send(data.decode())
        return True

    def request_key_frame(self) -> None:
        """Make the next sent frame a key frame (a viewer joined, a client asked)."""
        if self._video_out is not None:
            self._video_out.on_key_frame_request()

    def set_video_ceiling(self, bps: int) -> None:
        """Let the pictures take at most `bps` from now on."""
        if self._video_out is not None:
            self._video_out.set_ceiling(bps)

    def audio_time_s(self, index: int) -> float | None:
        """Remote sender's clock at received sample `index`, from its sender reports."""
        receiver = self._audio_in
        if receiver is None or receiver.buffer.rtp_offset is None:
            return None
        return receiver.remote_clock.seconds(index - receiver.buffer.rtp_offset)

    def video_time_s(self, pts: int) -> float | None:
        """Remote sender's clock at a received frame's `pts`, from its sender reports."""
        return None if self._video_in is None else self._video_in.remote_clock.seconds(pts)

    def stats(self) -> PeerStats:
        """The connection's figures now."""
        return snapshot(
            self._audio_in, self._video_in, self._audio_out, self._video_out, self._paths()
        )

    def close_soon(self, reason: str) -> None:
        """Begin to close and return at once."""
        self._begin_close(reason)

    async def close(self, reason: str = "closed") -> None:
        """Close and wait until everything of this peer has ended. Any number of times."""
        self._begin_close(reason)
        assert self._close_task is not None
        await asyncio.shield(self._close_task)

    # --- inside -----------------------------------------------------------------------

    def _make_connection(self) -> RTCPeerConnection:
        options = self._options
        media = MediaOptions(
            options.video_codecs, options.playout_delay_ms is not None, options.video_bps
        )
        connection = PeerConnection(options.ice, self._make_streams, media)
        self._path_of = connection.path
        self._paths = lambda: connection.paths
        return connection

    def _prepare_offer(self) -> None:
        self._pc.addTransceiver("audio", direction="sendrecv")
        self._pc.addTransceiver("video", direction="sendrecv")

    def _prepare_answer(self) -> None:
        for transceiver in self._pc.getTransceivers():
            for codec in transceiver._codecs:
                if codec.mimeType == "audio/opus":
                    codec.parameters = {"minptime": 10, "useinbandfec": 1, "stereo": 0}

    def _finish(self, text: str) -> str:
        return announce(short_packets(text), self._options.public_ip)

    def _make_streams(
        self, kind: str, transport: RTCDtlsTransport
    ) -> tuple[RtpSender, RtpReceiver] | None:
        if kind == "audio" and self._audio_out is None:
            self._audio_out = AudioSender(transport, self._path_of)
            self._audio_out.capture = self._capture
            decoder = OpusDecoder()
            buffer = AudioReceiveBuffer(
                decoder.decode, recover=decoder.recover, has_copy=decoder.has_copy
            )
            self._audio_in = AudioReceiver(transport, buffer)
            self._audio_in.on_blocks = self._on_blocks
            return self._audio_out, self._audio_in
        if kind == "video" and self._video_out is None:
            bps = self._options.video_bps
            self._video_out = VideoSender(transport, self._path_of, self._pool, bps)
            self._video_out.playout_delay_ms = self._options.playout_delay_ms
            self._video_out.capture = self._capture
            if self._on_encoded is not None:
                self._video_out.on_encoded = self._on_encoded
            self._video_in = VideoReceiver(transport)
            self._video_in.on_frame = self._on_frame
            return self._video_out, self._video_in
        return None

    def _start(self) -> None:
        self._spawn(self._run_watchdog(), "watchdog")
        self._spawn(self._run_audio(), "audio-send")

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{task.get_name()} failed", "exception": error}
            )
            self._begin_close("internal error")

    async def _run_audio(self) -> None:
        while True:
            await self._audio_ready.wait()
            self._audio_ready.clear()
            while self._audio_queue:
                pcm, index = self._audio_queue.popleft()
                if self._audio_out is not None:
                    await self._audio_out.push(pcm, index)

    async def _run_watchdog(self) -> None:
        """Connect in time, then keep hearing something; also feeds the round trip to NACKs."""
        started = heard_at = time.monotonic()
        heard = -1
        while True:
            await asyncio.sleep(0.25)
            now = time.monotonic()
            packets = self._packets_received()
            if packets != heard:
                heard, heard_at = packets, now
            if not self._connected and now - started > self._options.connect_s:
                self._begin_close("no connection in time")
            elif self._connected and now - heard_at > self._options.watchdog_s:
                self._begin_close("nothing received")
            if self._video_in is not None:
                known = [
                    s.round_trip_s
                    for s in (self._video_out, self._audio_out)
                    if s is not None and s.round_trip_s is not None
                ]
                if known:
                    self._video_in.buffer.round_trip_s = known[0]

    def _packets_received(self) -> int:
        transport = self._pc.getTransceivers()[0].receiver.transport
        report = transport._get_stats()[transport._stats_id]
        return int(report.packetsReceived)

    def _on_blocks(self, blocks: list[AudioBlock]) -> None:
        for block in blocks:
            if self._close_task is None:
                if self._capture is None:
                    self.set_capture_origin(block.index + len(block.pcm))
                self._guarded(partial(self._handler.on_audio, block))

    def _on_frame(self, frame: av.VideoFrame) -> None:
        if self._close_task is None:
            self._guarded(lambda: self._handler.on_video(frame))

    def _on_state(self) -> None:
        state = self._pc.connectionState
        if state == "connected" and not self._connected:
            self._connected = True
            self.request_key_frame()
            if self._audio_in is not None:
                self._audio_in.start_clock()
            self._handler.on_connected()
        elif state in ("failed", "closed"):
            self._begin_close("peer left" if self._connected else "connection failed")

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label != CONTROL_LABEL or self._channel is not None:
            channel.close()
            return
        self._wire_channel(channel)
        self._handler.on_channel_open()

    def _wire_channel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_channel_message)
        channel.on("open", self._handler.on_channel_open)

    def _on_channel_message(self, message: str | bytes) -> None:
        if self._close_task is None:
            data = message.encode() if isinstance(message, str) else message
            self._guarded(lambda: self._handler.on_message(data))

    def _guarded(self, call: Callable[[], None]) -> None:
        """A handler that raises ends its own session, and not through aiortc's receive loop."""
        try:
            call()
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a peer's handler failed", "exception": error}
            )
            self._begin_close("internal error")

    def _begin_close(self, reason: str) -> None:
        if self._close_task is None:
            loop = asyncio.get_running_loop()
            self._close_task = loop.create_task(self._close(reason), name="peer-close")

    async def _close(self, reason: str) -> None:
        me = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not me]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self._pc.close(), _CLOSE_TIMEOUT_S)
        except TimeoutError:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "peer connection did not close in time"}
            )
        except Exception as error:
            # Whatever aiortc stumbles over, the owner must learn that the peer is gone.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "peer connection did not close properly", "exception": error}
            )
        self._audio_queue.clear()
        self._handler.on_closed(reason)
