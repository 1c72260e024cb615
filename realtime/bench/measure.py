"""From a client's record to figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.rates import WIRE_RATE_HZ
from realtime.bench.align import (
    Floats,
    HeardLine,
    Ints,
    Shift,
    frame_starts,
    mouth_delays,
    nearest_shift,
    speech_onsets,
    voice_shifts,
)
from realtime.bench.client import CHUNK, Record
from realtime.bench.errors import BenchError
from realtime.bench.impair import Impairment, LinkCount
from realtime.bench.schema import (
    PathCount,
    Phase,
    Series,
    SessionResult,
    percentiles,
    series,
    slope_per_hour,
)
from realtime.rtc.opus import OpusEncoder

FREEZE_MS = 200.0
#: The first second belongs to connecting and key frames.
WARM_S = 1.0
AFTER_S = 60.0
#: A run of this length is long enough for its begin and end to be compared.
LONG_S = 600.0


@dataclass(slots=True)
class Timed:
    """Values over seconds of the conversation."""

    t_s: Floats
    values: Floats

    def between(self, low: float, high: float) -> Floats:
        """Values of one stretch."""
        return np.asarray(self.values[(self.t_s >= low) & (self.t_s < high)])


NOTHING = np.zeros(0)


def evaluate(record: Record) -> SessionResult:
    """Everything that one record tells. Raises BenchError when no picture came."""
    if not record.seen:
        raise BenchError("Connected, but no picture came.")
    at = np.array([seen.at for seen in record.seen])
    gaps = np.diff(at) * 1000
    result = SessionResult(
        connect_ms=round((record.connected_at - record.asked_at) * 1000, 1),
        first_frame_ms=round(float(at[0] - record.asked_at) * 1000, 1),
        frames=len(at),
        fps=round(float((len(at) - 1) / max(at[-1] - at[0], 1e-9)), 2),
        interval_ms=percentiles(gaps),
        frozen=int((gaps > FREEZE_MS).sum()),
        frozen_s=round(float(gaps[gaps > FREEZE_MS].sum()) / 1000, 2),
        concealed_ms=round(record.concealed_ms, 1),
        filled_ms=round(record.filled_ms, 1),
        notices=record.notices,
    )
    result.series["interval_ms"] = series("ms", at[1:] - record.speech_at, gaps)
    _add_server(result, record)
    _add_traffic(result, record)
    picture, voice, skew, report = _latencies(result, record)
    _add(result, "picture_ms", picture)
    _add(result, "voice_ms", voice)
    _add(result, "skew_ms", skew)
    _add(result, "report_skew_ms", report)
    if len(picture.values) and result.algorithmic_ms:
        result.added_ms = percentiles(picture.values - result.algorithmic_ms)
    result.skew_drift_ms_per_hour = slope_per_hour(list(skew.t_s), list(skew.values))
    _add_mouth(result, record)
    result.phases = _phases(record, picture, voice, skew)
    return result


def _add(result: SessionResult, name: str, timed: Timed) -> None:
    setattr(result, name, percentiles(timed.values))
    if len(timed.values):
        result.series[name] = series("ms", timed.t_s, timed.values)


# --- latencies ------------------------------------------------------------------------


class Spoken:
    """When each said sample was captured, in seconds of the conversation."""

    def __init__(self, record: Record) -> None:
        self._sent = np.array(record.sent) - record.speech_at
        self.end = len(self._sent) * CHUNK

    def at(self, samples: NDArray[Any]) -> Floats:
        """A chunk leaves at its own end, so a late loop counts as late capture."""
        chunk = np.clip(samples // CHUNK, 0, len(self._sent) - 1).astype(np.int64)
        into = samples - chunk * CHUNK
        return np.asarray(self._sent[chunk] + (into - CHUNK) / WIRE_RATE_HZ)

    def counts(self, samples: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples were said after the first second."""
        return np.asarray((samples >= WARM_S * WIRE_RATE_HZ) & (samples < self.end))


def _latencies(result: SessionResult, record: Record) -> tuple[Timed, Timed, Timed, Timed]:
    """Picture, voice, skew on arrival and skew by sender reports."""
    nothing = Timed(NOTHING, NOTHING)
    heard = _heard_line(record)
    plan = record.plan
    shifts = voice_shifts(heard, record.speech_at, plan.voice, plan.seconds) if heard else []
    if heard is None or not shifts:
        result.notices.append("voice: nothing that came back is like what was said; no latencies")
        return nothing, nothing, nothing, nothing
    spoken = Spoken(record)
    voice = _voice(record, shifts, spoken)
    starts = _stamped_starts(result, record, heard)
    result.picture_by = "stamp" if starts else "reports"
    starts = starts or _reported_starts(record)
    if not starts:
        return nothing, voice, nothing, nothing
    chosen = np.array(list(starts), np.int64)
    index = np.array(list(starts.values()))
    said = index - nearest_shift(shifts, index.astype(np.int64))
    counts = spoken.counts(said)
    chosen, index, begun = chosen[counts], index[counts], spoken.at(said[counts])
    at = np.array([record.seen[k].at for k in chosen]) - record.speech_at
    if result.algorithmic_ms:
        _add_path(result, record, chosen, Timed(begun, (at - begun) * 1000), said[counts])
    skew = _skew(record, heard, index, at)
    # Reports cannot be judged by themselves.
    report = _report_skew(record, chosen, index) if result.picture_by == "stamp" else nothing
    return Timed(begun, (at - begun) * 1000), voice, Timed(begun, skew), report


