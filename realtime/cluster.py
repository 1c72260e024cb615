"""`serve --processes K`: one URL, K server processes behind it.

The front has no engine and no media. It serves the page, bounds what comes in, and passes requests
on over Unix sockets (`realtime.proxy`) to the child that they belong to:

* everything about a session or an uploaded picture to the child that its id names;
* an upload, and the list with a person's own uploads, to the child that the owner's cookie names;
* a new session to the child with an uploaded portrait, else to the one with the fewest sessions;
  a child that is full or still loading passes it to the next.

Alternatives: SO_REUSEPORT cannot keep a session's requests together; passing accepted sockets on
cannot read a request under TLS. Undo: `--processes 1`, the default, has none of this.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from realtime.children import Child, MakeApp, child_of
from realtime.errors import (
    BrokenError,
    NotFoundError,
    ProblemError,
    UnavailableError,
    on_exception,
    on_http_exception,
    on_problem,
    problem_response,
)
from realtime.guard import Guard, Watchman
from realtime.metrics import CONTENT_TYPE, Metrics
from realtime.page import PageFiles
from realtime.protocol import SessionRequest
from realtime.proxy import Answer, ask, passed_on, relay, target_of
from realtime.reading import decode_json, read_body
from realtime.server import OWNER_COOKIE
from realtime.settings import LIMITS, Settings

POLL_S = 1.0
POLL_LOADING_S = 0.2
_FORM_EXTRA_BYTES = 4096
FRONT_METRICS = (
    "visavis_abuse_total", "process_resident_memory_bytes", "process_cpu_seconds_total",
)  # fmt: skip
_METHODS = ["GET", "POST", "PUT", "DELETE"]


class Cluster:
    """The children and which of them gets what. The front's loop."""

    def __init__(self, settings: Settings, make_app: MakeApp, folder: Path) -> None:
        self.settings = settings
        self.children = [
            Child(index, settings, folder, make_app) for index in range(settings.processes)
        ]
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when one child is ready; fails when none can be."""
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._tasks = [asyncio.create_task(c.run(), name=f"child-{c.index}") for c in self.children]
        self._tasks.append(asyncio.create_task(self._poll(), name="children"))

    async def stop(self) -> None:
        """End all children."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self.ready.done():
            self.ready.cancel()

    def named(self, id: str) -> Child:
        """The child that an id belongs to. Raises NotFoundError."""
        index = child_of(id, len(self.children))
        if index is None:
            raise NotFoundError("session-unknown", "There is no such session (any more).")
        return self.children[index]

    def by_load(self) -> list[Child]:
        """Children that are ready, the one with the fewest sessions first. Raises as `require`."""
        self.require()
        ready = [child for child in self.children if child.ready]
        return sorted(ready, key=lambda child: child.sessions)

    def owner(self, cookie: str) -> Child:
        """The child with this person's uploads, else the one with the fewest sessions."""
        index = child_of(cookie, len(self.children))
        return self.by_load()[0] if index is None else self.children[index]

    def require(self) -> None:
        """Raise UnavailableError or BrokenError while no child is ready."""
        if any(child.ready for child in self.children):
            return
        failures = [child.failure for child in self.children if child.failure]
        if len(failures) == len(self.children):
            raise BrokenError("engine-unusable", failures[0])
        text = "The engine is still being loaded."
        raise UnavailableError("not-ready", text, retry_after_s=3)

    async def ask_all(self, target: str) -> list[tuple[Child, Answer]]:
        """The answers of all children that give one."""

        async def one(child: Child) -> tuple[Child, Answer] | None:
            try:
                return child, await ask(child.path, "GET", target, timeout_s=2.0)
            except UnavailableError:
                return None

        answers = await asyncio.gather(*(one(child) for child in self.children if child.ready))
        return [answer for answer in answers if answer is not None]

    async def _poll(self) -> None:
        while True:
            for child, answer in await self.ask_all("/healthz"):
                with suppress(msgspec.DecodeError, KeyError, TypeError):
                    child.sessions = int(msgspec.json.decode(answer.body)["sessions"])
            if not self.ready.done():
                try:
                    self.require()
                except UnavailableError:
                    pass
                except BrokenError as error:
                    self.ready.set_exception(RuntimeError(error.detail))
                else:
                    self.ready.set_result(None)
            await asyncio.sleep(POLL_S if self.ready.done() else POLL_LOADING_S)


