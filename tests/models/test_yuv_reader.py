"""Webcam pictures on the device: the right crops, one graph, one wait, memory that is used again.

The device is host memory with our kernel compiled for it; the network is a function that hands
its input on, so what it was given can be compared with the kernel's reference.
"""

from __future__ import annotations

import numpy as np
import pytest

import kernels.host
from kernels.compiler import NoCompilerError
from kernels.operation import Library
from kernels.yuv_to_tensor import colour_terms
from kernels.yuv_to_tensor.reference import yuv_to_tensor
from models.runtime.device_network import Device, DeviceNetwork
from models.runtime.engine import DeviceLostError, EngineError, YuvPicture
from models.runtime.flavour import BATCH_SIZES, MAX_BATCH
from models.runtime.yuv_reader import YuvReader
from tests.models.host_cuda import FunctionProgram, WatchedCalls

pytestmark = pytest.mark.unit

SIZE = 16
#: What a picture's reading puts into the stream, in this order.
READING = ["upload", "graph", "upload", "yuv_to_tensor_f32", "network x1", "download", "download"]
SHIFT = np.array([[0.8, 0.1, -3.0], [-0.1, 0.8, 2.0]], np.float32)


class Bench:
    """A reader on a watched device of its own."""

    def __init__(self) -> None:
        try:
            kernels.host.find_compiler()
        except NoCompilerError as error:
            pytest.skip(str(error))
        self.calls = WatchedCalls()
        self.device = Device(kernels.host.open_context(self.calls))
        shape = (3, SIZE, SIZE)
        program = FunctionProgram(
            self.calls, {"face": shape}, {"echo": shape, "mean": (3,)},
            lambda x: {"echo": x["face"], "mean": x["face"].mean((2, 3))},
        )  # fmt: skip
        network = DeviceNetwork(self.device, program, None)
        library = Library(self.device.context, build=kernels.host.build)
        self.reader = YuvReader(network, library)

    @property
    def memory(self) -> tuple[int, int, int]:
        """Allocations so far, on the device and pinned, and bytes held."""
        return self.calls.calls["alloc"], self.calls.calls["pinned"], self.calls.live_bytes


@pytest.fixture
def bench() -> Bench:
    return Bench()


def picture(
    width: int, height: int, seed: int = 0, *, interleaved: bool = False, **colours: object
) -> YuvPicture:
    """Noise, in planes whose lines are longer than the picture is wide."""
    rng = np.random.default_rng(seed)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    y = rng.integers(0, 256, (height, width + 7), np.uint8)[:, :width]
    if interleaved:
        both = rng.integers(0, 256, (rows, 2 * columns + 6), np.uint8)[:, : 2 * columns]
        u, v = both[:, ::2], both[:, 1::2]
    else:
        u, v = (rng.integers(0, 256, (rows, columns + 3), np.uint8)[:, :columns] for _ in "uv")
    how = {"matrix": "bt601", "full_range": False, **colours}
    return YuvPicture(y, u, v, to_rgb=lambda: pytest.fail("nothing is converted here"), **how)  # type: ignore[arg-type]


def wanted(given: YuvPicture, transform: np.ndarray) -> np.ndarray:
    back = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    taps = int(np.ceil(np.hypot(*back[:, 0]) - 1e-6))
    terms = colour_terms(given.matrix, given.full_range)
    return yuv_to_tensor(given.y, given.u, given.v, back, (SIZE, SIZE), max(taps, 1), terms)


@pytest.mark.parametrize(
    ("given", "transform"),
    [
        (picture(64, 48), SHIFT),
        (picture(33, 25), SHIFT),
        (picture(64, 48, interleaved=True), SHIFT),
        (picture(64, 48, matrix="bt709", full_range=True), SHIFT),
        (picture(640, 480), SHIFT * np.float32(0.3)),
    ],
    ids=["I420", "odd size", "NV12", "BT.709, full range", "shrunk"],
)
def test_the_network_gets_the_crop_of_the_reference(
    bench: Bench, given: YuvPicture, transform: np.ndarray
) -> None:
    found = bench.reader.read([(given, transform)])
    expected = wanted(given, transform)
    assert np.ptp(expected) > 0.5, "there is something to see"
    np.testing.assert_allclose(found["echo"][0], expected, atol=1e-4)
    np.testing.assert_allclose(found["mean"][0], expected.mean((1, 2)), atol=1e-4)
    bench.calls.check_guards()


def test_one_picture_is_one_upload_one_graph_and_one_wait(bench: Bench) -> None:
    bench.calls.order.clear()
    waits, graphs = bench.calls.calls["synchronize"], bench.calls.calls["graph"]
    assert graphs == len(BATCH_SIZES)
    for seed in range(3):
        bench.reader.read([(picture(64, 48, seed), SHIFT)])
    assert bench.calls.order == READING * 3
    assert bench.calls.calls["synchronize"] == waits + 3
    assert bench.calls.calls["graph"] == graphs, "recorded once"


