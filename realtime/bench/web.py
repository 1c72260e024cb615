"""HTTP to the measured server, and the server that a bench starts for itself. Blocking."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from typing import Any

from realtime.bench.digest import TraceDigest
from realtime.bench.errors import BenchError
from realtime.bench.schema import ServerUse, series, slope_per_hour
from realtime.protocol import SessionAnswer

READY = re.compile(r"Visavis is ready: (\S+)")
TIMEOUT_S = 30.0
SAMPLE_S = 1.0
#: A trace file of about three minutes; viewers become slow beyond.
KEPT_EVENTS = 60_000
_RSS = re.compile(r"^process_resident_memory_bytes (\S+)", re.MULTILINE)
_CPU = re.compile(r"^process_cpu_seconds_total (\S+)", re.MULTILINE)


def request(method: str, url: str, body: object = None, token: str = "") -> bytes:
    """One HTTP request. Raises BenchError with the server's own words."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json"} if data else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    asked = urllib.request.Request(url, data, headers, method=method)
    context = ssl.create_default_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S, context=context) as response:
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        raise BenchError(f"{url} answered {error.code}: {text}") from None
    except OSError as error:
        raise BenchError(f"{url} cannot be reached: {error}") from None


def end_session(url: str, answer: SessionAnswer) -> None:
    """End a session that may have ended already."""
    with contextlib.suppress(BenchError):
        request("DELETE", f"{url}/api/sessions/{answer.session_id}", token=answer.token)


def first_portrait(url: str) -> str:
    """Id of the server's first portrait. Raises BenchError."""
    portraits = json.loads(request("GET", f"{url}/api/portraits"))
    if not portraits:
        raise BenchError("The server has no portrait.")
    return str(portraits[0]["id"])


def server_facts(url: str) -> dict[str, str]:
    """Engine and reason, as the server names them."""
    with contextlib.suppress(BenchError, ValueError, KeyError, TypeError):
        engine = json.loads(request("GET", f"{url}/healthz"))["engine"]
        return {"engine": str(engine["name"]), "engine_reason": str(engine["reason"])}
    return {}


class ServerWatch:
    """Samples the server's memory and processor time once a second, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._samples: list[tuple[float, float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-watch", daemon=True)

    def __enter__(self) -> ServerWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def use(self) -> ServerUse:
        """What was sampled; empty where the server does not tell."""
        return server_use(self._samples)

    def _run(self) -> None:
        start = time.monotonic()
        while True:
            with contextlib.suppress(BenchError):
                text = request("GET", f"{self._url}/metrics").decode()
                rss, cpu = _RSS.search(text), _CPU.search(text)
                if rss and cpu:
                    now = time.monotonic() - start
                    self._samples.append((now, float(rss[1]) / 2**20, float(cpu[1])))
            if self._stop.wait(SAMPLE_S):
                return


def server_use(samples: list[tuple[float, float, float]]) -> ServerUse:
    """Series from (seconds, resident MB, processor seconds so far)."""
    if len(samples) < 2:
        return ServerUse()
    t_s, rss, cpu = (list(column) for column in zip(*samples, strict=True))
    middle, percent = [], []
    for (t0, c0), (t1, c1) in zip(
        zip(t_s, cpu, strict=True), zip(t_s[1:], cpu[1:], strict=True), strict=False
    ):
        middle.append((t0 + t1) / 2)
        percent.append(100 * (c1 - c0) / max(t1 - t0, 1e-9))
    return ServerUse(
        rss_mb=series("MB", t_s, rss, 1),
        cpu_percent=series("% of a core", middle, percent, 1),
        rss_slope_mb_per_hour=slope_per_hour(t_s, rss),
    )


@contextlib.contextmanager
def own_server(sessions: int, arguments: tuple[str, ...]) -> Iterator[str]:
    """Start `visavis serve` on a free port in a process of its own; gives its address.

    Raises BenchError. Pictures are stamped and sessions traced.
    """
    command = [sys.executable, "-m", "realtime.cli", "serve", "--port", "0", "--stamp", "--trace"]
    command += ["--max-sessions", str(sessions), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := READY.search(line):
                yield found[1]
                return
        raise BenchError("The server did not start; `visavis doctor` tells why.")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


class TraceReader:
    """Collects a session's trace while it runs, so that the server's ring never overflows."""

    def __init__(self, url: str, answer: SessionAnswer) -> None:
        self.digest = TraceDigest()
        self.events: deque[dict[str, Any]] = deque(maxlen=KEPT_EVENTS)
        """The latest, for a file; all are in the digest."""
        self.names: list[dict[str, Any]] = []
        self.missed = 0
        self.available = True
        self._url = f"{url}/api/sessions/{answer.session_id}/trace"
        self._token = answer.token
        self._next = 0

    def begin(self) -> None:
        """Ask for a trace; a server that knows none goes without."""
        try:
            request("PUT", self._url, token=self._token)
        except BenchError:
            self.available = False

    def read(self) -> None:
        """Fetch what is new."""
        if not self.available:
            return
        try:
            raw = request("GET", f"{self._url}?since={self._next}", token=self._token)
        except BenchError:
            # The session may have just ended; what was read before stays.
            return
        export = json.loads(raw)
        self._next = export["otherData"]["next"]
        self.missed += export["otherData"]["missed"]
        fresh = [event for event in export["traceEvents"] if event["ph"] != "M"]
        self.names = [event for event in export["traceEvents"] if event["ph"] == "M"]
        self.digest.add(fresh)
        self.events.extend(fresh)

    def document(self) -> dict[str, Any]:
        """The whole trace as one file for a viewer."""
        events = sorted(self.events, key=lambda event: float(event["ts"]))
        return {"traceEvents": [*self.names, *events], "displayTimeUnit": "ms"}
