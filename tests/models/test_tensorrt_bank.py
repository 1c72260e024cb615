"""Portraits on the device: uploaded once, bounded, in slots that keep them."""

from __future__ import annotations

import numpy as np
import pytest

import kernels.host
from kernels import driver
from models.codes import CODE_DIM, MotionCode
from models.runtime.device_network import Device, DeviceNetwork, HostRunner, padded
from models.runtime.engine import Appearance, DeviceLostError
from models.runtime.flavour import BATCH_SIZES
from models.runtime.frames import FrameRequest, Pixels
from models.runtime.gpu_frames import GpuFrameRenderer
from models.runtime.portrait_bank import DeviceCache, Slots
from tests.models.host_cuda import FunctionProgram, WatchedCalls, tensor

pytestmark = pytest.mark.unit


@pytest.fixture
def calls() -> WatchedCalls:
    return WatchedCalls()


@pytest.fixture
def device(calls: WatchedCalls) -> Device:
    return Device(kernels.host.open_context(calls))


def read(array: driver.DeviceArray) -> np.ndarray:
    return tensor(array.pointer, array.shape, str(array.dtype)).copy()


class Owner:
    """Somebody whose arrays are cached."""

    def __init__(self, value: int, kilobytes: int = 1) -> None:
        self.arrays = {"x": np.full((kilobytes, 256), value, np.float32)}

    def make(self) -> dict[str, np.ndarray]:
        return self.arrays


# --- the cache ------------------------------------------------------------------------


def test_an_owner_is_uploaded_once(device: Device, calls: WatchedCalls) -> None:
    cache, owner = DeviceCache(device), Owner(3)
    first = cache.get(owner, owner.make)
    uploads = calls.order.count("upload")
    assert cache.get(owner, owner.make) is first
    assert calls.order.count("upload") == uploads == 1
    np.testing.assert_array_equal(read(first.arrays["x"]), owner.arrays["x"])


def test_the_budget_holds_and_the_least_used_goes_first(device: Device) -> None:
    cache = DeviceCache(device, budget_bytes=3 * 1024)
    owners = [Owner(i) for i in range(5)]
    for owner in owners[:3]:
        cache.get(owner, owner.make)
    cache.get(owners[0], owners[0].make)
    for owner in owners[3:]:
        cache.get(owner, owner.make)
    assert len(cache) == 3
    assert cache.used_bytes == 3 * 1024
    kept = cache.get(owners[0], pytest.fail)
    assert read(kept.arrays["x"])[0, 0] == 0


def test_evicted_memory_serves_the_next_of_its_shape(device: Device, calls: WatchedCalls) -> None:
    cache = DeviceCache(device, budget_bytes=2 * 1024)
    for i in range(10):
        owner = Owner(i)
        assert read(cache.get(owner, owner.make).arrays["x"])[0, 0] == i
    assert calls.calls["alloc"] == 2


def test_memory_of_other_shapes_is_given_back(device: Device, calls: WatchedCalls) -> None:
    cache = DeviceCache(device, budget_bytes=4 * 1024)
    small = [Owner(i) for i in range(4)]
    for owner in small:
        cache.get(owner, owner.make)
    large = Owner(9, kilobytes=4)
    cache.get(large, large.make)
    assert cache.used_bytes == 4 * 1024
    assert calls.live_bytes == 4 * 1024


def test_a_batch_in_hand_is_never_evicted(device: Device) -> None:
    cache = DeviceCache(device, budget_bytes=2 * 1024)
    batch = [Owner(i) for i in range(4)]
    held = [cache.get(owner, owner.make, keep=batch) for owner in batch]
    assert [read(h.arrays["x"])[0, 0] for h in held] == [0, 1, 2, 3]
    assert cache.used_bytes == 4 * 1024, "exceeded, by one batch"
    other = Owner(7)
    cache.get(other, other.make)
    assert len(cache) == 2
    assert cache.used_bytes <= 4 * 1024


def test_serials_are_never_used_twice(device: Device) -> None:
    cache = DeviceCache(device, budget_bytes=1024)
    serials = set()
    for i in range(20):
        owner = Owner(i)
        serials.add(cache.get(owner, owner.make).serial)
        # The owner is freed here, so Python gives its id to the next one.
    assert len(serials) == 20


# --- slots ----------------------------------------------------------------------------


def test_slots_keep_what_they_hold(device: Device, calls: WatchedCalls) -> None:
    buffer = device.zeros((4, 2), np.float32)
    slots = Slots(device, {"x": buffer})
    arrays = {}
    for key in range(4):
        arrays[key] = {"x": device.context.alloc((1, 2), np.float32)}
        arrays[key]["x"].upload(np.full((1, 2), key, np.float32), device.stream)

    def show(keys: list[int], batch: int) -> list[int]:
        places = slots.assign(keys, batch)
        for place, key in zip(places, keys, strict=True):
            slots.place(place, key, arrays[key])
        assert [int(read(buffer)[place, 0]) for place in places] == keys
        return places

    assert show([1, 2], 2) == [0, 1]
    assert show([2, 1], 2) == [1, 0], "each stays where it is"
    assert slots.copies == 2
    assert show([3], 1) == [0]
    assert show([2, 2, 1], 4) == [1, 0, 2], "one portrait may be shown twice"
    calls.order.clear()
    assert sorted(show([2, 2, 1], 4)) == [0, 1, 2]
    assert not calls.order
    slots.clear()
    show([2], 1)
    assert calls.order == ["copy"]


