"""On a real card: every engine that can run there draws what the CPU's reference draws.

A bare CUDA machine has torch and little else, so this asks for nothing but OpenCV besides: the
reference is torch on the CPU where OpenVINO is missing, and nothing is decoded or detected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from kernels import driver
from models.checkpoint import NETWORKS, Checkpoint, open_checkpoint
from models.codes import DIMS, Array
from models.face import warp_crop
from models.runtime.base import BaseEngine
from models.runtime.device_network import Device
from models.runtime.engine import Appearance, EngineError, ReadsYuv, YuvPicture
from models.runtime.engine_cache import EngineManifest
from models.runtime.flavour import RTX_TARGETS, FlavourName, TensorRT, installed_flavours
from models.runtime.frames import FrameRequest, frame_renderer
from models.runtime.tensorrt_engine import TensorRTEngine
from realtime.engine_bench import Profiled
from tests.models.conftest import PORTRAITS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint()


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> BaseEngine:
    """The reference on the CPU, float32."""
    try:
        from models.runtime.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(checkpoint, 0, "float32")
    except (ImportError, EngineError):
        from models.runtime.torch_engine import TorchEngine

        return TorchEngine(checkpoint)


@pytest.fixture(scope="module")
def card() -> driver.DeviceInfo:
    try:
        with driver.open_context() as context:
            return context.device
    except driver.DriverError as error:
        pytest.skip(f"no card can be used: {error}")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx", "torch"])
def gpu(
    request: pytest.FixtureRequest,
    checkpoint: Checkpoint,
    card: driver.DeviceInfo,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BaseEngine]:
    if request.param == "torch":
        from models.runtime.torch_engine import make_torch_engine

        try:
            made = make_torch_engine(checkpoint, require_gpu=True)
        except EngineError as error:
            pytest.skip(str(error))
        made.warm_up()
        yield made
        return
    name: FlavourName = request.param
    target = card.sm.replace("_", "")
    if name not in installed_flavours():
        pytest.skip(f"{name} is not installed")
    if name == "tensorrt_rtx" and target not in RTX_TARGETS:
        pytest.skip(f"tensorrt_rtx does not run on {target}")
    from models.runtime import build

    root = tmp_path_factory.mktemp("engines")
    flavour = TensorRT(name)
    with driver.open_context() as context:
        measure = build.measure_on(Device(context), flavour.load, checkpoint)
        folder = build.build_engines(
            checkpoint, flavour, target, root, device=card.name, measure=measure
        )
    manifest = EngineManifest.read(folder)
    assert all(manifest.networks[n].parity_error is not None for n in NETWORKS)
    engine = TensorRTEngine(checkpoint, flavour=name, root=root)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def portraits(engine: BaseEngine) -> list[tuple[Array, Appearance]]:
    """Bundled pictures (512, 512, 3), taken for canonical crops, and their appearances."""
    entries = json.loads((PORTRAITS / "portraits.json").read_text())
    found = []
    for entry in entries[:4]:
        picture = cv2.cvtColor(cv2.imread(str(PORTRAITS / entry["file"])), cv2.COLOR_BGR2RGB)
        picture = np.asarray(cv2.resize(picture, (512, 512), interpolation=cv2.INTER_AREA))
        small = np.asarray(cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA))
        found.append((picture, engine.appearance(small)))
    return found


Portrait = tuple[Array, Appearance]


def request_of(portrait: Portrait, size: int, lip: float, yaw: float) -> FrameRequest:
    picture, appearance = portrait
    lips = np.zeros(DIMS["lip"], np.float32)
    lips[0] = lip
    pose = appearance.code.pose + np.array([yaw, 0, 0, 0, 0, 0], np.float32)
    source = np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA))
    code = appearance.code.with_("lip", lips).with_("pose", pose.astype(np.float32))
    return FrameRequest(appearance, source, code)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_frames_equal_the_cpu(
    gpu: BaseEngine, engine: BaseEngine, portraits: list[Portrait], count: int
) -> None:
    sizes = (512, 256, 384)
    requests = [
        request_of(portraits[i % len(portraits)], sizes[i % 3], i % 4 * 0.8, (i % 5 - 2) * 0.06)
        for i in range(count)
    ]
    on_cpu = frame_renderer(engine)
    for _ in range(2):
        for one, result in zip(requests, frame_renderer(gpu).render(requests), strict=True):
            wanted = on_cpu.render([one])[0].i420.astype(int)
            error = np.abs(result.i420.astype(int) - wanted)[: wanted.shape[1]]
            assert error.mean() < 0.5
            assert error.max() <= 8


def test_readings_equal_the_cpu(
    gpu: BaseEngine, engine: BaseEngine, portraits: list[Portrait]
) -> None:
    mel = np.random.default_rng(0).random((17, 28, 80), np.float32)
    np.testing.assert_allclose(gpu.audio_batch(mel), engine.audio_batch(mel), atol=3e-2)
    crop = np.ascontiguousarray(portraits[0][0][::2, ::2])
    a, b = gpu.motion(crop), engine.motion(crop)
    np.testing.assert_allclose(a.code.concat(), b.code.concat(), atol=3e-2)
    np.testing.assert_allclose(a.landmarks, b.landmarks, atol=1e-3)


def before_a_webcam(
    picture: Array, width: int, height: int, zoom: float
) -> tuple[YuvPicture, Array, Array]:
    """A picture a little tilted before a camera: planes, RGB, and where its crop is."""
    turn = cv2.getRotationMatrix2D((256, 256), 4, zoom)
    turn[:, 2] += (width / 2 - 256, height / 2 - 256)
    seen = cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    # Chroma as cameras give it, the mean of four pixels; then what a decoder would show.
    i420 = cv2.cvtColor(seen, cv2.COLOR_RGB2YUV_I420)
    y, chroma = i420[:height], i420[height:].reshape(2, height // 2, width // 2)
    rgb = np.asarray(cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420), np.uint8)
    planes = YuvPicture(y, chroma[0], chroma[1], "bt601", False, to_rgb=lambda: rgb)
    back = np.diag([0.5, 0.5, 1]) @ np.linalg.inv(np.vstack([turn, [0, 0, 1]]))
    return planes, rgb, back[:2].astype(np.float32)


WEBCAMS = [(640, 480, 0.8), (1280, 720, 1.3), (640, 480, 0.5), (1920, 1080, 1.5)]


def test_webcams_are_read_from_their_planes_as_from_rgb(
    gpu: BaseEngine, engine: BaseEngine, portraits: list[Portrait]
) -> None:
    """Alone and together; the tolerance of `test_tensorrt_engine.assert_read_alike`."""
    assert isinstance(gpu, ReadsYuv)
    crops, wanted = [], []
    for (picture, _), webcam in zip(portraits, WEBCAMS, strict=True):
        planes, rgb, transform = before_a_webcam(picture, *webcam)
        crops.append((planes, transform))
        wanted.append(engine.motion(warp_crop(rgb, transform, 256)))
    alone = [gpu.motion_yuv(*crop) for crop in crops]
    for found in (alone, gpu.motion_yuv_batch(crops), gpu.motion_yuv_batch(crops * 5)[8:12]):
        for a, b in zip(found, wanted, strict=True):
            assert np.abs(a.landmarks - b.landmarks).max() * 256 < 0.5
            codes = np.abs(a.code.concat() - b.code.concat())
            assert codes.max() < 0.15
            assert codes.mean() < 0.01


def test_webcams_take_no_memory_per_picture(gpu: BaseEngine, portraits: list[Portrait]) -> None:
    assert isinstance(gpu, ReadsYuv)
    crops = [before_a_webcam(picture, 640, 480, 0.8)[::2] for picture, _ in portraits]
    with driver.open_context() as context:
        gpu.motion_yuv_batch(crops)
        before = context.memory()[0]
        for i in range(100):
            gpu.motion_yuv_batch(crops[: 1 + i % 4])
        assert before - context.memory()[0] < 4 * 2**20


def test_many_frames_take_no_more_memory(gpu: BaseEngine, portraits: list[Portrait]) -> None:
    renderer = frame_renderer(gpu)
    requests = [request_of(portraits[i % 4], 512, 0.5, 0.0) for i in range(8)]
    renderer.render(requests)
    with driver.open_context() as context:
        before = context.memory()[0]
        for _ in range(200):
            renderer.render(requests)
        assert before - context.memory()[0] < 4 * 2**20


def test_stages_are_timed_on_the_device(gpu: BaseEngine, portraits: list[Portrait]) -> None:
    renderer = frame_renderer(gpu)
    assert isinstance(renderer, Profiled)
    renderer.render([request_of(portraits[0], 512, 0.5, 0.0)])
    took = renderer.profile(1, 512, 20)
    assert {stage: len(values) for stage, values in took.items()} == {
        "generator": 20, "compose": 20, "convert": 20,
    }  # fmt: skip
    assert all(0 < v < 1000 for values in took.values() for v in values)
