"""Read the label files of a training pack (numpy only).

A pack is a folder with `labels/clips.npz`, `labels/stills.npz` and `synth/labels.npz`
(its own README describes them). Angles come out in radians, landmarks in pixels of the
256-pixel frames with the origin at the top left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Pack:
    """Labels of one training pack; `root` holds the media files they name."""

    root: Path
    clips: Arrays
    stills: Arrays
    synth: Arrays

    @staticmethod
    def open(root: Path) -> Pack:
        """Load all labels (about 400 MB); raises FileNotFoundError naming the missing file."""
        return Pack(
            root,
            _read_measured(root / "labels" / "clips.npz"),
            _read_measured(root / "labels" / "stills.npz"),
            _read_synth(root / "synth" / "labels.npz"),
        )


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as z:
        return {k: z[k] for k in z.files}


def _read_measured(path: Path) -> Arrays:
    d = _load(path)
    d["blendshapes"] = d["blendshapes"].astype(np.float32) / 255.0
    d["pose"] = np.radians(d.pop("pose_ypr_deg").astype(np.float32))
    d["landmarks"] = d.pop("landmarks_xy").astype(np.float32) / float(d["xy_scale"])
    return d


def _read_synth(path: Path) -> Arrays:
    d = _load(path)
    deltas = d.pop("landmarks_xy_delta")
    landmarks = np.empty(deltas.shape, np.float32)
    for a, b in zip(d["offset"][:-1], d["offset"][1:], strict=True):
        landmarks[a:b] = np.cumsum(deltas[a:b].astype(np.int32), axis=0) / float(d["xy_scale"])
    d["landmarks"] = landmarks
    d["pose"] = np.radians(d.pop("pose_ypr_deg").astype(np.float32))
    d["clip_of_frame"] = np.repeat(np.arange(len(d["offset"]) - 1), np.diff(d["offset"]))
    return d
