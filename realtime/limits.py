"""Who asks, and how often one address may: pure, in bounded memory, injected clock."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Collection

#: Addresses remembered at a time. One that is forgotten starts with a full bucket, so a flood
#: from very many addresses is bounded by what admits sessions, not by this.
MAX_ADDRESSES = 4096
MAX_FORWARDED = 16


class RateLimit:
    """Token bucket. `clock` gives seconds."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._tokens, self._at = float(burst), clock()
        self.refused = 0
        """How many in total were one too many."""

    def allow(self) -> bool:
        """Take one token if there is one."""
        now = self._clock()
        self._tokens = min(float(self._burst), self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1.0:
            self.refused += 1
            return False
        self._tokens -= 1.0
        return True


def address_key(address: str) -> str:
    """What limits count by: an IPv4 address, the /64 of an IPv6 one (a household has a whole
    one, RFC 6177), an IPv4 address that is mapped into IPv6 as itself, other text as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def client_address(peer: str, forwarded: str, proxies: Collection[str]) -> str:
    """The client's address, given the connection's `peer` and its X-Forwarded-For.

    The header is believed only from `proxies`, from its end backwards: the first address that
    is no proxy of ours is the client's. Everything before it was written by who knows whom.
    """
    if peer not in proxies:
        return peer
    client = peer
    for text in reversed(forwarded.split(",")[-MAX_FORWARDED:]):
        try:
            client = str(ipaddress.ip_address(text.strip()))
        except ValueError:
            break
        if client not in proxies:
            break
    return client


class AddressRates:
    """A token bucket for every address, the least recently seen forgotten."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        """`per_s` 0 or less: no limit."""
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: OrderedDict[str, RateLimit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, address: str) -> bool:
        """Whether this address may ask once more now."""
        if self._per_s <= 0:
            return True
        key = address_key(address)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = RateLimit(self._per_s, self._burst, self._clock)
            while len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket.allow()
