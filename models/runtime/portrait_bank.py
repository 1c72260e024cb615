"""Portraits on the device: uploaded once, bounded by a byte budget, kept in batch slots.

What a network reads of a portrait (feature maps) and what the compositor reads (source
pixels) never change while it is shown, so a frame moves only a motion code. `DeviceCache`
keeps the arrays, `Slots` the batch buffers that the networks read: a portrait that keeps its
slot is not even copied on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels import driver
from models.runtime.device_network import Device

HostArrays = Mapping[str, NDArray[Any]]
DEFAULT_BUDGET_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Resident:
    """A host object's arrays on the device."""

    owner: object
    """Kept, so that its id stays its own."""
    serial: int
    """Never used twice, unlike an id: what slots are known by."""
    arrays: Mapping[str, driver.DeviceArray]
    nbytes: int


class DeviceCache:
    """Device copies of host objects, least recently used ones evicted.

    An owner is known by identity: whoever changes a portrait makes a new object. Memory of
    evicted entries is used again for entries of the same shapes, so a server that cycles
    through portraits stops allocating.
    """

    def __init__(self, device: Device, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self._device = device
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        """All device memory held, free arrays included."""
        self._entries: OrderedDict[int, Resident] = OrderedDict()
        self._serials = count()
        self._free: dict[tuple[Any, ...], list[driver.DeviceArray]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self, owner: object, make: Callable[[], HostArrays], keep: Sequence[object] = ()
    ) -> Resident:
        """The device arrays of `owner`, uploaded from `make()` the first time.

        Nothing of `keep`, the owners of the same batch, is evicted; if they alone exceed the
        budget it is exceeded, by at most one batch. The stream must be idle.
        """
        entry = self._entries.get(id(owner))
        if entry is None:
            host = make()
            nbytes = sum(a.nbytes for a in host.values())
            self._make_room(nbytes, {id(o) for o in keep})
            arrays = {name: self._upload(array) for name, array in host.items()}
            entry = Resident(owner, next(self._serials), arrays, nbytes)
            self._entries[id(owner)] = entry
        self._entries.move_to_end(id(owner))
        return entry

    def _make_room(self, nbytes: int, kept: set[int]) -> None:
        """Evict until `nbytes` more fit, counting free arrays; drop free ones that do not help."""
        in_use = sum(e.nbytes for e in self._entries.values())
        for key in [k for k in self._entries if k not in kept]:
            if in_use + nbytes <= self.budget_bytes:
                break
            entry = self._entries.pop(key)
            in_use -= entry.nbytes
            for array in entry.arrays.values():
                self._free.setdefault(_kind(array), []).append(array)

    def _upload(self, host: NDArray[Any]) -> driver.DeviceArray:
        spare = self._free.get(_kind(host))
        if spare:
            array = spare.pop()
        else:
            self._drop_free(host.nbytes)
            array = self._device.context.alloc(host.shape, host.dtype)
            self.used_bytes += array.nbytes
        array.upload(np.ascontiguousarray(host), self._device.stream)
        return array

    def _drop_free(self, nbytes: int) -> None:
        """Free spare arrays of other shapes while a new one would exceed the budget."""
        for spare in self._free.values():
            while spare and self.used_bytes + nbytes > self.budget_bytes:
                array = spare.pop()
                self.used_bytes -= array.nbytes
                array.free()


def _kind(array: Any) -> tuple[Any, ...]:
    return (tuple(array.shape), np.dtype(array.dtype))


def assign(held: Sequence[Hashable], keys: Sequence[Hashable]) -> list[int]:
    """A slot for each key; one that holds the key already where there is one."""
    free = list(range(len(held)))
    slots: list[int | None] = []
    for key in keys:
        slot = next((s for s in free if held[s] == key), None)
        if slot is not None:
            free.remove(slot)
        slots.append(slot)
    return [free.pop(0) if slot is None else slot for slot in slots]


class Slots:
    """Batch buffers whose items keep the portrait they were given last."""

    def __init__(self, device: Device, buffers: Mapping[str, driver.DeviceArray]) -> None:
        self._device = device
        self._buffers = buffers
        length = min(b.shape[0] for b in buffers.values())
        self._held: list[int | None] = [None] * length
        self.copies = 0
        """Items copied so far: a measure of how often portraits change slots."""

    def clear(self) -> None:
        """Forget what the slots hold, after somebody else wrote into the buffers."""
        self._held = [None] * len(self._held)

    def assign(self, keys: Sequence[int], batch: int) -> list[int]:
        """A slot below `batch` for each key; one that holds the key already where there is one."""
        return assign(self._held[:batch], keys)

    def place(self, slot: int, key: int, arrays: Mapping[str, driver.DeviceArray]) -> None:
        """Let `slot` hold `arrays` (batch axis of 1) under `key`; copies only what is new."""
        if self._held[slot] == key:
            return
        # A copy that fails half-way must not leave a slot that claims to be complete.
        self._held[slot] = None
        for name, array in arrays.items():
            self._buffers[name].part(slot).copy_from(array, self._device.stream)
        self._held[slot] = key
        self.copies += 1
