"""Phonemes with times -> lip codes at 25 fps: Cohen and Massaro's dominance functions.

Every phoneme pulls each lip dimension d towards its goal with a strength that decays with the
distance in time from it ("Modeling coarticulation in synthetic visual speech", 1993):

    code_d(t) = sum_i D_id(t) goal_id / sum_i D_id(t)
    D_id(t) = exp(strength_id - (rate_i tau_i(t)) ** power)

tau is the time from t to the interval that phoneme i holds its goal, `hold` of its length
around `anchor` of its length; the rate differs before and after. All of it is learnt
(`trainer.voices.learn`). A bilabial has little weight for jaw and rounding but all of it for the
lips' contact, which a mean over frames at 40 ms blurs: `close_lips` makes sure of the contact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS
from models.face import GROUPS, FaceModel, lip_gap
from models.rates import FPS
from trainer.voices.phonemes import BILABIALS, INDEX, LABIODENTALS, PHONEMES, Segment

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
TABLE = Path(__file__).parent / "lips.json"
#: Outer corners of the mouth among the landmarks.
_CORNERS = (GROUPS["lips_outer"].start, GROUPS["lips_outer"].start + 10)
#: Inner-lip gap beyond the relaxed closed mouth's, over face height: lips pressed, and f's.
CLOSED_GAP, TEETH_GAP = -0.003, 0.008
#: How much wider and narrower GRID's mouths really get than their fitted codes say: over all
#: phonemes, landmarks against codes (ɔː 10 % narrower than at rest, its code 4 %).
WIDTH_GAIN = 2.0


@dataclass(frozen=True, slots=True)
class LipModel:
    """The learnt table; rows follow `PHONEMES`.

    goal, strength (P, 16); anchor, hold (P,) in shares of the phoneme's length; before, after
    (P,) decay rates in 1/s; power a number.
    """

    goal: F64
    strength: F64
    anchor: F64
    hold: F64
    before: F64
    after: F64
    power: float

    def trajectory(self, segments: list[Segment], times_s: F64) -> F64:
        """Lip codes (T, 16) at `times_s` (T,), seconds on the segments' clock."""
        which = np.array([INDEX[s.phoneme] for s in segments])
        start = np.array([s.start_s for s in segments])
        length = np.array([s.end_s for s in segments]) - start
        middle = start + self.anchor[which] * length
        reach = 0.5 * self.hold[which] * length
        away = times_s[:, None] - middle
        tau = np.maximum(np.abs(away) - reach, 0)
        rate = np.where(away < 0, self.before[which], self.after[which])
        pull = self.strength[which] - ((rate * tau) ** self.power)[..., None]
        pull = np.exp(pull - pull.max(1, keepdims=True))
        return np.asarray((pull * self.goal[which]).sum(1) / pull.sum(1))

    def save(self, path: Path, **about: object) -> None:
        """Write a JSON table with four digits; `about` says where it comes from."""
        table = {
            p: {
                "goal": np.round(self.goal[i], 4).tolist(),
                "strength": np.round(self.strength[i], 3).tolist(),
                "timing": [
                    round(float(v[i]), 4) for v in (self.anchor, self.hold, self.before, self.after)
                ],
            }
            for i, p in enumerate(PHONEMES)
        }
        document = {"about": about, "power": round(self.power, 4), "phonemes": table}
        path.write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n")

    @staticmethod
    def load(path: Path = TABLE) -> LipModel:
        """Inverse of `save`; raises KeyError for a table of another alphabet."""
        document = json.loads(path.read_text())
        rows = [document["phonemes"][p] for p in PHONEMES]
        timing = np.array([r["timing"] for r in rows]).T
        return LipModel(
            np.array([r["goal"] for r in rows]), np.array([r["strength"] for r in rows]),
            timing[0], timing[1], timing[2], timing[3], float(document["power"]),
        )  # fmt: skip


def mouth_directions(face: FaceModel) -> tuple[F64, F64]:
    """How inner-lip gap and mouth width, over face height, follow the lip code: (16,) each.

    First order about the mean head's relaxed mouth, so a code's own gap is `direction . code`.
    """

    def measure(lip: F64) -> F64:
        moved = face.mean + np.tensordot(lip, face.basis[: DIMS["lip"]], 1)
        height = np.linalg.norm(moved[18, :2] - moved[0, :2])
        width = np.linalg.norm(moved[_CORNERS[0], :2] - moved[_CORNERS[1], :2])
        gap = lip_gap((moved[:, :2] * (1, -1)).astype(np.float32))
        return np.array([float(gap), width / height])

    rest = measure(np.zeros(DIMS["lip"]))
    slopes = np.array([measure(row) - rest for row in np.eye(DIMS["lip"])])
    return slopes[:, 0], slopes[:, 1]


def widen(codes: F64, face: FaceModel, gain: float = WIDTH_GAIN) -> F64:
    """Multiply the part of the mouth's width that its opening does not explain by `gain`."""
    opening, width = mouth_directions(face)
    alone = width - opening * (width @ opening) / (opening @ opening)
    return np.asarray(codes + (gain - 1) * np.outer(codes @ alone / (alone @ alone), alone))


def close_lips(codes: F64, segments: list[Segment], times_s: F64, face: FaceModel) -> F64:
    """Bring the lips together in every p, b, m and near the teeth in f, v; (T, 16) -> (T, 16).

    The smallest change of the code that gives the wanted gap is along the gap's own direction.
    Frames up to 30 ms outside the contact take part of it, so that lips come and go.
    """
    direction, _ = mouth_directions(face)
    gap = codes @ direction
    out = codes.copy()
    for limit, kinds in ((TEETH_GAP, LABIODENTALS), (CLOSED_GAP, BILABIALS)):
        weight = np.zeros(len(times_s))
        for s in segments:
            if s.phoneme in kinds:
                # The contact leaves before the segment's end: the burst belongs to it.
                end = max(s.start_s + 0.02, s.end_s - 0.02)
                distance = np.maximum(np.maximum(s.start_s - times_s, times_s - end), 0)
                weight = np.maximum(weight, np.clip(1 - distance / 0.03, 0, 1))
        too_wide = np.maximum(gap - limit, 0) * weight
        out -= (too_wide / (direction @ direction))[:, None] * direction
        gap = out @ direction
    return out


def lip_codes(
    model: LipModel, face: FaceModel, segments: list[Segment], frames: int, gain: float = 1.0
) -> F32:
    """Lip codes (frames, 16) float32; frame k is the mouth at k / 25 s. `gain` is articulation."""
    times = np.arange(frames) / FPS
    codes = widen(gain * model.trajectory(segments, times), face)
    return close_lips(codes, segments, times, face).astype(np.float32)
