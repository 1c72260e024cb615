"""Who drives what: one source per factor, gains, cross-fades, and the final motion code.

Every factor (lip, pose, eye, expression) has a current source. Switching cross-fades with
a smooth step; both sources stay alive meanwhile, and switching again during a fade starts
from the present mixture, so no code ever jumps. Sources speak relative to the portrait
(`realtime.sources.base.Source`); the router scales by the gain, adds the portrait's own
code and keeps everything inside the range that the generator knows.

A router belongs to one session and its loop. `Router.snapshot` freezes everything about
one frame into an immutable `Snapshot`; the render worker adds the lip code that it
computes from the audio (`Snapshot.resolve`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from models.codes import DIMS, FACTORS, Array, Factor, MotionCode
from models.rates import FRAME_MS
from realtime.protocol import FactorState
from realtime.sources.base import Moment, Source, smoothstep
from realtime.sources.idle import Idle
from realtime.sources.mic import MicLip

#: Greatest absolute yaw, pitch, roll (radians), x, y (crop widths) and log scale.
POSE_LIMIT: Array = np.array([0.35, 0.30, 0.35, 0.12, 0.12, 0.20], np.float32)
#: Greatest absolute lip coefficient, in standard deviations of real speech.
LIP_LIMIT = 4.0
#: Greatest gaze, units of 20 degrees.
GAZE_LIMIT = 1.25
MAX_GAIN = 2.0
#: Sources that fade at the same time in one factor; the faintest is frozen beyond that.
MAX_VOICES = 6
PAUSE_FADE_MS = 250
_GAIN_TIME_MS = 120.0
_GAIN_ALPHA = 1.0 - math.exp(-FRAME_MS / _GAIN_TIME_MS)
_KNEE = 0.8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that moves one frame but the lip code of its audio; immutable."""

    base: MotionCode
    """Absolute driving code; its lip part comes from all sources but the microphone."""
    mic_weight: float
    """How much of the microphone's lip code to add: source share x speech x gain."""

    def resolve(self, lip: Array | None) -> MotionCode:
        """Driving code of the frame, given the audio's lip code (16,) or None.

        A learnt lip code (`paper`, 500 dimensions) adds to no named one: it is taken as it is
        while the microphone has most of the say, else the lips stay the portrait's own.
        """
        if lip is not None and lip.size != self.base.lip.size:
            return self.base.with_("lip", lip) if self.mic_weight > 0.5 else self.base
        total = self.base.lip
        if lip is not None and self.mic_weight > 0.0:
            total = total + np.float32(self.mic_weight) * lip
        return self.base.with_("lip", np.clip(total, -LIP_LIMIT, LIP_LIMIT).astype(np.float32))


def soft_clip(value: Array, limit: Array) -> Array:
    """Identity up to 80 % of `limit`, then a smooth approach that never passes it."""
    knee = limit * np.float32(_KNEE)
    room = np.maximum(limit - knee, np.float32(1e-6))
    over = np.maximum(np.abs(value) - knee, 0.0)
    size = np.minimum(np.abs(value), knee) + room * np.tanh(over / room)
    return np.asarray(np.sign(value) * size, np.float32)


@dataclass(slots=True)
class _Voice:
    """One source's share of a factor."""

    source: Source | None
    """None: frozen at `last`."""
    weight: float
    start: float
    target: float
    last: Array


@dataclass(slots=True)
class _Mix:
    """The voices of one factor and the fade between them."""

    factor: Factor
    voices: list[_Voice]
    gain: float = 1.0
    gain_target: float = 1.0
    fade_from: int = -1
    fade_ms: int = 0

    def switch(self, source: Source, fade_ms: int, after_frame: int) -> None:
        """Start to fade to `source`; the first moved frame is `after_frame` + 1."""
        for voice in self.voices:
            voice.start, voice.target = voice.weight, 0.0
        for voice in self.voices:
            if voice.source is source:
                voice.target = 1.0
                break
        else:
            self.voices.append(_Voice(source, 0.0, 0.0, 1.0, _zeros(self.factor)))
        self.fade_from, self.fade_ms = after_frame, fade_ms
        while len(self.voices) > MAX_VOICES:
            self._freeze_faintest()

    def advance(self, frame: int) -> None:
        """Move weights and gain to `frame`; forget voices that have faded out."""
        passed = (frame - self.fade_from) * FRAME_MS
        share = 1.0 if passed >= self.fade_ms else smoothstep(passed / self.fade_ms)
        for voice in self.voices:
            voice.weight = voice.start + share * (voice.target - voice.start)
        if share >= 1.0 and len(self.voices) > 1:
            self.voices = [voice for voice in self.voices if voice.target > 0.0]
        gap = self.gain_target - self.gain
        self.gain = self.gain_target if abs(gap) < 1e-3 else self.gain + _GAIN_ALPHA * gap

    def _freeze_faintest(self) -> None:
        """Fold the two faintest fading voices into a frozen one, so that nothing jumps."""
        # The microphone's lip code is not known here, so it cannot be frozen.
        fading = [v for v in self.voices if v.target == 0.0 and not isinstance(v.source, MicLip)]
        one, two = sorted(fading, key=lambda v: v.weight)[:2]
        weight = one.weight + two.weight
        if weight > 0.0:
            two.last = np.asarray(
                (one.weight * one.last + two.weight * two.last) / weight, np.float32
            )
        two.source, two.weight, two.start = None, weight, weight
        self.voices.remove(one)


def _zeros(factor: Factor) -> Array:
    return np.zeros(DIMS[factor], np.float32)


