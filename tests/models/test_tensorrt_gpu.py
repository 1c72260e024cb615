"""On a real card: every engine that can run there draws what the CPU's reference draws."""

from __future__ import annotations

import json
from collections.abc import Iterator

import av
import cv2
import numpy as np
import pytest

from kernels import driver
from models.checkpoint import NETWORKS, Checkpoint, open_checkpoint
from models.codes import DIMS
from models.detect import find_faces
from models.face import canonical_transform, warp_crop
from models.portrait import Portrait, prepare_portrait
from models.runtime import build
from models.runtime.base import BaseEngine
from models.runtime.device_network import Device
from models.runtime.engine import EngineError, ReadsYuv
from models.runtime.engine_cache import EngineManifest
from models.runtime.flavour import RTX_TARGETS, FlavourName, TensorRT, installed_flavours
from models.runtime.frames import FrameRequest, frame_renderer
from models.runtime.gpu_frames import GpuFrameRenderer
from models.runtime.tensorrt_engine import TensorRTEngine
from realtime.decoded import to_rgb, yuv_picture
from tests.models.conftest import PORTRAITS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint()


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
            yield make_torch_engine(checkpoint, require_gpu=True)
        except EngineError as error:
            pytest.skip(str(error))
        return
    name: FlavourName = request.param
    target = card.sm.replace("_", "")
    if name not in installed_flavours():
        pytest.skip(f"{name} is not installed")
    if name == "tensorrt_rtx" and target not in RTX_TARGETS:
        pytest.skip(f"tensorrt_rtx does not run on {target}")
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
def portraits(engine: BaseEngine) -> list[Portrait]:
    entries = json.loads((PORTRAITS / "portraits.json").read_text())
    found = []
    for entry in entries[:4]:
        picture = cv2.cvtColor(cv2.imread(str(PORTRAITS / entry["file"])), cv2.COLOR_BGR2RGB)
        found.append(prepare_portrait(picture, engine, id=entry["id"], name=entry["name"]))
    return found


def request_of(portrait: Portrait, size: int, lip: float, yaw: float) -> FrameRequest:
    code = portrait.appearance.code
    lips = np.zeros(DIMS["lip"], np.float32)
    lips[0] = lip
    pose = code.pose + np.array([yaw, 0, 0, 0, 0, 0], np.float32)
    source = np.asarray(cv2.resize(portrait.image, (size, size), interpolation=cv2.INTER_AREA))
    return FrameRequest(
        portrait.appearance, source, code.with_("lip", lips).with_("pose", pose.astype(np.float32))
    )


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
    crop = np.ascontiguousarray(portraits[0].image[::2, ::2])
    a, b = gpu.motion(crop), engine.motion(crop)
    np.testing.assert_allclose(a.code.concat(), b.code.concat(), atol=3e-2)
    np.testing.assert_allclose(a.landmarks, b.landmarks, atol=1e-3)


def before_a_webcam(portrait: Portrait, width: int, height: int, zoom: float) -> av.VideoFrame:
    turn = cv2.getRotationMatrix2D((256, 256), 4, zoom)
    turn[:, 2] += (width / 2 - 256, height / 2 - 256)
    seen = cv2.warpAffine(portrait.image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    frame = av.VideoFrame.from_ndarray(np.asarray(seen, np.uint8), "rgb24")
    return frame.reformat(format="yuv420p")


def test_a_webcam_is_read_from_its_planes_as_from_rgb(
    gpu: BaseEngine, engine: BaseEngine, portraits: list[Portrait]
) -> None:
    """The tolerance of `test_tensorrt_engine.assert_read_alike`, whatever the webcam's size."""
    if not isinstance(gpu, ReadsYuv):
        pytest.skip("torch gets RGB: only the TensorRT engine cuts crops on the card")
    sizes = [(640, 480, 0.8), (1280, 720, 1.3), (640, 480, 0.35), (1920, 1080, 1.5)]
    for portrait, (width, height, zoom) in zip(portraits, sizes, strict=True):
        webcam = before_a_webcam(portrait, width, height, zoom)
        planes = yuv_picture(webcam)
        assert planes is not None
        transform = canonical_transform(find_faces(to_rgb(webcam))[0].points, 256)
        wanted = engine.motion(warp_crop(to_rgb(webcam), transform, 256))
        for _ in range(2):
            found = gpu.motion_yuv(planes, transform)
            assert np.abs(found.landmarks - wanted.landmarks).max() * 256 < 0.5
            codes = np.abs(found.code.concat() - wanted.code.concat())
            assert codes.max() < 0.15
            assert codes.mean() < 0.01


def test_webcams_take_no_memory_per_picture(gpu: BaseEngine, portraits: list[Portrait]) -> None:
    if not isinstance(gpu, ReadsYuv):
        pytest.skip("torch gets RGB: only the TensorRT engine cuts crops on the card")
    pictures = [yuv_picture(before_a_webcam(p, 640, 480, 0.8)) for p in portraits]
    transform = np.array([[0.6, 0, -60], [0, 0.6, -20]], np.float32)
    with driver.open_context() as context:
        gpu.motion_yuv(pictures[0], transform)  # type: ignore[arg-type]
        before = context.memory()[0]
        for i in range(200):
            gpu.motion_yuv(pictures[i % 4], transform)  # type: ignore[arg-type]
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
    if not isinstance(renderer, GpuFrameRenderer):
        pytest.skip("only the TensorRT engine has a profile")
    renderer.render([request_of(portraits[0], 512, 0.5, 0.0)])
    took = renderer.profile(1, 512, 20)
    assert {stage: len(values) for stage, values in took.items()} == {
        "generator": 20, "compose": 20, "convert": 20,
    }  # fmt: skip
    assert all(0 < v < 1000 for values in took.values() for v in values)
