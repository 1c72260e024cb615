"""What the avatar's browser tests measure with: the real server, a Chromium with recorded
devices, a recorder inside the page, and the signals that are compared afterwards.

Everything is taken where a person would meet it: pictures from the page's `<video>` when the
browser presents them, sound from the received track as its jitter buffer plays it, both on
the page's own clock (`performance.now`, here in seconds).
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.composite import compose
from models.face import lip_gap
from models.portrait import Portrait, decode_image, prepare_portrait
from models.rates import FRAME_S, WIRE_RATE_HZ
from models.runtime.base import BaseEngine
from realtime.pipeline import Pipeline

Pixels = NDArray[np.uint8]
Pcm = NDArray[np.int16]
Signal = NDArray[np.float64]
Page = Any

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"Visavis is ready: (\S+)")
SIDE = 256
"""Pictures are kept at the size that E_mot reads."""

# --- the server -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """A server in a process of its own."""

    url: str
    start_s: float
    """From starting the process to its ready line."""


@contextmanager
def real_server(log: Path) -> Iterator[Running]:
    """`visavis serve` as `make serve` starts it, on a free port; stderr goes to `log`."""
    command = [sys.executable, "-m", "realtime.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        try:
            found = READY.search(process.stdout.readline())
            assert found, f"the server did not start: {log.read_text()}"
            yield Running(found[1], time.monotonic() - begun)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def busy_share(seconds: float = 1.0) -> float:
    """Share of this machine's CPU time in use during `seconds`; 0 where the system does not say."""

    def read() -> list[int]:
        line = Path("/proc/stat").read_text().splitlines()[0]
        return [int(field) for field in line.split()[1:9]]

    if not Path("/proc/stat").is_file():
        return 0.0
    before = read()
    time.sleep(seconds)
    spent = np.subtract(read(), before)
    return 1.0 - float(spent[3] + spent[4]) / max(1, int(spent.sum()))


# --- the page -------------------------------------------------------------------------


def chromium_arguments(speech: Path, camera: Path | None = None) -> list[str]:
    """Command line for a microphone that is a WAV file, looped, and a camera that is a video."""
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={speech}",
    ]
    if camera is not None:
        arguments.append(f"--use-file-for-fake-video-capture={camera}")
    return arguments


