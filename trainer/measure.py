"""Measure videos with models that have nothing to do with ours.

This file runs in a Python of its own, named with `visavis evaluate --measure-python`:
it needs `mediapipe` (0.10.21, numpy < 2) and the `face_landmarker.task` of `--model`, and
imports nothing of this project. If `dlib` and `face_recognition_models` are there too, it
adds an identity embedding (dlib's 128-d ResNet). None of them is a dependency of ours.

`python measure.py --model face_landmarker.task --jobs jobs.json` with jobs a list of
`[video, out.npz]`; it prints a line per finished video. Every array has one row per
frame; frames without a face are interpolated and marked in `found`. Signals: mouth_gap
(inner lips over face height), yaw, pitch, roll (degrees; yaw > 0 nose to image right,
pitch > 0 up, roll > 0 counter-clockwise), blink, blink_left, blink_right (0..1, by the
image's side), gaze_x, gaze_y (degrees, > 0 image right and up), smile, brow_up, brow_down,
jaw_open (0..1); landmarks (T, 152, 2) in pixels, identity (k, 128) of some frames.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Arrays = dict[str, Any]
#: MediaPipe's index of each of our 152 landmarks, in the order of `models.face.GROUPS`.
LANDMARKS = [
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
    70, 63, 105, 66, 107, 46, 53, 52, 65, 55, 300, 293, 334, 296, 336, 276, 283, 282, 295, 285,
    33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
    468, 469, 470, 471, 472, 473, 474, 475, 476, 477,
    168, 6, 197, 195, 5, 4, 1, 2, 98, 97, 326, 327, 64, 294,
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
]  # fmt: skip
SIGNALS = (
    "mouth_gap", "yaw", "pitch", "roll", "blink", "blink_left", "blink_right", "gaze_x",
    "gaze_y", "smile", "brow_up", "brow_down", "jaw_open",
)  # fmt: skip
#: Corners (outer, inner) and iris centre of the eye at the image's left and right.
_EYES = ((33, 133, 468), (362, 263, 473))
#: Lid opening over eyeball radius: an eye is about 30 mm wide, its ball 24 mm thick.
_EYE_WIDTH_TO_RADIUS = 2.5
_IDENTITY_EVERY = 10


def read_video(path: Path, landmarker: Any, identity: Any) -> Arrays:
    """All signals of one video; raises ValueError where no frame shows a face."""
    import mediapipe as mp

    rows: list[list[float]] = []
    points: list[Any] = []
    embeddings: list[Any] = []
    capture = cv2.VideoCapture(str(path))
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        rgb = np.ascontiguousarray(frame[..., ::-1])
        found = landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=rgb))
        if not found.face_landmarks:
            rows.append([np.nan] * len(SIGNALS))
            points.append(np.full((len(LANDMARKS), 2), np.nan))
            continue
        size = (rgb.shape[1], rgb.shape[0])
        mesh = np.array([(p.x, p.y) for p in found.face_landmarks[0]]) * size
        rows.append(_row(found, mesh))
        points.append(mesh[LANDMARKS])
        if identity is not None and len(rows) % _IDENTITY_EVERY == 1:
            embeddings.append(identity(rgb, mesh))
    values = np.array(rows, np.float64).reshape(-1, len(SIGNALS))
    if not np.isfinite(values[:, 0]).any():
        raise ValueError(f"no face in {path.name}")
    out: Arrays = {name: _fill(values[:, i]) for i, name in enumerate(SIGNALS)}
    flat = np.stack(points).reshape(len(points), -1)
    filled = np.stack([_fill(column) for column in flat.T], 1)
    out["landmarks"] = filled.reshape(len(points), -1, 2)
    out["found"] = np.isfinite(values[:, 0])
    out["identity"] = np.array(embeddings).reshape(len(embeddings), -1)
    return out


def _row(found: Any, mesh: np.ndarray[Any, Any]) -> list[float]:
    height = np.linalg.norm(mesh[152] - mesh[10])
    pairs = ((13, 14), (82, 87), (312, 317))
    gap = np.mean([np.linalg.norm(mesh[a] - mesh[b]) for a, b in pairs])
    matrix = np.array(found.facial_transformation_matrixes[0])[:3, :3]
    score = {b.category_name: b.score for b in found.face_blendshapes[0]}

    def mean(name: str) -> float:
        return float(score[name + "Left"] + score[name + "Right"]) / 2

    gaze = np.mean([_gaze(mesh, *eye) for eye in _EYES], axis=0)
    return [
        float(gap / height),
        float(np.degrees(np.arctan2(matrix[0, 2], matrix[2, 2]))),
        float(np.degrees(np.arcsin(np.clip(matrix[1, 2], -1, 1)))),
        float(np.degrees(np.arctan2(matrix[1, 0], matrix[1, 1]))),
        mean("eyeBlink"),
        # The subject's right eye is at the image's left.
        float(score["eyeBlinkRight"]),
        float(score["eyeBlinkLeft"]),
        float(gaze[0]),
        float(gaze[1]),
        mean("mouthSmile"),
        float(score["browInnerUp"]),
        mean("browDown"),
        float(score["jawOpen"]),
    ]


def _gaze(mesh: np.ndarray[Any, Any], left: int, right: int, iris: int) -> np.ndarray[Any, Any]:
    """Gaze of one eye in degrees from the iris between the eye's corners."""
    axis = mesh[right] - mesh[left]
    width = float(np.linalg.norm(axis))
    across = axis / width
    up = np.array([across[1], -across[0]])
    offset = mesh[iris] - (mesh[left] + mesh[right]) / 2
    share = np.array([offset @ across, offset @ up]) / width * _EYE_WIDTH_TO_RADIUS
    return np.asarray(np.degrees(np.arcsin(np.clip(share, -1, 1))))


def _fill(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    known = np.flatnonzero(np.isfinite(values))
    return np.asarray(np.interp(np.arange(len(values)), known, values[known]))


def identity_reader() -> Any:
    """Function (rgb, mesh) -> dlib's 128-d embedding, or None where dlib is not installed."""
    try:
        import dlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    from importlib.util import find_spec

    spec = find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "models"
    shape = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
    net = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(rgb: np.ndarray[Any, Any], mesh: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        (x0, y0), (x1, y1) = mesh.min(0), mesh.max(0)
        box = dlib.rectangle(int(x0), int(y0 + 0.15 * (y1 - y0)), int(x1), int(y1))
        return np.array(net.compute_face_descriptor(rgb, shape(rgb, box)))

    return embed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--jobs", type=Path, required=True, help="JSON list of [video, out.npz]")
    arguments = parser.parse_args()
    jobs: list[list[str]] = json.loads(arguments.jobs.read_text())
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(arguments.model)),
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    identity = identity_reader()
    print(json.dumps({"identity": identity is not None}), flush=True)
    with vision.FaceLandmarker.create_from_options(options) as landmarker:
        for video, out in jobs:
            try:
                arrays = read_video(Path(video), landmarker, identity)
            except ValueError as error:
                print(json.dumps({"video": video, "error": str(error)}), flush=True)
                continue
            part = Path(out).with_suffix(".part.npz")
            np.savez(part, **arrays)
            part.replace(out)
            print(json.dumps({"video": video, "frames": len(arrays["found"])}), flush=True)


if __name__ == "__main__":
    main()
