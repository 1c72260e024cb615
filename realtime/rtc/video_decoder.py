"""A decoder thread that keeps only the latest picture."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable

import av

from realtime.rtc.video_receive import EncodedFrame

MAX_ENCODED_FRAMES = 30


class VideoDecoder:
    """A bounded queue in, the latest picture out."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        decoder: str,
        deliver: Callable[[av.VideoFrame, int], None],
        failed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._name = decoder
        self._deliver = deliver
        self._failed = failed
        self._queue: queue.Queue[EncodedFrame | None] = queue.Queue(MAX_ENCODED_FRAMES)
        self._lock = threading.Lock()
        self._latest: av.VideoFrame | None = None
        self._replaced = 0
        self._thread = threading.Thread(target=self._run, name="video-decode", daemon=True)
        self._thread.start()

    def put(self, frame: EncodedFrame) -> bool:
        """Queue one frame; False if the decoder fell a second behind (all is dropped)."""
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            self._clear()
            return False
        return True

    def stop(self) -> None:
        """End the thread and wait for it. Not on the event loop."""
        self._clear()
        self._queue.put(None)
        self._thread.join()

    def _clear(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            return

    def _run(self) -> None:
        codec = av.CodecContext.create(self._name, "r")
        assert isinstance(codec, av.VideoCodecContext)
        codec.thread_count = 1
        # H.264 decoders otherwise wait for frames that could be shown earlier.
        codec.options = {"flags": "low_delay"} if self._name == "h264" else {}
        while (encoded := self._queue.get()) is not None:
            packet = av.Packet(encoded.data)
            packet.pts = encoded.timestamp
            try:
                frames = codec.decode(packet)
            except av.FFmpegError:
                self._call(self._failed)
                continue
            for frame in frames:
                with self._lock:
                    waiting = self._latest is not None
                    self._replaced += int(waiting)
                    self._latest = frame
                if not waiting:
                    self._call(self._take)

    def _take(self) -> None:
        with self._lock:
            frame, self._latest = self._latest, None
            replaced, self._replaced = self._replaced, 0
        if frame is not None:
            self._deliver(frame, replaced)

    def _call(self, function: Callable[[], None]) -> None:
        # The loop may have closed; nobody is left to look at the picture.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)
