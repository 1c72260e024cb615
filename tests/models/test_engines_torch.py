"""The card's torch engine, run on the CPU without its graphs: near the reference, said out loud."""

import logging

import av
import cv2
import numpy as np
import pytest
import torch

from kernels.yuv_to_tensor import backward, colour_terms
from kernels.yuv_to_tensor.reference import yuv_to_tensor
from models import runtime
from models.checkpoint import open_checkpoint
from models.codes import DIMS, MotionCode
from models.composite import compose
from models.face import warp_crop
from models.mark import put_mark
from models.portrait import Portrait, prepare_portrait
from models.runtime import load_engine, torch_engine
from models.runtime.base import BaseEngine
from models.runtime.engine import (
    Appearance,
    DeviceLostError,
    EngineError,
    ReadsYuv,
    YuvPicture,
)
from models.runtime.frames import CpuFrameRenderer, FrameRequest, frame_renderer, to_i420
from models.runtime.torch_frames import TorchFrameRenderer, composite, i420
from models.runtime.torch_gpu import TorchGpuEngine, guarded
from models.runtime.torch_graph import Place
from models.runtime.torch_yuv import cut
from realtime.decoded import to_rgb, yuv_picture
from realtime.engine_bench import Profiled
from tests.marking import assert_marked

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def half() -> TorchGpuEngine:
    torch.set_num_threads(2)
    return TorchGpuEngine(open_checkpoint(verify=False), "cpu")


@pytest.fixture(scope="module")
def portrait(engine: BaseEngine, portrait_picture: np.ndarray) -> Portrait:
    return prepare_portrait(portrait_picture, engine, id="a", name="A")


def request(portrait: Portrait, size: int, lip: float) -> FrameRequest:
    lips = np.zeros(DIMS["lip"], np.float32)
    lips[0] = lip
    source = np.asarray(cv2.resize(portrait.image, (size, size), interpolation=cv2.INTER_AREA))
    return FrameRequest(portrait.appearance, source, portrait.appearance.code.with_("lip", lips))


def test_frames_equal_the_cpu(half: TorchGpuEngine, engine: BaseEngine, portrait: Portrait) -> None:
    requests = [request(portrait, 512, 1.5), request(portrait, 256, 0.0), request(portrait, 512, 0)]
    renderer, on_cpu = frame_renderer(half), frame_renderer(engine)
    assert not isinstance(renderer, CpuFrameRenderer)
    assert renderer.max_batch == 16
    for one, result in zip(requests, renderer.render(requests), strict=True):
        wanted = on_cpu.render([one])[0].i420.astype(int)
        error = np.abs(result.i420.astype(int) - wanted)
        size = wanted.shape[1]
        assert error[:size].mean() < 0.5
        assert error[:size].max() <= 6
        assert error[size:].mean() < 0.5
        assert set(result.spans) == {"draw"}
    # The mark goes over what was handed out and into no later picture.
    plain, seen = (renderer.render(requests[:1])[0].i420 for _ in range(2))
    put_mark(seen)
    assert_marked(seen, plain)
    np.testing.assert_array_equal(renderer.render(requests[:1])[0].i420, plain)


def test_readings_equal_the_reference(half: TorchGpuEngine, engine: BaseEngine) -> None:
    mel = np.random.default_rng(0).random((3, 28, 80), np.float32)
    np.testing.assert_allclose(half.audio_batch(mel), engine.audio_batch(mel), atol=2e-2)
    assert half.audio_batch(mel).dtype == np.float32


def test_only_heavy_layers_are_float16(half: TorchGpuEngine) -> None:
    kinds = {type(m) for m in half.networks.modules() for p in m.parameters(recurse=False)
             if p.dtype == torch.float16}  # fmt: skip
    assert kinds <= {torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear}
    assert torch.nn.Conv2d in kinds
    assert half.networks.generator.net.kernel.log_precision.dtype == torch.float32


def test_portraits_on_the_card_are_bounded(half: TorchGpuEngine, portrait: Portrait) -> None:
    renderer = TorchFrameRenderer(
        half.networks.generator, Place(half.device), lambda: half.generator_shapes, guarded,
        budget_bytes=2_000_000,
    )  # fmt: skip
    for _ in range(2):
        renderer.render([request(portrait, 256, 0.0)])
        assert renderer.used_bytes <= 2_000_000
    assert renderer.used_bytes > 0


