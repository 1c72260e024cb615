"""libvpx's VP8 encoder, called directly, because its rate can then be changed in place.

FFmpeg's wrapper reads the bit rate once, when it opens; `vpx_codec_enc_config_set` takes a
new one between two frames and costs nothing. The library is the one that PyAV brings (or
the system's, for a PyAV built from source). Only the first fields of one struct are ours to
know: before use they are compared with the defaults that the library itself writes, and
`reason()` says in words why it is not used.
"""

from __future__ import annotations

import ctypes
import functools
import weakref

import numpy as np
from numpy.typing import NDArray

from realtime.rtc.bundled import library_paths

_ABI_MISMATCH = 3
_FORCE_KEY = 1
_REALTIME = 1
_I420 = 0x102
_CBR = 1
_FRAME_PACKET = 0
_IS_KEY = 1
_SET_CPU_USED, _SET_NOISE, _SET_STATIC_THRESHOLD, _SET_MAX_INTRA_PCT = 13, 15, 17, 26


class LibvpxError(RuntimeError):
    """libvpx cannot be used, or refused what it was given."""


class _Buffer(ctypes.Structure):
    _fields_ = (("buf", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Config(ctypes.Structure):
    """`vpx_codec_enc_cfg_t` up to the key-frame fields; the tail is the library's business."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("usage", "threads", "profile", "width", "height")),
        *((name, ctypes.c_uint) for name in ("bit_depth", "input_bit_depth")),
        *((name, ctypes.c_int) for name in ("timebase_num", "timebase_den")),
        *((name, ctypes.c_uint) for name in ("error_resilient", "pass_", "lag", "drop_frame")),
        *((name, ctypes.c_uint) for name in ("resize", "scaled_width", "scaled_height")),
        *((name, ctypes.c_uint) for name in ("resize_up", "resize_down", "end_usage")),
        ("stats_in", _Buffer),
        ("mb_stats_in", _Buffer),
        *((name, ctypes.c_uint) for name in ("target_kbps", "min_q", "max_q")),
        *((name, ctypes.c_uint) for name in ("undershoot_pct", "overshoot_pct")),
        *((name, ctypes.c_uint) for name in ("buffer_ms", "initial_ms", "optimal_ms")),
        *((name, ctypes.c_uint) for name in ("vbr_bias", "min_section", "max_section", "corpus")),
        *((name, ctypes.c_uint) for name in ("key_mode", "key_min", "key_max")),
        ("tail", ctypes.c_uint8 * 4096),
    )


class _Packet(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("buf", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("pts", ctypes.c_int64),
        ("duration", ctypes.c_ulong),
        ("flags", ctypes.c_uint32),
    )


#: What `vpx_codec_enc_config_default` writes for VP8: a moved field would show here.
_DEFAULTS = {
    "width": 320, "height": 240, "timebase_num": 1, "timebase_den": 30, "target_kbps": 256,
    "min_q": 4, "max_q": 63, "buffer_ms": 6000, "initial_ms": 4000, "optimal_ms": 5000,
    "key_mode": 1, "key_max": 128,
}  # fmt: skip


class _Library:
    """The loaded library, its VP8 interface and default configuration."""

    def __init__(self, path: str) -> None:
        lib = ctypes.CDLL(path)
        pointer, code = ctypes.c_void_p, ctypes.c_int
        lib.vpx_codec_vp8_cx.restype = pointer
        lib.vpx_codec_enc_config_default.argtypes = [pointer, pointer, ctypes.c_uint]
        lib.vpx_codec_enc_config_set.argtypes = [pointer, pointer]
        lib.vpx_codec_enc_init_ver.argtypes = [pointer, pointer, pointer, ctypes.c_long, code]
        # The value is variadic: naming only the fixed arguments keeps that right everywhere.
        lib.vpx_codec_control_.argtypes = [pointer, code]
        lib.vpx_codec_encode.argtypes = [
            pointer, pointer, ctypes.c_int64, ctypes.c_ulong, ctypes.c_long, ctypes.c_ulong,
        ]  # fmt: skip
        lib.vpx_codec_get_cx_data.argtypes = [pointer, ctypes.POINTER(pointer)]
        lib.vpx_codec_get_cx_data.restype = ctypes.POINTER(_Packet)
        lib.vpx_codec_destroy.argtypes = [pointer]
        lib.vpx_img_wrap.argtypes = [pointer, code, *[ctypes.c_uint] * 3, pointer]
        lib.vpx_img_wrap.restype = pointer
        lib.vpx_img_free.argtypes = [pointer]
        self.lib = lib
        lib.vpx_codec_version_str.restype = ctypes.c_char_p
        self.version = lib.vpx_codec_version_str().decode()
        self.interface = lib.vpx_codec_vp8_cx()
        self.abi = self._find_abi()

    def default_config(self) -> _Config:
        config = _Config()
        if self.lib.vpx_codec_enc_config_default(self.interface, ctypes.byref(config), 0):
            raise LibvpxError("libvpx has no VP8 encoder")
        return config

    def _find_abi(self) -> int:
        """The version number that `init` wants; it refuses every other one."""
        config = self.default_config()
        moved = [name for name, value in _DEFAULTS.items() if getattr(config, name) != value]
        if moved:
            raise LibvpxError(f"libvpx's configuration has another layout ({', '.join(moved)})")
        for version in range(1, 200):
            context = ctypes.create_string_buffer(512)
            pointers = ctypes.byref(context), self.interface, ctypes.byref(config)
            status = self.lib.vpx_codec_enc_init_ver(*pointers, 0, version)
            if status != _ABI_MISMATCH:
                if status == 0:
                    self.lib.vpx_codec_destroy(ctypes.byref(context))
                return version
        raise LibvpxError("libvpx's interface version is unknown")


@functools.cache
def _load() -> _Library | str:
    """The library, or why there is none."""
    why = "no libvpx was found beside PyAV"
    for path in library_paths("vpx"):
        try:
            return _Library(path)
        except (OSError, AttributeError, LibvpxError) as error:
            why = str(error)
    return why


def reason() -> str | None:
    """Why libvpx cannot be called directly; None when it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def version() -> str:
    """Version of the library in use; empty when there is none."""
    loaded = _load()
    return "" if isinstance(loaded, str) else loaded.version


class LibvpxEncoder:
    """One VP8 encoder of a fixed size. One thread at a time; calls release the interpreter lock.

    Constant bit rate, half a second of rate buffer, no lookahead, never a key frame of its
    own accord, 90 kHz time base. Raises LibvpxError.
    """

    def __init__(self, width: int, height: int, bitrate_bps: int, frame_ticks: int) -> None:
        library = _load()
        if isinstance(library, str):
            raise LibvpxError(library)
        self.width, self.height = width, height
        self._lib = library.lib
        self._frame_ticks = frame_ticks
        config = library.default_config()
        config.threads = 1
        config.width, config.height = width, height
        config.timebase_num, config.timebase_den = 1, 90_000
        config.end_usage, config.target_kbps = _CBR, _kbps(bitrate_bps)
        config.min_q, config.max_q = 2, 52
        config.undershoot_pct, config.overshoot_pct = 100, 25
        config.buffer_ms, config.initial_ms, config.optimal_ms = 500, 400, 400
        config.key_mode, config.key_max = 1, 3000
        self._config = config
        self._context = ctypes.create_string_buffer(512)
        self._check(
            self._lib.vpx_codec_enc_init_ver(
                self._context, library.interface, ctypes.byref(config), 0, library.abi
            )
        )
        self._finalizer = weakref.finalize(self, self._lib.vpx_codec_destroy, self._context)
        for control, value in (
            (_SET_CPU_USED, -8), (_SET_NOISE, 0), (_SET_STATIC_THRESHOLD, 1),
            (_SET_MAX_INTRA_PCT, 400),
        ):  # fmt: skip
            code = self._lib.vpx_codec_control_(self._context, control, ctypes.c_int(value))
            self._check(code)

    def set_bitrate(self, bps: int) -> None:
        """Aim at `bps` from the next frame on; no key frame."""
        if _kbps(bps) != self._config.target_kbps:
            self._config.target_kbps = _kbps(bps)
            code = self._lib.vpx_codec_enc_config_set(self._context, ctypes.byref(self._config))
            self._check(code)

    def encode(self, i420: NDArray[np.uint8], pts: int, key: bool) -> tuple[bytes, bool]:
        """Encode (H * 3 / 2, W) uint8 at `pts` (90 kHz, growing): (data, whether a key frame)."""
        pixels = np.ascontiguousarray(i420)
        if pixels.shape != (self.height * 3 // 2, self.width):
            raise LibvpxError(f"the picture is {pixels.shape}, not of the encoder's size")
        size = self.width, self.height
        image = self._lib.vpx_img_wrap(None, _I420, *size, 1, pixels.ctypes.data)
        if not image:
            raise LibvpxError("the picture cannot be wrapped")
        try:
            flags = _FORCE_KEY if key else 0
            self._check(
                self._lib.vpx_codec_encode(
                    self._context, image, pts, self._frame_ticks, flags, _REALTIME
                )
            )
            return self._collect()
        finally:
            self._lib.vpx_img_free(image)

    def close(self) -> None:
        """Free the encoder; nothing else may be called afterwards."""
        self._finalizer()

    def _collect(self) -> tuple[bytes, bool]:
        data, key = [], False
        iterator = ctypes.c_void_p()
        while packet := self._lib.vpx_codec_get_cx_data(self._context, ctypes.byref(iterator)):
            content = packet.contents
            if content.kind == _FRAME_PACKET:
                data.append(ctypes.string_at(content.buf, content.size))
                key = key or bool(content.flags & _IS_KEY)
        return b"".join(data), key

    def _check(self, code: int) -> None:
        if code:
            raise LibvpxError(f"libvpx refused with code {code}")


def _kbps(bps: int) -> int:
    return max(1, bps // 1000)
