"""Passes requests on to another process of this server over a Unix socket. Front's loop.

Only signalling goes through here, a few kilobytes per conversation: bodies are read whole, within
the bounds that the front has checked. Media never comes near it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h11
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from realtime.errors import UnavailableError, problem_response

CONNECT_S = 10.0
#: Opening a session may prepare its portrait first.
ANSWER_S = 60.0
MAX_ANSWER_BYTES = 32 * 2**20
#: Headers about one connection only (RFC 9110, section 7.6.1); the others are passed on.
_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"content-length", b"x-forwarded-for",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response of another process."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def response(self) -> Response:
        """The same for the client."""
        response = Response(self.body, self.status)
        length = [(k, v) for k, v in response.raw_headers if k == b"content-length"]
        response.raw_headers = [(k, v) for k, v in self.headers if k not in _HOP] + length
        return response


async def ask(
    path: Path,
    method: str,
    target: str,
    headers: list[tuple[bytes, bytes]] | None = None,
    body: bytes = b"",
    *,
    timeout_s: float = ANSWER_S,
) -> Answer:
    """One request to the process that listens at `path`. Raises UnavailableError."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                return await _exchange(reader, writer, method, target, headers or [], body)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
        text = "The process that has this is being started again."
        raise UnavailableError("not-ready", text, retry_after_s=2) from error


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    target: str,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> Answer:
    connection = h11.Connection(h11.CLIENT)
    sent = [*headers, (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if not any(name == b"host" for name, _ in sent):
        sent.append((b"host", b"localhost"))
    for out in (
        h11.Request(method=method, target=target, headers=sent),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ):
        writer.write(connection.send(out) or b"")
    await writer.drain()
    status, answer_headers, parts, size = 502, [], [], 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65_536))
        elif isinstance(event, h11.Response):
            status, answer_headers = event.status_code, list(event.headers)
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > MAX_ANSWER_BYTES:
                raise OSError("the answer is too long")
            parts.append(bytes(event.data))
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return Answer(status, answer_headers, b"".join(parts))


def passed_on(request: Request | WebSocket) -> list[tuple[bytes, bytes]]:
    """The client's headers, and whose they are."""
    headers = [(name, value) for name, value in request.scope["headers"] if name not in _HOP]
    client = request.client.host if request.client else ""
    return [*headers, (b"x-forwarded-for", client.encode("latin-1", "replace"))]


def target_of(request: Request | WebSocket) -> str:
    """Path and query as they came."""
    path = request.scope.get("raw_path") or request.scope["path"].encode()
    query = request.scope.get("query_string", b"")
    return str((path + (b"?" + query if query else b"")).decode("ascii"))


async def relay(websocket: WebSocket, path: Path) -> None:
    """Pass a WebSocket on. What the other process refuses is refused with its own answer."""
    skip = ("host", "sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions")
    headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in passed_on(websocket)]
    host = next((value for name, value in headers if name == "host"), "localhost")
    try:
        upstream = await unix_connect(
            str(path), f"ws://{host}{target_of(websocket)}", compression=None, proxy=None,
            additional_headers=[(k, v) for k, v in headers if k not in skip],
            open_timeout=CONNECT_S,
        )  # fmt: skip
    except InvalidStatus as refused:
        answer = refused.response
        pairs = [(k.lower().encode(), v.encode("latin-1")) for k, v in answer.headers.raw_items()]
        denial = Answer(answer.status_code, pairs, bytes(answer.body or b"")).response()
        await websocket.send_denial_response(denial)
        return
    except (OSError, TimeoutError):
        denial = problem_response(503, "Not available now", code="not-ready")
        await websocket.send_denial_response(denial)
        return
    await websocket.accept()
    async with upstream:
        await _pump(websocket, upstream)


async def _pump(websocket: WebSocket, upstream: ClientConnection) -> None:
    async def down() -> None:
        try:
            async for message in upstream:
                await websocket.send_text(str(message))
        finally:
            with suppress(RuntimeError):
                await websocket.close(upstream.close_code or 1000)

    async def up() -> None:
        with suppress(WebSocketDisconnect, ConnectionClosed):
            while True:
                await upstream.send(await websocket.receive_text())

    tasks = [asyncio.create_task(down()), asyncio.create_task(up())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
