"""The TensorRT engine on a device of host memory: the same numbers as on a CPU, and its manners.

Networks run the float16 graphs, kernels are our `.cu` sources compiled for the host; what the
runtime does between them is the runtime's own code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import kernels.host
from kernels.compiler import NoCompilerError
from kernels.operation import Library
from models.checkpoint import Checkpoint, open_checkpoint
from models.codes import DIMS
from models.detect import find_faces
from models.face import canonical_transform, warp_crop
from models.mark import put_mark
from models.portrait import Portrait, prepare_portrait
from models.runtime import build
from models.runtime.base import BaseEngine
from models.runtime.device_network import Device
from models.runtime.engine import DeviceLostError, EngineError, MotionReading, ReadsYuv
from models.runtime.flavour import BATCH_SIZES
from models.runtime.frames import DrawsFrames, FrameRequest, frame_renderer
from models.runtime.gpu_frames import GpuFrameRenderer
from models.runtime.tensorrt_engine import TensorRTEngine
from models.together import update_together
from models.tracking import FaceTracker
from realtime.decoded import to_rgb, yuv_picture
from tests.marking import assert_marked
from tests.models.conftest import PORTRAITS
from tests.models.host_cuda import CARD, GraphFlavour, WatchedCalls

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(verify=False)


@pytest.fixture(scope="module")
def engines(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engines")
    build.build_engines(checkpoint, GraphFlavour(), "sm86", root)
    return root


def host_kernels(device: Device) -> Library:
    return Library(device.context, build=kernels.host.build)


@pytest.fixture(scope="module")
def calls() -> WatchedCalls:
    return WatchedCalls()


@pytest.fixture(scope="module")
def gpu(checkpoint: Checkpoint, engines: Path, calls: WatchedCalls) -> Iterator[TensorRTEngine]:
    try:
        kernels.host.find_compiler()
    except NoCompilerError as error:
        pytest.skip(str(error))
    flavour = GraphFlavour(calls=calls)
    engine = TensorRTEngine(
        checkpoint,
        flavour="tensorrt_rtx",
        root=engines,
        open_context=lambda: kernels.host.open_context(calls),
        load_flavour=lambda name: flavour,
        open_kernels=host_kernels,
    )
    flavour.wake()
    yield engine
    calls.check_guards()
    engine.close()
    assert calls.live_bytes == 0
    assert calls.released


@pytest.fixture(scope="module")
def portraits(engine: BaseEngine) -> list[Portrait]:
    """Two bundled people, read by the CPU's engine, so that both engines draw from one reading."""
    entries = json.loads((PORTRAITS / "portraits.json").read_text())[:2]
    found = []
    for entry in entries:
        picture = cv2.cvtColor(cv2.imread(str(PORTRAITS / entry["file"])), cv2.COLOR_BGR2RGB)
        found.append(prepare_portrait(picture, engine, id=entry["id"], name=entry["name"]))
    return found


def request(portrait: Portrait, size: int, lip: float, yaw: float) -> FrameRequest:
    code = portrait.appearance.code
    lips = np.zeros(DIMS["lip"], np.float32)
    lips[0] = lip
    pose = code.pose + np.array([yaw, 0, 0, 0, 0, 0], np.float32)
    source = np.asarray(cv2.resize(portrait.image, (size, size), interpolation=cv2.INTER_AREA))
    driving = code.with_("lip", lips).with_("pose", pose.astype(np.float32))
    return FrameRequest(portrait.appearance, source, driving)


def assert_like(found: np.ndarray, wanted: np.ndarray) -> None:
    """The stated tolerance of the whole float16 chain, in grey levels of 255.

    Luma within 4 everywhere and .3 on average; chroma within 6 and .5. The CPU's OpenCV samples
    at 1/32 pixel and rounds three times on the way, the kernels work in float throughout.
    """
    size = wanted.shape[1]
    error = np.abs(found.astype(int) - wanted.astype(int))
    luma, chroma = error[:size], error[size:]
    assert luma.mean() < 0.3
    assert luma.max() <= 4
    assert chroma.mean() < 0.5
    assert chroma.max() <= 6


