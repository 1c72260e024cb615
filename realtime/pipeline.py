"""One session's media logic, free of I/O: sound and pictures in, due ticks out.

One clock rules: the *session clock* counts 48 kHz samples. Video frame f covers samples
[1920 f, 1920 (f + 1)) and has PTS 3600 f; it can be drawn once the samples of its audio
window are there. Then it leaves as a `Tick` together with exactly those 1920 samples of
the original sound, so picture and voice are delayed by the same amount, whatever it is.

The line of sound never breaks: packets may come out of order (held up to
`REORDER_SAMPLES`), gaps become silence, what comes too late is dropped. When nothing
comes, `poll` fills silence `DEADLINE_NS` after a frame was due, and at once when the
microphone has been silent on the wire for `STALL_NS`. All of it is counted.

Methods are called on the session's loop. Time is an injected monotonic clock in
nanoseconds; call `poll` at `next_deadline_ns`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import FACTORS, Array, Factor
from models.config import ModelConfig
from models.portrait import Portrait
from models.rates import (
    FRAME_SAMPLES_16K,
    FRAME_SAMPLES_48K,
    FRAME_TICKS_90K,
    WIRE_RATE_HZ,
)
from models.streaming import AudioWindow
from realtime.presets import PRESETS
from realtime.protocol import FactorState, SourceKind
from realtime.resample import Resampler48To16, to_mono
from realtime.router import Router
from realtime.sources import Clip, Idle, MicLip, Moment, Preset, SliderSource, Source, Webcam
from realtime.vad import Emphasis, SpeechGate
from realtime.worker import MotionJob, MotionResult, RenderJob

Pcm = NDArray[np.int16]
Clock = Callable[[], int]

DEADLINE_NS = 60_000_000
STALL_NS = 1_000_000_000
REORDER_SAMPLES = WIRE_RATE_HZ // 50
REORDER_PACKETS = 16
#: A timestamp that is further off than this is a new start, not a gap.
JUMP_SAMPLES = WIRE_RATE_HZ
#: Sound that keeps coming too late for this long moves the clock instead of being dropped.
LATE_LIMIT_SAMPLES = WIRE_RATE_HZ // 5
#: After the loop itself stood still, at most this many frames are caught up.
CATCH_UP_FRAMES = 25
_SLEW = 0.001
_RAMP_SAMPLES = 480

#: Who may drive each factor.
ALLOWED_SOURCES: Mapping[Factor, tuple[SourceKind, ...]] = MappingProxyType(
    {
        "lip": ("mic", "webcam", "clip", "idle"),
        "pose": ("idle", "webcam", "slider", "preset", "clip"),
        "eye": ("idle", "webcam", "slider", "preset", "clip"),
        "exp": ("idle", "webcam", "preset", "slider", "clip"),
    }
)
DEFAULT_SOURCES: Mapping[Factor, SourceKind] = MappingProxyType(
    {"lip": "mic", "pose": "idle", "eye": "idle", "exp": "idle"}
)


class SourceError(ValueError):
    """A factor cannot take the source asked for; the message is a sentence for a person."""


@dataclass(slots=True)
class PipelineStats:
    """Counters since the start; samples are 48 kHz."""

    audio_samples: int = 0
    """Received and used."""
    gap_samples: int = 0
    """Missing between packets: silence."""
    filled_samples: int = 0
    """Never came in time: silence by the clock."""
    late_samples: int = 0
    """Came after their place was filled: dropped."""
    reordered: int = 0
    """Packets that had to wait for an earlier one."""
    reanchors: int = 0
    """Times the sender's clock was mapped anew."""
    ticks: int = 0
    skipped_ms: int = 0
    """Session time that never happened because the loop stood still."""
    webcam_frames: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Everything of one video frame that leaves together."""

    frame_index: int
    audio: Pcm
    """(1920,) int16 mono, the original sound of the frame (silence while paused)."""
    ready_ns: int
    """When the last sample that the frame needs came in."""
    job: RenderJob

    @property
    def pts_ticks(self) -> int:
        """Presentation time of the picture on the 90 kHz clock."""
        return self.frame_index * FRAME_TICKS_90K

    @property
    def audio_sample(self) -> int:
        """Session-clock number of the first sample of `audio`."""
        return self.frame_index * FRAME_SAMPLES_48K


class Pipeline:
    """See the module's docstring. One per session."""

    def __init__(
        self,
        portrait: Portrait,
        config: ModelConfig,
        *,
        size: int = 512,
        sources: Mapping[Factor, tuple[SourceKind, str | None]] = MappingProxyType({}),
        clips: Mapping[str, Clip] = MappingProxyType({}),
        seed: int = 0,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """`sources` gives kind and name (of a preset or clip) of the factors that shall not
        start with `DEFAULT_SOURCES`. Raises SourceError."""
        self.stats = PipelineStats()
        self._appearance, self._source = portrait.appearance, _scaled(portrait.image, size)
        self._config, self._clock = config, clock
        self._clips = clips
        self._idle = Idle(seed)
        self._mic = MicLip()
        self._sliders = SliderSource()
        self._webcam = Webcam(self._idle, config)
        self._presets: dict[str, Preset] = {}
        chosen = {
            factor: sources.get(factor, (DEFAULT_SOURCES[factor], None)) for factor in FACTORS
        }
        self._router = Router(
            portrait.appearance.code,
            self._idle,
            {factor: self._find(factor, kind, name) for factor, (kind, name) in chosen.items()},
        )
        self._resampler = Resampler48To16()
        self._window = AudioWindow(config)
        self._gate = SpeechGate()
        self._emphasis = Emphasis()
        self._ahead = FRAME_SAMPLES_48K * (1 + config.right_frames)
        self._ring = np.zeros(self._ahead + 3 * FRAME_SAMPLES_48K, np.int16)
        self._head = 0
        self._next_frame = 0
        self._pending: dict[int, Pcm] = {}
        self._offset: int | None = None
        self._origin_ns: int | None = None
        self._audio_ns: int | None = None
        self._late = 0
        self._heard = 0
        self._ramp = 1.0

    # --- sound ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the clock now, whether or not sound ever comes. Idempotent."""
        if self._origin_ns is None:
            self._origin_ns = self._clock()

    def push_audio(self, pcm: Pcm | av.AudioFrame, capture_sample_48k: int) -> list[Tick]:
        """Take a packet and return the ticks that became due.

        `pcm`: (n,) or (n, 2) int16 at 48 kHz; `capture_sample_48k`: the sender's number of
        its first sample (any origin, unwrapped). Raises ValueError for other audio.
        """
        mono = to_mono(pcm)
        if len(mono) == 0:
            return []
        now = self._clock()
        start = self._place(capture_sample_48k, now)
        ticks: list[Tick] = []
        if start > self._head:
            self._pending.setdefault(start, mono)
            held = sum(map(len, self._pending.values()))
            if held <= REORDER_SAMPLES and len(self._pending) < REORDER_PACKETS:
                return ticks
            self._fill_gap(ticks, now)
        else:
            self._take(start, mono, ticks, now)
        self._release(ticks, now)
        return ticks

    def poll(self) -> list[Tick]:
        """Return the ticks that became due by the clock alone."""
        ticks: list[Tick] = []
        if self._origin_ns is None:
            return ticks
        now = self._clock()
        while self.next_deadline_ns() <= now:
            if len(ticks) >= CATCH_UP_FRAMES:
                self.stats.skipped_ms += (now - self.next_deadline_ns()) // 1_000_000
                self._origin_ns = now - _ns(self._need())
                break
            self._fill_to(self._need(), ticks, now)
        return ticks

    def next_deadline_ns(self) -> int:
        """When `poll` must be called next, on the injected clock; far off before any start."""
        if self._origin_ns is None:
            return 1 << 62
        slack = 0 if self._stalled(self._clock()) else DEADLINE_NS
        return self._origin_ns + _ns(self._need()) + slack

    @property
    def session_sample(self) -> int:
        """48 kHz session-clock number of the next sample to come."""
        return self._head

    def _need(self) -> int:
        """Samples of sound that the next frame needs."""
        return self._next_frame * FRAME_SAMPLES_48K + self._ahead

    def _stalled(self, now: int) -> bool:
        return self._audio_ns is None or now - self._audio_ns > STALL_NS

    def _place(self, capture: int, now: int) -> int:
        """Session sample of a packet; maps the sender's clock anew where that is wiser."""
        if self._offset is None:
            self._offset = self._head - capture
        else:
            away = capture + self._offset - self._head
            hopeless = self._late > LATE_LIMIT_SAMPLES and away < 0
            if self._stalled(now) or abs(away) > JUMP_SAMPLES or hopeless:
                self._offset -= away
                self.stats.reanchors += away != 0
                self._pending.clear()
                self._late = 0
                self._audio_ns = None
        return capture + self._offset

    def _fill_gap(self, ticks: list[Tick], now: int) -> None:
        gap = min(self._pending) - self._head
        self.stats.gap_samples += gap
        self._append(np.zeros(gap, np.int16), ticks, now)

    def _release(self, ticks: list[Tick], now: int) -> None:
        """Take what waited and has become contiguous."""
        while self._pending and (start := min(self._pending)) <= self._head:
            self.stats.reordered += 1
            self._take(start, self._pending.pop(start), ticks, now)

    def _take(self, start: int, mono: Pcm, ticks: list[Tick], now: int) -> None:
        """Append received sound; what lies before the head came too late."""
        late = min(len(mono), self._head - start)
        fresh = len(mono) - late
        self.stats.late_samples += late
        # What was heard before is a duplicate; only what silence took the place of is missed.
        missed = max(0, min(start + late - self._heard, late))
        self._late = max(0, self._late + missed - fresh // 2)
        if fresh == 0:
            return
        self.stats.audio_samples += fresh
        self._append(mono[late:], ticks, now)
        self._heard = self._head
        self._follow(now)

    def _follow(self, now: int) -> None:
        """Keep the origin where packets arrive earliest; let it drift later only slowly."""
        arrival = now - _ns(self._head)
        if self._origin_ns is None or self._stalled(now) or arrival < self._origin_ns:
            self._origin_ns = arrival
        elif self._audio_ns is not None:
            slew = int((now - self._audio_ns) * _SLEW)
            self._origin_ns += min(arrival - self._origin_ns, slew)
        self._audio_ns = now

    def _fill_to(self, target: int, ticks: list[Tick], now: int) -> None:
        """Silence up to session sample `target`, around whatever waits out of order."""
        while self._head < target:
            self._release(ticks, now)
            end = min([target, *self._pending]) if self._pending else target
            if end <= self._head:
                continue
            self.stats.filled_samples += end - self._head
            self._append(np.zeros(end - self._head, np.int16), ticks, now)

    def _append(self, mono: Pcm, ticks: list[Tick], now: int) -> None:
        """Put sound on the session clock, at most a frame at a time, and collect due ticks."""
        for begin in range(0, len(mono), FRAME_SAMPLES_48K):
            piece = mono[begin : begin + FRAME_SAMPLES_48K]
            place = np.arange(self._head, self._head + len(piece)) % len(self._ring)
            self._ring[place] = piece
            self._head += len(piece)
            samples = self._resampler.push(piece)
            self._gate.push(samples)
            self._emphasis.push(samples)
            for frame, mel in self._window.push(samples):
                ticks.append(self._tick(frame, mel, now))

    def _tick(self, frame: int, mel: Array, now: int) -> Tick:
        self._next_frame = frame + 1
        self.stats.ticks += 1
        heard = FRAME_SAMPLES_16K * (frame + 1 + self._config.right_frames)
        emphasis = self._emphasis.at(heard) * self._router.awake
        moment = Moment(frame, self._gate.gain_at(heard), emphasis)
        snapshot = self._router.snapshot(moment)
        job = RenderJob(frame, now, mel, snapshot, self._appearance, self._source)
        return Tick(frame, self._slice(frame), now, job)

    def _slice(self, frame: int) -> Pcm:
        """The frame's own sound, faded where a pause begins or ends."""
        start = frame * FRAME_SAMPLES_48K
        place = np.arange(start, start + FRAME_SAMPLES_48K) % len(self._ring)
        pcm: Pcm = self._ring[place]
        goal = 0.0 if self._router.paused else 1.0
        if goal == self._ramp:
            return pcm if goal else np.zeros_like(pcm)
        gain = np.full(len(pcm), goal)
        gain[:_RAMP_SAMPLES] = np.linspace(self._ramp, goal, _RAMP_SAMPLES)
        self._ramp = goal
        return np.asarray(pcm * gain, np.int16)

    # --- pictures ---------------------------------------------------------------------

    def push_webcam(
        self, frame: NDArray[np.uint8] | av.VideoFrame, capture_sample_48k: int | None = None
    ) -> MotionJob:
        """Stamp a webcam picture and return the job for the worker, which keeps the latest only.

        `capture_sample_48k` is in the numbers of `push_audio`; without it the picture is
        taken to be as old as the sound that arrives now.
        """
        now = self._clock()
        self.stats.webcam_frames += 1
        if capture_sample_48k is not None and self._offset is not None:
            at = capture_sample_48k + self._offset
        elif self._origin_ns is not None:
            at = (now - self._origin_ns) * WIRE_RATE_HZ // 1_000_000_000
        else:
            at = self._head
        return MotionJob(frame, min(at, self._head + JUMP_SAMPLES), now)

    def on_motion(self, result: MotionResult) -> None:
        """Take what the worker read from a webcam picture."""
        self._webcam.push(result.reading, result.capture_48k)

    @property
    def webcam(self) -> Webcam:
        """The webcam source, for its status."""
        return self._webcam

    # --- control ----------------------------------------------------------------------

    def set_source(
        self, factor: Factor, kind: SourceKind, name: str | None = None, fade_ms: int = 250
    ) -> None:
        """Cross-fade one factor to another source. Raises SourceError; then nothing changes."""
        self._router.set_source(factor, self._find(factor, kind, name), fade_ms)

    def set_gain(self, factor: Factor, gain: float) -> None:
        """Strength of one factor, 0 .. 2. Raises ValueError."""
        self._router.set_gain(factor, gain)

    def set_sliders(self, factor: Factor, values: Mapping[str, float]) -> None:
        """Move sliders by name. Raises SourceError for an unknown one; then nothing changes."""
        try:
            self._sliders.set(factor, values)
        except KeyError as error:
            raise SourceError(f"{error.args[0]}.") from error

    def set_paused(self, paused: bool) -> None:
        """Idle with a closed mouth and return silence, or go on."""
        self._router.set_paused(paused)

    def recenter(self) -> None:
        """Take the person's present webcam pose and face as neutral."""
        self._webcam.recenter()

    @property
    def paused(self) -> bool:
        """Whether the session is paused."""
        return self._router.paused

    def states(self) -> list[FactorState]:
        """Where every factor comes from now."""
        return self._router.states()

    def _find(self, factor: Factor, kind: SourceKind, name: str | None) -> Source:
        if kind not in ALLOWED_SOURCES[factor]:
            raise SourceError(f"The {factor} factor cannot come from {kind}.")
        if kind == "preset":
            if name is None or name not in PRESETS[factor]:
                raise SourceError(f"The {factor} factor has no preset called {name!r}.")
            return self._presets.setdefault(name, Preset(name))
        if kind == "clip":
            if name is None or name not in self._clips:
                raise SourceError(f"There is no driving clip called {name!r}.")
            return self._clips[name]
        fixed: dict[SourceKind, Source] = {
            "mic": self._mic,
            "webcam": self._webcam,
            "slider": self._sliders,
            "idle": self._idle,
        }
        return fixed[kind]


def _scaled(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The portrait at the size of the output."""
    if len(image) == size:
        return image
    method = cv2.INTER_AREA if size < len(image) else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)


def _ns(samples: int) -> int:
    """Duration of 48 kHz samples in nanoseconds."""
    return samples * 1_000_000_000 // WIRE_RATE_HZ
