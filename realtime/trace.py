"""What happened to every frame of one session, for a trace viewer.

A ring of fixed size, off unless asked for. It exports the JSON of the Chrome trace event
format, which Perfetto and chrome://tracing open: one process is the session, every stage
a named track, a frame's whole way an asynchronous span with the frame's number as its id
(frames overlap, spans on a track may not), counters and events beside it. Nothing in it is
media or an address. Format: "Trace Event Format", Google, sections on X, b/e, i, C and M events.

Belongs to the session's loop. Times are of one monotonic clock in nanoseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.rates import FRAME_TICKS_90K

CAPACITY = 24_000
"""Events, about a minute and a half of a session with a webcam; a reader may come in between."""
PID = 1
#: Tracks in the order that a viewer shows them. Unknown ones follow.
TRACKS = ("network", "queue", "worker", "hop", "encode", "webcam", "events", "receiver")
FRAME_CATEGORY = "frame"

Args = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the ring; `phase` is the format's letter."""

    phase: str
    track: str
    name: str
    at_ns: int
    duration_ns: int = 0
    id: int | None = None
    args: Args = field(default_factory=dict)


class Trace:
    """See the module's docstring."""

    def __init__(self, session_id: str, capacity: int = CAPACITY) -> None:
        self.session_id = session_id
        self._events: deque[Event] = deque(maxlen=capacity)
        self._written = 0

    def __len__(self) -> int:
        return len(self._events)

    @property
    def next(self) -> int:
        """Serial number of the next event; `export(since=next)` continues without a gap."""
        return self._written

    # --- recording --------------------------------------------------------------------

    def span(self, track: str, name: str, start_ns: int, duration_ns: int, **args: Any) -> None:
        """Something that took time on a track whose spans never overlap."""
        self._add(Event("X", track, name, start_ns, max(0, duration_ns), None, args))

    def overlapping(
        self, track: str, name: str, id: int, start_ns: int, end_ns: int, **args: Any
    ) -> None:
        """Something of which several can be under way at a time, told apart by `id`."""
        self._add(Event("b", track, name, start_ns, 0, id, args))
        self._add(Event("e", track, name, max(start_ns, end_ns), 0, id))

    def instant(self, name: str, at_ns: int, **args: Any) -> None:
        """A moment on the track of events: a loss, a held frame, a key frame."""
        self._add(Event("i", "events", name, at_ns, 0, None, args))

    def counter(self, name: str, at_ns: int, track: str = "", **values: float) -> None:
        """Values of one counter from now on; several draw as a stack."""
        self._add(Event("C", track, name, at_ns, 0, None, values))

    def stages(
        self, frame_index: int, ready_ns: int, spans: Mapping[str, int], delivered_ns: int
    ) -> None:
        """The worker's spans of one frame: it waited, then the stages came one after another."""
        at = ready_ns + spans.get("queue", 0)
        self.overlapping("queue", "queue", frame_index, ready_ns, at, frame=frame_index)
        for name, duration in spans.items():
            if name != "queue":
                self.span("worker", name, at, duration, frame=frame_index)
                at += duration
        self.overlapping("hop", "hop", frame_index, at, delivered_ns, frame=frame_index)

    def sent(
        self, frame_index: int, times_ns: tuple[int, int, int], encode_ns: int, key: bool
    ) -> None:
        """A frame left. `times_ns`: its last packet came, its window was full, it left now.

        The frame's own span is what the server added, mic packet in to avatar packet out.
        """
        arrived_ns, ready_ns, left_ns = times_ns
        pts = frame_index * FRAME_TICKS_90K
        self.overlapping("network", "receive", frame_index, arrived_ns, ready_ns, frame=frame_index)
        self.span("encode", "encode", left_ns - encode_ns, encode_ns, frame=frame_index, key=key)
        self.overlapping(
            FRAME_CATEGORY, "frame", frame_index, arrived_ns, left_ns, frame=frame_index, pts=pts
        )
        if key:
            self.instant("key frame", left_ns, frame=frame_index)

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._written += 1

    # --- reading ----------------------------------------------------------------------

    def export(self, since: int = 0) -> dict[str, Any]:
        """The trace as an object of the JSON object format, events sorted by time.

        `since` leaves out what an earlier export with that `next` already had.
        """
        first = self._written - len(self._events)
        fresh = list(self._events)[max(0, since - first) :]
        return {
            "traceEvents": [*self._names(), *chrome_events(fresh)],
            "displayTimeUnit": "ms",
            "otherData": {
                "session": self.session_id,
                "clock": "monotonic",
                "next": self._written,
                "missed": max(0, first - since),
            },
        }

    def _names(self) -> list[dict[str, Any]]:
        process = {"name": f"Visavis session {self.session_id}"}
        names: list[dict[str, Any]] = [_metadata("process_name", 0, process)]
        for tid, track in enumerate(TRACKS, 1):
            names.append(_metadata("thread_name", tid, {"name": track}))
            names.append(_metadata("thread_sort_index", tid, {"sort_index": tid}))
        return names


def chrome_events(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Events as the format writes them, times in microseconds, sorted; of spans that begin
    together the longer comes first, so that viewers nest them."""
    ordered = sorted(
        events, key=lambda event: (event.at_ns, event.phase == "e", -event.duration_ns)
    )
    return [_chrome(event) for event in ordered]


def _chrome(event: Event) -> dict[str, Any]:
    tid = TRACKS.index(event.track) + 1 if event.track in TRACKS else 0
    out: dict[str, Any] = {
        "ph": event.phase,
        "name": event.name,
        "cat": event.track or "counter",
        "ts": event.at_ns / 1000,
        "pid": PID,
        "tid": tid,
    }
    if event.phase == "X":
        out["dur"] = event.duration_ns / 1000
    if event.phase == "i":
        out["s"] = "t"
    if event.id is not None:
        out["id"] = event.id
    if event.args:
        out["args"] = dict(event.args)
    return out


def _metadata(name: str, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": PID, "tid": tid, "ts": 0, "args": args}