#: Runs before the page's own scripts, so that it sees the peer connection being made. The
#: page's content security policy stays in force: nothing here needs eval, workers or blobs.
RECORDER = """
(() => {
  const SIDE = 256;
  let peer = null;
  const Native = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Native {
    constructor(...given) {
      super(...given);
      peer = this;
    }
  };

  function base64(array) {
    const bytes = new Uint8Array(array.buffer ?? array);
    let text = "";
    for (let at = 0; at < bytes.length; at += 8192) {
      text += String.fromCharCode(...bytes.subarray(at, at + 8192));
    }
    return btoa(text);
  }

  function canvas(width, height) {
    return new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  }

  /** Calls `take(metadata)` with every picture that a video presents until `endMs`. */
  function watch(video, endMs, take) {
    const each = (now, metadata) => {
      take(metadata);
      if (performance.now() < endMs) video.requestVideoFrameCallback(each);
    };
    video.requestVideoFrameCallback(each);
  }

  /** Every 10 ms that the jitter buffer plays, with the time it was played. */
  async function listen(track, endMs, chunks) {
    const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
    while (performance.now() < endMs) {
      const { value, done } = await reader.read();
      if (done) break;
      const pcm = new Float32Array(value.numberOfFrames);
      value.copyTo(pcm, { planeIndex: 0, format: "f32-planar" });
      chunks.push({ at: performance.now(), rate: value.sampleRate, pcm });
      value.close();
    }
    await reader.cancel();
  }

  /** When, by the sender's clock, was made what is seen and heard now: the browser's own view. */
  async function playout() {
    const found = {};
    for (const entry of (await peer.getStats()).values()) {
      if (entry.type === "inbound-rtp") found[entry.kind] = entry.estimatedPlayoutTimestamp;
    }
    return found.audio && found.video ? found.audio - found.video : null;
  }

  const kept = { images: [], shown: [], chunks: [], skews: [], camera: [] };

  window.avatarProbe = {
    /** Arms the stop watch that the click on Start starts and the first picture stops. */
    arm() {
      const video = document.getElementById("video");
      const start = document.getElementById("start");
      this.first = new Promise((resolve, reject) => {
        start.addEventListener("click", () => {
          const clicked = performance.now();
          video.requestVideoFrameCallback((now) => resolve(now - clicked));
          setTimeout(() => reject(new Error("no picture came within 20 s")), 20_000);
        }, { capture: true, once: true });
      });
    },

    /** Keeps what comes during `seconds`, `settle` seconds from now. */
    async record({ settle, seconds, camera }) {
      const video = document.getElementById("video");
      await new Promise((resolve) => setTimeout(resolve, settle * 1000));
      const endMs = performance.now() + seconds * 1000;
      const picture = canvas(SIDE, SIDE);
      watch(video, endMs, ({ presentationTime }) => {
        picture.drawImage(video, 0, 0, SIDE, SIDE);
        kept.images.push(picture.getImageData(0, 0, SIDE, SIDE));
        kept.shown.push(presentationTime);
      });
      if (camera) {
        const self = document.getElementById("self-video");
        const strip = canvas(8, 8);
        watch(self, endMs, ({ presentationTime }) => {
          strip.drawImage(self, 8, 8, 32, 32, 0, 0, 8, 8);
          const pixels = strip.getImageData(0, 0, 8, 8).data;
          let grey = 0;
          for (let i = 0; i < pixels.length; i += 4) grey += pixels[i + 1];
          kept.camera.push([presentationTime, grey / (pixels.length / 4)]);
        });
      }
      const timer = setInterval(async () => kept.skews.push(await playout()), 500);
      const [voice] = video.srcObject.getAudioTracks();
      await listen(voice, endMs, kept.chunks);
      clearInterval(timer);
    },

    /** What was kept, after the conversation, so that packing it disturbs nothing. */
    async take() {
      const picture = canvas(SIDE, SIDE);
      const images = [];
      for (const image of kept.images) {
        picture.putImageData(image, 0, 0);
        const options = { type: "image/jpeg", quality: 0.95 };
        const blob = await picture.canvas.convertToBlob(options);
        images.push(base64(await blob.arrayBuffer()));
      }
      const pcm = new Float32Array(kept.chunks.reduce((sum, chunk) => sum + chunk.pcm.length, 0));
      let at = 0;
      for (const chunk of kept.chunks) {
        pcm.set(chunk.pcm, at);
        at += chunk.pcm.length;
      }
      return {
        images,
        shown: kept.shown,
        pcm: base64(pcm),
        heard: kept.chunks.map((chunk) => [chunk.at, chunk.pcm.length, chunk.rate]),
        skews: kept.skews.filter((skew) => skew !== null),
        camera: kept.camera,
      };
    },
  };
})();
"""
assert f"SIDE = {SIDE};" in RECORDER


@dataclass(frozen=True, slots=True)
class Recording:
    """What the page received. Times in seconds on the page's clock."""

    pictures: list[Pixels]
    """(256, 256, 3) RGB, every one that was presented."""
    shown_s: Signal
    """When each was presented."""
    voice: Pcm
    """(n,) 48 kHz, without gaps, as the jitter buffer played it."""
    voice_s: float
    """When the first sample of `voice` was played."""
    reported_skew_ms: Signal
    """Picture later than voice by the browser's own account, from the sender reports, twice a
    second; empty where the browser does not tell."""
    camera: Signal
    """(m, 2): when a picture of the page's own camera was presented, and its margin's grey."""

    @property
    def fps(self) -> float:
        """Pictures per second."""
        return (len(self.shown_s) - 1) / max(1e-9, float(self.shown_s[-1] - self.shown_s[0]))


def record(page: Page, seconds: float, *, settle_s: float, camera: bool = False) -> None:
    """Keep in the page what it receives during `seconds`; blocks."""
    page.evaluate(
        "wish => window.avatarProbe.record(wish)",
        {"settle": settle_s, "seconds": seconds, "camera": camera},
    )


