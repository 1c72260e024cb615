"""What the kernels compute is what the product does without them (tolerances are stated here)."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from kernels import (
    log_mel,
    modulate_activate,
    rgb_to_i420,
    warp_composite,
    window_mean,
    yuv_to_tensor,
)
from kernels.modulate_activate import Epilogue
from models.composite import compose
from models.face import warp_crop
from models.mel import StreamingMel, _window, mel_filters
from models.networks.blocks import ModulatedConv
from models.networks.generator import warp
from models.networks.paper.generator import StyledConv, ToRGB
from models.runtime.base import to_network
from models.runtime.engine import Drawing
from models.streaming import ExpressionWindow
from tests.kernels.bed import Bed, smooth

pytestmark = pytest.mark.unit


def picture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Something like a photograph: smooth, with a few edges and some grain."""
    planes = smooth(rng, (3, size, size), 20, 235)
    for _ in range(6):
        x, y, r = rng.uniform(0, size, 3)
        yy, xx = np.mgrid[:size, :size]
        inside = (xx - x) ** 2 + (yy - y) ** 2 < (r / 3) ** 2
        planes[:, inside] = rng.uniform(0, 255, (3, 1))
    planes += rng.normal(0, 2, planes.shape)
    return np.ascontiguousarray(planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize("size", [256, 320], ids=["as drawn", "enlarged"])
def test_composite_is_the_cpus(bed: Bed, rng: np.random.Generator, size: int) -> None:
    """OpenCV samples in steps of 1/32 pixel and rounds twice more: 1 level on average at most."""
    source = picture(rng, size)
    grid = (np.mgrid[:128, :128][::-1] + 0.5) / 128
    flow = (grid + smooth(rng, (2, 128, 128), -0.05, 0.05)).astype(np.float32)
    mask = smooth(rng, (1, 256, 256), 0, 1).astype(np.float32)
    drawn = smooth(rng, (3, 256, 256), 0, 1).astype(np.float32)
    drawing = Drawing(
        np.ascontiguousarray(flow.transpose(1, 2, 0)),
        mask[0],
        np.ascontiguousarray(drawn.transpose(1, 2, 0)),
    )
    expected = compose(drawing, source, size)
    placed, out = bed.put(source), bed.empty(source.shape, np.uint8)
    rows = [warp_composite.session(placed.view, out.view)]
    maps = [bed.put(array[None]) for array in (flow, mask, drawn)]
    table = bed.table(rows, warp_composite.SESSION)
    bed.run(warp_composite.composite(table, (size, size), *(m.view for m in maps), 3, 3))
    error = np.abs(bed.get(out).astype(int) - expected)
    assert error.mean() < 0.6
    assert np.quantile(error, 0.999) <= 3


@pytest.mark.parametrize("size", [64, 130])
def test_i420_is_opencvs_byte_for_byte(bed: Bed, rng: np.random.Generator, size: int) -> None:
    rgb = rng.integers(0, 256, (size, size, 3), np.uint8)
    placed, out = bed.put(rgb), bed.empty((size * 3 // 2, size), np.uint8)
    planes = rgb_to_i420.i420_planes(out.view)
    table = bed.table([rgb_to_i420.session(placed.view, planes)], rgb_to_i420.SESSION)
    bed.run(rgb_to_i420.rgb_to_i420(table, (size, size)))
    np.testing.assert_array_equal(bed.get(out), cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420))


@pytest.mark.parametrize("zoom", [0.35, 0.8, 1.0], ids=["shrunk", "a little", "kept"])
def test_crop_is_the_trackers(bed: Bed, rng: np.random.Generator, zoom: float) -> None:
    """RGB in between is rounded, and blurred instead of averaged when it shrinks: 2 % on average.

    Chroma of a hard edge differs (OpenCV repeats each sample, we interpolate): smooth colours.
    """
    rgb = smooth(rng, (3, 240, 320), 30, 220).transpose(1, 2, 0).round().astype(np.uint8)
    i420 = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2YUV_I420)
    transform = np.array([[zoom, 0.05, -6.0], [-0.05, zoom, 4.0]], np.float32)
    size = 64
    seen = cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420)
    expected = to_network(warp_crop(np.asarray(seen, np.uint8), transform, size))
    y = bed.put(i420[:240])
    u, v = (bed.put(plane) for plane in i420[240:].reshape(2, 120, 160))
    out = bed.empty((1, 3, size, size), np.float32)
    rows = [yuv_to_tensor.picture(y.view, u.view, v.view, transform)]
    bed.run(yuv_to_tensor.yuv_to_tensor(bed.table(rows, yuv_to_tensor.PICTURE), out.view))
    error = np.abs(bed.get(out) - expected)
    assert error.mean() < 0.02
    assert error.max() < 0.12


def test_expression_means_are_the_streams(bed: Bed, rng: np.random.Generator) -> None:
    window = ExpressionWindow(7, 30)
    ring, pushed = bed.put(np.zeros((1, 7, 30), np.float32)), bed.put(np.zeros(1, np.uint32))
    table = bed.table([(0, 0)], window_mean.SESSION)
    for _ in range(40):
        code = rng.normal(size=(1, 30)).astype(np.float32)
        codes, mean = bed.put(code), bed.empty((1, 30), np.float32)
        bed.run(window_mean.window_mean(table, codes.view, mean.view, ring.view, pushed.view))
        np.testing.assert_allclose(bed.get(mean)[0], window.push(code[0]), rtol=0, atol=1e-6)


