"""Portraits that sessions can use: bundled ones from folders, uploaded ones in memory.

Uploads are never written anywhere. An upload has an unguessable id; it is listed only for
the browser that made it (`owner`, a cookie) and used by whoever knows the id. The least
recently used upload makes room for a new one. Everything that needs the engine runs in
the render worker's thread; decoding runs in a thread of its own. The store itself belongs
to the event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from models.portrait import Portrait, PortraitError
from models.runtime.engine import Engine
from realtime.errors import NotFoundError, UnavailableError, UnusableError
from realtime.protocol import PortraitInfo
from realtime.worker import RenderWorker, WorkerBusyError

Pixels = NDArray[np.uint8]
T = TypeVar("T")
#: As large as the largest picture, so that the page can show it before the avatar moves.
THUMBNAIL_PX = 512
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_ID = re.compile(r"^[a-z0-9_-]{1,64}$")
_log = logging.getLogger("visavis.portraits")


class Prepare(Protocol):
    """`models.portrait.prepare_portrait`."""

    def __call__(self, image: Pixels, engine: Engine, *, id: str, name: str) -> Portrait:
        """(H, W, 3) uint8 RGB -> portrait; raises PortraitError."""


class _Listing(msgspec.Struct, frozen=True):
    """One entry of a folder's portraits.json."""

    id: str
    name: str
    file: str


@dataclass(slots=True)
class _Entry:
    info: PortraitInfo
    path: Path | None = None
    portrait: Portrait | None = None
    owner: str = ""
    thumbnail: bytes = b""
    preparing: asyncio.Task[Portrait] | None = None


