"""HTTP and WebSocket: Starlette routes around a `Hub`. No media passes through here.

Answers other than success are RFC 9457 problems (`realtime.errors`). `realtime.guard` stands
before every request, `realtime.reading` bounds what comes with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from models.runtime.engine import Engine
from realtime.errors import (
    BadRequestError,
    ProblemError,
    TooManyError,
    on_exception,
    on_http_exception,
    on_problem,
    problem_response,
)
from realtime.guard import Guard, Watchman, watchman_of
from realtime.hub import Hub, Parts
from realtime.metrics import CONTENT_TYPE
from realtime.page import PageFiles
from realtime.protocol import Candidate, ResumeRequest, SessionAnswer, SessionRequest
from realtime.reading import read_json, read_picture
from realtime.rtc import BadDescriptionError, IceServer
from realtime.settings import LIMITS, Settings
from realtime.trace_api import TRACE_ROUTES

OWNER_COOKIE = "visavis_owner"
_OWNER_AGE_S = 30 * 24 * 3600
_YES = {"yes", "true", "1", "on"}


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

    watchman = Watchman()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        hub = Hub(settings, engine_factory, parts)
        app.state.hub = hub
        watchman.metrics = hub.metrics
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
        middleware=[Middleware(Guard, settings=settings, watchman=watchman)],
        exception_handlers={
            ProblemError: on_problem,
            HTTPException: on_http_exception,
            Exception: on_exception,
        },
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.watchman = watchman
    return app


# --- sessions -------------------------------------------------------------------------


async def create_session(request: Request) -> Response:
    """Open a session: SDP offer in, answer and token out."""
    hub = _hub(request)
    body = await read_json(request, SessionRequest)
    address = request.client.host if request.client else ""
    answer = await hub.open_session(body, address)
    return _answered(hub, answer, 201)


async def resume_session(request: Request) -> Response:
    """Give a session a new peer: SDP offer in, answer out, everything else as it was."""
    hub = _hub(request)
    id, token = request.path_params["id"], _bearer(request.headers)
    hub.session(id, token)
    body = await read_json(request, ResumeRequest)
    return _answered(hub, await hub.resume_session(id, token, body.sdp), 200)


def _answered(hub: Hub, answer: SessionAnswer, status: int) -> Response:
    headers = {"Location": f"/api/sessions/{answer.session_id}", "Cache-Control": "no-store"}
    if hub.settings.ice_servers:
        headers["Link"] = ", ".join(map(_ice_link, hub.settings.ice_servers))
    return _json(answer, status, headers)


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
        if not await _stream(websocket, subscription.next):
            watchman_of(websocket).refuse("websocket", "a listener would not stop talking")
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
        owner = hub.settings.session_prefix + secrets.token_urlsafe(24)
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
    _hub(request).publish()
    return Response(_hub(request).metrics.text(), media_type=CONTENT_TYPE)


_API = (
    Route("/sessions", create_session, methods=["POST"]),
    Route("/sessions/{id}", delete_session, methods=["DELETE"]),
    Route("/sessions/{id}/resume", resume_session, methods=["POST"]),
    Route("/sessions/{id}/candidates", add_candidate, methods=["POST"]),
    WebSocketRoute("/sessions/{id}/events", events),
    *TRACE_ROUTES,
    Route("/portraits", list_portraits, methods=["GET"]),
    Route("/portraits", add_portrait, methods=["POST"]),
    Route("/portraits/{id}/thumbnail", thumbnail, methods=["GET"]),
)


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
) -> bool:
    """Send until the stream ends or the client leaves, whichever comes first.

    False when the client was shown the door: a listener has nothing to say here.
    """

    async def send() -> bool:
        while (data := await next_message()) is not None:
            await websocket.send_text(data.decode())
        await websocket.close(1000)
        return True

    async def receive() -> bool:
        for _ in range(LIMITS.event_messages):
            if (await websocket.receive())["type"] == "websocket.disconnect":
                return True
        await websocket.close(1008)
        return False

    tasks = [asyncio.create_task(send(), name="events"), asyncio.create_task(receive())]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return False not in results
