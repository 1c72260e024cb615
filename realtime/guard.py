"""What stands before every request: who may ask at all, from where, and how often.

Plain ASGI, so that nothing is buffered. In this order, each a problem document (RFC 9457):

* URL and address: a URL that is too long is a 414, an address that asks too often a 429.
* Host: a server bound to loopback answers only to loopback names and those allowed, so that no
  web page elsewhere can reach it by renaming itself (DNS rebinding).
* Origin: a foreign one is refused on everything that changes state, unless it is allowed; only
  then are CORS headers (Fetch standard, section 3.2) sent, and never for credentials.

Every answer carries the security headers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from realtime.errors import problem_response
from realtime.limits import AddressRates, RateLimit, client_address
from realtime.metrics import Metrics
from realtime.settings import LIMITS, Settings, is_loopback

_log = logging.getLogger("visavis.guard")

BURST_S = 4
#: What pages of allowed other sites may do.
_CORS_METHODS = "GET, POST, PUT, DELETE"
_CORS_HEADERS = "Authorization, Content-Type, Consent"
_CORS_EXPOSED = "Link, Location, Retry-After"
#: Lines about refusals are for people: a few a second say all, the counter has the rest.
_LOG_PER_S, _LOG_BURST = 1.0, 10
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
    (b"permissions-policy", b"camera=(self), microphone=(self), geolocation=()"),
)
_SAME_ORIGIN = (b"cross-origin-resource-policy", b"same-origin")
_CROSS_ORIGIN = (b"cross-origin-resource-policy", b"cross-origin")


class Watchman:
    """Counts what is refused and writes a bounded number of lines about it. Event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics: Metrics | None = None
        """Where to count; None before the server runs."""
        self._lines = RateLimit(_LOG_PER_S, _LOG_BURST, clock)

    def refuse(self, kind: str, detail: str) -> None:
        """Something from outside was refused. `kind` is one of a few words of ours."""
        if self.metrics is not None:
            self.metrics.abuse.labels(kind).inc()
        if self._lines.allow():
            _log.error("refused (%s): %s", kind, detail)


class Guard:
    """See the module's docstring."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        watchman: Watchman,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._watchman = watchman
        # A server process behind a front hears only of it, through a socket without addresses.
        front = {""} if settings.session_prefix else set()
        self._proxies = frozenset(settings.trusted_proxies) | front
        self._origins = frozenset(origin.lower() for origin in settings.allowed_origins)
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._any_host = not settings.loopback and not self._hosts
        self._hosts.add(settings.host.lower())
        burst = max(1, round(settings.requests_per_s * BURST_S))
        self._rates = AddressRates(settings.requests_per_s, burst, clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, pass on, add headers. `scope["client"]` becomes the real client's."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self._find_client(scope, headers)
        origin = (headers.get("origin") or "").lower()
        allowed = bool(origin) and origin in self._origins
        extra = [*_SECURITY_HEADERS, _CROSS_ORIGIN if allowed else _SAME_ORIGIN]
        if allowed:
            extra.append((b"access-control-allow-origin", origin.encode("latin-1")))
            extra.append((b"access-control-expose-headers", _CORS_EXPOSED.encode()))
        if self._origins:
            extra.append((b"vary", b"Origin"))

        async def send_guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        answer = self._refusal(scope, headers, allowed) or _preflight(scope, headers, allowed)
        if answer is None:
            await self._app(scope, receive, send_guarded)
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send_guarded).send_denial_response(answer)
        else:
            await answer(scope, receive, send_guarded)

    def _find_client(self, scope: Scope, headers: Headers) -> None:
        peer, port = scope.get("client") or ("", 0)
        if self._proxies:
            forwarded = ",".join(headers.getlist("x-forwarded-for"))
            peer = client_address(peer, forwarded, self._proxies)
        scope["client"] = (peer, port)

    def _refusal(self, scope: Scope, headers: Headers, allowed: bool) -> Response | None:
        url = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        if url > LIMITS.url_bytes:
            return self._refuse(414, "url", "url-too-long", "This address is too long.")
        if not self._rates.allow(scope["client"][0]):
            text = "This address asks too often; wait a second."
            return self._refuse(429, "rate", "too-many-requests", text, {"Retry-After": "1"})
        host = headers.get("host", "")
        name = _host_name(host)
        if not (self._any_host or name in self._hosts or is_loopback(name)):
            text = "This server does not answer to that name."
            return self._refuse(403, "host", "foreign-origin", text)
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if changes and origin is not None and not allowed and _netloc(origin) != host.lower():
            text = "Requests of other sites are refused."
            return self._refuse(403, "origin", "foreign-origin", text)
        return None

    def _refuse(
        self, status: int, kind: str, code: str, detail: str, headers: dict[str, str] | None = None
    ) -> Response:
        self._watchman.refuse(kind, detail)
        titles = {403: "Not allowed", 414: "URI too long", 429: "Too many requests"}
        return problem_response(status, titles[status], code=code, detail=detail, headers=headers)


def _preflight(scope: Scope, headers: Headers, allowed: bool) -> Response | None:
    """Answer of a CORS preflight request of an allowed site."""
    wanted = "access-control-request-method" in headers
    if scope["type"] != "http" or scope["method"] != "OPTIONS" or not (allowed and wanted):
        return None
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": _CORS_METHODS,
            "Access-Control-Allow-Headers": _CORS_HEADERS,
            "Access-Control-Max-Age": "600",
        },
    )


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def watchman_of(request: Request | WebSocket) -> Watchman:
    """The application's watchman."""
    watchman: Watchman = request.app.state.watchman
    return watchman