def take(page: Page) -> Recording:
    """Fetch what `record` kept."""
    raw = page.evaluate("() => window.avatarProbe.take()")
    heard = np.array(raw["heard"], np.float64)
    assert (heard[:, 2] == WIRE_RATE_HZ).all(), "the browser plays at another rate"
    samples = np.frombuffer(base64.b64decode(raw["pcm"]), np.float32)
    before = np.concatenate([[0.0], np.cumsum(heard[:-1, 1])]) / WIRE_RATE_HZ
    return Recording(
        pictures=[_decode(text) for text in raw["images"]],
        shown_s=np.array(raw["shown"], np.float64) / 1000,
        voice=np.asarray(np.clip(samples, -1, 1) * 32767, np.int16),
        # Reading a chunk can only be late: the early ones tell when it was played.
        voice_s=float(np.percentile(heard[:, 0] / 1000 - before, 10)),
        reported_skew_ms=np.array(raw["skews"], np.float64),
        camera=np.array(raw["camera"], np.float64).reshape(-1, 2) / (1000, 1),
    )


def _decode(text: str) -> Pixels:
    image = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


# --- sound ----------------------------------------------------------------------------

ENVELOPE_HZ = 100
_FLOOR_DB = -50.0
_SMOOTH = np.hanning(11) / np.hanning(11).sum()


def load_wav(path: Path) -> Pcm:
    """(n,) int16 of a 48 kHz mono WAV file."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels()) == (WIRE_RATE_HZ, 1)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def envelope(pcm: Pcm, *, looped: bool = False) -> Signal:
    """Level of the speech band (200 to 4000 Hz), dB at 100 Hz, smoothed to about 8 Hz."""
    spectrum = np.fft.rfft(pcm.astype(np.float64) / 32768)
    hz = np.fft.rfftfreq(len(pcm), 1 / WIRE_RATE_HZ)
    spectrum[(hz < 200) | (hz > 4000)] = 0
    band = np.fft.irfft(spectrum, len(pcm))
    hop = WIRE_RATE_HZ // ENVELOPE_HZ
    count = len(band) // hop
    power = (band[: count * hop].reshape(count, hop) ** 2).mean(1)
    level = np.maximum(10 * np.log10(power + 1e-10), _FLOOR_DB)
    padded = np.pad(level, len(_SMOOTH) // 2, mode="wrap" if looped else "edge")
    return np.asarray(np.convolve(padded, _SMOOTH, "valid"))


@dataclass(frozen=True, slots=True)
class Heard:
    """How the returned voice lies on the looped file."""

    loop: Signal
    """Envelope of the file, 100 Hz."""
    offset_s: float
    """Place in the file of the recording's first sample."""
    likeness: float
    """Median correlation of the two envelopes over windows of two seconds."""

    def place(self, since_s: Signal) -> Signal:
        """Seconds since the recording's start -> seconds in the file."""
        return (since_s + self.offset_s) % (len(self.loop) / ENVELOPE_HZ)

    def level(self, since_s: Signal, shift_s: float = 0.0) -> Signal:
        """The file's envelope at those times, or at wrong ones, `shift_s` later."""
        at = (self.place(since_s + shift_s)) * ENVELOPE_HZ
        return np.interp(at, np.arange(len(self.loop) + 1), np.append(self.loop, self.loop[0]))


def find_in_loop(voice: Pcm, file: Pcm) -> Heard:
    """Align what came back with the file that the fake microphone loops."""
    loop, got = envelope(file, looped=True), envelope(voice)
    every = np.arange(len(loop))

    def alike(part: slice, offset: int) -> float:
        place = (np.arange(len(got))[part] + offset) % len(loop)
        return correlation(got[part], loop[place])

    best = int(np.argmax([alike(slice(None), int(o)) for o in every]))
    # A jitter buffer stretches and squeezes sound by some 10 ms now and then.
    near = range(best - 20, best + 21)
    step = 2 * ENVELOPE_HZ
    parts = [slice(at, at + step) for at in range(0, len(got) - step + 1, step)]
    likeness = float(np.median([max(alike(part, o) for o in near) for part in parts]))
    return Heard(loop, best / ENVELOPE_HZ, likeness)


