"""Server messages for one WebSocket, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque

from realtime.settings import LIMITS


class Subscription:
    """Server messages for one WebSocket; the oldest make room when it does not keep up."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque(maxlen=LIMITS.event_queue)
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, data: bytes) -> None:
        """Add one message."""
        self._queue.append(data)
        self._ready.set()

    def close(self) -> None:
        """The session has ended; `next` gives what is left, then None."""
        self._closed = True
        self._ready.set()

    async def next(self) -> bytes | None:
        """Return the next message, None after the end."""
        while not self._queue:
            if self._closed:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()
