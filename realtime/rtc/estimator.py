"""How much the path takes, from transport-wide feedback: delay first, loss second. No I/O.

Delay: packets sent within 5 ms form a group; the change of one-way delay between groups is
accumulated, smoothed and its trend taken over the last groups. A queue that grows shows as
a rising trend, before anything is lost; then the rate falls to 85 % of what got through.
Jitter makes such trends too, but it leaves some packets undelayed: without a standing queue,
that is unless even the quickest of the last groups are slower than lately, no trend counts.
While nothing grows the rate rises by 25 % a second, by 4 % for six seconds after a queue grew.
A program that stands still, ours or the other, is not taken for a full path: what it reads in
a heap counts as one group, and the rate is that of the time in which anything came. Ideas and
constants: draft-ietf-rmcat-gcc-02 and its trendline successor.

Loss: more than a tenth lost lowers a ceiling of its own, less than a fiftieth lets that rise, and
what is between leaves it. Random loss of a radio path is not a full queue: 3 % of it, for however
long, neither lowers the rate nor keeps it from coming back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from realtime.rtc.transport_cc import PacketResult

GROUP_S = 0.005
#: Packets that are read this close to each other, closer than they were sent, waited for the
#: program that read them, not for the path; but no path's queue is hidden for longer than a second.
BURST_S, MAX_BURST_S = 0.005, 1.0
_TOGETHER_S = 0.001
TREND_GROUPS, MIN_TREND_GROUPS = 20, 8
BACK_OFF = 0.85
RISE_PER_S, RISE_NEAR_PER_S = 1.25, 1.04
#: A rate at which the queue grew is approached slowly for so long; then the path may have changed.
KNEE_S = 6.0
LOSS_HIGH, LOSS_LOW = 0.10, 0.02
_GAIN = 4.0
_MAX_DELTAS = 60
_SMOOTH = 0.9
_THRESHOLD_START_MS, _THRESHOLD_MIN_MS, _THRESHOLD_MAX_MS = 12.5, 6.0, 600.0
_THRESHOLD_UP, _THRESHOLD_DOWN = 0.0087, 0.039
_OVERUSE_S = 0.010
#: A queue is standing when the quickest of the last groups came this much later than the quickest
#: of the last `_BASE_S`, and by this share of how far the last groups are apart: jitter keeps
#: some quick, a queue none. Less is no latency worth a worse picture.
_STANDING_MS, _STANDING_SHARE = 10.0, 0.3
_LATEST_S, _BASE_S = 0.25, 10.0
_RATE_WINDOW_S, _LEAST_SPAN_S = 0.5, 0.2
#: Frames come every 40 ms, at a third of the rate every 120.
_STANDSTILL_S = 0.120
_LOSS_PACKETS = 20
_LOSS_WINDOW_S = 1.0
#: An estimate that is not made use of is not raised: nothing has shown that it would hold.
_USED_SHARE = 0.5


@dataclass(slots=True)
class _Group:
    """Packets that count as one: sent together, or read together after a standstill."""

    first_sent_s: float
    last_sent_s: float
    first_arrival_s: float
    last_arrival_s: float

    def takes(self, sent_s: float, arrival_s: float) -> bool:
        """Whether a packet belongs to this group (draft-ietf-rmcat-gcc-02 5.2)."""
        if sent_s - self.first_sent_s <= GROUP_S:
            return True
        between = arrival_s - self.last_arrival_s
        if between > BURST_S or arrival_s - self.first_arrival_s > MAX_BURST_S:
            return False
        sent_between = sent_s - self.last_sent_s
        # What was sent with the last one goes where that went.
        return sent_between < _TOGETHER_S or between < sent_between

    def add(self, sent_s: float, arrival_s: float) -> None:
        """Take one more packet."""
        self.last_sent_s = max(self.last_sent_s, sent_s)
        self.last_arrival_s = max(self.last_arrival_s, arrival_s)


class Trend:
    """Delay trend of packet groups: `state` is -1 (queue shrinks), 0 or 1 (it grows)."""

    def __init__(self) -> None:
        self.state = 0
        self._group: _Group | None = None
        self._previous: tuple[float, float] | None = None
        self._smoothed_ms = 0.0
        self._points: deque[tuple[float, float]] = deque(maxlen=TREND_GROUPS)
        self._latest: deque[tuple[float, float]] = deque()
        self._origin_s: float | None = None
        # Rising (arrival, delay): the first is the least of the window (a monotonic queue).
        self._least: deque[tuple[float, float]] = deque()
        self._deltas = 0
        self._threshold_ms = _THRESHOLD_START_MS
        self._over_since: float | None = None
        self._last_trend = 0.0
        self._updated: float | None = None

    def add(self, sent_s: float, arrival_s: float) -> None:
        """Take one received packet, in sending order."""
        group = self._group
        if group is not None and group.takes(sent_s, arrival_s):
            group.add(sent_s, arrival_s)
            return
        if group is not None:
            self._close(group.last_sent_s, group.last_arrival_s)
        self._group = _Group(sent_s, sent_s, arrival_s, arrival_s)

    def _close(self, sent_s: float, arrival_s: float) -> None:
        previous, self._previous = self._previous, (sent_s, arrival_s)
        if previous is None:
            return
        if sent_s - previous[0] > 3.0:
            # A long silence: not comparable.
            return
        if self._origin_s is None:
            self._origin_s = arrival_s - sent_s
        self._deltas = min(_MAX_DELTAS, self._deltas + 1)
        delay_ms = (arrival_s - sent_s - self._origin_s) * 1000
        self._remember(delay_ms, arrival_s)
        self._smoothed_ms = _SMOOTH * self._smoothed_ms + (1 - _SMOOTH) * delay_ms
        self._points.append((arrival_s, self._smoothed_ms))
        enough = len(self._points) >= MIN_TREND_GROUPS
        trend = self._slope() if enough else 0.0
        self._decide(trend, arrival_s)

    def _remember(self, delay_ms: float, at: float) -> None:
        self._latest.append((at, delay_ms))
        while len(self._latest) > MIN_TREND_GROUPS and self._latest[0][0] < at - _LATEST_S:
            self._latest.popleft()
        while self._least and self._least[-1][1] >= delay_ms:
            self._least.pop()
        self._least.append((at, delay_ms))
        while self._least[0][0] < at - _BASE_S:
            self._least.popleft()

    @property
    def standing(self) -> bool:
        """Whether there is a queue that no packet of the last groups could pass."""
        if not self._latest:
            return False
        delays = [delay for _, delay in self._latest]
        quickest = min(delays)
        needed = max(_STANDING_MS, _STANDING_SHARE * (max(delays) - quickest))
        return quickest - self._least[0][1] > needed

    def _slope(self) -> float:
        """Milliseconds of delay per millisecond of time, by least squares."""
        points = np.array(self._points)
        x = (points[:, 0] - points[0, 0]) * 1000
        x -= x.mean()
        spread = float(x @ x)
        return float(x @ (points[:, 1] - points[:, 1].mean())) / spread if spread > 0 else 0.0

    def _decide(self, trend: float, at: float) -> None:
        modified = self._deltas * trend * _GAIN
        if modified > self._threshold_ms and self.standing:
            if self._over_since is None:
                self._over_since = at
            if at - self._over_since >= _OVERUSE_S and trend >= self._last_trend:
                self.state = 1
        else:
            self._over_since = None
            self.state = -1 if modified < -self._threshold_ms else 0
        self._adapt(abs(modified), at)
        self._last_trend = trend

    def _adapt(self, modified: float, at: float) -> None:
        elapsed_ms = 0.0 if self._updated is None else min(100.0, (at - self._updated) * 1000)
        self._updated = at
        if modified > self._threshold_ms + 15.0:
            return
        k = _THRESHOLD_UP if modified > self._threshold_ms else _THRESHOLD_DOWN
        moved = self._threshold_ms + k * (modified - self._threshold_ms) * elapsed_ms
        self._threshold_ms = min(_THRESHOLD_MAX_MS, max(_THRESHOLD_MIN_MS, moved))


class BandwidthEstimator:
    """See the module's docstring. `bps` is the estimate. One loop."""

    def __init__(self, start_bps: int, *, floor_bps: int = 100_000) -> None:
        self.bps = start_bps
        self.loss = 0.0
        """Share of packets lost in the last window."""
        self.delay_overuses = 0
        self._floor = floor_bps
        self._ceiling = start_bps
        self._trend = Trend()
        self._acked: deque[tuple[float, int]] = deque()
        self._counts: deque[tuple[float, int, int]] = deque()
        self._knee: float | None = None
        self._changed_s: float | None = None
        self._lowered_s = float("-inf")
        self._loss_lowered_s = float("-inf")
        self._loss_ceiling = float("inf")

    def raise_ceiling(self, bps: int) -> None:
        """The estimate may be as much as `bps`.

        There is no way to lower it: what the path takes does not change when less is sent, and
        is needed again when more may be.
        """
        self._ceiling = max(self._ceiling, bps)

    def on_results(self, results: Sequence[PacketResult], now: float, rtt_s: float) -> int:
        """Take one report's packets at monotonic `now`; returns the estimate in bit/s."""
        received = [r for r in results if r.arrival_s is not None]
        for result in received:
            assert result.arrival_s is not None
            self._trend.add(result.sent_s, result.arrival_s)
            self._acked.append((result.arrival_s, result.size))
        while self._acked and self._acked[-1][0] - self._acked[0][0] > _RATE_WINDOW_S:
            self._acked.popleft()
        self._note_loss(len(results) - len(received), len(results), now)
        if self._trend.state > 0:
            self._lower_for_delay(now, rtt_s)
        elif self.loss > LOSS_HIGH:
            self._lower_for_loss(now, rtt_s)
        elif self._trend.state == 0:
            self._raise(now)
        else:
            self._changed_s = now
        return self.bps

    @property
    def acked_bps(self) -> float:
        """What got through lately, while anything did: a standstill says nothing of the path."""
        if len(self._acked) < 2:
            return 0.0
        gaps = (min(b - a, _STANDSTILL_S) for (a, _), (b, _) in pairwise(self._acked))
        span = max(sum(gaps), _LEAST_SPAN_S)
        return 8 * sum(size for _, size in self._acked) / span

    def _note_loss(self, lost: int, total: int, now: float) -> None:
        self._counts.append((now, lost, total))
        while self._counts and now - self._counts[0][0] > _LOSS_WINDOW_S:
            self._counts.popleft()
        packets = sum(total for _, _, total in self._counts)
        share = sum(lost for _, lost, _ in self._counts) / packets if packets else 0.0
        self.loss = share if packets >= _LOSS_PACKETS else 0.0

    def _lower_for_delay(self, now: float, rtt_s: float) -> None:
        """Once per round trip and 100 ms: the effect must be seen before the next step."""
        self._changed_s = now
        if now - self._lowered_s < rtt_s + 0.1:
            return
        acked = self.acked_bps
        wanted = BACK_OFF * (acked if acked > 0 else self.bps)
        if wanted < self.bps:
            self.delay_overuses += 1
            self._lowered_s = now
            self._knee = acked if acked > 0 else None
            self._set(wanted)

    def _lower_for_loss(self, now: float, rtt_s: float) -> None:
        self._changed_s = now
        if now - self._loss_lowered_s >= rtt_s + 0.3:
            self._loss_lowered_s = now
            self._loss_ceiling = self.bps * (1 - 0.5 * self.loss)
            self._set(self._loss_ceiling)

    def _raise(self, now: float) -> None:
        since = 0.0 if self._changed_s is None else min(1.0, now - self._changed_s)
        self._changed_s = now
        if self.loss < LOSS_LOW:
            self._loss_ceiling *= RISE_PER_S**since
        if self.acked_bps < _USED_SHARE * self.bps:
            return
        if now - self._lowered_s > KNEE_S:
            self._knee = None
        near = self._knee is not None and self.bps > 0.9 * self._knee
        factor = RISE_NEAR_PER_S if near else RISE_PER_S
        self._set(self.bps * factor**since + 1000 * since)

    def _set(self, bps: float) -> None:
        self._loss_ceiling = min(self._loss_ceiling, 1e9)
        self.bps = int(min(self._ceiling, max(self._floor, min(bps, self._loss_ceiling))))
