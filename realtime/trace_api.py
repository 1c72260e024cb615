"""HTTP of a session's trace. Needs the session's token; there is none until it is asked for.

`PUT /api/sessions/{id}/trace` begins one, `GET` exports it (`?since=N` continues after an
earlier export's `otherData.next`), `DELETE` ends and forgets it. `serve --trace` begins
one with every session.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from realtime.errors import BadRequestError, NotFoundError
from realtime.session import Session

_MAX_SERIAL_DIGITS = 15


async def begin_trace(request: Request) -> Response:
    """Begin a trace, or go on with the one there is."""
    _session(request).begin_trace()
    return Response(status_code=204)


async def get_trace(request: Request) -> Response:
    """Export as Chrome trace JSON. Raises NotFoundError where none was begun."""
    trace = _session(request).trace
    if trace is None:
        raise NotFoundError("trace-off", "This session is not traced: PUT begins a trace.")
    since = request.query_params.get("since", "0")
    if not (since.isascii() and since.isdigit()) or len(since) > _MAX_SERIAL_DIGITS:
        raise BadRequestError("since-unusable", "since is the number that an export ended with.")
    return Response(
        msgspec.json.encode(trace.export(int(since))),
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


async def end_trace(request: Request) -> Response:
    """End and forget."""
    _session(request).end_trace()
    return Response(status_code=204)


def _session(request: Request) -> Session:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if kind.lower() == "bearer" else None
    session: Session = request.app.state.hub.session(request.path_params["id"], bearer)
    return session


TRACE_ROUTES = (
    Route("/sessions/{id}/trace", begin_trace, methods=["PUT"]),
    Route("/sessions/{id}/trace", get_trace, methods=["GET"]),
    Route("/sessions/{id}/trace", end_trace, methods=["DELETE"]),
)