def test_log_mel_is_the_streams(bed: Bed, rng: np.random.Generator) -> None:
    stream, signal = StreamingMel(), rng.normal(0, 0.1, 3200).astype(np.float32)
    constants = [bed.put(table) for table in log_mel.tables(_window(), mel_filters())]
    ring = bed.put(np.zeros((1, 4096), np.float32))
    for start in range(0, len(signal), 640):
        piece = signal[start : start + 640]
        samples, out = bed.put(piece), bed.empty((1, 4, 80), np.float32)
        rows = [log_mel.session(samples.view, start, 0, ring.view)]
        table = bed.table(rows, log_mel.SESSION)
        views = (placed.view for placed in constants)
        bed.run(log_mel.log_mel(table, ring.view, *views, out.view))
        np.testing.assert_allclose(bed.get(out)[0], stream.push(piece), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_modulation_is_the_live_networks(bed: Bed) -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(5, 6, 8)
    torch.nn.init.normal_(layer.affine.bias)
    x, style = torch.randn(2, 5, 9, 7), torch.randn(2, 8)
    conv = torch.nn.functional.conv2d(x, layer.conv.weight, padding=1)
    scale, shift = layer.affine(style).chunk(2, 1)
    parts = [conv, layer.conv.bias, scale.contiguous(), shift.contiguous(), torch.randn(2, 6, 9, 7)]
    v, bias, gain, add, residual = (bed.put(part.numpy()) for part in parts)
    epilogue = Epilogue(gain.view, add.view, residual=residual.view, gain_add=1, slope=0.2)
    bed.run(modulate_activate.modulate(v.view, v.view, epilogue, bias.view))
    expected = parts[4] + layer(x, style)
    np.testing.assert_allclose(bed.get(v), expected.numpy(), rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("up", [False, True])
def test_modulation_is_the_paper_networks(bed: Bed, up: bool) -> None:
    """Scaled input, plain convolution, then demodulation, noise, bias and activation (and FIR)."""
    torch.manual_seed(1)
    layer = StyledConv(6, 4, 8, 10 if up else 5, up)
    torch.nn.init.normal_(layer.strength)
    torch.nn.init.normal_(layer.bias)
    x, style = torch.randn(2, 6, 5, 5), torch.randn(2, 8)
    scales, weight = layer.affine(style)[:, :, 0, 0], layer.weight * layer.scale
    xs, s = bed.put(x.numpy()), bed.put(scales.numpy())
    bed.run(modulate_activate.modulate(xs.view, xs.view, Epilogue(gain=s.view)))
    squares, factors = bed.put(weight.square().sum((2, 3)).numpy()), bed.empty((2, 4), np.float32)
    bed.run(modulate_activate.demodulate(squares.view, s.view, factors.view))
    scaled = torch.from_numpy(bed.get(xs))
    if up:
        conv = torch.nn.functional.conv_transpose2d(scaled, weight.transpose(0, 1), stride=2)
    else:
        conv = torch.nn.functional.conv2d(scaled, weight, padding=1)
    v, out = (
        bed.put(conv.numpy()),
        bed.empty((2, 4, layer.noise.shape[2], layer.noise.shape[3]), "f4"),
    )
    noise, strength, bias = (
        bed.put(part.detach().numpy()) for part in (layer.noise[0], layer.strength, layer.bias)
    )
    epilogue = Epilogue(
        gain=factors.view, noise=noise.view, strength=strength.view, bias=bias.view,
        slope=0.2, scale=2**0.5,
    )  # fmt: skip
    if up:
        bed.run(modulate_activate.fir(v.view, out.view, epilogue, up=1, pad=1))
    else:
        bed.run(modulate_activate.modulate(v.view, out.view, epilogue))
    np.testing.assert_allclose(bed.get(out), layer(x, style).numpy(), rtol=0, atol=2e-5)


@torch.inference_mode()
def test_doubling_is_the_paper_networks(bed: Bed) -> None:
    torch.manual_seed(2)
    layer = ToRGB(4, 8)
    x, style, below = torch.randn(1, 4, 12, 12), torch.randn(1, 8), torch.randn(1, 3, 6, 6)
    fresh = bed.put(layer(x, style, None).numpy())
    old, out = bed.put(below.numpy()), bed.empty((1, 3, 12, 12), np.float32)
    bed.run(modulate_activate.fir(old.view, out.view, Epilogue(residual=fresh.view)))
    expected = layer(x, style, below).numpy()
    np.testing.assert_allclose(bed.get(out), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_feature_warp_is_the_networks(bed: Bed, rng: np.random.Generator) -> None:
    """The flow is twice as fine as the features; the networks take its 2 x 2 mean."""
    x = smooth(rng, (1, 9, 32, 32), -1, 1).astype(np.float32)
    flow = rng.uniform(0, 1, (1, 2, 64, 64)).astype(np.float32)
    xs, flows, out = bed.put(x), bed.put(flow), bed.empty(x.shape, np.float32)
    bed.run(warp_composite.features(xs.view, flows.view, out.view))
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(flow), 2)
    expected = warp(torch.from_numpy(x), coarse).numpy()
    np.testing.assert_allclose(bed.get(out), expected, rtol=0, atol=2e-5)