class PortraitStore:
    """See the module's docstring."""

    def __init__(
        self,
        worker: RenderWorker,
        folders: Iterable[Path],
        *,
        max_uploads: int,
        decode: Callable[[bytes], Pixels],
        prepare: Prepare,
        prefix: str = "",
    ) -> None:
        """`prefix` begins the ids of uploads: the process that holds them (`realtime.cluster`)."""
        self._prefix = prefix
        self._worker = worker
        self._decode = decode
        self._prepare = prepare
        self._max_uploads = max_uploads
        self._uploads: OrderedDict[str, _Entry] = OrderedDict()
        self._bundled: dict[str, _Entry] = {}
        for folder in folders:
            for entry in _read_folder(folder):
                self._bundled.setdefault(entry.info.id, entry)

    @property
    def uploads(self) -> int:
        """Uploads in memory."""
        return len(self._uploads)

    def list(self, owner: str) -> list[PortraitInfo]:
        """Bundled portraits, then the uploads of `owner`, newest last."""
        mine = [e for e in self._uploads.values() if owner and _same(e.owner, owner)]
        return [entry.info for entry in (*self._bundled.values(), *mine)]

    async def add(self, data: bytes, name: str, owner: str) -> PortraitInfo:
        """Enrol an upload. Raises UnusableError (422), UnavailableError (503)."""
        image = await self._decoded(data)
        id = f"u-{self._prefix}{secrets.token_hex(16)}"
        info = PortraitInfo(id, name, "uploaded", f"/api/portraits/{id}/thumbnail")
        portrait = await self._call(
            lambda engine: self._prepare(image, engine, id=info.id, name=name)
        )
        thumbnail = await asyncio.to_thread(_thumbnail, portrait.image)
        self._uploads[id] = _Entry(info, portrait=portrait, owner=owner, thumbnail=thumbnail)
        while len(self._uploads) > self._max_uploads:
            self._uploads.popitem(last=False)
        return info

    async def get(self, id: str) -> Portrait:
        """Return a portrait, prepared now if it was not yet.

        Raises NotFoundError, UnusableError, UnavailableError.
        """
        entry = self._entry(id)
        return entry.portrait or await self._prepared(entry)

    async def thumbnail(self, id: str) -> bytes:
        """JPEG, square, at most `THUMBNAIL_PX`: the canonical crop once there is one.

        Raises NotFoundError.
        """
        entry = self._entry(id)
        if not entry.thumbnail and entry.path is not None:
            image = await self._decoded(entry.path.read_bytes())
            entry.thumbnail = await asyncio.to_thread(_thumbnail, image)
        return entry.thumbnail

    async def prepare_bundled(self, idle: asyncio.Event) -> None:
        """Prepare all bundled portraits one after another, whenever `idle` is set."""
        for entry in list(self._bundled.values()):
            await idle.wait()
            try:
                await self._prepared(entry)
            except UnusableError as error:
                _log.warning("portrait %s cannot be used: %s", entry.info.id, error.detail)
                del self._bundled[entry.info.id]

    async def close(self) -> None:
        """Forget everything; waits for preparations under way."""
        tasks = [e.preparing for e in self._bundled.values() if e.preparing is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._uploads.clear()

    def _entry(self, id: str) -> _Entry:
        if id in self._uploads:
            self._uploads.move_to_end(id)
            return self._uploads[id]
        if id in self._bundled:
            return self._bundled[id]
        raise NotFoundError("portrait-unknown", "There is no such portrait.")

    async def _prepared(self, entry: _Entry) -> Portrait:
        """Prepare a bundled portrait once, however many ask for it meanwhile."""
        if entry.portrait is not None:
            return entry.portrait
        if entry.preparing is None:
            entry.preparing = asyncio.create_task(
                self._prepare_file(entry), name=f"prepare-{entry.info.id}"
            )
            entry.preparing.add_done_callback(lambda _: setattr(entry, "preparing", None))
        return await asyncio.shield(entry.preparing)

    async def _prepare_file(self, entry: _Entry) -> Portrait:
        assert entry.path is not None
        data = await asyncio.to_thread(entry.path.read_bytes)
        image = await self._decoded(data)
        info = entry.info
        entry.portrait = await self._call(
            lambda engine: self._prepare(image, engine, id=info.id, name=info.name)
        )
        # The page shows it where the avatar will be: it must not jump when it starts to move.
        entry.thumbnail = await asyncio.to_thread(_thumbnail, entry.portrait.image)
        return entry.portrait

    async def _decoded(self, data: bytes) -> Pixels:
        try:
            return await asyncio.to_thread(self._decode, data)
        except PortraitError as error:
            raise _unusable(error) from error

    async def _call(self, run: Callable[[Engine], T]) -> T:
        try:
            return await asyncio.wrap_future(self._worker.call(run))
        except PortraitError as error:
            raise _unusable(error) from error
        except WorkerBusyError as error:
            raise UnavailableError("busy", str(error), retry_after_s=3) from error


def _unusable(error: PortraitError) -> UnusableError:
    return UnusableError(error.code.replace("_", "-"), str(error))


def _same(a: str, b: str) -> bool:
    return hmac.compare_digest(a.encode(), b.encode())


def _thumbnail(image: Pixels) -> bytes:
    """Central square of (H, W, 3) uint8 RGB as JPEG, never enlarged."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    if side > THUMBNAIL_PX:
        size = (THUMBNAIL_PX, THUMBNAIL_PX)
        square = np.asarray(cv2.resize(square, size, interpolation=cv2.INTER_AREA), np.uint8)
    bgr = cv2.cvtColor(square, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def _read_folder(folder: Path) -> list[_Entry]:
    """Portraits of a folder: those of its portraits.json, or else every picture in it."""
    listing = folder / "portraits.json"
    if listing.is_file():
        try:
            listed = msgspec.json.decode(listing.read_bytes(), type=list[_Listing])
        except (msgspec.DecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{listing} cannot be read: {error}") from error
        found = [(item.id, item.name, folder / item.file) for item in listed]
    elif folder.is_dir():
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
        found = [(_id_of(p.stem), p.stem.replace("_", " ").title(), p) for p in files]
    else:
        return []
    entries = []
    for id, name, path in found:
        inside = path.resolve().is_relative_to(folder.resolve())
        if not _ID.match(id) or not inside or not path.is_file():
            _log.warning("portrait %r in %s is skipped: bad id or file", id, folder)
            continue
        info = PortraitInfo(id, name, "bundled", f"/api/portraits/{id}/thumbnail")
        entries.append(_Entry(info, path=path))
    return entries


def _id_of(stem: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-")[:64]
