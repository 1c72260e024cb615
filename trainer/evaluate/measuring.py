"""Who measures: an independent landmark model in a Python of its own, or E_mot itself.

Both return the same named signals (`trainer.measure`). E_mot has seen the training data
and shares its mistakes with the generator that is measured, so everything it says is
marked as not independent.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.codes import EXPRESSION_NAMES
from models.face import lip_gap
from models.runtime.base import BaseEngine
from trainer.prepare.media import pictures

Arrays = dict[str, NDArray[Any]]
OnDone = Callable[[], None]
_SCRIPT = Path(__file__).resolve().parent.parent / "measure.py"


class MeasureError(RuntimeError):
    """The measuring tool cannot be used; the message says why."""


class Measure(Protocol):
    """Reads the signals of `trainer.measure` from videos of canonical crops."""

    @property
    def name(self) -> str:
        """What measures, for the report."""

    @property
    def independent(self) -> bool:
        """Whether it shares nothing with what it measures."""

    def read(self, videos: Sequence[Path], on_done: OnDone = lambda: None) -> dict[Path, Arrays]:
        """Signals by video; a video without a face is missing. Raises MeasureError."""


class Cached:
    """A measure that remembers what it said about a file, by the file's content."""

    def __init__(self, measure: Measure, folder: Path, version: str) -> None:
        self._measure, self._version = measure, version
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.independent = measure.name, measure.independent

    def read(self, videos: Sequence[Path], on_done: OnDone = lambda: None) -> dict[Path, Arrays]:
        """See `Measure.read`."""
        places = {video: self._place(video) for video in videos}
        missing = [video for video in videos if not places[video].exists()]
        for _ in range(len(videos) - len(missing)):
            on_done()
        for begin in range(0, len(missing), 8):
            # In small groups, so that an interrupted run keeps what was measured.
            group = missing[begin : begin + 8]
            for video, arrays in self._measure.read(group, on_done).items():
                part = places[video].with_suffix(".part.npz")
                np.savez(part, allow_pickle=False, **arrays)
                part.replace(places[video])
        return {v: _load(p) for v, p in places.items() if p.exists()}

    def _place(self, video: Path) -> Path:
        digest = hashlib.sha256(video.read_bytes() + self._version.encode()).hexdigest()
        return self._folder / f"{digest[:20]}.npz"


class Ahead:
    """Measures in a thread of its own what is already drawn, while the rest is being drawn.

    Only for a measure in a process of its own: E_mot would use the engine from two threads.
    """

    def __init__(self, measure: Cached, on_done: OnDone, batch: int = 16) -> None:
        self._measure, self._on_done, self._batch = measure, on_done, batch
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Path] = []
        self._seen: dict[Path, None] = {}
        self._running: list[Future[dict[Path, Arrays]]] = []

    def add(self, videos: Sequence[Path]) -> None:
        """Take videos that are complete; those known already count once."""
        fresh = [v for v in dict.fromkeys(videos) if v not in self._seen]
        self._seen |= dict.fromkeys(fresh)
        self._waiting += fresh
        if self._measure.independent and len(self._waiting) >= self._batch:
            self._send()

    def _send(self) -> None:
        videos, self._waiting = self._waiting, []
        self._running.append(self._pool.submit(self._measure.read, videos, self._on_done))

    def finish(self) -> dict[Path, Arrays]:
        """Signals of everything that was added, see `Measure.read`. Raises MeasureError."""
        with self._pool:
            out: dict[Path, Arrays] = {}
            for future in self._running:
                out |= future.result()
            return out | self._measure.read(self._waiting, self._on_done)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as z:
        return {k: z[k] for k in z.files}


