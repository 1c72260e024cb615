"""`RtcPeer` with a real browser: what is negotiated with Chromium, and that it then works."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from aiortc.rtp import is_rtcp

from realtime.rtc import PeerOptions, RtcPeer
from tests.realtime.test_rtc_negotiation import path_of
from tests.realtime.test_rtc_peer import Recorder, picture

async_api = pytest.importorskip("playwright.async_api", reason="playwright is not installed")

pytestmark = pytest.mark.e2e

ARGUMENTS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-gpu"]

#: A page that sends a tone and a moving square, and counts what it gets.
OFFER = """
async (codec) => {
  const context = new AudioContext();
  const tone = context.createOscillator();
  const out = context.createMediaStreamDestination();
  tone.connect(out);
  tone.start();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 128;
  const paint = canvas.getContext("2d");
  let step = 0;
  setInterval(() => {
    paint.fillStyle = "#888";
    paint.fillRect(0, 0, 128, 128);
    paint.fillStyle = "#fff";
    paint.fillRect(step++ % 100, 40, 28, 28);
  }, 40);
  const pc = new RTCPeerConnection();
  window.pc = pc;
  pc.addTransceiver(out.stream.getAudioTracks()[0], {direction: "sendrecv"});
  const video = pc.addTransceiver(
    canvas.captureStream(25).getVideoTracks()[0], {direction: "sendrecv"});
  if (codec) {
    const all = RTCRtpReceiver.getCapabilities("video").codecs;
    video.setCodecPreferences(all.filter((c) => c.mimeType !== "video/VP8"));
  }
  pc.ontrack = (event) => {
    const element = document.createElement(event.track.kind);
    element.srcObject = new MediaStream([event.track]);
    element.muted = true;
    element.autoplay = true;
    document.body.append(element);
  };
  pc.createDataChannel("control");
  await pc.setLocalDescription();
  while (pc.iceGatheringState !== "complete") await new Promise((r) => setTimeout(r, 20));
  return pc.localDescription.sdp;
}
"""
ANSWER = "(sdp) => window.pc.setRemoteDescription({type: 'answer', sdp})"
STATS = """
async () => {
  const found = {};
  for (const s of (await window.pc.getStats()).values()) {
    if (s.type === "inbound-rtp") found["in_" + s.kind] = s;
    if (s.type === "outbound-rtp") found["out_" + s.kind] = s;
    if (s.type === "candidate-pair" && s.nominated) found.pair = s;
  }
  return found;
}
"""


async def call(chromium: str, codec: str) -> tuple[Recorder, str, dict[str, Any]]:
    """Talk for a while; returns our side, the answer and the browser's own statistics."""
    with ThreadPoolExecutor(2) as pool:
        async with async_api.async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            page = await browser.new_page()
            ours = Recorder(pool, PeerOptions())
            ours.peer = RtcPeer(ours, pool, ours.options)
            try:
                answer = await ours.peer.accept(await page.evaluate(OFFER, codec))
                await page.evaluate(ANSWER, answer)
                async with asyncio.timeout(20):
                    await ours.connected.wait()
                    await speak(ours)
                stats = await settled(page)
                ours.reasons.append(repr(ours.peer.stats()))
                return ours, answer, stats
            finally:
                await ours.peer.close()
                await browser.close()


async def settled(page: Any) -> dict[str, Any]:
    """The browser's statistics once it has played what arrived and estimates its own way out."""
    before, stats = -1, await page.evaluate(STATS)
    async with asyncio.timeout(20):
        while stats["in_audio"][
            "jitterBufferEmittedCount"
        ] > before or "availableOutgoingBitrate" not in stats.get("pair", {}):
            before = stats["in_audio"]["jitterBufferEmittedCount"]
            await asyncio.sleep(0.2)
            stats = await page.evaluate(STATS)
    return dict(stats)


async def speak(ours: Recorder) -> None:
    """Send until both sides have seen enough and the browser reports arrivals."""
    ours.peer.set_capture_origin(0)
    lose_voice(ours)
    tone = (6000 * np.sin(2 * np.pi * 220 * np.arange(1920) / 48000)).astype(np.int16)
    frame = 0
    while frame < 75 or len(ours.frames) < 10 or ours.peer.stats().feedback == "none":
        ours.peer.send_audio(tone, frame * 1920)
        ours.peer.send_frame(picture(frame, 256), frame)
        if frame > 30 and ours.peer._video_out is not None:
            # As if the browser reported loss: what follows is sent twice.
            ours.peer._video_out.protection.note_loss(0.03, time.monotonic())
            assert ours.peer._audio_out is not None
            ours.peer._audio_out.on_loss(0.03)
        frame += 1
        await asyncio.sleep(0.040)


def lose_voice(ours: Recorder) -> None:
    """Every tenth voice packet is lost once each carries the one before it."""
    sender = ours.peer._audio_out
    assert sender is not None
    transport = path_of(ours).transport
    send = transport._send_rtp
    voices = 0

    async def send_some(data: bytes) -> None:
        nonlocal voices
        if not is_rtcp(data) and data[1] & 0x7F == sender._red_payload_type:
            voices += 1
            if voices % 10 == 5:
                return
        await send(data)

    transport._send_rtp = send_some  # type: ignore[method-assign]


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_chromium_and_we_understand_each_other(chromium: str, codec: str) -> None:
    ours, answer, theirs = await call(chromium, "" if codec == "VP8" else codec)
    assert f"{codec}/90000" in answer
    stats = ours.peer.stats()
    assert stats.feedback == "transport-cc"
    assert path_of(ours).stats.feedback_sent > 5
    assert stats.key_frames >= 1
    assert stats.malformed_packets == 0
    assert theirs["in_video"]["framesDecoded"] > 30
    # Copies that nobody asked for are taken as retransmissions, and harm nothing.
    assert stats.copies_sent > 20
    assert theirs["in_video"]["retransmittedPacketsReceived"] > 20
    assert theirs["in_video"]["packetsLost"] == 0
    assert theirs["in_audio"]["packetsReceived"] > 150
    # The voice carries itself twice, and the browser plays from the copy what was lost.
    assert "red/48000" in answer
    assert stats.redundant_sent > 100
    voice_in = theirs["in_audio"]
    assert voice_in["packetsLost"] > 5
    assert voice_in["packetsDiscarded"] > 50, "copies that were not needed"
    sent = voice_in["packetsReceived"] + voice_in["packetsLost"]
    assert voice_in["jitterBufferEmittedCount"] >= 480 * (sent - 3)
    # The browser estimates its own way out, so it understood our reports.
    assert theirs["pair"]["availableOutgoingBitrate"] > 0
    # 10 ms packets from the browser too, as the answer asks.
    voice = [len(b.pcm) for _, b in ours.blocks if not b.concealed]
    assert np.median(voice) == 480
    frame = ours.frames[-1][1]
    assert (frame.width, frame.height) == (128, 128)
    # Both tracks of the browser on one clock: from capture time or its sender reports.
    assert ours.peer.video_time_s(frame.pts or 0) is not None