def test_whole_frames_equal_the_cpu(
    gpu: TensorRTEngine, engine: BaseEngine, portraits: list[Portrait]
) -> None:
    requests = [
        request(portraits[0], 512, 1.5, 0.1),
        request(portraits[1], 256, 0.0, -0.1),
        request(portraits[0], 384, 3.0, 0.0),
    ]
    assert isinstance(gpu, DrawsFrames)
    renderer = frame_renderer(gpu)
    assert renderer.max_batch == 16
    on_cpu = frame_renderer(engine)
    wanted = [on_cpu.render([r])[0].i420 for r in requests]
    for result, picture in zip(renderer.render(requests), wanted, strict=True):
        assert result.i420.shape == picture.shape
        assert_like(result.i420, picture)
    [alone] = renderer.render(requests[1:2])
    assert_like(alone.i420, wanted[1])
    # The mark goes over what was handed out and into no later picture.
    plain = alone.i420.copy()
    put_mark(alone.i420)
    assert_marked(alone.i420, plain)
    np.testing.assert_array_equal(renderer.render(requests[1:2])[0].i420, plain)
    still = on_cpu.render([request(portraits[1], 256, 3.0, 0.2)])[0].i420
    assert np.abs(still.astype(int) - wanted[1]).max() > 40, "another motion is another picture"


def test_readings_equal_the_cpu(
    gpu: TensorRTEngine, engine: BaseEngine, portraits: list[Portrait]
) -> None:
    crop = np.ascontiguousarray(portraits[0].image[::2, ::2])
    a, b = gpu.motion(crop), engine.motion(crop)
    np.testing.assert_allclose(a.code.concat(), b.code.concat(), atol=2e-2)
    np.testing.assert_allclose(a.landmarks, b.landmarks, atol=1e-3)
    mel = np.random.default_rng(0).random((18, 28, 80), np.float32)
    lips = gpu.audio_batch(mel)
    assert lips.shape == (18, DIMS["lip"])
    np.testing.assert_allclose(lips, engine.audio_batch(mel), atol=2e-2)
    np.testing.assert_allclose(gpu.audio(mel[3]), lips[3], atol=1e-3)
    with pytest.raises(ValueError, match="mel windows must be"):
        gpu.audio_batch(mel[:, :5])


def before_a_webcam(picture: np.ndarray, width: int, height: int, zoom: float) -> av.VideoFrame:
    """A portrait as a decoder hands it over: I420, BT.601, a little tilted."""
    turn = cv2.getRotationMatrix2D((256, 256), 4, zoom)
    turn[:, 2] += (width / 2 - 256, height / 2 - 256)
    seen = cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    frame = av.VideoFrame.from_ndarray(np.asarray(seen, np.uint8), "rgb24")
    return frame.reformat(format="yuv420p")


def assert_read_alike(a: MotionReading, b: MotionReading) -> None:
    """The stated tolerance of a webcam's way on the card: crop and network together.

    Landmarks within .5 of the crop's 256 pixels, .1 on average; codes within .15, .01 on average.
    All bundled people at four sizes keep to it; what moves most is a small principal direction of
    the lips when the crop is enlarged, linearly here and cubically on the CPU.
    """
    landmarks = np.abs(a.landmarks - b.landmarks) * 256
    codes = np.abs(a.code.concat() - b.code.concat())
    assert landmarks.mean() < 0.1
    assert landmarks.max() < 0.5
    assert codes.mean() < 0.01
    assert codes.max() < 0.15


@pytest.mark.parametrize(
    ("width", "height", "zoom"),
    [(640, 480, 0.8), (640, 480, 0.35), (1280, 720, 1.3)],
    ids=["kept", "enlarged", "shrunk"],
)
def test_a_webcam_is_read_from_its_planes_as_from_rgb(
    gpu: TensorRTEngine, engine: BaseEngine, portrait_picture: np.ndarray,
    width: int, height: int, zoom: float,
) -> None:  # fmt: skip
    assert isinstance(gpu, ReadsYuv)
    assert not isinstance(engine, ReadsYuv)
    webcam = before_a_webcam(portrait_picture, width, height, zoom)
    planes = yuv_picture(webcam)
    assert planes is not None
    transform = canonical_transform(find_faces(to_rgb(webcam))[0].points, 256)
    on_cpu = engine.motion(warp_crop(to_rgb(webcam), transform, 256))
    assert_read_alike(gpu.motion_yuv(planes, transform), on_cpu)


