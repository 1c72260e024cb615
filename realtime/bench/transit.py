"""How long media packets were under way: what the path itself took, and no server can help.

A media packet's header is readable on the wire (RFC 3711: SRTP encrypts the payload only), so
the impaired path can tell for each capture time when its packets entered and when they
arrived. The bench subtracts that from what a client sees; see `DESIGN.md`, "Beyond the path".
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_HEADER = struct.Struct("!BBHII")
#: RTP and RTCP share a port; these are RTCP's packet types (RFC 5761, section 4).
_RTCP_TYPES = range(192, 224)
_RTP_VERSION = 2


class TransitLog:
    """Media packets of one direction, in the order in which they entered. 24 bytes for each."""

    def __init__(self) -> None:
        self._ssrc, self._timestamp, self._took = array("L"), array("L"), array("d")

    def note(self, datagram: bytes, entered: float, arrives: float | None) -> None:
        """One datagram that entered at a time in seconds; `arrives` None: it was lost.

        Whatever is no RTP packet is left out.
        """
        if len(datagram) < _HEADER.size:
            return
        first, kind, _, timestamp, ssrc = _HEADER.unpack_from(datagram)
        if first >> 6 != _RTP_VERSION or kind in _RTCP_TYPES:
            return
        self._ssrc.append(ssrc)
        self._timestamp.append(timestamp)
        self._took.append(np.nan if arrives is None else arrives - entered)

    def stepping(self, step: int) -> Stream:
        """The stream whose RTP timestamps advance by `step` most often: 480 is 10 ms of voice."""
        streams = [self._stream(int(ssrc)) for ssrc in np.unique(np.asarray(self._ssrc, np.int64))]
        return max(streams, key=lambda s: int((np.diff(s.timestamps) == step).sum()), default=NONE)

    def carrying(self, timestamps: Sequence[int]) -> Stream:
        """The stream in which most of these 32-bit RTP timestamps occur."""
        ssrcs = np.asarray(self._ssrc, np.int64)
        among = np.isin(np.asarray(self._timestamp, np.int64), np.asarray(timestamps, np.int64))
        known, counts = np.unique(ssrcs[among], return_counts=True)
        return self._stream(int(known[int(np.argmax(counts))])) if len(known) else NONE

    def _stream(self, ssrc: int) -> Stream:
        mine = np.asarray(self._ssrc, np.int64) == ssrc
        return Stream(
            np.asarray(self._timestamp, np.int64)[mine], np.asarray(self._took, np.float64)[mine]
        )


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream's packets."""

    timestamps: NDArray[np.int64]
    """(n,) 32-bit."""
    took: Floats
    """(n,) seconds under way; NaN: lost."""

    def last(self) -> dict[int, float]:
        """By timestamp: how long the last packet with it was under way.

        A lost one is NaN: retransmissions come in a stream of their own (RFC 4588).
        """
        return dict(zip(self.timestamps.tolist(), self.took.tolist(), strict=True))


NONE = Stream(np.zeros(0, np.int64), np.zeros(0))
