"""Which figures a report shows, by name, with unit and what is better: for table, page, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from realtime.bench.schema import Arm, Percentiles, SessionResult, percentiles

Better = Literal["lower", "higher", "zero"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a session: a field of `SessionResult`, in words."""

    field: str
    title: str
    hint: str
    unit: str = "ms"
    better: Better = "lower"


#: Distributions; all have p50, p95, p99 and, but for the first, a series of raw values.
SPREADS = (
    Figure("added_ms", "Added, mouth to picture", "said to seen, without the algorithmic part"),
    Figure("beyond_ms", "Added beyond the path", "the same without its packets' time under way"),
    Figure("picture_ms", "Mouth to picture", "a frame's first sound said, its picture decoded"),
    Figure("voice_ms", "Voice and back", "said to heard again, by correlation"),
    Figure("mouth_ms", "Speech to mouth", "speech after silence until the mouth's pixels move"),
    Figure("server_added_ms", "Added by the server", "mic packet in, avatar packet out; its spans"),
    Figure("up_path_ms", "Path to the server", "a frame's last voice packet under way"),
    Figure("down_path_ms", "Path to the client", "a frame's last picture packet under way"),
    Figure("interval_ms", "Between pictures", "40 ms is steady"),
    Figure("skew_ms", "Picture after voice", "on arrival, by content", better="zero"),
    Figure("report_skew_ms", "Lip-sync by reports", "what an aligning player keeps", better="zero"),
)  # fmt: skip

COUNTS = (
    Figure("connect_ms", "Connected after", "offer sent until media can flow"),
    Figure("first_frame_ms", "First picture after", "offer sent until a picture is decoded"),
    Figure("fps", "Pictures", "decoded per second", "fps", "higher"),
    Figure("frozen", "Freezes", "no new picture for more than 200 ms", "", "lower"),
    Figure("frozen_s", "Frozen", "in all", "s", "lower"),
    Figure("late", "Late frames", "at the server", "", "lower"),
    Figure("held", "Held frames", "not drawn; the last picture stayed", "", "lower"),
    Figure("dropped", "Dropped frames", "drawn, not encoded", "", "lower"),
    Figure("concealed_ms", "Voice concealed", "invented for lost packets", "ms", "lower"),
    Figure("filled_ms", "Voice missing", "silence, because nothing came in time", "ms", "lower"),
    Figure("skew_drift_ms_per_hour", "Skew drifts", "of picture after voice", "ms/h", "zero"),
)

#: What a browser reports of itself, see `realtime.protocol.ClientStats`.
RECEIVED = (
    Figure("glass_ms", "Captured to shown", "by sender reports; each second's 95th percentile"),
    Figure("present_ms", "Received to shown", "last packet to screen; likewise"),
    Figure("jitter_buffer_ms", "Pictures wait", "in the jitter buffer, mean of a second"),
    Figure("voice_buffer_ms", "Voice waits", "in the jitter buffer, mean of a second"),
    Figure("decode_ms", "Decoding", "of one picture, mean of a second"),
    Figure("av_skew_ms", "Picture after voice", "as played", better="zero"),
    Figure("rtt_ms", "Round trip", "by STUN"),
    Figure("jitter_ms", "Jitter", "of arriving pictures (RFC 3550)"),
    Figure("fps", "Pictures shown", "a second", "fps", "higher"),
)
RECEIVED_SUMS = (
    Figure("freeze_ms", "Frozen", "in all"),
    Figure("frames_dropped", "Pictures dropped", "decoded, not shown", ""),
    Figure("packets_lost", "Packets lost", "voice and picture", ""),
)


def values(sessions: Sequence[SessionResult], field: str) -> list[float]:
    """Raw values of a figure over all sessions, in order of session and time."""
    found: list[float] = []
    for session in sessions:
        if field == "added_ms":
            series = session.series.get("picture_ms")
            known = session.added_ms is not None and series is not None
            found += [v - session.algorithmic_ms for v in series.values] if known and series else []
        elif field in session.series:
            found += session.series[field].values
    return found


def pooled(arm: Arm, field: str) -> Percentiles | None:
    """Percentiles over all sessions of an arm, from the raw values."""
    return percentiles(values(arm.sessions, field))


def middle(arm: Arm, field: str) -> float | None:
    """Median over the sessions of a plain figure; None where none knows it."""
    known = [getattr(session, field) for session in arm.sessions]
    numbers = [float(value) for value in known if value is not None]
    return float(np.median(numbers)) if numbers else None


def stage_percentiles(arm: Arm) -> dict[str, Percentiles]:
    """The server's stages; with several sessions the one whose p95 is the median of them."""
    names = {name for session in arm.sessions for name in session.stages}
    found = {}
    for name in sorted(names, key=_stage_order):
        known = sorted(
            (session.stages[name] for session in arm.sessions if name in session.stages),
            key=lambda stage: stage.p95,
        )
        found[name] = known[len(known) // 2]
    return found


_ORDER = ("receive", "queue", "audio", "draw", "compose", "convert", "hop", "encode", "motion")


def _stage_order(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)
