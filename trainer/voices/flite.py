"""flite as a program: a few voices made from recordings of real speakers, with phone times.

Its speech is nearer to people than espeak-ng's formant rules, its variety is small: so both.
`-psdur` prints every phone with its end time; a stop's closure is inside its phone.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.voices.phonemes import Segment, close_after_pause, from_arpabet, spread

F32 = NDArray[np.float32]
#: Voice -> how many seconds later than printed its phones sound: the shift at which vowels and
#: pauses agree best with the signal's energy.
VOICES = {"slt": 0.012, "rms": 0.008, "awb": 0.0, "kal16": 0.004}


@dataclass(frozen=True, slots=True)
class FliteVoice:
    """`name` as in `flite -voice`; `stretch` of all durations; mean pitch in Hz, 0 = its own."""

    name: str = "slt"
    stretch: float = 1.0
    pitch_hz: int = 0


class FliteError(RuntimeError):
    """The program is absent or failed."""


def available() -> bool:
    """Whether flite can be used on this machine."""
    return shutil.which("flite") is not None


def speak(text: str, voice: FliteVoice) -> tuple[F32, int, list[Segment]]:
    """Samples float32 (n,) in [-1, 1], their rate in Hz, and the phonemes.

    Raises:
        FliteError: no program, or it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice.name, "-psdur", "-t", text, "-o", str(out)]
        command += ["--setf", f"duration_stretch={voice.stretch}"]
        if voice.pitch_hz:
            command += ["--setf", f"int_f0_target_mean={voice.pitch_hz}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise FliteError(f"flite failed on {text!r}") from error
        with wave.open(str(out)) as file:
            rate = file.getframerate()
            pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    segments: list[Segment] = []
    begin, length, late = 0.0, len(pcm) / rate, VOICES.get(voice.name, 0.0)
    for item in done.stdout.split():
        phone, _, end = item.rpartition(":")
        stop = min(float(end) + late, length)
        if stop > begin:
            segments += spread(from_arpabet(phone), begin, stop)
            begin = stop
    samples = (pcm / 32768).astype(np.float32)
    return samples, rate, close_after_pause(segments)