def correlation(one: Signal, other: Signal) -> float:
    """Pearson's r; 0 where one of the two does not change."""
    if one.std() < 1e-9 or other.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


# --- lips and heads -------------------------------------------------------------------


def bundled(number: int, engine: BaseEngine) -> Portrait:
    """One of the page's portraits, prepared as the server does."""
    folder = ROOT / "web" / "portraits"
    entry = json.loads((folder / "portraits.json").read_text())[number]
    image = decode_image((folder / entry["file"]).read_bytes())
    return prepare_portrait(image, engine, id=entry["id"], name=entry["name"])


def expected_opening(voice: Pcm, engine: BaseEngine, portrait: Portrait) -> tuple[Signal, Signal]:
    """Times (s from the voice's start) and the lip gap that the live pipeline would draw then.

    The very pipeline of a session hears the returned voice, four times, each 10 ms further
    into it, so that the opening is known every 10 ms.
    """
    times, openings = [], []
    own = portrait.appearance.code
    for begin in range(0, 1920, 480):
        pipeline = Pipeline(portrait, engine.config, size=SIDE, clock=lambda: 0)
        for tick in pipeline.push_audio(voice[begin:], 0):
            lip = tick.job.snapshot.resolve(engine.audio(tick.job.mel_TM)).lip
            face = engine.face.project(portrait.appearance.shape, own.with_("lip", lip))
            times.append(begin / WIRE_RATE_HZ + tick.frame_index * FRAME_S)
            openings.append(float(lip_gap(face)))
    order = np.argsort(times)
    return np.array(times)[order], np.array(openings)[order]


def best_lag(
    seen: Signal, seen_s: Signal, value_at: Callable[[Signal], Signal], lags_ms: range
) -> tuple[float, float]:
    """Lag in ms by which `seen` follows a signal, and their correlation there."""
    scores = [correlation(seen, value_at(seen_s - lag / 1000)) for lag in lags_ms]
    best = int(np.argmax(scores))
    return float(lags_ms[best]), scores[best]


# --- a person in front of the camera --------------------------------------------------

CAMERA_FPS = 30
"""Chromium plays motion JPEG at this rate."""
_GREY_PER_RAD = 300.0
STRAIGHT_S, TURNING_S = 5.0, 11.0


def turned(seconds: Signal) -> Signal:
    """Yaw in radians of the person in the camera's film: straight at first, then never still."""
    since = np.maximum(0.0, seconds - STRAIGHT_S)
    swing = 0.20 * np.sin(2 * np.pi * 0.37 * since) + 0.12 * np.sin(2 * np.pi * 0.61 * since)
    rest = np.clip((STRAIGHT_S + TURNING_S - seconds) / 0.5, 0, 1)
    return np.asarray(swing * rest)


def film_person(path: Path, engine: BaseEngine, portrait: Portrait) -> None:
    """Write a 640 x 480 motion JPEG of a portrait that turns its head as `turned` says.

    The grey of the margin tells the yaw, so that the page can say what its camera showed at
    any time without reading a face.
    """
    side = 480
    source = np.asarray(cv2.resize(portrait.image, (side, side), interpolation=cv2.INTER_AREA))
    own = portrait.appearance.code
    seconds = np.arange(0, STRAIGHT_S + TURNING_S, 2 / CAMERA_FPS)
    drawn: dict[float, bytes] = {}
    with path.open("wb") as file:
        for yaw in np.round(turned(seconds), 4):
            if yaw not in drawn:
                pose = own.pose.copy()
                pose[0] += yaw
                drawing = engine.draw(portrait.appearance, own.with_("pose", pose))
                picture = np.full((side, 640, 3), 128 + _GREY_PER_RAD * yaw, np.uint8)
                picture[:, 80 : 80 + side] = compose(drawing, source, side)[:, :, ::-1]
                done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
                assert done
                drawn[yaw] = bytes(data)
            file.write(drawn[yaw] * 2)


def yaw_of_grey(grey: Signal) -> Signal:
    """Inverse of the margin of `film_person`."""
    return np.asarray((grey - 128) / _GREY_PER_RAD)