class Grey(torch.nn.Module):
    """A generator that paints its portrait's grey plus the code's first number."""

    inputs, outputs = ("grey", "driving_code"), ("flow", "mask", "rgb")

    def forward(self, grey: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, ...]:
        b = len(grey)
        level = (grey[:, :1] + code[:, :1]).reshape(b, 1, 1, 1)
        return torch.zeros(b, 2, 8, 8), torch.zeros(b, 1, 8, 8), level.expand(b, 3, 8, 8)


def grey_request(level: float, code: float) -> FrameRequest:
    appearance = Appearance(
        {"grey": np.array([[level]], np.float32)}, MotionCode(), np.zeros((152, 3), np.float32),
        np.zeros((152, 2), np.float32),
    )  # fmt: skip
    lip = np.zeros(DIMS["lip"], np.float32)
    lip[0] = code
    return FrameRequest(appearance, np.zeros((32, 32, 3), np.uint8), MotionCode(lip=lip))


def grey_renderer() -> TorchFrameRenderer:
    shapes = {"grey": (1,), "driving_code": (58,)}
    place = Place(torch.device("cpu"))
    return TorchFrameRenderer(Grey(), place, lambda: shapes, guarded)  # type: ignore[arg-type]


def luma(level: float) -> int:
    return round(16 + 219 * level)


def test_a_portrait_that_keeps_its_slot_is_not_copied_again() -> None:
    renderer = grey_renderer()
    a, b, c = (grey_request(level, 0.05 * i) for i, level in enumerate((0.2, 0.4, 0.6)))
    order = [[a, b, c], [c, a, b], [b, c, a], [a, b, c]]
    for requests in order:
        found = [int(r.i420[0, 0]) for r in renderer.render(requests)]
        levels = {id(a): 0.2, id(b): 0.45, id(c): 0.7}
        assert found == [luma(levels[id(r)]) for r in requests]
    assert renderer.copies == 3, "sessions take turns, slots do not"
    d = grey_request(0.9, 0.0)
    assert [int(r.i420[0, 0]) for r in renderer.render([a, d])] == [luma(0.2), luma(0.9)]


def test_stages_can_be_timed() -> None:
    renderer = grey_renderer()
    assert isinstance(renderer, Profiled)
    renderer.render([grey_request(0.5, 0.0)])
    took = renderer.profile(1, 32, 2)
    assert list(took) == ["generator", "compose", "convert"]
    assert all(len(ms) == 2 and min(ms) > 0 for ms in took.values())


def test_any_even_size_is_i420() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
    smooth = cv2.GaussianBlur(cv2.resize(rgb, (34, 34)), (0, 0), 4)
    found = i420(torch.from_numpy(smooth).permute(2, 0, 1)[None].float())[0].numpy()
    wanted = to_i420(smooth)
    assert found.shape == wanted.shape == (51, 34)
    error = np.abs(found.astype(int) - wanted)
    assert error[:34].max() <= 1
    assert error[34:].max() <= 8