def test_a_face_is_tracked_on_the_card_as_on_the_cpu(
    gpu: TensorRTEngine, engine: BaseEngine, portrait_picture: np.ndarray, calls: WatchedCalls
) -> None:
    here, there = FaceTracker(gpu), FaceTracker(engine)
    for frame in range(5):
        webcam = before_a_webcam(portrait_picture, 640, 480, 0.8 + 0.01 * frame)
        calls.order.clear()
        a, b = here.update(yuv_picture(webcam)), there.update(to_rgb(webcam))  # type: ignore[arg-type]
        assert a is not None
        assert b is not None
        assert_read_alike(a, b)
        # When it is found the crop is settled by two more readings.
        assert calls.order.count("yuv_to_tensor_f16") == (3 if frame == 0 else 1)


def test_two_webcams_go_through_one_batch(
    gpu: TensorRTEngine, engine: BaseEngine, portraits: list[Portrait], calls: WatchedCalls
) -> None:
    webcams = [before_a_webcam(p.image, 640, 480, 0.8) for p in portraits[:2]]
    here = [FaceTracker(gpu) for _ in webcams]
    there = [FaceTracker(engine) for _ in webcams]
    for _ in range(2):
        calls.order.clear()
        pictures = [yuv_picture(webcam) for webcam in webcams]
        found = update_together(gpu, list(zip(here, pictures, strict=True)))  # type: ignore[arg-type]
        for a, tracker, webcam in zip(found, there, webcams, strict=True):
            b = tracker.update(to_rgb(webcam))
            assert isinstance(a, MotionReading)
            assert b is not None
            assert_read_alike(a, b)
    assert calls.order.count("yuv_to_tensor_f16") == 1
    assert calls.order.count("network x2") == 1
    crops = [np.ascontiguousarray(p.image[::2, ::2]) for p in portraits[:2]]
    for a, crop in zip(gpu.motion_batch(crops), crops, strict=True):
        assert_read_alike(a, engine.motion(crop))


def test_an_appearance_made_here_draws_the_same_face(
    gpu: TensorRTEngine, engine: BaseEngine, portraits: list[Portrait]
) -> None:
    crop = np.ascontiguousarray(portraits[0].image[::2, ::2])
    appearance = gpu.appearance(crop)
    driving = request(portraits[0], 256, 1.0, 0.0).driving
    drawn = gpu.draw(appearance, driving)
    wanted = engine.draw(engine.appearance(crop), driving)
    np.testing.assert_allclose(drawn.flow, wanted.flow, atol=2e-3)
    np.testing.assert_allclose(drawn.rgb, wanted.rgb, atol=3e-2)


def test_one_frame_is_one_graph_and_one_wait(
    gpu: TensorRTEngine, calls: WatchedCalls, portraits: list[Portrait]
) -> None:
    renderer = gpu.frame_renderer()
    batch = [request(portraits[i % 2], 512, 1.0, 0.0) for i in range(3)]
    renderer.render(batch)
    made = {name: calls.calls[name] for name in ("alloc", "pinned")}
    for count, size in ((1, 1), (2, 2), (3, 4)):
        renderer.render(batch[:count])
        calls.order.clear()
        waits = calls.calls["synchronize"]
        renderer.render(batch[:count])
        assert calls.order == [
            "graph", "upload", f"network x{size}", "upload", "upload", "warp_composite_f32",
            "rgb_to_i420",
        ]  # fmt: skip
        assert calls.calls["synchronize"] == waits + 1
    assert made == {name: calls.calls[name] for name in made}, "no allocation per frame"


def test_drawing_by_hand_does_not_disturb_the_slots(
    gpu: TensorRTEngine, portraits: list[Portrait]
) -> None:
    renderer = gpu.frame_renderer()
    wanted = renderer.render([request(portraits[0], 256, 1.0, 0.0)])[0].i420
    gpu.draw(portraits[1].appearance, portraits[1].appearance.code)
    again = renderer.render([request(portraits[0], 256, 1.0, 0.0)])[0].i420
    np.testing.assert_array_equal(again, wanted)


