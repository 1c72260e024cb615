"""What the stages draw from the frame cache; every sample depends on its generator alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import CODE_DIM, FACTOR_SLICES
from models.config import ModelConfig
from models.rates import MEL_BANDS, MEL_PER_FRAME
from trainer.frames import (
    SIZE,
    WHOLE,
    FrameCache,
    Pool,
    augmented,
    augmented_flow,
    random_similarity,
    rarity,
)
from trainer.generator_stage import region_weights
from trainer.loader import Make, Sample
from trainer.motion_stage import trust_of
from trainer.recipes.config import Augment, Stage2a, Stage2c
from trainer.speech import SpeechCache
from trainer.speech import split as split_speech
from trainer.stages.augment import augment

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Rows = NDArray[np.int64]
#: Share of the rendered clips that are drawn from those with dense flow and teeth, where a joined
#: cache has both kinds: there are fewer of them, and they are better.
FLOW_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Data:
    """The frame cache, its sound, and what may be trained on."""

    frames: FrameCache
    speech: SpeechCache | None
    train: Rows
    train_clips: Rows

    @staticmethod
    def open(folder: Path) -> Data:
        """Open a folder of `trainer.cache`; sound is optional."""
        frames = FrameCache(folder)
        speech = SpeechCache(folder) if (folder / "speech.npz").exists() else None
        clips = split_speech(speech, frames)[0] if speech else np.zeros(0, np.int64)
        return Data(frames, speech, frames.split().train, clips)

    @property
    def people(self) -> list[str]:
        """Names of everybody who may be trained on, in a fixed order."""
        return [str(p) for p in np.unique(self.frames.person[self.train])]


def crop_to(size: int) -> F32:
    """Crop units to pixels of a picture of `size`."""
    return np.asarray(WHOLE * (size / SIZE), np.float32)


def by_clip(frames: FrameCache, rows: Rows) -> dict[str, Rows]:
    """Rows of every clip, in order of time."""
    order = rows[np.lexsort((frames.frame[rows], frames.clip[rows]))]
    names, first = np.unique(frames.clip[order], return_index=True)
    return dict(zip((str(n) for n in names), np.split(order, first[1:]), strict=True))


def window_rows(frames: FrameCache, clip: Rows, row: int, length: int, kind: str) -> Rows:
    """`length` rows whose mean is the expression code of `row`.

    They span `length` video frames, ending at the row ("trailing") or around it ("centred");
    where the cache does not hold every frame of a clip, the nearest cached one takes its place.
    """
    end = int(frames.frame[row]) + (length // 2 if kind == "centred" else 0)
    wanted = end - np.arange(length)[::-1]
    have = frames.frame[clip]
    usable = clip if kind == "centred" else clip[have <= frames.frame[row]]
    have = frames.frame[usable]
    return np.asarray(usable[np.abs(have[None] - wanted[:, None]).argmin(1)], np.int64)


class Sound:
    """Mel windows of video frames, levelled and disturbed as in the product."""

    def __init__(self, speech: SpeechCache, config: ModelConfig) -> None:
        self.speech, self.config = speech, config
        self.number = {str(name): i for i, name in enumerate(speech.clip)}

    def clip(self, rng: np.random.Generator, name: str, quiet: bool = False) -> tuple[F32, F32]:
        """Padded mel (left_mel + 4T, 80) and lip codes (T, 16) of a whole clip."""
        return self.speech.heard(rng, self.number[name], self.config, quiet=quiet)

    def lips(self, name: str) -> F32:
        """Lip codes (T, 16) of a clip as it was filmed."""
        return self.speech.window(0, self.number[name])[1]

    def last(self, name: str) -> int:
        """Last video frame whose window is whole."""
        a, b = self.speech.offset[self.number[name] : self.number[name] + 2]
        return int(b - a) - 1 - self.config.right_frames

    def window(self, padded: F32, frame: int) -> F32:
        """(mel_window, 80) of one video frame."""
        start = MEL_PER_FRAME * frame
        return padded[start : start + self.config.mel_window]


@dataclass(frozen=True, slots=True)
class PairPlan:
    """What stages 1 and 3 want of a portrait and its driving frames."""

    config: ModelConfig
    driving: int
    augment: Augment
    synth_share: float = 0.6
    code_noise: float = 0.0
    face: bool = True
    """Whether damaged driving frames are wanted, for the motion encoder."""
    window: int = 0
    """Frames of the expression window; 0: none."""
    window_kind: str = "trailing"
    sound: bool = False
    flow: bool = False
    """Whether the renderer's dense flow is wanted; where there is one, the portrait is the
    clip's first frame."""


