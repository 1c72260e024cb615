"""HTTP and WebSocket: Starlette routes around a `Hub`. No media passes through here.

Answers other than success are RFC 9457 problems (`realtime.errors`). No cross-origin
access: no CORS headers are ever sent, a foreign `Origin` is refused on everything that
changes state, and a server bound to loopback answers only to loopback names, so that no
web page elsewhere can reach it by renaming itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from models.runtime.engine import Engine
from realtime.errors import (
    BadRequestError,
    ProblemError,
    TooLargeError,
    TooManyError,
    on_exception,
    on_http_exception,
    on_problem,
    problem_response,
)
from realtime.hub import Hub, Parts
from realtime.metrics import CONTENT_TYPE
from realtime.protocol import Candidate, SessionRequest
from realtime.rtc import BadDescriptionError, IceServer
from realtime.settings import LIMITS, Settings, is_loopback

T = TypeVar("T")
OWNER_COOKIE = "visavis_owner"
_OWNER_AGE_S = 30 * 24 * 3600
_FORM_EXTRA_BYTES = 4096
_PAGE_SUFFIXES = {
    ".html", ".js", ".css", ".svg", ".png", ".jpg", ".jpeg", ".webp", ".ico", ".json",
    ".webmanifest", ".woff2", ".txt",
}  # fmt: skip
_PRIVATE_FILES = {"tsconfig.json", "package.json", "package-lock.json"}
_YES = {"yes", "true", "1", "on"}
_SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"media-src 'self' blob:; connect-src 'self'; font-src 'self'; manifest-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(self), geolocation=()"),
)


def create_app(
    settings: Settings,
    *,
    engine_factory: Callable[[], Engine],
    parts: Parts | None = None,
) -> Starlette:
    """Make the application; `app.state.hub` is its `Hub` once it runs.

    `engine_factory` is called in the render worker's thread when the application starts.
    `parts` replaces what a test cannot have.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        hub = Hub(settings, engine_factory, parts)
        app.state.hub = hub
        await hub.start()
        try:
            yield
        finally:
            await hub.stop()

    app = Starlette(
        routes=[
            # Its own mount, so that a wrong method is a 405 and not a page that is missing.
            Mount("/api", routes=_API),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Mount("/", PageFiles(settings.web_dir)),
        ],
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers={
            ProblemError: on_problem,
            HTTPException: on_http_exception,
            Exception: on_exception,
        },
        lifespan=lifespan,
    )
    app.state.settings = settings
    return app


# --- sessions -------------------------------------------------------------------------


async def create_session(request: Request) -> Response:
    """Open a session: SDP offer in, answer and token out."""
    hub = _hub(request)
    body = await read_json(request, SessionRequest)
    address = request.client.host if request.client else ""
    answer = await hub.open_session(body, address)
    headers = {"Location": f"/api/sessions/{answer.session_id}", "Cache-Control": "no-store"}
    if hub.settings.ice_servers:
        headers["Link"] = ", ".join(map(_ice_link, hub.settings.ice_servers))
    return _json(answer, 201, headers)


async def delete_session(request: Request) -> Response:
    """End a session."""
    session = _hub(request).session(request.path_params["id"], _bearer(request.headers))
    await session.close("ended by the client")
    return Response(status_code=204)


async def add_candidate(request: Request) -> Response:
    """Trickle one ICE candidate."""
    session = _hub(request).session(request.path_params["id"], _bearer(request.headers))
    body = await read_json(request, Candidate)
    try:
        await session.add_candidate(body.candidate)
    except BadDescriptionError as error:
        raise BadRequestError("candidate-unusable", str(error)) from error
    return Response(status_code=204)


async def events(websocket: WebSocket) -> None:
    """Send the server's messages of a session as text until either side ends."""
    hub: Hub = websocket.app.state.hub
    try:
        session = hub.session(websocket.path_params["id"], websocket.query_params.get("token"))
        subscription = session.subscribe()
        if subscription is None:
            raise TooManyError("too-many-listeners", "Too many listen already.", retry_after_s=5)
    except ProblemError as error:
        denial = problem_response(
            error.status, error.title, code=error.code, detail=error.detail, headers=error.headers
        )
        await websocket.send_denial_response(denial)
        return
    await websocket.accept()
    try:
        await _stream(websocket, subscription.next)
    finally:
        session.unsubscribe(subscription)
        subscription.close()


# --- portraits ------------------------------------------------------------------------


async def list_portraits(request: Request) -> Response:
    """Bundled portraits and this browser's own uploads."""
    owner = request.cookies.get(OWNER_COOKIE, "")
    infos = _hub(request).portraits.list(owner)
    return _json(infos, 200, {"Cache-Control": "no-store", "Vary": "Cookie"})


