"""Where said sound comes back, in voice and picture, by content alone.

Nothing here trusts a clock of the server: the returned voice is found by correlation with
what was said, a stamped picture's place in that voice by how loud its own 40 ms of sound
were (the server's trace tells), the mouth by its pixels. So the figures hold for a server
whose clocks or sender reports are wrong, which is what they are to find out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.rates import FRAME_SAMPLES_48K, WIRE_RATE_HZ
from realtime.bench.media import THIN, THIN_HZ, Voice

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WINDOW_S = 2.0
#: Nothing comes back later than this; of a short recording only one repetition is looked at.
LATEST_S = 4.0
LIKENESS = 0.5
QUIET_RMS = 30.0
#: A picture comes at most so much before or after its sound.
APART_S = 2.5
FRAMES_PER_FIT = 100
#: Loudness of so many frames before and after helps to find the place.
FRAMES_AROUND = 25
_MIN_FIT_FRAMES = 20
_COARSE_SAMPLES = 96
_TRUSTED_PERCENT = 70
LEVEL_LIKENESS = 0.8
SILENCE_S = 0.5
_SLOT_S = 0.010


@dataclass(frozen=True, slots=True)
class Shift:
    """Index in the heard line minus index in the said one, around one moment."""

    said: int
    """Middle of the window, 48 kHz sample of what was said."""
    shift: float
    likeness: float


class HeardLine:
    """The returned voice as one line, with the times at which its pieces came."""

    def __init__(self, samples: Floats, first: int, at: Floats, index: Ints) -> None:
        """`samples` (n,) at 8 kHz, `first` the 48 kHz index of its first; of every block
        the time `at` which it came and the `index` of its first sample."""
        self.samples = samples
        self.first = first
        self.at = at
        self.index = index
        self._energy = np.concatenate([[0.0], np.cumsum(samples**2)])

    def index_at(self, moments: Floats) -> Floats:
        """48 kHz index that came at each moment."""
        return np.asarray(np.interp(moments, self.at, self.index))

    def levels(self, starts: Ints) -> Floats:
        """RMS of the 40 ms that begin at each 48 kHz index; outside the line is silence."""
        begin = (starts - self.first) // THIN
        count = FRAME_SAMPLES_48K // THIN
        low, high = (np.clip(at, 0, len(self.samples)) for at in (begin, begin + count))
        return np.asarray(np.sqrt(np.maximum(self._energy[high] - self._energy[low], 0) / count))


def voice_shifts(heard: HeardLine, speech_at: float, voice: Voice, seconds: float) -> list[Shift]:
    """Find every two seconds of what was said in the heard line.

    Windows that are silent or unlike anything heard are left out.
    """
    count = int(WINDOW_S * THIN_HZ)
    latest = min(LATEST_S, 0.9 * len(voice.pcm) / WIRE_RATE_HZ)
    found: list[Shift] = []
    for start in range(0, int(seconds * THIN_HZ) - count + 1, count):
        probe = voice.thin(start, count)
        if float(np.sqrt(np.mean(probe**2))) < QUIET_RMS:
            continue
        said_at = speech_at + start / THIN_HZ
        edges = heard.index_at(np.array([said_at, said_at + latest])) - heard.first
        low, high = (max(0, int(edge) // THIN) for edge in edges)
        place = _find(heard.samples[low : high + count], probe)
        if place is not None and place[1] > LIKENESS:
            index = heard.first + (low + place[0]) * THIN
            middle = (start + count // 2) * THIN
            found.append(Shift(middle, index - start * THIN, place[1]))
    return found


def _find(heard: Floats, probe: Floats) -> tuple[float, float] | None:
    """Best place (samples, with a fraction) and normalised correlation of `probe`."""
    places = len(heard) - len(probe) + 1
    if places < 3:
        return None
    size = 1 << (len(heard) + len(probe)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(probe, size))
    dots = np.fft.irfft(spectrum, size)[:places]
    power = np.concatenate([[0.0], np.cumsum(heard**2)])
    energy = power[len(probe) :][:places] - power[:places]
    likeness = dots / np.sqrt(np.maximum(energy, 1.0) * float(probe @ probe))
    best = int(np.argmax(likeness))
    fraction = 0.0
    if 0 < best < places - 1:
        left, mid, right = (float(v) for v in likeness[best - 1 : best + 2])
        bend = left - 2 * mid + right
        fraction = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return best + fraction, float(likeness[best])


def nearest_shift(shifts: Sequence[Shift], heard: Ints) -> Floats:
    """Shift that holds around each heard 48 kHz index; `shifts` is not empty."""
    middles = np.array([s.said + s.shift for s in shifts])
    values = np.array([s.shift for s in shifts])
    right = np.clip(np.searchsorted(middles, heard), 1, max(1, len(middles) - 1))
    left = right - 1
    right = np.minimum(right, len(middles) - 1)
    nearer = np.abs(middles[left] - heard) <= np.abs(middles[right] - heard)
    return np.asarray(np.where(nearer, values[left], values[right]))


# --- pictures -------------------------------------------------------------------------


def frame_starts(
    levels: Mapping[int, float], seen: Sequence[tuple[float, int]], heard: HeardLine
) -> dict[int, float]:
    """Index in the heard line of the first sample of every stamped frame that was seen.

    `levels` is the loudness (RMS) of each frame's own sound by frame number, as the server
    traced it, whether the frame was drawn or not; `seen` are arrival times and numbers. The
    returned voice is that same sound, so its loudness over time has to agree. Fitted anew
    every four seconds; frames around which nothing fits are left out.
    """
    starts: dict[int, float] = {}
    offset: float | None = None
    known = [(at, number) for at, number in seen if number in levels]
    for first in range(0, max((n for _, n in known), default=-1) + 1, FRAMES_PER_FIT):
        part = [(at, n) for at, n in known if first <= n < first + FRAMES_PER_FIT]
        if not part:
            continue
        near = range(first - FRAMES_AROUND, first + FRAMES_PER_FIT + FRAMES_AROUND)
        around = {n: levels[n] for n in near if n in levels}
        offset = _fit_offset(part, around, heard, offset)
        if offset is not None:
            starts |= {n: n * FRAME_SAMPLES_48K + offset for _, n in part}
    return starts


def _fit_offset(
    part: Sequence[tuple[float, int]],
    levels: Mapping[int, float],
    heard: HeardLine,
    previous: float | None,
) -> float | None:
    """Heard index minus session sample, from how loud the frames were; None if unlike.

    Where nobody speaks, `previous` goes on.
    """
    begin = np.array(list(levels), np.int64) * FRAME_SAMPLES_48K
    loud = np.array(list(levels.values()))
    if len(loud) < _MIN_FIT_FRAMES or float(loud.max()) < QUIET_RMS:
        return previous
    came = np.array([n for _, n in part], np.int64) * FRAME_SAMPLES_48K
    base = int(np.median(heard.index_at(np.array([at for at, _ in part])) - came))
    reach = int(APART_S * WIRE_RATE_HZ)
    best, _ = _best(base + np.arange(-reach, reach, _COARSE_SAMPLES), begin, loud, heard)
    # Where the way lost something the line is quieter than it was: those frames do not count.
    line = heard.levels(begin + best)
    clear = loud >= loud.mean()
    gain = float(np.median(line[clear] / loud[clear]))
    off = np.abs(line - gain * loud)
    sound = off <= np.percentile(off, _TRUSTED_PERCENT)
    reach = 4 * _COARSE_SAMPLES
    fine = best + np.arange(-reach, reach + 1, THIN)
    best, likeness = _best(fine, begin[sound], loud[sound], heard)
    return float(best) if likeness > LEVEL_LIKENESS else None


def _best(offsets: Ints, begin: Ints, loud: Floats, heard: HeardLine) -> tuple[int, float]:
    """Offset at which the line is loud where `loud` is, and the correlation."""
    line = heard.levels((begin[None] + offsets[:, None]).reshape(-1)).reshape(len(offsets), -1)
    line = line - line.mean(1, keepdims=True)
    wanted = loud - loud.mean()
    norms = np.sqrt((line**2).sum(1) * float(wanted @ wanted)) + 1e-9
    scores = (line @ wanted) / norms
    k = int(np.argmax(scores))
    return int(offsets[k]), float(scores[k])


# --- the mouth ------------------------------------------------------------------------


def speech_onsets(voice: Voice, seconds: float) -> list[float]:
    """Seconds at which speech begins after at least half a second of silence."""
    slot = int(_SLOT_S * WIRE_RATE_HZ)
    starts = np.arange(int(seconds / _SLOT_S)) * slot
    energy = voice.energy(starts + slot) - voice.energy(starts)
    level = np.sqrt(np.maximum(energy, 0) / slot)
    if not len(level):
        return []
    peak = float(np.percentile(level, 95))
    quiet, loud = level < 0.05 * peak, level > 0.15 * peak
    needed = round(SILENCE_S / _SLOT_S)
    onsets = []
    silent = 0
    for k in range(len(level) - 5):
        if silent >= needed and loud[k] and loud[k : k + 5].sum() >= 4:
            onsets.append(k * _SLOT_S)
        silent = silent + 1 if quiet[k] else (silent if not loud[k] and silent >= needed else 0)
    return onsets


def mouth_delays(
    onsets: Sequence[float], at: Floats, patches: NDArray[np.float32]
) -> tuple[list[tuple[float, float]], int]:
    """For each onset (seconds): how much later, in ms, the mouth's pixels moved.

    `at` (n,) are the pictures' arrival times on the onsets' clock, `patches` (n, h, w)
    their mouths. The mouth has moved when it differs from the silence before by 30 % of
    the difference it reaches within 0.6 s. Returns (onset, ms) and how often it did not move.
    """
    found: list[tuple[float, float]] = []
    missed = 0
    for onset in onsets:
        rest = patches[(at > onset - 0.25) & (at <= onset)]
        after = (at > onset) & (at <= onset + 0.6)
        if len(rest) < 3 or after.sum() < 5:
            continue
        usual = rest.mean(0)
        noise = float(np.abs(rest - usual).mean((1, 2)).max())
        moved = np.abs(patches[after] - usual).mean((1, 2))
        peak = float(moved.max())
        if peak < 3 * noise + 0.5:
            missed += 1
            continue
        first = int(np.argmax(moved > noise + 0.3 * (peak - noise)))
        found.append((onset, (float(at[after][first]) - onset) * 1000))
    return found, missed
