"""Errors that a client sees, as RFC 9457 problem details.

    ProblemError                 status, title, detail; everything below is one
    ├── BadRequestError      400 body, JSON, SDP or parameter cannot be used
    ├── UnauthorizedError    401 no token
    ├── ForbiddenError       403 wrong token, foreign origin
    ├── NotFoundError        404 no such session, portrait or page
    ├── SlowError            408 body did not come in time
    ├── ConflictError        409 the same is already under way
    ├── TooLargeError        413 body over its limit
    ├── UnusableError        422 picture cannot be decoded, no face, ...
    ├── TooManyError         429 one address asks for too much
    └── UnavailableError     503 full, or the engine is not ready; carries Retry-After

Whatever else is raised becomes a 500 without details: never a stack trace to the client.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from realtime.protocol import Problem

#: Answers to what no page of ours sends: each counts and is told in the log. Codes are ours.
ABUSE = frozenset({400, 401, 403, 408, 413})
PROBLEM_TYPE = "application/problem+json"
_log = logging.getLogger("visavis.server")


class ProblemError(Exception):
    """An answer other than success. `code` is stable and becomes the problem's `type`."""

    status = 500
    title = "Something went wrong"

    def __init__(self, code: str, detail: str, *, title: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.title = title or type(self).title

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to this answer."""
        return {}


class BadRequestError(ProblemError):
    """400."""

    status = 400
    title = "The request cannot be used"


class UnauthorizedError(ProblemError):
    """401."""

    status = 401
    title = "A token is needed"

    @property
    def headers(self) -> dict[str, str]:
        """How to authenticate."""
        return {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ProblemError):
    """403."""

    status = 403
    title = "Not allowed"


class NotFoundError(ProblemError):
    """404."""

    status = 404
    title = "Not found"


class SlowError(ProblemError):
    """408."""

    status = 408
    title = "Too slow"


class ConflictError(ProblemError):
    """409."""

    status = 409
    title = "Already under way"


class TooLargeError(ProblemError):
    """413."""

    status = 413
    title = "Too large"


class UnusableError(ProblemError):
    """422."""

    status = 422
    title = "This picture cannot be used"


class _RetryError(ProblemError):
    def __init__(self, code: str, detail: str, *, retry_after_s: int, title: str = "") -> None:
        super().__init__(code, detail, title=title)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """When to try again."""
        return {"Retry-After": str(self.retry_after_s)}


class TooManyError(_RetryError):
    """429."""

    status = 429
    title = "Too many requests"


class UnavailableError(_RetryError):
    """503."""

    status = 503
    title = "Not available now"


class BrokenError(ProblemError):
    """503 that waiting does not help: no Retry-After."""

    status = 503
    title = "The server cannot draw pictures"


def problem_response(
    status: int,
    title: str,
    *,
    code: str = "about:blank",
    detail: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One problem document. `code` becomes a relative `type` URI."""
    kind = code if ":" in code else f"/problems/{code}"
    body = msgspec.json.encode(Problem(kind, title, status, detail))
    return Response(body, status, dict(headers or {}), media_type=PROBLEM_TYPE)


async def on_problem(request: Request, error: Exception) -> Response:
    """Starlette handler of `ProblemError`."""
    assert isinstance(error, ProblemError)
    if error.status in ABUSE and (watchman := getattr(request.app.state, "watchman", None)):
        watchman.refuse(error.code, f"{request.method} answered with {error.status}")
    return problem_response(
        error.status, error.title, code=error.code, detail=error.detail, headers=error.headers
    )


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette handler of its own exceptions: unknown routes, methods, bad forms."""
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = {
        404: "There is nothing at this address.",
        405: f"{request.method} is not possible here.",
    }.get(error.status_code, "" if error.detail == title else error.detail)
    return problem_response(error.status_code, title, detail=detail, headers=error.headers)


async def on_exception(request: Request, error: Exception) -> Response:
    """Starlette handler of everything unforeseen; the log has the traceback, the client not."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_response(500, ProblemError.title, detail="The server's log tells more.")
