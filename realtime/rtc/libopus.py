"""libopus' decoder, called directly, because it can recover a lost packet from the next.

A browser that sees loss adds a coarse copy of every packet to the one after it (in-band
forward error correction, RFC 6716 section 2.1.7). FFmpeg's decoder offers no way to it.
The interface has been stable since libopus 1.0; only the question whether a packet holds
such a copy needs 1.4.
"""

from __future__ import annotations

import ctypes
import functools
import weakref

import numpy as np
from numpy.typing import NDArray

from realtime.rtc.bundled import library_paths

RATE_HZ = 48_000
#: 120 ms, the longest packet.
MAX_SAMPLES = 5760
_SAMPLES = ctypes.POINTER(ctypes.c_int16)


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    why = "no libopus was found beside PyAV"
    for path in library_paths("opus"):
        try:
            lib = ctypes.CDLL(path)
            create, decode = lib.opus_decoder_create, lib.opus_decode
            has_copy, destroy = lib.opus_packet_has_lbrr, lib.opus_decoder_destroy
            lib.opus_get_version_string.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            why = str(error)
            continue
        pointer, number = ctypes.c_void_p, ctypes.c_int
        create.argtypes = [ctypes.c_int32, number, ctypes.POINTER(number)]
        create.restype = pointer
        decode.argtypes = [
            pointer, ctypes.c_char_p, ctypes.c_int32, _SAMPLES, number, number,
        ]  # fmt: skip
        has_copy.argtypes = [ctypes.c_char_p, ctypes.c_int32]
        destroy.argtypes = [pointer]
        destroy.restype = None
        return lib
    return why


def reason() -> str | None:
    """Why libopus cannot be called directly; None when it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def version() -> str:
    """Version of the library in use; empty when there is none."""
    loaded = _load()
    return "" if isinstance(loaded, str) else str(loaded.opus_get_version_string().decode())


class LibopusDecoder:
    """Opus packets -> 48 kHz mono. One thread at a time. Raises RuntimeError without libopus."""

    def __init__(self) -> None:
        lib = _load()
        if isinstance(lib, str):
            raise RuntimeError(lib)
        self._lib = lib
        status = ctypes.c_int()
        self._state = lib.opus_decoder_create(RATE_HZ, 1, ctypes.byref(status))
        if status.value or not self._state:
            raise RuntimeError(f"libopus made no decoder (code {status.value})")
        weakref.finalize(self, lib.opus_decoder_destroy, self._state)
        self._pcm = np.zeros(MAX_SAMPLES, np.int16)

    def decode(self, payload: bytes) -> NDArray[np.int16]:
        """One packet -> (n,) int16. Raises ValueError for an undecodable one."""
        return self._decode(payload, MAX_SAMPLES, 0)

    def has_copy(self, payload: bytes) -> bool:
        """Whether a packet carries a copy of the one before it."""
        return bool(payload) and self._lib.opus_packet_has_lbrr(payload, len(payload)) == 1

    def recover(self, payload: bytes, samples: int) -> NDArray[np.int16] | None:
        """The `samples` before `payload`, from its copy of them; None if it has none.

        Comes before `decode` of the same packet.
        """
        if not self.has_copy(payload):
            return None
        try:
            return self._decode(payload, samples, 1)
        except ValueError:
            return None

    def _decode(self, payload: bytes, room: int, copy: int) -> NDArray[np.int16]:
        out = self._pcm.ctypes.data_as(_SAMPLES)
        count = self._lib.opus_decode(self._state, payload, len(payload), out, room, copy)
        if count <= 0:
            raise ValueError(f"undecodable Opus packet (code {count})")
        return self._pcm[:count].copy()