def _add_path(
    result: SessionResult, record: Record, chosen: Ints, picture: Timed, said: Floats
) -> None:
    """What an impaired path took of each frame, and what was added beyond it.

    A frame waits for the packet with the last sample that it needs, and is there with its own
    last packet. One that was lost was under way for no time of its own: it counts as its
    direction's median, and what its replacement cost stays in what was added.
    """
    path = record.path
    if path is None or not path.impairment.active:
        return
    voice = path.up_log.stepping(CHUNK).took
    if not len(voice):
        return
    # The first packet holds what was said first, later by the encoder's delay.
    last_needed = said + result.algorithmic_ms * WIRE_RATE_HZ / 1000 - 1 + _encoder_delay()
    packet = (last_needed // CHUNK).astype(np.int64)
    up = np.where(packet < len(voice), voice[np.minimum(packet, len(voice) - 1)], np.nan)
    stamps = [record.seen[k].pts & 0xFFFFFFFF for k in chosen]
    last = path.down_log.carrying(stamps).last()
    down = np.array([last.get(stamp, np.nan) for stamp in stamps])
    took = NOTHING
    for name, ms in (("up_path_ms", up * 1000), ("down_path_ms", down * 1000)):
        known = ~np.isnan(ms)
        if not known.any():
            return
        _add(result, name, Timed(picture.t_s[known], ms[known]))
        filled = np.where(known, ms, np.median(ms[known]))
        took = filled if took is NOTHING else took + filled
    beyond = picture.values - result.algorithmic_ms - took
    _add(result, "beyond_ms", Timed(picture.t_s, beyond))


def _encoder_delay() -> int:
    """Samples by which a voice packet is stamped earlier than it was said."""
    ((_, timestamp),) = OpusEncoder().encode(np.zeros(CHUNK, np.int16), 0)
    return -timestamp


def _heard_line(record: Record) -> HeardLine | None:
    samples = record.line.samples()
    if record.line.first is None or not len(samples):
        return None
    at = np.array([heard.at for heard in record.heard])
    index = np.array([heard.index for heard in record.heard], np.int64)
    return HeardLine(samples, record.line.first, at, index)


def _voice(record: Record, shifts: list[Shift], spoken: Spoken) -> Timed:
    real = [heard for heard in record.heard if not heard.concealed]
    index = np.array([heard.index for heard in real], np.int64)
    at = np.array([heard.at for heard in real]) - record.speech_at
    said = index - nearest_shift(shifts, index)
    counts = spoken.counts(said)
    begun = spoken.at(said[counts])
    return Timed(begun, (at[counts] - begun) * 1000)


def _stamped_starts(result: SessionResult, record: Record, heard: HeardLine) -> dict[int, float]:
    """Heard index of a frame's first sample by position in `record.seen`, from stamps."""
    if record.trace is None:
        return {}
    numbers = {k: seen.number for k, seen in enumerate(record.seen) if seen.number is not None}
    seen = [(record.seen[k].at, number) for k, number in numbers.items()]
    places = frame_starts(record.trace.digest.levels, seen, heard)
    starts = {k: places[number] for k, number in numbers.items() if number in places}
    if 0 < len(starts) < 0.9 * len(numbers):
        told = f"pictures: {len(starts)} of {len(numbers)} stamped ones could be placed"
        result.notices.append(told)
    return starts


def _report_offset(record: Record) -> tuple[Floats, Floats]:
    """Arrival times and (reported time - index / rate) of the heard blocks that have one."""
    known = [heard for heard in record.heard if heard.report_s is not None]
    at = np.array([heard.at for heard in known])
    offset = np.array([(heard.report_s or 0.0) - heard.index / WIRE_RATE_HZ for heard in known])
    return at, offset


def _reported_starts(record: Record) -> dict[int, float]:
    """As `_stamped_starts`, from sender reports: for servers that do not stamp."""
    at, offset = _report_offset(record)
    starts = {}
    for k, seen in enumerate(record.seen):
        if seen.report_s is not None and len(at):
            latest = max(0, int(np.searchsorted(at, seen.at)) - 1)
            starts[k] = (seen.report_s - offset[latest]) * WIRE_RATE_HZ
    return starts


def _skew(record: Record, heard: HeardLine, index: Floats, at: Floats) -> Floats:
    """Per frame: when its picture came minus when its first sound came, ms."""
    block = np.clip(np.searchsorted(heard.index, index, "right") - 1, 0, len(heard.index) - 1)
    return np.asarray((at - (heard.at[block] - record.speech_at)) * 1000)


def _report_skew(record: Record, chosen: Ints, index: Floats) -> Timed:
    """Per frame: its reported time minus that of its first sound, ms."""
    report_at, offset = _report_offset(record)
    times, left = [], []
    for k, i in zip(chosen, index, strict=True):
        seen = record.seen[k]
        if seen.report_s is not None and len(report_at):
            latest = max(0, int(np.searchsorted(report_at, seen.at)) - 1)
            times.append(seen.at - record.speech_at)
            left.append((seen.report_s - (i / WIRE_RATE_HZ + offset[latest])) * 1000)
    return Timed(np.array(times), np.array(left))


def _add_mouth(result: SessionResult, record: Record) -> None:
    onsets = [t for t in speech_onsets(record.plan.voice, record.plan.seconds) if t > WARM_S]
    at = np.array([seen.at for seen in record.seen]) - record.speech_at
    found, missed = mouth_delays(onsets, at, np.stack([seen.mouth for seen in record.seen]))
    result.mouth_ms = percentiles([ms for _, ms in found])
    if found:
        result.series["mouth_ms"] = series("ms", [t for t, _ in found], [ms for _, ms in found])
    if missed:
        result.notices.append(f"mouth: did not move at {missed} of {missed + len(found)} onsets")


def _phases(record: Record, picture: Timed, voice: Timed, skew: Timed) -> list[Phase]:
    stretches = _stretches(record.plan.impairment, record.plan.seconds)
    kinds = {"picture_ms": picture, "voice_ms": voice, "skew_ms": skew}
    return [
        Phase(name, low, high, **{k: percentiles(v.between(low, high)) for k, v in kinds.items()})
        for name, low, high in stretches
        if high > low
    ]


def _stretches(impairment: Impairment, end: float) -> list[tuple[str, float, float]]:
    """Name, begin and end of what is to be compared: around a passing impairment, else the
    first and the last quarter of a long run."""
    if impairment.to_s is None or not impairment.active:
        quarter = end / 4
        quarters = [("first quarter", WARM_S, quarter), ("last quarter", end - quarter, end)]
        return quarters if end >= LONG_S else []
    begin, stop = impairment.from_s, min(impairment.to_s, end)
    after = AFTER_S if end > stop + AFTER_S + 5 else max(1.0, (end - stop) / 2)
    return [
        ("before", WARM_S, begin),
        ("impaired", begin, stop),
        ("recovering", stop, min(stop + after, end)),
        (f"{after:.0f} s after", min(stop + after, end), end),
    ]


# --- what the server and the path say -------------------------------------------------


def _add_server(result: SessionResult, record: Record) -> None:
    if record.stats is not None:
        result.late, result.held = record.stats.late, record.stats.held
        result.dropped = record.stats.dropped
        result.algorithmic_ms = record.stats.algorithmic_latency_ms
    if record.trace is None:
        return
    digest = record.trace.digest
    added = digest.spans.get("frame", [])
    result.server_added_ms = percentiles([ms for _, ms in added])
    result.stages = {
        name: found
        for name, spans in digest.spans.items()
        if name != "frame" and (found := percentiles([ms for _, ms in spans])) is not None
    }
    result.events = dict(digest.moments)
    if added:
        begin = min(at for at, _ in added)
        result.series["server_added_ms"] = series(
            "ms", [at - begin for at, _ in added], [ms for _, ms in added]
        )
    if record.trace.missed:
        result.notices.append(f"trace: {record.trace.missed} events were overwritten unread")


def _add_traffic(result: SessionResult, record: Record) -> None:
    if record.path is not None:
        result.up = _path_count(record.path.up.count)
        result.down = _path_count(record.path.down.count)
    if len(record.traffic) > 1:
        t_s = np.array([t for t, _, _ in record.traffic]) - record.speech_at
        result.series["up_kbps"] = _rate(t_s, [up for _, up, _ in record.traffic])
        result.series["down_kbps"] = _rate(t_s, [down for _, _, down in record.traffic])


def _path_count(count: LinkCount) -> PathCount:
    return msgspec.convert(msgspec.to_builtins(count), PathCount)


def _rate(t_s: Floats, total: list[int]) -> Series:
    kbps = np.diff(np.array(total)) * 8 / 1000 / np.maximum(np.diff(t_s), 1e-9)
    return series("kbit/s", (t_s[1:] + t_s[:-1]) / 2, kbps, 1)
