"""Speech gate: closes the mouth in silence and opens it for speech, without chatter.

`webrtcvad` says speech or not for every 10, 20 or 30 ms. Here that answer gets
hysteresis (it takes several voiced frames to open), a hangover (it takes a while to
close) and limited slew, all counted in samples, so the result depends on the audio
alone and not on how it was cut into packets.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import webrtcvad

from models.codes import Array
from models.rates import MODEL_RATE_HZ

#: How many past levels can be asked for: more than a second at 10 ms.
_HISTORY = 128
#: A step whose samples all stay below this (-48 dBFS) is no speech whatever webrtcvad says.
SILENCE_PEAK = 130


class _Levels:
    """Levels of the last steps, asked for by sample."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._ring = np.zeros(_HISTORY, np.float64)
        self.done = 0

    def add(self, level: float) -> None:
        self._ring[self.done % _HISTORY] = level
        self.done += 1

    def at(self, sample: int) -> float:
        """Level of the last step that ended at or before `sample`; 0 before any."""
        index = sample // self._step
        if index > self.done or index < self.done - _HISTORY + 1:
            known = self.done * self._step
            raise ValueError(f"no level at sample {sample}: it is known up to {known}")
        return float(self._ring[(index - 1) % _HISTORY]) if index > 0 else 0.0


class SpeechGate:
    """Streaming gate on 16 kHz mono; belongs to one thread.

    Times are in samples at 16 kHz. The gain is 0 `hangover_samples + release_samples`
    (190 ms) after the last sound, up to 90 ms later in noise, where webrtcvad lingers. A
    frame's audio window reaches 40-80 ms past the frame's start, so on the screen the
    mouth is shut about 120 ms after the sound.
    """

    def __init__(
        self,
        *,
        frame_ms: Literal[10, 20, 30] = 10,
        aggressiveness: int = 2,
        onset_samples: int = 320,
        hangover_samples: int = 1120,
        attack_samples: int = 640,
        release_samples: int = 1920,
    ) -> None:
        if frame_ms not in (10, 20, 30):
            raise ValueError(f"webrtcvad takes 10, 20 or 30 ms, not {frame_ms}")
        if min(onset_samples, hangover_samples) < 0 or min(attack_samples, release_samples) < 1:
            raise ValueError("gate times must be positive")
        self._aggressiveness = aggressiveness
        self._step = MODEL_RATE_HZ * frame_ms // 1000
        self._onset, self._hangover = onset_samples, hangover_samples
        self._attack, self._release = attack_samples, release_samples
        self.reset()

    def reset(self) -> None:
        """Back to silence at sample 0."""
        self._vad = webrtcvad.Vad(self._aggressiveness)
        self._rest = np.empty(0, np.int16)
        self._levels = _Levels(self._step)
        self._open = False
        self._voiced = 0
        self._unvoiced = 0
        self._level = 0.0

    def push(self, samples: Array) -> None:
        """Take (n,) float32 in [-1, 1]."""
        fresh = (np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)
        signal = np.concatenate([self._rest, fresh])
        count = len(signal) // self._step
        for i in range(count):
            self._decide(signal[i * self._step : (i + 1) * self._step])
        self._rest = signal[count * self._step :]

    def gain_at(self, sample: int) -> float:
        """Speech gain 0..1 once all audio before `sample` has been heard; 0 before any.

        Raises ValueError for a sample that was not pushed yet or is forgotten (over a
        second old).
        """
        level = self._levels.at(sample)
        return level * level * (3.0 - 2.0 * level)

    def _decide(self, frame: np.ndarray[tuple[int], np.dtype[np.int16]]) -> None:
        # webrtcvad lingers on the noise it knows; silence is silence at once.
        loud = int(np.abs(frame).max()) >= SILENCE_PEAK
        if self._vad.is_speech(frame.tobytes(), MODEL_RATE_HZ) and loud:
            self._voiced += self._step
            self._unvoiced = 0
            self._open = self._open or self._voiced >= self._onset
        else:
            self._voiced = 0
            self._unvoiced += self._step
            self._open = self._open and self._unvoiced <= self._hangover
        slew = self._step / self._attack if self._open else -self._step / self._release
        self._level = min(1.0, max(0.0, self._level + slew))
        self._levels.add(self._level)


class Emphasis:
    """How much louder than usual the voice is, 0..1; moves the head a little in speech.

    Streaming on 16 kHz mono in steps of 10 ms. "Usual" is a slow mean of the level of
    everything louder than `FLOOR_DB`.
    """

    FLOOR_DB = -50.0
    _STEP = MODEL_RATE_HZ // 100
    _USUAL_ALPHA = 1.0 - math.exp(-0.01 / 1.5)
    _RISE_ALPHA = 1.0 - math.exp(-0.01 / 0.16)
    _FALL_ALPHA = 1.0 - math.exp(-0.01 / 0.45)
    _QUIET_DB, _RANGE_DB = 3.0, 9.0

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Back to silence at sample 0."""
        self._rest: Array = np.empty(0, np.float32)
        self._usual_db = self.FLOOR_DB / 2
        self._value = 0.0
        self._levels = _Levels(self._STEP)

    def push(self, samples: Array) -> None:
        """Take (n,) float32 in [-1, 1]."""
        signal = np.concatenate([self._rest, samples])
        count = len(signal) // self._STEP
        steps = signal[: count * self._STEP].reshape(count, self._STEP).astype(np.float64)
        for power in (steps**2).mean(1):
            self._decide(10.0 * math.log10(float(power) + 1e-12))
        self._rest = signal[count * self._STEP :]

    def at(self, sample: int) -> float:
        """Emphasis once all audio before `sample` was heard; raises like `SpeechGate.gain_at`."""
        return self._levels.at(sample)

    def _decide(self, level_db: float) -> None:
        if level_db > self.FLOOR_DB:
            self._usual_db += self._USUAL_ALPHA * (level_db - self._usual_db)
        over = (level_db - self._usual_db - self._QUIET_DB) / self._RANGE_DB
        target = min(1.0, max(0.0, over))
        alpha = self._RISE_ALPHA if target > self._value else self._FALL_ALPHA
        self._value += alpha * (target - self._value)
        self._levels.add(self._value)
