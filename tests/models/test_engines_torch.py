"""The card's torch engine, run on the CPU without its graphs: near the reference, said out loud."""

import logging

import cv2
import numpy as np
import pytest
import torch

from models import runtime
from models.checkpoint import open_checkpoint
from models.codes import DIMS
from models.composite import compose
from models.portrait import Portrait, prepare_portrait
from models.runtime import load_engine, torch_engine
from models.runtime.base import BaseEngine
from models.runtime.engine import DeviceLostError, EngineError
from models.runtime.frames import CpuFrameRenderer, FrameRequest, frame_renderer, to_i420
from models.runtime.torch_gpu import TorchGpuEngine, composite, guarded, i420

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
    from models.runtime.torch_gpu import TorchFrameRenderer

    renderer = TorchFrameRenderer(half, budget_bytes=2_000_000)
    for _ in range(3):
        renderer.render([request(portrait, 256, 0.0)])
        assert renderer.used_bytes <= 2_000_000
    assert renderer.used_bytes > 0


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
