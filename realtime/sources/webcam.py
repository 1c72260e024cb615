"""The person in front of the webcam as a source.

Readings carry the capture time of their picture on the session clock, so the motion of a
frame is interpolated at that frame's own time: webcam lips and the returned voice match,
and a 30 fps camera drives a 25 fps portrait without beat.

Everything but the lips is relative to the person's *neutral*, the median over the first
good second (or the last half second on `recenter`). When the face is lost the motion
holds, eyes open and mouth shut, and after a second it fades to idle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.codes import CODE_DIM, DIMS, FACTOR_SLICES, Array, Factor
from models.config import ModelConfig
from models.rates import FRAME_SAMPLES_48K, WIRE_RATE_HZ
from models.runtime.engine import MotionReading
from models.streaming import ExpressionWindow, OneEuro
from realtime.sources.base import Moment, Source, smoothstep

WebcamStatus = Literal["off", "searching", "tracking"]

HOLD_SAMPLES = WIRE_RATE_HZ
OFF_SAMPLES = 2 * WIRE_RATE_HZ
NEUTRAL_SAMPLES = WIRE_RATE_HZ
NEUTRAL_READINGS = 8
_RECENTER_SAMPLES = WIRE_RATE_HZ // 2
_MOVE_NEUTRAL_SAMPLES = 0.4 * WIRE_RATE_HZ
_FADE_FRAMES = 13
"""Half a second from idle to the person and back."""
_GAP_SAMPLES = WIRE_RATE_HZ // 5
_SEAM_SAMPLES = 0.3 * WIRE_RATE_HZ
_RELAX_SAMPLES = 0.2 * WIRE_RATE_HZ
_HISTORY = 48

_EYE, _POSE = FACTOR_SLICES["eye"], FACTOR_SLICES["pose"]
_EXP, _LIP = FACTOR_SLICES["exp"], FACTOR_SLICES["lip"]
#: Where a code is a share 0 .. 1 of something: lids, widening, expressions.
_SHARES = np.zeros(CODE_DIM, np.bool_)
_SHARES[_EXP] = True
_SHARES[_EYE] = [True, True, False, False, True, True]
_LIDS = slice(_EYE.start, _EYE.start + 2)
_GAZE = slice(_EYE.start + 2, _EYE.start + 4)
#: A resting face that reads more than this is a bad neutral, not a face without range.
_MOST_NEUTRAL_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class _Timed:
    at: int
    """48 kHz capture sample."""
    code: Array
    """(58,)."""


class Webcam:
    """Latest motion of one person. Belongs to one session and its loop.

    `fallback` (idle) drives while nobody is seen.
    """

    kind: Literal["webcam"] = "webcam"
    name: None = None
    blinks = True

    def __init__(self, fallback: Source, config: ModelConfig | None = None) -> None:
        length = (config or ModelConfig()).expression_window
        self._fallback = fallback
        self._pose = OneEuro(cutoff_hz=2.0, beta=12.0)
        self._gaze = OneEuro(cutoff_hz=2.5, beta=4.0)
        self._expression = ExpressionWindow(length, DIMS["exp"])
        self._window_length = length
        self._raw: deque[_Timed] = deque(maxlen=_HISTORY)
        self._moves: deque[_Timed] = deque(maxlen=_HISTORY)
        self._neutral: Array | None = None
        self._neutral_from: Array | None = None
        self._neutral_at = 0
        self._seam: _Timed | None = None
        self._picture_at: int | None = None
        self._now = 0
        self._frame: int | None = None
        self._presence = 0.0
        self.out_of_order = 0
        """Readings dropped because a later one was there already."""

    @property
    def status(self) -> WebcamStatus:
        """`off` without pictures for two seconds, `searching` without a face or neutral yet."""
        if self._picture_at is None or self._now - self._picture_at > OFF_SAMPLES:
            return "off"
        seen = self._raw and self._now - self._raw[-1].at <= HOLD_SAMPLES
        return "tracking" if seen and self._neutral is not None else "searching"

    def push(self, reading: MotionReading | None, capture_48k: int) -> None:
        """Take what one picture said (None: no face) at its capture time."""
        if self._picture_at is not None and capture_48k <= self._picture_at:
            if self._picture_at - capture_48k < OFF_SAMPLES:
                self.out_of_order += 1
                return
            # The session clock was set back: nothing that is known can be compared.
            self._raw.clear()
            self._moves.clear()
            self._seam = None
        self._picture_at = capture_48k
        if reading is None:
            return
        last_at = self._raw[-1].at if self._raw else None
        self._raw.append(_Timed(capture_48k, reading.code.concat()))
        if self._neutral is None:
            self._find_neutral()
        if self._neutral is not None:
            self._move(last_at)

    def recenter(self) -> None:
        """Take the median of the last half second as neutral; reached within 0.4 s."""
        if not self._raw:
            return
        newest = self._raw[-1].at
        recent = [r.code for r in self._raw if newest - r.at <= _RECENTER_SAMPLES]
        if self._neutral is not None:
            self._neutral_from, self._neutral_at = self._neutral_now(newest), newest
            self._neutral = np.median(recent, axis=0).astype(np.float32)

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        """Motion at the middle of the frame, faded with the fallback."""
        at = moment.middle_48k
        self._advance(moment.frame_index, at)
        idle = self._fallback.code(factor, moment)
        if idle is None:
            idle = np.zeros(DIMS[factor], np.float32)
        share = np.float32(smoothstep(self._presence))
        if share == 0.0 or not self._moves:
            return idle
        code = self._at(at)[FACTOR_SLICES[factor]]
        mixed: Array = idle + share * (code - idle)
        return mixed

    # --- inside -----------------------------------------------------------------------

    def _advance(self, frame: int, at: int) -> None:
        """Once per frame: move the presence towards 1 while somebody is seen, else to 0."""
        if self._frame is not None and frame <= self._frame:
            return
        steps = 1 if self._frame is None else min(frame - self._frame, _FADE_FRAMES)
        self._frame, self._now = frame, at
        seen = bool(self._moves) and at - self._moves[-1].at <= HOLD_SAMPLES
        change = steps / _FADE_FRAMES if seen else -steps / _FADE_FRAMES
        self._presence = min(1.0, max(0.0, self._presence + change))

    def _find_neutral(self) -> None:
        """Median of the first second in which the face was never lost."""
        readings = list(self._raw)
        start = 0
        for i in range(1, len(readings)):
            if readings[i].at - readings[i - 1].at > 2 * _GAP_SAMPLES:
                start = i
        good = readings[start:]
        if len(good) >= NEUTRAL_READINGS and good[-1].at - good[0].at >= NEUTRAL_SAMPLES:
            self._neutral = np.median([r.code for r in good], axis=0).astype(np.float32)
            self._neutral_from = None

    def _neutral_now(self, at: int) -> Array:
        assert self._neutral is not None
        if self._neutral_from is None:
            return self._neutral
        share = np.float32(smoothstep((at - self._neutral_at) / _MOVE_NEUTRAL_SAMPLES))
        moved: Array = self._neutral_from + share * (self._neutral - self._neutral_from)
        return moved

    def _move(self, last_at: int | None) -> None:
        """Turn the newest reading into a relative, smoothed code."""
        raw = self._raw[-1]
        neutral = self._neutral_now(raw.at)
        code = raw.code - neutral
        base = np.clip(neutral[_SHARES], 0.0, _MOST_NEUTRAL_SHARE)
        code[_SHARES] = np.clip((raw.code[_SHARES] - base) / (1.0 - base), 0.0, 1.0)
        code[_LIP] = raw.code[_LIP]
        since = raw.at - last_at if last_at is not None else FRAME_SAMPLES_48K
        code[_POSE] = self._pose.push(code[_POSE], since / WIRE_RATE_HZ)
        code[_GAZE] = self._gaze.push(code[_GAZE], since / WIRE_RATE_HZ)
        # The window counts video frames: a slow reading stands for several of them.
        frames = min(self._window_length, max(1, round(since / FRAME_SAMPLES_48K)))
        expression = code[_EXP].copy()
        for _ in range(frames):
            code[_EXP] = self._expression.push(expression)
        if self._moves and raw.at - self._moves[-1].at > _GAP_SAMPLES:
            self._seam = _Timed(max(raw.at, self._now), self._at(max(raw.at, self._now)))
        self._moves.append(_Timed(raw.at, code))

    def _at(self, at: int) -> Array:
        """Relative code (58,) at a capture time: interpolated, or held and relaxed."""
        after = next((i for i, m in enumerate(self._moves) if m.at >= at), None)
        if after is None:
            code = self._relaxed(at)
        elif after == 0:
            code = self._moves[0].code
        else:
            before, then = self._moves[after - 1], self._moves[after]
            share = np.float32((at - before.at) / (then.at - before.at))
            code = before.code + share * (then.code - before.code)
        if self._seam is not None and at - self._seam.at < _SEAM_SAMPLES:
            share = np.float32(smoothstep((at - self._seam.at) / _SEAM_SAMPLES))
            code = self._seam.code + share * (code - self._seam.code)
        return np.asarray(code, np.float32)

    def _relaxed(self, at: int) -> Array:
        """The last code, with eyes opening and mouth shutting the longer it is held."""
        last = self._moves[-1]
        held = at - last.at - _GAP_SAMPLES / 2
        if held <= 0:
            return last.code
        code = last.code.copy()
        kept = np.float32(1.0 - smoothstep(held / _RELAX_SAMPLES))
        code[_LIDS] *= kept
        code[_LIP] *= kept
        return code
