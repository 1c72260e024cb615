"""One session's media logic, free of I/O: sound and pictures in, due ticks out.

One clock rules: the *session clock* counts 48 kHz samples. Video frame f covers samples
[1920 f, 1920 (f + 1)) and has PTS 3600 f; it can be drawn once the samples of its audio
window are there. Then it leaves as a `Tick` together with exactly those 1920 samples of
the original sound, so picture and voice are delayed by the same amount, whatever it is.

The line of sound itself, which never breaks, is `realtime.line`'s.

Methods are called on the session's loop. Time is an injected monotonic clock in
nanoseconds; call `poll` at `next_deadline_ns`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import av
import numpy as np
from numpy.typing import NDArray

from models.codes import FACTORS, Array, Factor
from models.composite import warp_source
from models.config import ModelConfig
from models.portrait import Portrait
from models.rates import (
    FRAME_SAMPLES_16K,
    FRAME_SAMPLES_48K,
    FRAME_TICKS_90K,
    WIRE_RATE_HZ,
)
from models.streaming import AudioWindow
from realtime.line import JUMP_SAMPLES, PipelineStats, SoundLine
from realtime.presets import PRESETS
from realtime.protocol import FactorState, SourceKind
from realtime.resample import Resampler48To16, to_mono
from realtime.router import Router
from realtime.sources import Clip, Idle, MicLip, Moment, Preset, SliderSource, Source, Webcam
from realtime.vad import Emphasis, SpeechGate
from realtime.worker import MotionJob, MotionResult, RenderJob

Pcm = NDArray[np.int16]
Clock = Callable[[], int]

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
        self.marked = False
        """Whether the finished pictures shall carry the visible mark (`models.mark`)."""
        self._appearance, self._portrait = portrait.appearance, portrait.image
        self._source = warp_source(portrait.image, size)
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
        self._next_frame = 0
        self._due: list[Tick] = []
        self._line = SoundLine(self._on_sound, self._need, self.stats, clock)
        self._ramp = 1.0

    # --- sound ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the clock now, whether or not sound ever comes. Idempotent."""
        self._line.start()

    def restart(self) -> None:
        """Go on after a break, with another peer: what moves the portrait is as it was."""
        self._line.restart()

    def push_audio(self, pcm: Pcm | av.AudioFrame, capture_sample_48k: int) -> list[Tick]:
        """Take a packet and return the ticks that became due.

        `pcm`: (n,) or (n, 2) int16 at 48 kHz; `capture_sample_48k`: the sender's number of
        its first sample (any origin, unwrapped). Raises ValueError for other audio.
        """
        mono = to_mono(pcm)
        if len(mono):
            self._line.push(mono, capture_sample_48k)
        return self._take_due()

    def poll(self) -> list[Tick]:
        """Return the ticks that became due by the clock alone."""
        self._line.poll()
        return self._take_due()

    def next_deadline_ns(self) -> int:
        """When `poll` must be called next, on the injected clock; far off before any start."""
        return self._line.next_deadline_ns()

    @property
    def session_sample(self) -> int:
        """48 kHz session-clock number of the next sample to come."""
        return self._line.head

    def _need(self) -> int:
        """Samples of sound that the next frame needs."""
        return self._next_frame * FRAME_SAMPLES_48K + self._ahead

    def _take_due(self) -> list[Tick]:
        due, self._due = self._due, []
        return due

    def _on_sound(self, piece: Pcm, now: int) -> None:
        """The next stretch of the line, at most a frame long: collect the ticks it completes."""
        head = self._line.head
        place = np.arange(head - len(piece), head) % len(self._ring)
        self._ring[place] = piece
        samples = self._resampler.push(piece)
        self._gate.push(samples)
        self._emphasis.push(samples)
        for frame, mel in self._window.push(samples):
            self._due.append(self._tick(frame, mel, now))

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
        line = self._line
        if capture_sample_48k is not None and line.offset is not None:
            at = capture_sample_48k + line.offset
        elif line.origin_ns is not None:
            at = (now - line.origin_ns) * WIRE_RATE_HZ // 1_000_000_000
        else:
            at = line.head
        return MotionJob(frame, min(at, line.head + JUMP_SAMPLES), now)

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

    def set_size(self, size: int) -> None:
        """Side of the picture from the next frame on, in pixels (even)."""
        if len(self._source) != size:
            self._source = warp_source(self._portrait, size)

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
