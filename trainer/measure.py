"""Measure rendered videos against their drivers with an independent landmark model.

Needs the `mediapipe` package (0.10.21, numpy < 2, so in an environment of its own) and its
`face_landmarker.task`; neither is a dependency of this project. Run it as
`python trainer/measure.py --model face_landmarker.task RENDERED.mp4 DRIVER.mp4 ...` with
pairs of files; it prints one JSON object per pair: correlation and lag (frames, positive =
the avatar is late) of mouth opening, head pose, blink, gaze and smile.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_MAX_LAG = 5


def read_signals(path: Path, model: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Per-frame mouth gap over face height, yaw, pitch, roll (degrees), blink, gaze, smile."""
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(model)),
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    names = ("gap", "yaw", "pitch", "roll", "blink", "gaze_x", "smile", "brow")
    rows: list[list[float]] = []
    capture = cv2.VideoCapture(str(path))
    with vision.FaceLandmarker.create_from_options(options) as landmarker:
        while True:
            ok, frame = capture.read()
            if not ok:
                break
            rgb = np.ascontiguousarray(frame[..., ::-1])
            found = landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=rgb))
            rows.append(_row(found) if found.face_landmarks else [np.nan] * len(names))
    values = np.array(rows, np.float64)
    return {name: _fill(values[:, i]) for i, name in enumerate(names)}


def _row(found: Any) -> list[float]:
    points = np.array([(p.x, p.y) for p in found.face_landmarks[0]])
    height = np.linalg.norm(points[152] - points[10])
    gap = np.mean(
        [np.linalg.norm(points[a] - points[b]) for a, b in ((13, 14), (82, 87), (312, 317))]
    )
    matrix = np.array(found.facial_transformation_matrixes[0])[:3, :3]
    score = {b.category_name: b.score for b in found.face_blendshapes[0]}
    return [
        float(gap / height),
        float(np.degrees(np.arctan2(matrix[0, 2], matrix[2, 2]))),
        float(np.degrees(np.arcsin(np.clip(matrix[1, 2], -1, 1)))),
        float(np.degrees(np.arctan2(matrix[1, 0], matrix[1, 1]))),
        (score["eyeBlinkLeft"] + score["eyeBlinkRight"]) / 2,
        score["eyeLookOutLeft"]
        + score["eyeLookInRight"]
        - score["eyeLookInLeft"]
        - score["eyeLookOutRight"],
        (score["mouthSmileLeft"] + score["mouthSmileRight"]) / 2,
        score["browInnerUp"],
    ]


def _fill(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    known = np.flatnonzero(np.isfinite(values))
    if len(known) == 0:
        return np.zeros_like(values)
    return np.asarray(np.interp(np.arange(len(values)), known, values[known]))


def compare(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> dict[str, float]:
    """Correlation at lag 0, best correlation and its lag, slope of a against b, spread of b."""
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    if a.std() < 1e-9 or b.std() < 1e-9:
        return {
            "r": 0.0,
            "best_r": 0.0,
            "lag_frames": 0,
            "slope": 0.0,
            "driver_std": float(b.std()),
        }
    lags = {}
    for lag in range(-_MAX_LAG, _MAX_LAG + 1):
        x = a[max(lag, 0) : count + min(lag, 0)]
        y = b[max(-lag, 0) : count - max(lag, 0)]
        lags[lag] = float(np.corrcoef(x, y)[0, 1])
    best = max(lags, key=lambda k: lags[k])
    slope = float(np.polyfit(b, a, 1)[0])
    return {
        "r": lags[0],
        "best_r": lags[best],
        "lag_frames": best,
        "slope": slope,
        "driver_std": float(b.std()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+", help="RENDERED DRIVER pairs")
    arguments = parser.parse_args()
    if len(arguments.files) % 2:
        parser.error("files come in pairs: RENDERED DRIVER")
    pairs = list(zip(arguments.files[::2], arguments.files[1::2], strict=True))
    for rendered, driver in pairs:
        ours, theirs = (read_signals(p, arguments.model) for p in (rendered, driver))
        result: dict[str, Any] = {"rendered": rendered.name, "driver": driver.name}
        for name in ours:
            result[name] = {k: round(v, 3) for k, v in compare(ours[name], theirs[name]).items()}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