class Router:
    """Routes sources to the factors of one portrait.

    `portrait` is the portrait's own motion code; `sources` says who drives each factor at
    first (missing ones idle). Belongs to one loop.
    """

    def __init__(
        self,
        portrait: MotionCode,
        idle: Idle,
        sources: Mapping[Factor, Source] = MappingProxyType({}),
    ) -> None:
        self._portrait = portrait
        self._idle = idle
        # A portrait that is itself beyond a limit must not be moved by the limit.
        self._pose_limit = np.maximum(POSE_LIMIT, np.abs(portrait.pose) / np.float32(_KNEE))
        self._mixes: dict[Factor, _Mix] = {}
        for factor in FACTORS:
            source = sources.get(factor, idle)
            self._mixes[factor] = _Mix(factor, [_Voice(source, 1.0, 1.0, 1.0, _zeros(factor))])
        self._frame = -1
        self._paused = False
        self._pause = 0.0
        self._pause_from, self._pause_frame = 0.0, -1

    @property
    def paused(self) -> bool:
        """Whether the portrait is asked to idle."""
        return self._paused

    @property
    def awake(self) -> float:
        """1 while driven, 0 while paused, between the two while it fades."""
        return 1.0 - self._pause

    def source(self, factor: Factor) -> Source:
        """The source that drives `factor` or is being faded to."""
        return next(
            voice.source
            for voice in self._mixes[factor].voices
            if voice.target > 0.0 and voice.source is not None
        )

    def set_source(self, factor: Factor, source: Source, fade_ms: int = 250) -> None:
        """Cross-fade `factor` to `source` over `fade_ms` from the next frame on."""
        if self.source(factor) is not source:
            self._mixes[factor].switch(source, max(0, fade_ms), self._frame)

    def set_gain(self, factor: Factor, gain: float) -> None:
        """Strength about neutral, 0 .. 2; reached smoothly. Raises ValueError beyond."""
        if not 0.0 <= gain <= MAX_GAIN:
            raise ValueError(f"gain must be 0 to {MAX_GAIN}, got {gain}")
        self._mixes[factor].gain_target = gain

    def set_paused(self, paused: bool) -> None:
        """Fade to idle with a closed mouth, or back."""
        if paused != self._paused:
            self._paused = paused
            self._pause_from, self._pause_frame = self._pause, self._frame

    def states(self) -> list[FactorState]:
        """Where every factor comes from, for the page."""
        states = []
        for factor in FACTORS:
            source = self.source(factor)
            gain = self._mixes[factor].gain_target
            states.append(FactorState(factor, source.kind, source.name, gain))
        return states

    def snapshot(self, moment: Moment) -> Snapshot:
        """Freeze the mixture for one frame. Frame indices must not go back."""
        self._frame = moment.frame_index
        passed = (self._frame - self._pause_frame) * FRAME_MS / PAUSE_FADE_MS
        goal = 1.0 if self._paused else 0.0
        self._pause = self._pause_from + smoothstep(passed) * (goal - self._pause_from)
        awake = np.float32(1.0 - self._pause)
        parts: dict[Factor, Array] = {}
        mic_weight = 0.0
        for factor in FACTORS:
            mix = self._mixes[factor]
            mix.advance(self._frame)
            code, mic = self._mixed(mix, moment)
            code = np.float32(mix.gain) * code
            if self._pause > 0.0:
                code = awake * code + np.float32(self._pause) * self._idle_code(factor, moment)
            mic_weight += mic * mix.gain * float(awake)
            parts[factor] = self._absolute(factor, code)
        return Snapshot(MotionCode(**{str(k): v for k, v in parts.items()}), mic_weight)

    def _mixed(self, mix: _Mix, moment: Moment) -> tuple[Array, float]:
        """Weighted sum of the known codes, and the microphone's weight."""
        total, mic = _zeros(mix.factor), 0.0
        for voice in mix.voices:
            if isinstance(voice.source, MicLip):
                mic += voice.weight * voice.source.weight(moment)
                continue
            if voice.source is not None:
                voice.last = self._ask(voice.source, mix.factor, moment)
            total += np.float32(voice.weight) * voice.last
        return total, mic

    def _ask(self, source: Source, factor: Factor, moment: Moment) -> Array:
        code = source.code(factor, moment)
        if code is None:
            return self._idle_code(factor, moment)
        if factor == "eye" and not source.blinks:
            blink = np.float32(self._idle.blink(moment.frame_index))
            code = code.copy()
            code[:2] += (1.0 - code[:2]) * blink
        return code

    def _idle_code(self, factor: Factor, moment: Moment) -> Array:
        code = self._idle.code(factor, moment)
        return _zeros(factor) if code is None else code

    def _absolute(self, factor: Factor, code: Array) -> Array:
        """Add the portrait's own code and stay in range."""
        own = self._portrait.get(factor)
        if factor == "lip":
            return code
        if factor == "pose":
            return soft_clip(own + code, self._pose_limit)
        if factor == "exp":
            return np.asarray(np.clip(own + code, 0.0, 1.0), np.float32)
        eye = own + code
        # A lid that is already partly shut has only the rest to go.
        eye[:2] = own[:2] + (1.0 - own[:2]) * code[:2]
        lids = np.clip(eye[[0, 1, 4, 5]], 0.0, 1.0)
        eye[2:4] = np.clip(eye[2:4], -GAZE_LIMIT, GAZE_LIMIT)
        eye[[0, 1, 4, 5]] = lids
        return np.asarray(eye, np.float32)