def pairs(data: Data, plan: PairPlan) -> Make:
    """A function rng -> one portrait and `driving` frames of the same person and clip."""
    frames = data.frames
    clips = by_clip(frames, data.train[frames.kind[data.train] != "still"])
    groups: dict[str, list[str]] = {"synth": [], "s1": [], "misc": [], "flow": []}
    for name, mine in clips.items():
        synth = frames.kind[mine[0]] == "synth"
        if len(mine) > plan.driving:
            person = frames.person[mine[0]]
            groups["synth" if synth else "s1" if person == "s1" else "misc"].append(name)
            if frames.has_flow(int(mine[0])):
                groups["flow"].append(name)
    rare = rarity(frames)
    number = {name: i for i, name in enumerate(data.people)}
    sound = Sound(data.speech, plan.config) if plan.sound and data.speech else None

    def make(rng: np.random.Generator) -> Sample:
        synth = rng.random() < plan.synth_share
        kind = "synth" if synth else ("misc" if rng.random() < 0.25 else "s1")
        names = groups[kind] or groups["misc"] or groups["s1"] or groups["synth"]
        if synth and groups["flow"] and rng.random() < FLOW_SHARE:
            names = groups["flow"]
        name = names[int(rng.integers(len(names)))]
        clip = clips[name]
        likely = rare[clip] / rare[clip].sum()
        chosen = np.concatenate(
            [
                [clip[0] if plan.flow and frames.has_flow(int(clip[0])) else rng.choice(clip)],
                rng.choice(clip, plan.driving, replace=False, p=likely),
            ]
        )
        sample = _pictures(rng, data, plan, chosen, clip)
        sample["person"] = np.array(number[str(frames.person[clip[0]])], np.float32)
        noise = rng.standard_normal((plan.driving, CODE_DIM)) * plan.code_noise
        noise[:, FACTOR_SLICES["pose"]] *= 0.05
        sample["noise"] = noise.astype(np.float32)
        sample["dice"] = rng.random((plan.driving, 4)).astype(np.float32)
        trust = trust_of(str(frames.kind[clip[0]]))
        sample["trust"] = np.repeat(trust[None], plan.driving, 0)
        if plan.sound:
            sample |= _sound(rng, plan, sound, frames, chosen[1:], name)
        return sample

    return make


