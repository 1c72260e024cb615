"""How many sessions fit: decided by what the present ones were measured to cost. Pure.

Three things can run out, and each is measured where it is spent: the render thread (cost of a
frame times 25 frames, and of reading a webcam), the encoder pool, and the event loop with all
its RTP. A session is let in when each of them keeps a reserve with one more like those there
are, at *full* quality: whoever is let in shall not be degraded by design. On a server without
sessions one always fits, however slow the machine is.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.rates import FPS
from realtime.load import WorkerLoad

#: Share of each resource that sessions may plan with; the rest is for peaks.
RENDER_BUDGET = 0.85
ENCODE_BUDGET = 0.80
#: Everything that is late on the loop is late for everybody, so it keeps more in hand.
LOOP_BUDGET = 0.75
#: A webcam is read at most as often as frames are drawn, and half as often when it is tight.
WEBCAM_FPS = FPS / 2


@dataclass(frozen=True, slots=True)
class Demand:
    """What the server's sessions cost together."""

    sessions: int
    """Open or being opened."""
    webcams: int
    """Of them, those whose webcam is read."""
    worker: WorkerLoad
    encode_ns: float = 0.0
    """Mean time to encode one frame; 0: not measured yet."""
    encode_threads: int = 1
    loop_busy: float = 0.0
    """Share of its time that the event loop's thread computes, 0 .. 1."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one more session fits."""

    admitted: bool
    scarce: str = ""
    """Which resource is short: `render`, `encode`, `loop`."""


def shares(demand: Demand, sessions: int) -> dict[str, float]:
    """Share of each resource's budget that `sessions` would take; above 1 it is too much.

    Every session counts with a webcam at the rate at which present ones have one, a newcomer
    with one: whoever joins may switch it on.
    """
    webcams = demand.webcams + max(0, sessions - demand.sessions)
    render = (
        sessions * FPS * demand.worker.frame_ns + webcams * WEBCAM_FPS * demand.worker.webcam_ns
    ) / 1e9
    encode = sessions * FPS * demand.encode_ns / 1e9 / demand.encode_threads
    loop = demand.loop_busy * sessions / demand.sessions if demand.sessions else 0.0
    return {
        "render": render / RENDER_BUDGET,
        "encode": encode / ENCODE_BUDGET,
        "loop": loop / LOOP_BUDGET,
    }


def admit(demand: Demand) -> Verdict:
    """Whether one more session fits beside those of `demand`."""
    if demand.sessions == 0:
        return Verdict(True)
    asked = shares(demand, demand.sessions + 1)
    scarce = max(asked, key=lambda name: asked[name])
    return Verdict(True) if asked[scarce] <= 1.0 else Verdict(False, scarce)


def headroom(demand: Demand) -> float:
    """Share of the scarcest budget that is still free, 0 .. 1."""
    return max(0.0, 1.0 - max(shares(demand, demand.sessions).values()))
