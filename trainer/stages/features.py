"""Trunk features computed once: the trunk is frozen in stage 2a, its pictures are not endless.

METHOD.md section 3 advises it. Every frame is read in a few damaged versions before the first
step; a step then costs only the lip head and E_aud, a quarter of the time on a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.loader import to_unit
from trainer.stages.run import Run
from trainer.stages.system import AnyMotion

U8 = NDArray[np.uint8]
#: Damaged version `version` of a row of the frame cache: (S, S, 3) uint8.
Picture = Callable[[int, int], U8]
_BATCH = 32


class KeptFeatures:
    """Features (rows, versions, 512) float16 of some rows of the cache; picked by row number."""

    def __init__(self, rows: NDArray[np.int64], values: Tensor) -> None:
        self._place = np.full(int(rows.max()) + 1, -1)
        self._place[rows] = np.arange(len(rows))
        self._values = values

    def pick(self, row_N: Tensor, version_N: Tensor) -> Tensor:
        """(N, 512) float32 of rows in given versions, on the device of `row_N`.

        Raises:
            KeyError: a row that was not read.
        """
        place = self._place[row_N.cpu().numpy().astype(np.int64)]
        if (place < 0).any():
            raise KeyError("a picture without features")
        found = self._values[torch.from_numpy(place), version_N.cpu().long()]
        return found.float().to(row_N.device)

    @staticmethod
    def of(
        run: Run, motion: AnyMotion, rows: NDArray[np.int64], versions: int, picture: Picture
    ) -> KeptFeatures:
        """Read from the run's file if it was made by the same trunk of the same rows, else made."""
        path = run.folder / f"features-{run.name}.npz"
        about = _digest(motion, rows, versions)
        if path.exists():
            with np.load(path, allow_pickle=False) as z:
                if str(z["about"]) == about:
                    return KeptFeatures(rows, torch.from_numpy(z["values"]))
        values = _read(run, motion, rows, versions, picture)
        if run.first:
            _keep(path, about, values)
        return KeptFeatures(rows, values)


def _keep(path: Path, about: str, values: Tensor) -> None:
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, about=np.array(about), values=values.numpy())
    fresh.replace(path)


@torch.no_grad()
def _read(
    run: Run, motion: AnyMotion, rows: NDArray[np.int64], versions: int, picture: Picture
) -> Tensor:
    jobs = [(int(row), version) for row in rows for version in range(versions)]
    parts = []
    motion.eval()
    for at in range(0, len(jobs), _BATCH):
        faces = torch.from_numpy(np.stack([picture(*job) for job in jobs[at : at + _BATCH]]))
        with run.autocast():
            parts.append(motion.features(to_unit(faces.to(run.device)) * 2 - 1).half().cpu())
        if run.show and run.first and at % (100 * _BATCH) == 0:
            print(f"trunk features {at} of {len(jobs)}", flush=True)
    return torch.cat(parts).view(len(rows), versions, -1)


def _digest(motion: AnyMotion, rows: NDArray[np.int64], versions: int) -> str:
    """Of everything that the features depend on but the heads."""
    sha = hashlib.sha256(rows.tobytes() + bytes([versions]))
    for name, value in sorted(motion.state_dict().items()):
        if not name.startswith(("heads.", "landmarks.")):
            sha.update(value.detach().cpu().numpy().tobytes())
    return sha.hexdigest()
