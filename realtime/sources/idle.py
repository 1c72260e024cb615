"""Natural rest: blinks, wandering gaze, a slow sway of the head and breath.

Everything is a pure function of (seed, frame index, emphasis): no state, so a session can
be paused, skipped or replayed and the portrait moves the same. Events (blinks and
fixations) are drawn per block of one minute from a generator seeded with the block's
number; only a few blocks are kept.

Figures follow the literature: 10-20 spontaneous blinks a minute, down phase about half as
long as the up phase (VanderWerf et al. 2003); fixations of a few hundred milliseconds to
some seconds joined by saccades of 30-80 ms; 15 breaths a minute.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS, Array, Factor
from models.rates import FPS, FRAME_S
from realtime.sources.base import Moment, smoothstep

BLOCK_FRAMES = 60 * FPS
_BLOCK_S = BLOCK_FRAMES * FRAME_S
_KEPT_BLOCKS = 4
#: From the still portrait into motion.
_WARM_UP_S = 1.0

SWAY_DEG = (3.0, 2.0, 1.5)
"""Greatest yaw, pitch and roll of the sway."""
SHIFT_PEAK = (0.006, 0.003, 0.006)
"""Greatest x, y (crop widths) and log scale of the sway."""
_SWAY_HZ = (0.025, 0.6)
_SWAY_WAVES = 7
BREATH_HZ = 0.25
BREATH_Y = 0.004
NOD_DEG = 1.6
"""Greatest nod for an emphasised syllable."""

CLOSE_S = 0.07
SHUT_S = FRAME_S
"""A frame long, so that every blink has one in which the eye is shut."""
OPEN_S = 0.15
_FIRST_BLINK_S = 0.8
_LAST_BLINK_S = 59.2
_GAP_MIN_S, _GAP_SHAPE, _GAP_SCALE_S = 1.4, 2.6, 1.05
_DOUBLE_SHARE = 0.08
_SACCADE_S = 0.05


@dataclass(frozen=True, slots=True)
class _Block:
    """Events of one minute; times in seconds from the block's start."""

    blink_at: NDArray[np.float64]
    """(B,) onsets, ascending."""
    look_at: NDArray[np.float64]
    """(L,) starts of the fixations, ascending, the first at 0."""
    look: NDArray[np.float64]
    """(L, 2) gaze right and up, in units of 20 degrees."""


