"""espeak-ng in this process through ctypes: samples and the time of every phoneme.

The library's phoneme events carry the sample at which a phoneme starts in the signal it is
about to hand over. The silence before a voiceless stop bursts belongs to the phoneme before in
its bookkeeping; `_close_stops` gives it to the stop, by the signal's own energy.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.voices.phonemes import (
    SILENCE,
    SILENT_STOPS,
    Segment,
    begin_at,
    close_after_pause,
    from_espeak,
    spread,
)

F32 = NDArray[np.float32]
_SYNCHRONOUS, _PHONEME_EVENTS, _CHARACTERS, _UTF8 = 2, 1, 1, 1
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _PITCH, _RANGE = 1, 3, 4
_LOCK = threading.Lock()


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("text", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_ms", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Name),
    )  # fmt: skip


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True, slots=True)
class EspeakVoice:
    """`name` as in en-us+f3: voice file and variant; words per minute; pitch and range 0..99."""

    name: str = "en"
    words_per_minute: int = 165
    pitch: int = 50
    pitch_range: int = 50


class EspeakError(RuntimeError):
    """The library is absent, a voice is unknown, or synthesis failed."""


class _Library:
    """The one instance of a library that keeps its state in globals."""

    def __init__(self) -> None:
        path = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self.c: Any = ctypes.CDLL(path)
        except OSError as error:
            raise EspeakError("espeak-ng is not installed (package espeak-ng)") from error
        self.rate_hz = int(self.c.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS))
        if self.rate_hz <= 0:
            raise EspeakError("espeak-ng did not start; are its data files installed?")
        self.samples: list[NDArray[np.int16]] = []
        self.events: list[tuple[int, str]] = []
        self._keep = _Callback(self._take)
        self.c.espeak_SetSynthCallback(self._keep)

    def _take(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self.samples.append(np.ctypeslib.as_array(wave, (count,)).astype(np.int16))
        i = 0
        while events[i].type != _EVENT_END:
            if events[i].type == _EVENT_PHONEME:
                text = bytes(events[i].id.text).split(b"\0")[0].decode("utf-8", "replace")
                self.events.append((int(events[i].sample), text))
            i += 1
        return 0


@cache
def _library() -> _Library:
    return _Library()


def available() -> bool:
    """Whether espeak-ng can be used on this machine."""
    try:
        _library()
    except EspeakError:
        return False
    return True


def speak(text: str, voice: EspeakVoice) -> tuple[F32, int, list[Segment]]:
    """Samples float32 (n,) in [-1, 1], their rate in Hz, and the phonemes; any thread.

    Raises:
        EspeakError: no library, unknown voice, or nothing came out.
    """
    with _LOCK:
        lib = _library()
        lib.samples, lib.events = [], []
        if lib.c.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise EspeakError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in (
            (_RATE, voice.words_per_minute), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range),
        ):  # fmt: skip
            lib.c.espeak_SetParameter(parameter, int(value), 0)
        data = text.encode() + b"\0"
        failed = lib.c.espeak_Synth(
            ctypes.c_char_p(data), ctypes.c_size_t(len(data)), ctypes.c_uint(0),
            ctypes.c_int(_CHARACTERS), ctypes.c_uint(0), ctypes.c_uint(_UTF8), None, None,
        )  # fmt: skip
        lib.c.espeak_Synchronize()
        if failed or not lib.samples or not lib.events:
            raise EspeakError(f"espeak-ng made no sound of {text!r}")
        rate = lib.rate_hz
        samples = (np.concatenate(lib.samples) / 32768).astype(np.float32)
        events = list(lib.events)
    return samples, rate, _close_stops(samples, rate, _segments(events, len(samples), rate))


def _segments(events: list[tuple[int, str]], total: int, rate: int) -> list[Segment]:
    """Events (start sample, mnemonic) -> segments that cover the signal without gaps."""
    out: list[Segment] = []
    starts = [min(sample, total) for sample, _ in events]
    if starts[0] > 0:
        out.append(Segment(SILENCE, 0.0, starts[0] / rate))
    for (_, name), a, b in zip(events, starts, [*starts[1:], total], strict=True):
        if b > a:
            out += spread(from_espeak(name), a / rate, b / rate)
    return out


def _close_stops(
    samples: F32, rate: int, segments: list[Segment], *, longest_s: float = 0.12
) -> list[Segment]:
    """Move the start of every voiceless stop back to where the sound before it ended."""
    hop = rate // 200
    power = np.square(samples[: len(samples) // hop * hop].reshape(-1, hop)).mean(1)
    silent = power < 1e-5
    out = list(segments)
    for i in range(1, len(out)):
        stop, before = out[i], out[i - 1]
        if before.phoneme == SILENCE or stop.phoneme not in SILENT_STOPS:
            continue
        first = at = min(int(stop.start_s * rate / hop), len(silent) - 1)
        earliest = max(stop.start_s - longest_s, before.start_s + 0.01)
        # The burst can begin a few milliseconds inside the stop's own segment.
        while at > 0 and not silent[at] and first - at < 3:
            at -= 1
        while at > 0 and silent[at] and at * hop / rate > earliest:
            at -= 1
        begin_at(out, i, max((at + 1) * hop / rate, earliest))
    return close_after_pause(out)