def test_it_says_what_it_is(gpu: TensorRTEngine) -> None:
    assert gpu.name == "tensorrt"
    assert "tensorrt_rtx 1.0 on Fake RTX (sm_86)" in gpu.reason
    assert "float16" in gpu.reason


def test_sources_that_do_not_fit_are_refused(
    gpu: TensorRTEngine, portraits: list[Portrait]
) -> None:
    with pytest.raises(ValueError, match="a source has 514 pixels, at most 512"):
        gpu.frame_renderer().render([request(portraits[0], 514, 0.0, 0.0)])


def test_every_batch_size_has_its_graph(gpu: TensorRTEngine) -> None:
    renderer = gpu.frame_renderer()
    assert isinstance(renderer, GpuFrameRenderer)
    assert {batch for batch, _ in renderer.recorded} == set(BATCH_SIZES)
    assert {size for _, size in renderer.recorded} == {256, 384, 512}


# --- what can go wrong ----------------------------------------------------------------


def make(checkpoint: Checkpoint, root: Path, calls: WatchedCalls) -> TensorRTEngine:
    flavour = GraphFlavour(calls=calls)
    return TensorRTEngine(
        checkpoint, flavour="tensorrt_rtx", root=root,
        open_context=lambda: kernels.host.open_context(calls),
        load_flavour=lambda name: flavour, open_kernels=host_kernels,
    )  # fmt: skip


def test_a_lost_device_is_lost_for_good(
    checkpoint: Checkpoint, engines: Path, portraits: list[Portrait]
) -> None:
    watched = WatchedCalls()
    engine = make(checkpoint, engines, watched)
    renderer = engine.frame_renderer()
    frame = request(portraits[0], 256, 0.0, 0.0)
    renderer.render([frame])
    watched.fail_next = 700
    with pytest.raises(DeviceLostError, match="The GPU was lost: cuStreamSynchronize"):
        renderer.render([frame])
    assert watched.released, "the next engine must get a fresh context"
    assert watched.live_bytes == 0
    before = len(watched.order)
    with pytest.raises(DeviceLostError, match="must be loaded again"):
        renderer.render([frame])
    with pytest.raises(DeviceLostError):
        engine.audio(np.zeros((28, 80), np.float32))
    assert len(watched.order) == before, "nothing more is sent to a lost device"
    engine.close()


def test_other_failures_leave_the_engine_usable(
    checkpoint: Checkpoint, engines: Path, portraits: list[Portrait]
) -> None:
    watched = WatchedCalls()
    engine = make(checkpoint, engines, watched)
    renderer = engine.frame_renderer()
    frame = request(portraits[0], 256, 0.0, 0.0)
    for code, words in ((2, "too little memory"), (1, "refused")):
        watched.fail_next = code
        with pytest.raises(EngineError, match=words) as raised:
            renderer.render([frame])
        assert not isinstance(raised.value, DeviceLostError)
        renderer.render([frame])
    engine.close()


def test_a_card_without_engines_says_what_to_run_and_lets_go(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    watched = WatchedCalls()
    with pytest.raises(EngineError, match="Run: visavis export --engine tensorrt"):
        make(checkpoint, tmp_path, watched)
    assert watched.released


def test_no_card_is_said_in_a_sentence(checkpoint: Checkpoint) -> None:
    from kernels.driver import DriverMissingError

    def nothing() -> None:
        raise DriverMissingError("pycuda cannot be used")

    with pytest.raises(EngineError, match="No NVIDIA card can be used: pycuda"):
        TensorRTEngine(checkpoint, open_context=nothing)  # type: ignore[arg-type]


def test_all_flavours_that_fail_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    watched = WatchedCalls()
    with pytest.raises(EngineError) as raised:
        TensorRTEngine(
            checkpoint, root=tmp_path,
            open_context=lambda: kernels.host.open_context(watched),
            load_flavour=lambda name: GraphFlavour(name, watched),
        )  # fmt: skip
    assert "--flavour tensorrt " in str(raised.value)
    assert "--flavour tensorrt_rtx " in str(raised.value)
    assert CARD.sm.replace("_", "") in str(raised.value)