@pytest.mark.parametrize("count", [2, 3, MAX_BATCH])
def test_pictures_of_many_sessions_share_one_run(bench: Bench, count: int) -> None:
    """Any sizes and layouts side by side; those before them leave nothing behind."""
    sizes = [(64, 48), (33, 25), (320, 240)]
    bench.reader.read([(picture(64, 48, 90 + i), SHIFT) for i in range(MAX_BATCH)])
    crops = [
        (picture(*sizes[i % 3], i, interleaved=i % 2 == 1), SHIFT * np.float32(1 - 0.02 * i))
        for i in range(count)
    ]
    bench.calls.order.clear()
    waits = bench.calls.calls["synchronize"]
    found = bench.reader.read(crops)["echo"]
    assert len(found) == count
    for echo, (given, transform) in zip(found, crops, strict=True):
        np.testing.assert_allclose(echo, wanted(given, transform), atol=1e-4)
    batch = next(b for b in BATCH_SIZES if b >= count)
    assert bench.calls.order == [name.replace("x1", f"x{batch}") for name in READING]
    assert bench.calls.calls["synchronize"] == waits + 1
    bench.calls.check_guards()


def test_a_batch_has_its_bounds(bench: Bench) -> None:
    for count in (0, MAX_BATCH + 1):
        with pytest.raises(ValueError, match="1 to 16 crops"):
            bench.reader.read([(picture(8, 8), SHIFT)] * count)


def test_memory_grows_only_for_a_larger_webcam(bench: Bench) -> None:
    at_first = bench.memory
    for seed, (width, height) in enumerate([(64, 48), (1280, 720), (320, 240), (720, 1280)]):
        bench.reader.read([(picture(width, height, seed), SHIFT)])
    assert bench.memory == at_first
    large = picture(1920, 1080, 9)
    found = bench.reader.read([(large, SHIFT)])["echo"][0]
    np.testing.assert_allclose(found, wanted(large, SHIFT), atol=1e-4)
    allocs, pinned, held = bench.memory
    assert (allocs, pinned) == (at_first[0] + 1, at_first[1] + 1)
    assert held - at_first[2] == 2 * 3 * (1920 * 1080 - 1280 * 720) // 2, "the old is given back"
    small = picture(64, 48, 3)
    found = bench.reader.read([(small, SHIFT)])["echo"][0]
    np.testing.assert_allclose(found, wanted(small, SHIFT), atol=1e-4)
    bench.reader.read([(large, SHIFT)])
    assert bench.memory == (allocs, pinned, held)
    assert bench.calls.calls["graph"] == len(BATCH_SIZES)


@pytest.mark.parametrize("left", [2**20, 6 * 2**20], ids=["for none", "for one of two"])
def test_too_large_a_picture_leaves_the_reader_usable(bench: Bench, left: int) -> None:
    bench.calls.memory_bytes = bench.calls.live_bytes + left
    before = bench.calls.live_bytes
    with pytest.raises(EngineError, match="too little memory"):
        bench.reader.read([(picture(2560, 1440), SHIFT)])
    small = picture(64, 48)
    found = bench.reader.read([(small, SHIFT)])["echo"][0]
    np.testing.assert_allclose(found, wanted(small, SHIFT), atol=1e-4)
    assert bench.calls.live_bytes == before


def test_a_transform_that_maps_to_a_line_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="to a line"):
        bench.reader.read([(picture(64, 48), np.zeros((2, 3), np.float32))])


def test_a_lost_device_is_lost_for_good(bench: Bench) -> None:
    bench.calls.fail_next = 700
    with pytest.raises(DeviceLostError, match="The GPU was lost: cuStreamSynchronize"):
        bench.reader.read([(picture(64, 48), SHIFT)])
    assert bench.calls.released
    sent = len(bench.calls.order)
    with pytest.raises(DeviceLostError, match="must be loaded again"):
        bench.reader.read([(picture(64, 48), SHIFT)])
    assert len(bench.calls.order) == sent


def test_planes_that_do_not_belong_together_are_refused() -> None:
    luma, chroma = np.zeros((6, 8), np.uint8), np.zeros((3, 4), np.uint8)
    for y, u, v in (
        (luma, chroma, chroma[:1]),
        (luma, luma, luma),
        (luma[:0], chroma[:0], chroma[:0]),
        (luma, chroma.astype(np.uint16), chroma),
    ):
        with pytest.raises(ValueError, match="planes"):
            YuvPicture(y, u, v, "bt601", False, to_rgb=lambda: luma)
