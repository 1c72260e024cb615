"""A server's trace, taken in as it comes: what figures need of it, in little memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


class TraceDigest:
    """Durations by stage, loudness by frame, events by name."""

    def __init__(self) -> None:
        self.spans: dict[str, list[tuple[float, float]]] = {}
        """(begin in s of the server's clock, duration in ms) by name."""
        self.levels: dict[int, float] = {}
        """RMS of each frame's own sound."""
        self.moments: Counter[str] = Counter()
        """How often each kind of event happened, ticks aside."""
        self.receiver: dict[str, list[tuple[float, float]]] = {}
        """What the receiver reported of itself: (s of the server's clock, value) by name."""
        self._begun: dict[tuple[str, str, int], float] = {}

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take events of the Chrome format, in any order; later calls bring later events."""
        for event in sorted(events, key=lambda e: (float(e["ts"]), e["ph"] == "e")):
            name, ts = str(event["name"]), float(event["ts"])
            match event["ph"]:
                case "X":
                    self._span(name, ts, ts + float(event["dur"]))
                case "b":
                    self._begun[(str(event["cat"]), name, int(event["id"]))] = ts
                case "e":
                    begun = self._begun.pop((str(event["cat"]), name, int(event["id"])), None)
                    if begun is not None:
                        self._span(name, begun, ts)
                case "i" if name == "tick":
                    args = event["args"]
                    self.levels[int(args["frame"])] = float(args["level"])
                case "i":
                    self.moments[name] += 1
                case "C" if event["cat"] == "receiver":
                    for figure, value in event["args"].items():
                        self.receiver.setdefault(figure, []).append((ts / 1e6, float(value)))

    def _span(self, name: str, begin_us: float, end_us: float) -> None:
        self.spans.setdefault(name, []).append((begin_us / 1e6, (end_us - begin_us) / 1000))
