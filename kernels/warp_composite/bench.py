"""Cases of `python -m kernels.bench`."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.benching import Case, Maker, look, size_of
from kernels.warp_composite import SESSION, composite, features, session
from kernels.warp_composite.reference import torch_reference


def cases(make: Maker) -> Iterator[Case]:
    """The composite as large as it is drawn and twice that; a warp of feature maps."""
    for size in (make.sizes.picture, make.sizes.maps):
        yield _composite(make, size)
    yield _features(make)


def _composite(make: Maker, size: int) -> Case:
    s = make.sizes
    flow, mask = make.grid(s.flow), make.smooth(s.batch, 1, s.maps, s.maps)
    rgb = make.smooth(s.batch, 3, s.maps, s.maps)
    planar = make.bytes(s.batch, 3, size, size)
    source = make.empty_bytes(s.batch, size, size, 4)
    source[..., :3] = planar.permute(0, 2, 3, 1)
    out = make.empty_bytes(s.batch, size, size, 4)
    rows = [session(look(source[b]), look(out[b])) for b in range(s.batch)]
    table, raw = make.table(rows, SESSION)
    launch = composite(table, (size, size), look(flow), look(mask), look(rgb))
    moved = size_of(flow, mask, rgb, source, out)
    shape = f"{s.batch}x{size}x{size} from {s.maps}"
    inputs = (planar, flow, mask, rgb)
    # Ours in RGBx rows, torch's planar: the comparison is of the three colours.
    view = out[..., :3].permute(0, 3, 1, 2)
    keep = (raw, source, out)
    return Case("warp_composite", shape, launch, moved, torch_reference, inputs, view, keep, 2.0)


def _features(make: Maker) -> Case:
    from torch.nn import functional

    s = make.sizes
    x = make.smooth(s.batch, s.channels, s.flow, s.flow, low=-1.0)
    flow, out = make.grid(s.flow), make.empty(s.batch, s.channels, s.flow, s.flow)
    seen = make.smooth(s.batch, 1, s.flow, s.flow)

    def reference(x: object, flow: object, seen: object) -> object:
        grid = flow.permute(0, 2, 3, 1) * 2 - 1  # type: ignore[attr-defined]
        return seen * functional.grid_sample(  # type: ignore[operator]
            x, grid, mode="bilinear", padding_mode="border", align_corners=False  # type: ignore[arg-type]
        )  # fmt: skip

    launch = features(look(x), look(flow), look(out), look(seen))
    shape = f"{s.batch}x{s.channels}x{s.flow}x{s.flow}"
    moved = size_of(x, flow, seen, out)
    # Torch's grid is in the maps' own type: half precision moves positions by .1 pixel.
    return Case("warp_features", shape, launch, moved, reference, (x, flow, seen), out, (), 0.1)


__all__ = ["cases"]