# --- networks -------------------------------------------------------------------------


def double(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * 2}


def test_any_batch_is_padded_to_a_recorded_one(device: Device, calls: WatchedCalls) -> None:
    assert [padded(n) for n in (1, 2, 3, 5, 9, 16)] == [1, 2, 4, 8, 16, 16]
    network = DeviceNetwork(device, FunctionProgram(calls, {"x": (3,)}, {"y": (3,)}, double), None)
    runner = HostRunner(network)
    assert calls.calls["graph"] == len(BATCH_SIZES)
    made = calls.calls["alloc"] + calls.calls["pinned"]
    for count in (1, 3, 16):
        x = np.random.default_rng(count).random((count, 3), np.float32)
        calls.order.clear()
        np.testing.assert_array_equal(runner.run({"x": x})["y"], x * 2)
        assert calls.order == ["graph", "upload", f"network x{padded(count)}", "download"]
    assert made == calls.calls["alloc"] + calls.calls["pinned"]


def test_inputs_that_do_not_fit_are_refused(device: Device, calls: WatchedCalls) -> None:
    network = DeviceNetwork(device, FunctionProgram(calls, {"x": (3,)}, {"y": (3,)}, double), None)
    runner = HostRunner(network, (1, 2))
    for inputs, words in (
        ({"z": np.zeros((1, 3), np.float32)}, "inputs must be"),
        ({"x": np.zeros((1, 4), np.float32)}, "x must be"),
        ({"x": np.zeros((3, 3), np.float32)}, "1 to 2 items"),
        ({"x": np.zeros((0, 3), np.float32)}, "1 to 2 items"),
    ):
        with pytest.raises(ValueError, match=words):
            runner.run(inputs)


def test_work_that_fails_while_recording_leaves_no_recording(
    device: Device, calls: WatchedCalls
) -> None:
    runs = []

    def work() -> None:
        runs.append(1)
        if len(runs) == 2:
            raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError), device.guard():
        device.record(work)
    assert device.lost
    assert calls.calls["graph"] == 0


# --- whose face is it -----------------------------------------------------------------


class Stamp:
    """A compositor that writes portrait, source and driving code into the frame's first bytes."""

    def __init__(self, calls: WatchedCalls) -> None:
        self._calls = calls
        self._aimed: dict[int, driver.DeviceArray] = {}
        self._frames: dict[int, Pixels] = {}

    def aim(self, slot: int, source: driver.DeviceArray, size: int) -> None:
        self._aimed[slot] = source

    def rest(self, slot: int) -> None:
        self._aimed.pop(slot, None)

    def composite(self, outputs, batch: int, size: int, stream: driver.Stream) -> None:  # type: ignore[no-untyped-def]
        def work() -> None:
            rgb = read(outputs["rgb"])
            self._frames.clear()
            for slot, source in self._aimed.items():
                if slot >= batch:
                    continue
                own = source.shape[1]
                frame = np.zeros((own * 3 // 2, own), np.uint8)
                frame[0, :3] = [*rgb[slot, :2], read(source)[0, 0, 0, 0]]
                self._frames[slot] = frame

        self._calls.on_stream("stamp", work)

    def convert(self, batch: int, size: int, stream: driver.Stream) -> None:
        """The stamp is the frame."""

    def frame(self, slot: int, size: int) -> Pixels:
        return self._frames[slot]


def mix(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"rgb": np.stack([inputs["f64"][:, 0], inputs["driving_code"][:, 0]], 1)}


def test_every_session_gets_its_own_face(device: Device, calls: WatchedCalls) -> None:
    """Many sessions, few slots, a small cache, changing batches, and always the right face."""
    program = FunctionProgram(calls, {"f64": (8,), "driving_code": (CODE_DIM,)}, {"rgb": (2,)}, mix)
    renderer = GpuFrameRenderer(
        DeviceNetwork(device, program, None), Stamp(calls), sizes=(16, 32), budget_bytes=20_000
    )
    rng = np.random.default_rng(0)

    def session(face: int) -> tuple[Appearance, Pixels]:
        features = {"f64": np.full((1, 8), face, np.float32)}
        blank = np.zeros((152, 3), np.float32)
        appearance = Appearance(features, MotionCode(), blank, blank[:, :2])
        size = 32 if face % 2 else 16
        return appearance, np.full((size, size, 3), 100 + face, np.uint8)

    sessions = [session(face) for face in range(24)]
    for _ in range(60):
        chosen = rng.choice(24, size=rng.integers(1, 17), replace=False)
        codes = rng.integers(1, 200, len(chosen))
        lips = [np.eye(1, 16, dtype=np.float32)[0] * np.float32(c) for c in codes]
        requests = [
            FrameRequest(*sessions[face], MotionCode(lip=lip))
            for face, lip in zip(chosen, lips, strict=True)
        ]
        found = [tuple(r.i420[0, :3]) for r in renderer.render(requests)]
        assert found == [(f, c, 100 + f) for f, c in zip(chosen, codes, strict=True)]
    assert renderer.cache.used_bytes <= 20_000 + 16 * 3200