def create_front(settings: Settings, make_app: MakeApp) -> Starlette:
    """The front's application; `app.state.hub` is its `Cluster` once it runs."""
    watchman = Watchman()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Only this user may enter the folder, so only this user can talk to the children.
        with tempfile.TemporaryDirectory(prefix="visavis-") as folder:
            cluster = Cluster(settings, make_app, Path(folder))
            app.state.hub = cluster
            watchman.metrics = app.state.metrics = Metrics()
            try:
                yield
            finally:
                await cluster.stop()

    app = Starlette(
        routes=[
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


# --- requests -----------------------------------------------------------------------------


async def create_session(request: Request) -> Response:
    """Open a session at the child that has its portrait, or has room."""
    cluster = _cluster(request)
    body = await read_body(request, LIMITS.json_bytes, LIMITS.json_s)
    wanted = decode_json(body, SessionRequest)
    home = child_of(wanted.portrait, len(cluster.children))
    children = cluster.by_load() if home is None else [cluster.children[home]]
    answer: Answer | None = None
    for child in children:
        try:
            answer = await ask(child.path, "POST", target_of(request), passed_on(request), body)
        except UnavailableError:
            continue
        if answer.status == 201:
            child.sessions += 1
        if answer.status != 503:
            break
    if answer is None:
        text = "The server processes are being started again."
        raise UnavailableError("not-ready", text, retry_after_s=2)
    return answer.response()


async def of_session(request: Request) -> Response:
    """Anything else about a session."""
    child = _cluster(request).named(request.path_params["id"])
    body = await read_body(request, LIMITS.json_bytes, LIMITS.json_s)
    return await _forward(request, child, body)


async def of_upload(request: Request) -> Response:
    """A portrait's thumbnail: an upload's from its child, any other from any."""
    cluster = _cluster(request)
    index = child_of(request.path_params["id"], len(cluster.children))
    child = cluster.by_load()[0] if index is None else cluster.children[index]
    return await _forward(request, child, b"")


async def portraits(request: Request) -> Response:
    """The list with a person's own uploads, and a new one."""
    cluster = _cluster(request)
    child = cluster.owner(request.cookies.get(OWNER_COOKIE, ""))
    limit = cluster.settings.max_image_bytes + _FORM_EXTRA_BYTES
    body = await read_body(request, limit, LIMITS.upload_s)
    return await _forward(request, child, body)


async def events(websocket: WebSocket) -> None:
    """Server messages of a session."""
    cluster: Cluster = websocket.app.state.hub
    try:
        child = cluster.named(websocket.path_params["id"])
    except ProblemError as error:
        denial = problem_response(error.status, error.title, code=error.code, detail=error.detail)
        await websocket.send_denial_response(denial)
        return
    await relay(websocket, child.path)


async def healthz(request: Request) -> Response:
    """Alive; the sum of all children, and each of them."""
    cluster = _cluster(request)
    bodies: dict[int, dict[str, Any]] = {
        child.index: msgspec.json.decode(answer.body)
        for child, answer in await cluster.ask_all("/healthz")
    }
    none = {"name": "none", "reason": _failure(cluster.children) or "loading"}
    engines = [body["engine"] for body in bodies.values() if body["engine"]["name"] != "none"]
    return _json(
        {
            "status": "alive",
            "engine": engines[0] if engines else none,
            "sessions": sum(body["sessions"] for body in bodies.values()),
            "max_sessions": cluster.settings.max_sessions,
            "processes": [
                {
                    "ready": child.ready,
                    "sessions": bodies.get(child.index, {}).get("sessions", 0),
                    "restarts": child.restarts,
                }
                for child in cluster.children
            ],
        }
    )


async def readyz(request: Request) -> Response:
    """200 while one child can take sessions."""
    cluster = _cluster(request)
    cluster.require()
    answers = [answer for _, answer in await cluster.ask_all("/readyz")]
    ready = sum(answer.status == 200 for answer in answers)
    if answers and not ready:
        return answers[0].response()
    return _json({"status": "ready", "processes": ready})


async def metrics(request: Request) -> Response:
    """All children's metrics, each sample labelled with its process, and the front's own."""
    answers = await _cluster(request).ask_all("/metrics")
    texts = [(str(child.index), answer.body) for child, answer in answers]
    # The front has no engine and no sessions: of its own only what it refuses and costs.
    own = request.app.state.metrics.registry.restricted_registry(FRONT_METRICS)
    texts.append(("front", generate_latest(own)))
    return Response(merge_metrics(texts), media_type=CONTENT_TYPE)


_API = (
    Route("/sessions", create_session, methods=["POST"]),
    Route("/sessions/{id}", of_session, methods=["DELETE"]),
    Route("/sessions/{id}/{rest:path}", of_session, methods=_METHODS),
    WebSocketRoute("/sessions/{id}/events", events),
    Route("/portraits", portraits, methods=["GET", "POST"]),
    Route("/portraits/{id}/thumbnail", of_upload, methods=["GET"]),
)


def merge_metrics(texts: Sequence[tuple[str, bytes]]) -> bytes:
    """Expositions of several processes as one: samples of a name together, told apart by `process`.

    Adding up is left to who reads: a sum of gauges means nothing for most of them.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, text in texts:
        for family in text_string_to_metric_families(text.decode()):
            # The parser drops the suffix that the text format demands of counters.
            name = family.name + ("_total" if family.type == "counter" else "")
            documentation = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
            heads.setdefault(
                name, [f"# HELP {name} {documentation}", f"# TYPE {name} {family.type}"]
            )
            for sample in family.samples:
                labels = {**sample.labels, "process": process}
                inside = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
                samples.setdefault(name, []).append(f"{sample.name}{{{inside}}} {sample.value}")
    lines = [line for name, head in heads.items() for line in (*head, *samples.get(name, ()))]
    return ("\n".join(lines) + "\n").encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


async def _forward(request: Request, child: Child, body: bytes) -> Response:
    headers = passed_on(request)
    answer = await ask(child.path, request.method, target_of(request), headers, body)
    return answer.response()


def _failure(children: Sequence[Child]) -> str:
    return next((child.failure for child in children if child.failure), "")


def _cluster(request: Request) -> Cluster:
    cluster: Cluster = request.app.state.hub
    return cluster


def _json(body: object) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(body), 200, headers, media_type="application/json")
