"""One capture clock for both outgoing tracks, in the terms of RTCP sender reports."""

from __future__ import annotations

import time
from dataclasses import dataclass

_NTP_UNIX_OFFSET_S = 2_208_988_800


def ntp_now() -> int:
    """The wall clock as a 64-bit NTP timestamp (RFC 5905)."""
    return ntp_from_unix_ns(time.time_ns())


def ntp_from_unix_ns(ns: int) -> int:
    """Nanoseconds since 1970 -> 64-bit NTP timestamp."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return ((seconds + _NTP_UNIX_OFFSET_S) << 32) | ((rest << 32) // 1_000_000_000)


def ntp_seconds(ntp: int) -> float:
    """64-bit NTP timestamp -> seconds since 1900."""
    return ntp / (1 << 32)


@dataclass(frozen=True, slots=True)
class CaptureClock:
    """Maps capture time to NTP: capture time 0 happened at `origin_ntp`.

    Stock aiortc maps RTP time to the time of *sending*, so a receiver faithfully keeps
    our processing skew. Here both tracks use one capture clock, hence any receiver that
    follows sender reports plays lip and sound of one instant at one instant.
    """

    origin_ntp: int
    origin_s: float | None = None
    """Capture time 0 on the monotonic clock, for measuring; wall clocks are set now and then."""

    @classmethod
    def starting(cls, index: int, rate_hz: int) -> CaptureClock:
        """The clock on which sample `index` happens now."""
        return cls(ntp_now() - (index << 32) // rate_hz, time.monotonic() - index / rate_hz)

    def age_s(self, ticks: int, rate_hz: int) -> float | None:
        """How long ago capture time `ticks / rate_hz` was."""
        if self.origin_s is None:
            return None
        return time.monotonic() - self.origin_s - ticks / rate_hz

    def ntp(self, ticks: int, rate_hz: int) -> int:
        """NTP timestamp of capture time `ticks / rate_hz`."""
        return self.origin_ntp + (ticks << 32) // rate_hz


class RemoteClock:
    """The other side's clock of one track: RTP time -> its NTP time.

    Known from sender reports, and better from the absolute-capture-time extension, which
    comes with the first packet and names the capture itself.
    """

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._report: tuple[int, int] | None = None
        self._capture: tuple[int, int] | None = None

    def on_report(self, ntp: int, rtp: int) -> None:
        """Take NTP and 32-bit RTP timestamp of one sender report."""
        if ntp:
            self._report = (ntp, rtp)

    def on_capture(self, ntp: int, rtp: int) -> None:
        """Take NTP capture time and 32-bit RTP timestamp of one packet."""
        if ntp:
            self._capture = (ntp, rtp)

    def reset(self) -> None:
        """The sender changed."""
        self._report = self._capture = None

    def seconds(self, rtp: int) -> float | None:
        """Sender's clock in seconds at (possibly unwrapped) RTP time; None while unknown."""
        known = self._capture or self._report
        if known is None:
            return None
        ntp, at = known
        delta = (rtp - at + (1 << 31)) % (1 << 32) - (1 << 31)
        return ntp_seconds(ntp) + delta / self._rate_hz