def _pictures(
    rng: np.random.Generator, data: Data, plan: PairPlan, chosen: Rows, clip: Rows
) -> Sample:
    frames, size = data.frames, plan.config.image_size
    zoom, angle, shift = plan.augment.similarity
    move = random_similarity(rng, zoom=zoom, angle=angle, shift=shift)
    flip = rng.random() < 0.5
    gain = rng.uniform(0.9, 1.08, 3) * rng.uniform(0.85, 1.08)
    table = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-12, 12), 0, 255)
    out = crop_to(size)
    # Rendered mouths of caches with flow have teeth worth learning from; older ones are CG.
    toy_mouth = frames.kind[chosen[0]] == "synth" and not frames.has_flow(int(chosen[0]))
    pixels, landmarks, codes, regions = [], [], [], []
    for row in chosen:
        image, points, code = augmented(frames, int(row), move, flip=flip, out=out, size=size)
        pixels.append(np.asarray(cv2.LUT(image, table.astype(np.uint8)[None]), np.uint8))
        landmarks.append(points)
        codes.append(code)
        regions.append(region_weights(points, "synth" if toy_mouth else "real"))
    shape = frames.shape[chosen[0]]
    if flip:
        shape = shape[frames.landmark_mirror] * np.array([-1, 1, 1], np.float32)
    sample: Sample = {
        "pixels": np.stack(pixels), "landmarks": np.stack(landmarks), "code": np.stack(codes),
        "region": np.stack(regions), "shape": shape.astype(np.float32),
    }  # fmt: skip
    if plan.flow:
        cells = plan.config.flow_size
        found = [
            augmented_flow(frames, int(row), move, flip=flip, size=cells) for row in chosen[1:]
        ]
        sample["flow"], sample["valid"] = (np.stack(x) for x in zip(*found, strict=True))
    if plan.face:
        faces = [augment(rng, p, plan.augment) for p in pixels[1:]]
        sample["face"] = np.stack(faces)
    if plan.window:
        seen, exps = [], []
        for row in chosen[1:]:
            rows = window_rows(frames, clip, int(row), plan.window, plan.window_kind)
            # A frame that stands in for its neighbours is read once and counted more often.
            unique, count = np.unique(rows, return_counts=True)
            cut = [augmented(frames, int(r), move, flip=flip, out=out, size=size) for r in unique]
            share = count / count.sum()
            seen.append((np.stack([augment(rng, c[0], plan.augment) for c in cut]), share))
            mean = sum(s * c[2][FACTOR_SLICES["exp"]] for s, c in zip(share, cut, strict=True))
            exps.append(np.asarray(mean, np.float32))
        sample |= _padded(seen, most_frames(frames, plan.window))
        sample["window_exp"] = np.stack(exps)
    return sample