async def add_portrait(request: Request) -> Response:
    """Enrol a picture: raw bytes, or a form with the fields `image`, `name`, `consent`."""
    hub = _hub(request)
    hub.require_engine()
    data, fields = await read_picture(request, hub.settings.max_image_bytes)
    if fields.get("consent", "").lower() not in _YES:
        raise BadRequestError(
            "consent-missing",
            "Confirm with consent=yes that the person in the picture agrees.",
            title="Consent is needed",
        )
    name = " ".join(fields.get("name", "").split())[: LIMITS.name_chars] or "My portrait"
    owner = request.cookies.get(OWNER_COOKIE, "")
    if not 16 <= len(owner) <= 64:
        owner = secrets.token_urlsafe(24)
    info = await hub.portraits.add(data, name, owner)
    hub.metrics.portraits.set(hub.portraits.uploads)
    response = _json(info, 201, {"Cache-Control": "no-store"})
    response.set_cookie(
        OWNER_COOKIE, owner, max_age=_OWNER_AGE_S, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return response


async def thumbnail(request: Request) -> Response:
    """A JPEG of a portrait, for whoever knows its id."""
    data = await _hub(request).portraits.thumbnail(request.path_params["id"])
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


# --- state of the server --------------------------------------------------------------


async def healthz(request: Request) -> Response:
    """Alive; which engine runs and why."""
    hub = _hub(request)
    name = hub.engine.name if hub.engine else "none"
    body = {
        "status": "alive",
        "engine": {"name": name, "reason": hub.engine_reason},
        "sessions": hub.session_count,
        "max_sessions": hub.settings.max_sessions,
    }
    return _json(body, 200, {"Cache-Control": "no-store"})


async def readyz(request: Request) -> Response:
    """200 once the engine is warm."""
    _hub(request).require_engine()
    return _json({"status": "ready"}, 200, {"Cache-Control": "no-store"})


async def metrics(request: Request) -> Response:
    """Prometheus exposition."""
    return Response(_hub(request).metrics.text(), media_type=CONTENT_TYPE)


_API = (
    Route("/sessions", create_session, methods=["POST"]),
    Route("/sessions/{id}", delete_session, methods=["DELETE"]),
    Route("/sessions/{id}/candidates", add_candidate, methods=["POST"]),
    WebSocketRoute("/sessions/{id}/events", events),
    Route("/portraits", list_portraits, methods=["GET"]),
    Route("/portraits", add_portrait, methods=["POST"]),
    Route("/portraits/{id}/thumbnail", thumbnail, methods=["GET"]),
)


# --- reading what clients send --------------------------------------------------------


async def read_body(request: Request, limit: int) -> bytes:
    """Read at most `limit` bytes. Raises TooLargeError as soon as it is known."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


async def read_json(request: Request, kind: type[T]) -> T:
    """Read and check a JSON body. Raises BadRequestError, TooLargeError."""
    body = await read_body(request, LIMITS.json_bytes)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError("json-unusable", f"The JSON body cannot be used: {error}") from error


async def read_picture(request: Request, limit: int) -> tuple[bytes, dict[str, str]]:
    """Return picture bytes and text fields of an upload, raw or multipart.

    Fields of a raw upload come from the query; consent may also be a header.
    """
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    fields = dict(request.query_params)
    if "consent" in request.headers:
        fields["consent"] = request.headers["consent"]
    if kind != b"multipart/form-data":
        return await read_body(request, limit), fields
    body = await read_body(request, limit + _FORM_EXTRA_BYTES)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(
            request.headers, stream(), max_files=1, max_fields=8, max_part_size=_FORM_EXTRA_BYTES
        )
        # Uploads stay in memory: nothing may spill into a temporary file.
        parser.spool_max_size = limit + _FORM_EXTRA_BYTES
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise BadRequestError("form-unusable", "The form could not be read.") from error
    data = b""
    for key, value in form.multi_items():
        if isinstance(value, str):
            fields[key] = value
        else:
            data = await value.read()
    await form.close()
    if not data:
        raise BadRequestError("picture-missing", "The form holds no picture.")
    return data, fields


def _too_large(limit: int) -> TooLargeError:
    size = f"{limit // 2**20} MB" if limit >= 2**20 else f"{limit // 1024} kB"
    return TooLargeError("body-too-large", f"At most {size} can be sent here.")


# --- helpers --------------------------------------------------------------------------


def _hub(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub


def _json(body: object, status: int, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _bearer(headers: Headers) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _ice_link(server: IceServer) -> str:
    """RFC 9725 section 4.6: `<turn:host>; rel="ice-server"; username="u"; credential="c"`."""
    parts = [f"<{server.url}>", 'rel="ice-server"']
    if server.username is not None:
        parts.append(f'username="{server.username}"')
    if server.credential is not None:
        parts += [f'credential="{server.credential}"', 'credential-type="password"']
    return "; ".join(parts)


async def _stream(
    websocket: WebSocket, next_message: Callable[[], Coroutine[None, None, bytes | None]]
) -> None:
    """Send until the stream ends or the client leaves, whichever comes first."""

    async def send() -> None:
        while (data := await next_message()) is not None:
            await websocket.send_text(data.decode())
        await websocket.close(1000)

    async def receive() -> None:
        with suppress(WebSocketDisconnect):
            while True:
                await websocket.receive_text()

    tasks = {asyncio.create_task(send(), name="events"), asyncio.create_task(receive())}
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class PageFiles(StaticFiles):
    """The page as it lies in its folder; sources of types and tests stay inside."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True, check_dir=False)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve a file of a known kind, always revalidated. Raises HTTPException 404, 405."""
        name = Path(path).name
        hidden = any(part.startswith((".", "_")) for part in Path(path).parts if part != ".")
        known = Path(path).suffix in _PAGE_SUFFIXES or path in (".", "")
        if hidden or not known or name in _PRIVATE_FILES:
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


class Guard:
    """Host and origin checks, security headers. Plain ASGI, so that nothing is buffered."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._any_host = not settings.loopback and not self._hosts
        self._hosts.add(settings.host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, add headers."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message["headers"] = [*message.get("headers", ()), *_SECURITY_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        response = problem_response(403, "Not allowed", code="foreign-origin", detail=refusal)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send_guarded).send_denial_response(response)
        else:
            await response(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if not (self._any_host or name in self._hosts or is_loopback(name)):
            return "This server does not answer to that name."
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if changes and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "Requests of other sites are refused."
        return None