class Idle:
    """Idle motion of all factors, the same for the same seed. Lips stay closed."""

    kind: Literal["idle"] = "idle"
    name: None = None
    blinks = True

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        rng = np.random.default_rng([seed, 0x1D1E])
        low, high = np.log(_SWAY_HZ)
        centres = np.linspace(low, high, _SWAY_WAVES)
        jitter = rng.uniform(-0.5, 0.5, (6, _SWAY_WAVES)) * (high - low) / (_SWAY_WAVES - 1)
        self._hz = np.exp(np.clip(centres + jitter, low, high))  # (6, waves)
        strength = self._hz**-0.6
        peaks = np.array([*np.radians(SWAY_DEG), *SHIFT_PEAK])
        self._amplitude = strength / strength.sum(1, keepdims=True) * peaks[:, None]
        self._phase = rng.uniform(0, 2 * np.pi, (6, _SWAY_WAVES))
        self._breath_phase = float(rng.uniform(0, 2 * np.pi))

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        """Relative code at `moment`; expression and lip are zero apart from emphasis."""
        if factor == "pose":
            return self._pose(moment)
        if factor == "eye":
            return self._eye(moment)
        return np.zeros(DIMS[factor], np.float32)

    def blink(self, frame_index: int) -> float:
        """Lid closure 0 .. 1 of the blink that is under way in the middle of the frame."""
        block = self._block(frame_index // BLOCK_FRAMES)
        now = (frame_index % BLOCK_FRAMES) * FRAME_S + FRAME_S / 2
        latest = int(np.searchsorted(block.blink_at, now, side="right"))
        onsets = block.blink_at[max(0, latest - 2) : latest]
        return max((_lid(now - float(onset)) for onset in onsets), default=0.0)

    def _eye(self, moment: Moment) -> Array:
        closure = self.blink(moment.frame_index)
        gaze = self._gaze(moment.frame_index)
        # Lids follow the gaze down: about a quarter shut at 15 degrees.
        lid = min(1.0, closure + (1.0 - closure) * max(0.0, -float(gaze[1])) * 0.3)
        return np.array([lid, lid, gaze[0], gaze[1], 0.0, 0.0], np.float32)

    def _pose(self, moment: Moment) -> Array:
        seconds = moment.frame_index * FRAME_S
        angle = 2 * np.pi * self._hz * seconds + self._phase
        pose = (self._amplitude * np.sin(angle)).sum(1)
        breath = math.sin(2 * math.pi * BREATH_HZ * seconds + self._breath_phase)
        pose[4] -= BREATH_Y * breath
        pose *= smoothstep(seconds / _WARM_UP_S)
        pose[1] -= math.radians(NOD_DEG) * moment.emphasis
        return np.asarray(pose, np.float32)

    def _gaze(self, frame_index: int) -> NDArray[np.float64]:
        """(2,) gaze in the middle of the frame, in units of 20 degrees."""
        number, inside = divmod(frame_index, BLOCK_FRAMES)
        block = self._block(number)
        now = inside * FRAME_S + FRAME_S / 2
        i = int(np.searchsorted(block.look_at, now, side="right")) - 1
        before = block.look[i - 1] if i > 0 else self._last_look(number - 1)
        share = smoothstep((now - float(block.look_at[i])) / _SACCADE_S)
        return np.asarray(before + share * (block.look[i] - before), np.float64)

    def _last_look(self, number: int) -> NDArray[np.float64]:
        return self._block(number).look[-1] if number >= 0 else np.zeros(2)

    def _block(self, number: int) -> _Block:
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = _draw_block(np.random.default_rng([self._seed, number]))
            while len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return block


def _lid(since_s: float) -> float:
    """Closure 0 .. 1 at a time after a blink's onset: fast shut, short hold, slow open."""
    if since_s <= 0.0:
        return 0.0
    if since_s < CLOSE_S:
        return smoothstep(since_s / CLOSE_S)
    rest = (since_s - CLOSE_S - SHUT_S) / OPEN_S
    # The lid starts to open at full speed and settles: an ease-out.
    return 1.0 if rest <= 0.0 else (max(0.0, 1.0 - rest) ** 2 if rest < 1.0 else 0.0)


def _draw_block(rng: np.random.Generator) -> _Block:
    blinks: list[float] = []
    now = _FIRST_BLINK_S + float(rng.uniform(0.0, 2.5))
    while now < _LAST_BLINK_S:
        blinks.append(now)
        if rng.random() < _DOUBLE_SHARE and now + 0.35 < _LAST_BLINK_S:
            now += float(rng.uniform(0.28, 0.35))
            blinks.append(now)
        now += _GAP_MIN_S + float(rng.gamma(_GAP_SHAPE, _GAP_SCALE_S))
    starts, looks = [0.0], [_draw_look(rng, away=False)]
    away = False
    while starts[-1] < _BLOCK_S:
        # Short glances aside, longer looks at the camera.
        length = float(rng.lognormal(math.log(0.55 if away else 1.5), 0.45))
        starts.append(starts[-1] + min(4.0, max(0.24, length)))
        away = not away and bool(rng.random() < 0.22)
        looks.append(_draw_look(rng, away=away))
    return _Block(
        np.array(blinks),
        np.array(starts[:-1]),
        np.array(looks[:-1]),
    )


def _draw_look(rng: np.random.Generator, *, away: bool) -> NDArray[np.float64]:
    """(2,) where to look, in units of 20 degrees: near the camera, or a glance aside."""
    if away:
        side = 1.0 if rng.random() < 0.5 else -1.0
        degrees = (side * rng.uniform(5.0, 12.0), rng.normal(-1.0, 3.0))
    else:
        degrees = (rng.normal(0.0, 1.2), rng.normal(0.0, 0.9))
    return np.clip(np.array(degrees) / 20.0, -0.75, 0.75)