@dataclass(frozen=True, slots=True)
class ExternalMeasure:
    """MediaPipe's face landmarker, and dlib's identity where it is installed there."""

    python: Path
    model: Path
    scratch: Path
    name: str = "MediaPipe FaceLandmarker"
    independent: bool = True

    def read(self, videos: Sequence[Path], on_done: OnDone = lambda: None) -> dict[Path, Arrays]:
        """See `Measure.read`; runs `trainer/measure.py` in the other Python."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        outs = [self.scratch / f"job{i}.npz" for i in range(len(videos))]
        jobs = self.scratch / "jobs.json"
        jobs.write_text(json.dumps([[str(v), str(o)] for v, o in zip(videos, outs, strict=True)]))
        for out in outs:
            out.unlink(missing_ok=True)
        command = [str(self.python), str(_SCRIPT), "--model", str(self.model), "--jobs", str(jobs)]
        log = self.scratch / "errors.txt"
        try:
            with (
                log.open("w") as errors,
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=errors, text=True
                ) as process,
            ):
                assert process.stdout is not None
                for line in process.stdout:
                    if "video" in json.loads(line):
                        on_done()
                code = process.wait()
        except (OSError, json.JSONDecodeError) as error:
            raise MeasureError(f"{self.python} cannot measure: {error}") from error
        if code:
            tail = log.read_text().strip().splitlines()[-3:]
            raise MeasureError(f"{self.python} ended with {code}: {' / '.join(tail)}")
        found = zip(videos, outs, strict=True)
        return {video: _load(out) for video, out in found if out.exists()}


@dataclass(frozen=True, slots=True)
class OwnMeasure:
    """E_mot of the checkpoint that is measured."""

    engine: BaseEngine
    name: str = "our own E_mot (not independent)"
    independent: bool = False

    def read(self, videos: Sequence[Path], on_done: OnDone = lambda: None) -> dict[Path, Arrays]:
        """See `Measure.read`."""
        out = {}
        for video in videos:
            out[video] = read_own(pictures(video), self.engine)
            on_done()
        return out


def read_own(crops: Any, engine: BaseEngine) -> Arrays:
    """Signals that E_mot reads from canonical crops (256, 256, 3)."""
    codes, points = [], []
    for crop in crops:
        reading = engine.motion(crop)
        codes.append(reading.code)
        points.append(reading.landmarks)
    landmarks = np.stack(points).astype(np.float64)
    pose = np.degrees([c.pose[:3] for c in codes])
    eye = np.array([c.eye for c in codes], np.float64)
    exp = np.array([c.exp for c in codes], np.float64)

    def shape(name: str) -> NDArray[np.float64]:
        pair = [EXPRESSION_NAMES.index(f"{name}_{side}") for side in "LR"]
        return np.asarray(exp[:, pair].mean(1))

    gap = lip_gap(landmarks.astype(np.float32)).astype(np.float64)
    return {
        "mouth_gap": gap, "yaw": pose[:, 0], "pitch": pose[:, 1], "roll": pose[:, 2],
        "blink": eye[:, :2].mean(1), "blink_left": eye[:, 0], "blink_right": eye[:, 1],
        "gaze_x": eye[:, 2] * 20, "gaze_y": eye[:, 3] * 20, "smile": shape("mouthSmile"),
        "brow_up": shape("browInnerUp"), "brow_down": shape("browDown"), "jaw_open": gap * 8,
        "landmarks": landmarks * engine.config.image_size, "found": np.ones(len(codes), bool),
        "identity": np.zeros((0, 0)),
    }  # fmt: skip


def open_measure(
    python: Path | None, model: Path | None, engine: BaseEngine, folder: Path, checkpoint: str
) -> Cached:
    """The independent measure if `python` names one, else E_mot. Raises MeasureError."""
    if python is None:
        own = hashlib.sha256(checkpoint.encode()).hexdigest()[:8]
        return Cached(OwnMeasure(engine), folder / "own", f"own-2-{own}")
    if model is None or not model.is_file():
        raise MeasureError("The measuring Python needs --measure-model face_landmarker.task.")
    identity = subprocess.run(
        [str(python), "-c", "import dlib, face_recognition_models"],
        capture_output=True, check=False,
    ).returncode == 0  # fmt: skip
    script = hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()[:8]
    measure = ExternalMeasure(python.absolute(), model, folder / "jobs")
    return Cached(measure, folder / "independent", f"{script}-{identity}")
