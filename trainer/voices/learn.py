"""Learn the table of mouth shapes from aligned recordings with fitted lip codes.

`python -m trainer.voices.learn ALIGNMENTS.json CACHE [--out T.json]` aligns the phonemes inside the
words, fits all of `LipModel` by gradient descent on the training clips and prints the correlation
with the held-out clips. Goals of phonemes that the recordings lack come from
`phonemes.NEIGHBOURS` afterwards.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from models.codes import DIMS
from models.rates import FPS
from trainer.frames import FrameCache
from trainer.motion_stage import lip_weights
from trainer.voices.grid import AlignedClip, read_aligned
from trainer.voices.lips import TABLE, LipModel
from trainer.voices.phonemes import INDEX, NEIGHBOURS, PHONEMES

F64 = NDArray[np.float64]
#: Phonemes on each side of a frame that can still be seen in it.
REACH = 5
#: With fewer examples than this a phoneme borrows its neighbours' goal.
ENOUGH = 25


def frame_table(clips: list[AlignedClip]) -> dict[str, Tensor]:
    """For every frame its nearest phonemes: which, start, length (N, K) in seconds; time, lip."""
    which, start, length, time, lip = [], [], [], [], []
    for clip in clips:
        index = np.array([INDEX[s.phoneme] for s in clip.segments])
        begin = np.array([s.start_s for s in clip.segments])
        span = np.array([s.end_s - s.start_s for s in clip.segments])
        times = np.arange(len(clip.lip)) / FPS
        centre = np.searchsorted(begin, times, side="right") - 1
        # Twice the outermost phoneme where a clip begins or ends: the silence.
        rows = np.clip(centre[:, None] + np.arange(-REACH, REACH + 1), 0, len(index) - 1)
        which.append(index[rows])
        start.append(begin[rows])
        length.append(span[rows])
        time.append(times)
        lip.append(clip.lip)

    def floats(parts: list[NDArray[np.float64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.float32))

    return {
        "which": torch.from_numpy(np.concatenate(which)),
        "start": floats(start),
        "length": floats(length),
        "time": floats(time),
        "lip": torch.from_numpy(np.concatenate(lip).astype(np.float32)),
    }


class _Dominance(torch.nn.Module):
    """`LipModel.trajectory` with gradients."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        count = len(PHONEMES)
        self.goal = torch.nn.Parameter(start.clone())
        self.strength = torch.nn.Parameter(torch.zeros(count, DIMS["lip"]))
        # Rows: anchor and hold before the sigmoid, rates before and after in 1/s, as logarithms.
        timing = torch.tensor([[0.0], [-1.0], [2.5], [2.5]]).repeat(1, count)
        self.timing = torch.nn.Parameter(timing)
        self.power = torch.nn.Parameter(torch.tensor(0.4))

    def physical(self) -> tuple[Tensor, ...]:
        anchor = torch.sigmoid(self.timing[0])
        hold = torch.sigmoid(self.timing[1])
        return anchor, hold, self.timing[2].exp(), self.timing[3].exp(), self.power.exp()

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        anchor, hold, before, after, power = self.physical()
        which, length = data["which"], data["length"]
        away = data["time"][:, None] - data["start"] - anchor[which] * length
        tau = (away.abs() - 0.5 * hold[which] * length).clamp_min(0)
        rate = torch.where(away < 0, before[which], after[which])
        pull = self.strength[which] - ((rate * tau + 1e-4) ** power)[..., None]
        return (torch.softmax(pull, 1) * self.goal[which]).sum(1)


def fit(clips: list[AlignedClip], weight: Tensor, *, steps: int = 500, seed: int = 0) -> LipModel:
    """Gradient descent on weighted smooth L1; about two minutes on one core for 800 clips."""
    torch.manual_seed(seed)
    data = frame_table(clips)
    total = len(data["lip"])
    inside = data["which"][:, REACH]
    goal = torch.zeros(len(PHONEMES), DIMS["lip"])
    for i in range(len(PHONEMES)):
        if (inside == i).any():
            goal[i] = data["lip"][inside == i].mean(0)
    net = _Dominance(goal)
    optimiser = torch.optim.Adam(net.parameters(), 0.03)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.03 * (1 - step / steps) + 1e-3
        rows = torch.randint(0, total, (8192,))
        part = {k: v[rows] for k, v in data.items()}
        error = torch.nn.functional.smooth_l1_loss(net(part), part["lip"], reduction="none")
        # Weak priors: goals that no frame speaks for stay put, strengths stay comparable.
        prior = 2e-4 * ((net.goal - goal) ** 2).mean() + 1e-3 * (net.strength**2).mean()
        prior = prior + 1e-3 * ((net.timing[2:] - 2.5) ** 2).mean()
        optimiser.zero_grad()
        ((error * weight).mean() + prior).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        parts = [p.double().numpy() for p in (net.goal, net.strength, *net.physical())]
    goal_, strength, anchor, hold, before, after, power = parts
    return LipModel(goal_, strength, anchor, hold, before, after, float(power))


def fill_missing(model: LipModel, counts: Counter[str]) -> LipModel:
    """Give phonemes with too few examples the mean of their nearest articulatory neighbours."""
    fields = [getattr(model, n).copy() for n in LipModel.__slots__ if n != "power"]
    known = {p for p in PHONEMES if counts[p] >= ENOUGH}
    todo = [p for p in PHONEMES if p not in known]
    while todo:
        ready = [p for p in todo if any(n in known for n in NEIGHBOURS.get(p, ()))]
        if not ready:
            raise ValueError(f"no neighbours to learn {todo} from")
        for p in ready:
            rows = [INDEX[n] for n in NEIGHBOURS[p] if n in known]
            for field in fields:
                field[INDEX[p]] = field[rows].mean(0)
        known |= set(ready)
        todo = [p for p in todo if p not in known]
    goal, strength, anchor, hold, before, after = fields
    return LipModel(goal, strength, anchor, hold, before, after, model.power)


def correlation(model: LipModel, clips: list[AlignedClip]) -> tuple[F64, F64]:
    """Correlation (16,) with real codes and gain (16,): the model's spread over the real one."""
    found = np.concatenate(
        [model.trajectory(c.segments, np.arange(len(c.lip)) / FPS) for c in clips]
    )
    real = np.concatenate([c.lip for c in clips])
    r = [np.corrcoef(found[:, d], real[:, d])[0, 1] for d in range(DIMS["lip"])]
    return np.array(r), found.std(0) / real.std(0)


def main(alignments: Path, cache_dir: Path, out: Path = TABLE) -> None:
    """Learn and write the table."""
    torch.set_num_threads(1)
    frames = FrameCache(cache_dir)
    held = set(frames.clip[frames.split().test].tolist())
    clips = read_aligned(alignments, cache_dir)
    train = [c for c in clips if c.name not in held]
    test = [c for c in clips if c.name in held]
    model = fit(train, lip_weights(frames))
    r, gain = correlation(model, test)
    counts = Counter(s.phoneme for c in train for s in c.segments)
    print("held-out correlation", np.round(r, 3), "gain", np.round(gain, 2))
    print("examples", {p: counts[p] for p in PHONEMES})
    missing = [p for p in PHONEMES if counts[p] < ENOUGH]
    fill_missing(model, counts).save(
        out, learnt_from=f"{len(train)} GRID clips of one speaker", borrowed=missing,
        held_out_correlation=np.round(r, 3).tolist(),
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
