"""One check per kernel: build inputs, run, compare with the reference.

The same checks run on the host (every machine) and on a GPU (`-m gpu`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels import (
    log_mel,
    modulate_activate,
    rgb_to_i420,
    template,
    warp_composite,
    window_mean,
    yuv_to_tensor,
)
from kernels.log_mel import reference as log_mel_reference
from kernels.modulate_activate import Epilogue
from kernels.modulate_activate import reference as modulate_reference
from kernels.rgb_to_i420 import reference as i420_reference
from kernels.template import reference as template_reference
from kernels.warp_composite import reference as composite_reference
from kernels.window_mean import reference as window_reference
from kernels.yuv_to_tensor import reference as yuv_reference
from models.mel import _window, mel_filters
from tests.kernels.bed import Bed, assert_close, smooth

Rng = np.random.Generator


def axpy(bed: Bed, rng: Rng, dtype: Any, rows: int, columns: int, shift: int, gap: int) -> None:
    x = rng.normal(size=(rows, columns)).astype(dtype)
    y = rng.normal(size=(rows, columns)).astype(dtype)
    xs, ys = bed.put(x, shift, gap), bed.put(y, 0, gap + 1)
    out = bed.empty((rows, columns), dtype, shift, 0)
    bed.run(template.axpy(xs.view, ys.view, out.view, -1.75))
    assert_close(bed.get(out), template_reference.axpy(x, y, -1.75))


def yuv(
    bed: Bed,
    rng: Rng,
    dtype: Any,
    size: tuple[int, int],
    out_size: tuple[int, int],
    zoom: float,
    nv12: bool,
    gap: int,
) -> None:
    """Two sessions of different picture sizes and colour spaces."""
    rows, wanted = [], []
    keep = []
    for i in range(2):
        height, width = size[0] + 3 * i, size[1] + i
        y = smooth(rng, (height, width), 0, 255).round().astype(np.uint8)
        u, v = smooth(rng, (2, (height + 1) // 2, (width + 1) // 2), 0, 255).round().astype("u1")
        angle = rng.uniform(-0.5, 0.5)
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = rng.uniform(-4, 4, (2, 1))
        transform = np.concatenate([turn, shift], 1)
        ys = bed.put(y, i, gap)
        if nv12:
            both = bed.put(np.stack([u, v], -1).reshape(u.shape[0], -1), 1, 2 * gap)
            chroma = [
                type(both.view)(
                    both.view.pointer + k, u.shape, (both.view.strides[0], 2), np.dtype("u1")
                )
                for k in (0, 1)
            ]
            keep.append(both)
        else:
            planes = [bed.put(plane, 1, gap) for plane in (u, v)]
            chroma = [plane.view for plane in planes]
            keep += planes
        keep.append(ys)
        matrix: yuv_to_tensor.Matrix = "bt709" if i else "bt601"
        row = yuv_to_tensor.picture(ys.view, *chroma, transform, matrix=matrix, full_range=bool(i))
        rows.append(row)
        back = np.asarray(row[9], np.float64).reshape(2, 3)
        terms = yuv_to_tensor.colour_terms(matrix, bool(i))
        wanted.append(yuv_reference.yuv_to_tensor(y, u, v, back, out_size, row[8], terms))
    out = bed.empty((2, 3, *out_size), dtype, 1, gap)
    bed.run(yuv_to_tensor.yuv_to_tensor(bed.table(rows, yuv_to_tensor.PICTURE), out.view))
    assert_close(bed.get(out), np.stack(wanted))


def composite(
    bed: Bed,
    rng: Rng,
    dtype: Any,
    sizes: list[tuple[int, int]],
    flow_size: int,
    map_size: int,
    steps: tuple[int, int],
    gap: int,
) -> None:
    """One session per entry of `sizes`; the flow points outside at the rims."""
    batch = len(sizes)
    grid = (np.mgrid[:flow_size, :flow_size][::-1] + 0.5) / flow_size
    flow = (grid[None] + smooth(rng, (batch, 2, flow_size, flow_size), -0.2, 0.2)).astype(dtype)
    mask = smooth(rng, (batch, 1, map_size, map_size), 0, 1).astype(dtype)
    rgb = smooth(rng, (batch, 3, map_size, map_size), -0.1, 1.1).astype(dtype)
    placed = [bed.put(array, 1, gap) for array in (flow, mask, rgb)]
    rows, outs, sources = [], [], []
    for height, width in sizes:
        source = smooth(rng, (steps[0], height, width), 0, 255).transpose(1, 2, 0)
        source = source.round().astype(np.uint8)
        # Four-byte pixels stay aligned and three-byte ones start anywhere.
        line = bed.put(source.reshape(height, -1), 0 if steps[0] == 4 else 1, 4 * gap)
        out = bed.empty((height, width * steps[1]), np.uint8, 4 if steps[1] == 4 else 1, 4 * gap)
        views = [
            type(p.view)(p.view.pointer, (height, width, step), (p.view.strides[0], step, 1),
                         p.view.dtype)
            for p, step in ((line, steps[0]), (out, steps[1]))
        ]  # fmt: skip
        rows.append(warp_composite.session(*views))
        outs.append(out)
        sources.append((source, line))
    largest = (max(h for h, _ in sizes), max(w for _, w in sizes))
    table = bed.table(rows, warp_composite.SESSION)
    bed.run(warp_composite.composite(table, largest, *(p.view for p in placed), *steps))
    for i, (out, (source, _)) in enumerate(zip(outs, sources, strict=True)):
        got = bed.get(out).reshape(*source.shape[:2], steps[1])[..., :3]
        expected = composite_reference.composite(source, flow[i], mask[i], rgb[i])
        # Within float32 of the value before rounding: a half may fall either way.
        assert np.abs(got - expected).max() <= 0.501


def features(
    bed: Bed,
    rng: Rng,
    dtype: Any,
    batch: int,
    channels: int,
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    occluded: bool,
    gap: int,
) -> None:
    x = smooth(rng, (batch, channels, *in_size), -1, 1).astype(dtype)
    flow = rng.uniform(-0.1, 1.1, (batch, 2, 6, 6)).astype(dtype)
    seen = rng.uniform(0, 1, (batch, 1, *out_size)).astype(dtype) if occluded else None
    xs, flows = bed.put(x, 1, gap), bed.put(flow, 3, 0)
    mask = bed.put(seen, 1, gap) if seen is not None else None
    out = bed.empty((batch, channels, *out_size), dtype, 1, gap)
    mask_view = mask.view if mask is not None else None
    bed.run(warp_composite.features(xs.view, flows.view, out.view, mask_view))
    expected = [
        composite_reference.features(x[i], flow[i], out_size, seen[i] if occluded else None)
        for i in range(batch)
    ]
    assert_close(bed.get(out), np.stack(expected))


def _epilogue(
    bed: Bed, rng: Rng, dtype: Any, shape: tuple[int, ...], terms: set[str], gap: int
) -> tuple[Epilogue, Epilogue]:
    """The same epilogue for the device and for the reference."""
    batch, channels, height, width = shape
    shapes = {
        "gain": (batch, channels),
        "shift": (batch, channels),
        "bias": (channels,),
        "noise": (batch if "noises" in terms else 1, height, width),
        "strength": (1,),
        "residual": shape,
    }
    here, there = {}, {}
    for name, size in shapes.items():
        if name in terms:
            here[name] = rng.normal(size=size).astype(dtype)
            flat = len(size) == 1
            placed = bed.put(here[name], 0, 0 if flat else gap)
            there[name] = placed.view
            bed.kept.append(placed)
    scalars = {"gain_add": 1.0, "slope": 0.2, "scale": 2**0.5, "limit": 3.0}
    chosen = {name: value for name, value in scalars.items() if name in terms}
    return Epilogue(**there, **chosen), Epilogue(**here, **chosen)


def modulate(
    bed: Bed,
    rng: Rng,
    dtype: Any,
    shape: tuple[int, int, int, int],
    terms: set[str],
    shift: int,
    gap: int,
) -> None:
    x = rng.normal(size=shape).astype(dtype)
    bias = rng.normal(size=shape[1]).astype(dtype) if "conv" in terms else None
    device, host = _epilogue(bed, rng, dtype, shape, terms, gap)
    xs = bed.put(x, shift, gap)
    first = bed.put(bias) if bias is not None else None
    into = xs if "in_place" in terms else bed.empty(shape, dtype, shift, gap)
    first_view = first.view if first is not None else None
    bed.run(modulate_activate.modulate(xs.view, into.view, device, first_view))
    assert_close(bed.get(into), modulate_reference.modulate(x, host, bias))


def fir(
    bed: Bed,
    rng: Rng,
    dtype: Any,
    shape: tuple[int, int, int, int],
    up: int,
    pad: int,
    out_size: tuple[int, int],
    terms: set[str],
    gap: int,
) -> None:
    x = rng.normal(size=shape).astype(dtype)
    out_shape = (*shape[:2], *out_size)
    device, host = _epilogue(bed, rng, dtype, out_shape, terms, gap)
    xs, out = bed.put(x, 1, gap), bed.empty(out_shape, dtype, 1, gap)
    bed.run(modulate_activate.fir(xs.view, out.view, device, up=up, pad=pad))
    expected = modulate_reference.fir(x, out_size, host, up=up, pad=pad)
    assert_close(bed.get(out), expected)


def demodulate(bed: Bed, rng: Rng, dtype: Any, batch: int, outputs: int, inputs: int) -> None:
    squares = rng.uniform(0.0, 0.1, (outputs, inputs)).astype(dtype)
    style = rng.normal(1, 0.5, (batch, inputs)).astype(dtype)
    weights, styles = bed.put(squares, 1, 3), bed.put(style, 1, 1)
    out = bed.empty((batch, outputs), dtype, 1, 1)
    bed.run(modulate_activate.demodulate(weights.view, styles.view, out.view))
    assert_close(bed.get(out), modulate_reference.demodulate(squares, style))


def i420(
    bed: Bed,
    rng: Rng,
    sizes: list[tuple[int, int]],
    step: int,
    mean_chroma: bool,
    mark: tuple[int, int] | None,
    gap: int,
) -> None:
    """Without paste-back: exactly the reference's bytes."""
    rows, outs, wanted = [], [], []
    for height, width in sizes:
        rgb = rng.integers(0, 256, (height, width, step), np.uint8)
        line = bed.put(rgb.reshape(height, -1), 1, gap)
        picture = type(line.view)(
            line.view.pointer, rgb.shape, (line.view.strides[0], step, 1), rgb.dtype
        )
        half = ((height + 1) // 2, (width + 1) // 2)
        out = [bed.empty(size, np.uint8, 1, gap) for size in ((height, width), half, half)]
        there = None
        if mark is not None:
            rgba = rng.integers(0, 256, (7, 9, 4), np.uint8)
            seal = bed.put(rgba.reshape(7, -1))
            bed.kept.append(seal)
            seal_view = type(seal.view)(seal.view.pointer, rgba.shape, (36, 4, 1), rgba.dtype)
            there = rgb_to_i420.Mark(seal_view, *mark)
            rgb = i420_reference.marked(rgb, rgba, *mark)
        rows.append(
            rgb_to_i420.session(picture, (out[0].view, out[1].view, out[2].view), mark=there)
        )
        outs.append((out, line))
        wanted.append(i420_reference.to_i420(rgb, mean_chroma))
    largest = (max(h for h, _ in sizes), max(w for _, w in sizes))
    table = bed.table(rows, rgb_to_i420.SESSION)
    bed.run(rgb_to_i420.rgb_to_i420(table, largest, mean_chroma))
    for (out, _), planes in zip(outs, wanted, strict=True):
        for placed, plane in zip(out, planes, strict=True):
            np.testing.assert_array_equal(bed.get(placed), plane)


def paste(
    bed: Bed, rng: Rng, picture_size: int, frame_size: tuple[int, int], feather: float
) -> None:
    """Pasted into a frame: within one level of the reference, which rounds after blending."""
    picture = smooth(rng, (3, picture_size, picture_size), 0, 255).transpose(1, 2, 0)
    picture = np.ascontiguousarray(picture.round().astype(np.uint8))
    frame = rng.integers(0, 256, (*frame_size, 4), np.uint8)
    zoom = picture_size / (0.6 * min(frame_size))
    transform = np.array([[zoom, 0.1, -5.3], [-0.1, zoom, -3.1]])
    line, below = bed.put(picture.reshape(picture_size, -1)), bed.put(frame.reshape(-1))
    kind = type(line.view)
    picture_view = kind(line.view.pointer, picture.shape, (3 * picture_size, 3, 1), picture.dtype)
    frame_view = kind(below.view.pointer, frame.shape, (4 * frame_size[1], 4, 1), frame.dtype)
    half = ((frame_size[0] + 1) // 2, (frame_size[1] + 1) // 2)
    out = [bed.empty(size, np.uint8, 1, 3) for size in (frame_size, half, half)]
    row = rgb_to_i420.session(
        picture_view,
        (out[0].view, out[1].view, out[2].view),
        rgb_to_i420.Paste(frame_view, transform, feather),
    )
    bed.run(rgb_to_i420.rgb_to_i420(bed.table([row], rgb_to_i420.SESSION), frame_size))
    whole = i420_reference.pasted(picture, frame, transform, feather)
    rounded = np.floor(whole + 0.5).clip(0, 255).astype(np.uint8)
    for placed, plane in zip(out, i420_reference.to_i420(rounded), strict=True):
        assert np.abs(bed.get(placed).astype(int) - plane).max() <= 1
    changed = np.abs(whole - frame[..., :3]).max(-1) > 1
    assert 0.05 < changed.mean() < 0.9


def window(bed: Bed, rng: Rng, dtype: Any, length: int, dim: int, pushes: int) -> None:
    """Three of five slots in changing order and company; one is reset on the way."""
    slots, resets = 5, {pushes // 2: 3}
    ring = bed.put(np.full((slots, length, dim), np.nan, np.float32))
    pushed = bed.put(np.zeros(slots, np.uint32))
    history: dict[int, list[Any]] = {slot: [] for slot in range(slots)}
    for turn in range(pushes):
        order = rng.permutation([0, 3, 4])[: 1 + turn % 3]
        reset = resets.get(turn)
        rows = [(slot, int(slot == reset)) for slot in order]
        codes = rng.normal(size=(len(order), dim)).astype(dtype)
        code, mean = bed.put(codes, 1, 1), bed.empty(codes.shape, dtype, 1, 3)
        table = bed.table(rows, window_mean.SESSION)
        bed.run(window_mean.window_mean(table, code.view, mean.view, ring.view, pushed.view))
        got = bed.get(mean)
        for i, slot in enumerate(order):
            if slot == reset:
                history[slot] = []
            history[slot].append(codes[i])
            expected = window_reference.window_means(np.stack(history[slot]), length)[-1]
            assert_close(got[i], expected)


def mel(bed: Bed, rng: Rng, dtype: Any, chunks: list[int]) -> None:
    """Two sessions, cut differently, equal their whole signals."""
    tables = log_mel.tables(_window(), mel_filters())
    waves, weights, bands = (bed.put(table) for table in tables)
    ring = bed.put(np.zeros((3, 4096), np.float32))
    total = sum(chunks)
    t = np.arange(total) / 16_000
    signals = [
        (0.3 * np.sin(2 * np.pi * (180 + 900 * t) * t) + rng.normal(0, 0.01, total)),
        rng.normal(0, 0.1, total),
    ]
    slots, got = [2, 0], [[], []]  # type: ignore[var-annotated]
    position = [0, 0]
    for sizes in zip(chunks, reversed(chunks), strict=True):
        rows, pieces = [], []
        for i, size in enumerate(sizes):
            piece = bed.put(signals[i][position[i] : position[i] + size].astype(np.float32), 1)
            pieces.append(piece)
            rows.append(log_mel.session(piece.view, position[i], slots[i], ring.view))
        frames = [log_mel.frames_of(position[i], size) for i, size in enumerate(sizes)]
        out = bed.empty((2, max(*frames, 1), 80), dtype, 1, 3)
        constants = (waves.view, weights.view, bands.view)
        bed.run(log_mel.log_mel(bed.table(rows, log_mel.SESSION), ring.view, *constants, out.view))
        rows_out = bed.get(out)
        for i, count in enumerate(frames):
            got[i].append(rows_out[i, :count])
            position[i] += sizes[i]
    for i, signal in enumerate(signals):
        expected = log_mel_reference.log_mel(signal.astype(np.float32), _window(), mel_filters())
        assert_close(np.concatenate(got[i]), expected)