def most_frames(frames: FrameCache, length: int) -> int:
    """Different cached frames that a window of `length` video frames can hold at most."""
    steps = np.diff(frames.frame)
    stride = int(steps[steps > 0].min()) if (steps > 0).any() else 1
    return min(length, (length - 1) // stride + 2)


def _padded(seen: list[tuple[U8, NDArray[np.float64]]], most: int) -> Sample:
    """Windows of different numbers of frames -> (n, K, S, S, 3) and shares (n, K) that sum to 1."""
    pictures = np.zeros((len(seen), most, *seen[0][0].shape[1:]), np.uint8)
    shares = np.zeros((len(seen), most), np.float32)
    for i, (faces, share) in enumerate(seen):
        pictures[i, : len(faces)], shares[i, : len(share)] = faces, share
        pictures[i, len(faces) :] = faces[-1]
    return {"window": pictures, "window_share": shares}


def _sound(
    rng: np.random.Generator, plan: PairPlan, sound: Sound | None, frames: FrameCache,
    rows: Rows, name: str,
) -> Sample:  # fmt: skip
    """Mel windows of the driving frames, and whether there is any sound."""
    mel = np.zeros((len(rows), plan.config.mel_window, MEL_BANDS), np.float32)
    heard = np.zeros(len(rows), np.float32)
    if sound is not None and name in sound.number:
        padded, _ = sound.clip(rng, name)
        for i, row in enumerate(rows):
            frame = int(frames.frame[row])
            if frame <= sound.last(name):
                mel[i], heard[i] = sound.window(padded, frame), 1
    return {"mel": mel, "heard": heard}


def moments(data: Data, recipe: Stage2a, config: ModelConfig, voices: Make | None = None) -> Make:
    """Stage 2a: a function rng -> `frames` synchronous moments of one clip with sound.

    Every moment has its picture, its mel window and the next one's, and the lip codes of both.
    `voices` adds consecutive windows of other sound with known mouths, without pictures.
    """
    if data.speech is None:
        raise ValueError("stage 2a needs sound: the cache has no speech.npz")
    frames = data.frames
    sound = Sound(data.speech, config)
    usable = moment_rows(data, recipe, config)
    names = list(usable)
    number = {name: i for i, name in enumerate(names)}
    misc = [n for n in names if frames.person[usable[n][0]] != "s1"]

    def make(rng: np.random.Generator) -> Sample:
        pool = misc if misc and rng.random() < 0.06 else names
        name = pool[int(rng.integers(len(pool)))]
        quiet = rng.random() < recipe.quiet_share
        padded, lip = sound.clip(rng, name, quiet)
        rows = np.sort(rng.choice(usable[name], recipe.frames, replace=False))
        mels, wanted = [], []
        for frame in frames.frame[rows]:
            mels.append(np.stack([sound.window(padded, int(frame) + k) for k in (0, 1)]))
            wanted.append(lip[frame : frame + 2])
        more: Sample = {f"voice_{k}": v for k, v in voices(rng).items()} if voices else {}
        if recipe.kept:
            more["row"] = rows.astype(np.float32)
            more["version"] = rng.integers(0, recipe.kept, len(rows)).astype(np.float32)
        else:
            more["face"] = np.stack([damaged(rng, data, recipe, config, int(r)) for r in rows])
        return more | {
            "mel": np.stack(mels), "lip": np.stack(wanted),
            "seen": sound.lips(name)[frames.frame[rows]],
            "frame": frames.frame[rows].astype(np.float32),
            "clip": np.full(len(rows), number[name], np.float32),
            "voiced": np.full(len(rows), 0.0 if quiet else 1.0, np.float32),
        }  # fmt: skip

    return make


def moment_rows(data: Data, recipe: Stage2a, config: ModelConfig) -> dict[str, Rows]:
    """Rows of every training clip that has sound, as far as its mel windows are whole."""
    if data.speech is None:
        raise ValueError("stage 2a needs sound: the cache has no speech.npz")
    sound, clips = Sound(data.speech, config), by_clip(data.frames, data.train)
    allowed = {str(data.speech.clip[c]) for c in data.train_clips}
    usable: dict[str, Rows] = {}
    for name in sorted(allowed & set(clips)):
        rows = clips[name][data.frames.frame[clips[name]] < sound.last(name)]
        if len(rows) >= recipe.frames:
            usable[name] = rows
    return usable


def damaged(
    rng: np.random.Generator, data: Data, recipe: Stage2a, config: ModelConfig, row: int
) -> U8:
    """One picture (S, S, 3) of stage 2a: moved a little and damaged."""
    zoom, angle, shift = recipe.augment.similarity
    size = config.image_size
    move = random_similarity(rng, zoom=zoom, angle=angle, shift=shift)
    image = augmented(data.frames, row, move, flip=False, out=crop_to(size), size=size)[0]
    return augment(rng, image, recipe.augment)


def poses(data: Data, recipe: Stage2c, config: ModelConfig) -> Make:
    """Stage 2c: a function rng -> a damaged frame and its pose code."""
    frames = data.frames
    weight = np.ones(len(frames.kind))
    pools = {
        kind: Pool.weighted(rows, weight)
        for kind in ("synth", "grid", "still")
        if len(rows := data.train[frames.kind[data.train] == kind])
    }
    kinds = list(pools)
    share = np.array([{"synth": 0.6, "grid": 0.2, "still": 0.2}[k] for k in kinds])
    out = crop_to(config.image_size)

    def make(rng: np.random.Generator) -> Sample:
        row = pools[str(rng.choice(kinds, p=share / share.sum()))].draw(rng)
        zoom, angle, shift = recipe.augment.similarity
        move = random_similarity(rng, zoom=zoom, angle=angle, shift=shift)
        image, _, code = augmented(
            frames, row, move, flip=rng.random() < 0.5, out=out, size=config.image_size
        )
        return {"face": augment(rng, image, recipe.augment), "pose": code[FACTOR_SLICES["pose"]]}

    return make