def planes_of(width: int, height: int, seed: int) -> YuvPicture:
    rng = np.random.default_rng(seed)
    half = ((height + 1) // 2, (width + 1) // 2)
    y, u, v = (rng.integers(0, 256, s, np.uint8) for s in ((height, width), half, half))
    return YuvPicture(y, u, v, "bt709", seed % 2 == 1, to_rgb=lambda: y)


@pytest.mark.parametrize("zoom", [1.2, 0.9, 0.3])
def test_a_crop_in_torch_is_the_kernels(zoom: float) -> None:
    picture = planes_of(63, 48, 1)
    transform = np.array([[zoom, 0.1, -3.0], [-0.1, zoom, 2.0]], np.float32)
    back, taps = backward(transform)
    terms = colour_terms(picture.matrix, picture.full_range)
    expected = yuv_to_tensor(picture.y, picture.u, picture.v, back, (16, 16), taps, terms)
    planes = (torch.from_numpy(p) for p in (picture.y, picture.u, picture.v))
    np.testing.assert_allclose(cut(*planes, back, taps, 16, terms), expected, atol=2e-4)


def test_webcams_are_read_together_on_the_card(
    half: TorchGpuEngine, engine: BaseEngine, portrait: Portrait
) -> None:
    assert isinstance(half, ReadsYuv)
    crops, wanted = [], []
    for zoom, (width, height) in ((0.8, (640, 480)), (1.3, (1280, 720))):
        turn = cv2.getRotationMatrix2D((256, 256), 4, zoom)
        turn[:, 2] += (width / 2 - 256, height / 2 - 256)
        seen = cv2.warpAffine(portrait.image, turn, (width, height),
                              borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        decoded = av.VideoFrame.from_ndarray(np.asarray(seen, np.uint8), "rgb24")
        decoded = decoded.reformat(format="yuv420p")
        transform = (np.diag([0.5, 0.5, 1]) @ np.linalg.inv(np.vstack([turn, [0, 0, 1]])))[:2]
        transform = transform.astype(np.float32)
        planes = yuv_picture(decoded)
        assert planes is not None
        crops.append((planes, transform))
        wanted.append(engine.motion(warp_crop(to_rgb(decoded), transform, 256)))
    found = half.motion_yuv_batch(crops)
    for a, b in zip(found, wanted, strict=True):
        assert np.abs(a.landmarks - b.landmarks).max() * 256 < 0.5
        codes = np.abs(a.code.concat() - b.code.concat())
        assert codes.max() < 0.15
        assert codes.mean() < 0.01
    face = np.ascontiguousarray(portrait.image[::2, ::2])
    (reading,) = half.motion_batch([face])
    assert np.abs(reading.code.concat() - engine.motion(face).code.concat()).max() < 3e-2
    with pytest.raises(ValueError, match="to a line"):
        half.motion_yuv(crops[0][0], np.zeros((2, 3), np.float32))


def test_compositing_in_torch_is_the_cpus() -> None:
    rng = np.random.default_rng(0)
    source = cv2.resize(rng.integers(0, 255, (16, 16, 3), np.uint8), (96, 96))
    axis = (np.arange(24, dtype=np.float32) + 0.5) / 24
    flow = np.stack(np.meshgrid(axis, axis), 2) + rng.normal(0, 0.02, (24, 24, 2))
    mask = cv2.resize(rng.random((6, 6)).astype(np.float32), (48, 48))
    rgb = cv2.resize(rng.random((6, 6, 3)).astype(np.float32), (48, 48))
    from models.runtime.engine import Drawing

    wanted = compose(Drawing(flow.astype(np.float32), mask, rgb), source, 96)

    def planes(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)[None], np.float32))

    drawn = composite(torch.from_numpy(source)[None], planes(flow), planes(mask[..., None]),
                      planes(rgb))  # fmt: skip
    found = drawn[0].permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).mean() < 0.6
    # OpenCV takes the colour of one pixel of four, torch their mean: compare smooth pictures.
    smooth = cv2.GaussianBlur(wanted, (0, 0), 4)
    yuv = i420(planes(smooth))[0].numpy().astype(int)
    error = np.abs(yuv - to_i420(smooth))
    assert error[:96].max() <= 1
    assert error[96:].max() <= 8


# --- choosing -------------------------------------------------------------------------


def test_torch_without_a_card_is_the_reference_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with caplog.at_level(logging.WARNING, "visavis.torch"):
        engine = torch_engine.make_torch_engine(open_checkpoint(verify=False))
    assert "on the CPU, float32 reference" in engine.reason
    assert engine.reason in caplog.text
    with pytest.raises(EngineError, match="torch sees no NVIDIA card"):
        torch_engine.make_torch_engine(open_checkpoint(verify=False), require_gpu=True)


def test_automatic_choice_names_what_was_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(what: str):  # type: ignore[no-untyped-def]
        def make(checkpoint: object, threads: int) -> BaseEngine:
            raise EngineError(what)

        return make

    monkeypatch.setattr(runtime, "has_nvidia_driver", lambda: False)
    assert "no NVIDIA driver" in load_engine("auto", threads=1).reason
    monkeypatch.setattr(runtime, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(runtime, "_tensorrt", refuses("no engines. Run: visavis export"))
    monkeypatch.setattr(runtime, "_torch_on_gpu", refuses("torch sees no card."))
    with caplog.at_level(logging.WARNING, "visavis.engine"):
        engine = load_engine("auto", threads=1)
    assert engine.name == "openvino"
    assert "no engines. Run: visavis export torch sees no card." in engine.reason
    assert "the GPU is not used" in caplog.text


def test_a_named_engine_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    if runtime.has_nvidia_driver():
        pytest.skip("there is a driver")
    with pytest.raises(EngineError, match="No NVIDIA card can be used"):
        load_engine("tensorrt")


def test_torchs_errors_become_ours() -> None:
    def fails(error: Exception):  # type: ignore[no-untyped-def]
        def work() -> None:
            raise error

        return work

    with pytest.raises(EngineError, match="too little memory") as full:
        guarded(fails(torch.OutOfMemoryError("CUDA out of memory")))
    assert not isinstance(full.value, DeviceLostError)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        guarded(fails(RuntimeError("CUDA error: an illegal memory access")))
    with pytest.raises(RuntimeError, match="shapes"):
        guarded(fails(RuntimeError("shapes differ")))
