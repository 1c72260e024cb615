"""`RtcPeer` over real sockets: with itself under loss, and with a stock aiortc client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import pytest
import uvloop
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError, VideoStreamTrack
from aiortc.rtp import is_rtcp
from numpy.typing import NDArray

from realtime.rtc import AudioBlock, BadDescriptionError, PeerOptions, RtcPeer

pytestmark = pytest.mark.unit


@dataclass(eq=False)
class Recorder:
    """A peer and everything it told."""

    pool: ThreadPoolExecutor
    options: PeerOptions = field(default_factory=PeerOptions)
    blocks: list[tuple[float, AudioBlock]] = field(default_factory=list)
    frames: list[tuple[float, av.VideoFrame]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    reasons: list[str] = field(default_factory=list)
    fail_on_message: bool = False
    peer: RtcPeer = field(init=False)

    def __post_init__(self) -> None:
        self.peer = RtcPeer(self, self.pool, self.options)

    def on_connected(self) -> None:
        self.connected.set()

    def on_audio(self, block: AudioBlock) -> None:
        self.blocks.append((time.monotonic(), block))

    def on_video(self, frame: av.VideoFrame) -> None:
        self.frames.append((time.monotonic(), frame))

    def on_channel_open(self) -> None:
        self.open.set()

    def on_message(self, data: bytes) -> None:
        if self.fail_on_message:
            raise RuntimeError("a bug in a handler")
        self.messages.append(data)

    def on_closed(self, reason: str) -> None:
        self.reasons.append(reason)
        self.closed.set()

    def drop_received(self, lose: Callable[[bytes], bool]) -> None:
        """Lose incoming datagrams for which `lose` is true."""
        transport = self.peer._pc.getTransceivers()[0].receiver.transport.transport
        connection = transport._connection
        receive = connection.data_received

        def data_received(data: bytes, component: int) -> None:
            if not lose(data):
                receive(data, component)

        connection.data_received = data_received  # type: ignore[method-assign]


@asynccontextmanager
async def pair(**server_options: float) -> AsyncIterator[tuple[Recorder, Recorder]]:
    """A connected client and server."""
    with ThreadPoolExecutor(2) as pool:
        client, server = Recorder(pool), Recorder(pool, PeerOptions(**server_options))
        try:
            await client.peer.set_answer(await server.peer.accept(await client.peer.offer()))
            async with asyncio.timeout(5):
                await asyncio.gather(client.open.wait(), server.open.wait())
                await asyncio.gather(client.connected.wait(), server.connected.wait())
            yield client, server
        finally:
            await client.peer.close()
            await server.peer.close()


def picture(step: int, size: int = 128) -> NDArray[np.uint8]:
    i420 = np.full((size * 3 // 2, size), 128, np.uint8)
    i420[:size] = np.roll(np.arange(size) * 2 % 256, step)[None]
    return i420


async def talk(sender: Recorder, seconds: float, *, first: int = 0) -> dict[int, float]:
    """Send tone and pictures in real time; returns when each 20 ms packet was sent."""
    start, sent = time.monotonic(), {}
    count = int(seconds * 50)
    at = np.arange(count * 960)
    tone = (6000 * np.sin(2 * np.pi * 220 * at / 48000)).astype(np.int16)
    for k in range(count):
        await asyncio.sleep(max(0.0, start + k * 0.020 - time.monotonic()))
        index = first + k
        sent[index] = time.monotonic()
        sender.peer.send_audio(tone[k * 960 : (k + 1) * 960], index * 960)
        if k % 2 == 0:
            sender.peer.send_frame(picture(k), index // 2)
    return sent


def is_media(data: bytes) -> bool:
    return 127 < data[0] < 192 and not is_rtcp(data)


async def test_voice_pictures_and_messages_cross_quickly() -> None:
    async with pair() as (client, server):
        client.peer.set_capture_origin(0)
        sent = await talk(client, 1.5)
        assert server.peer.send_message(b'{"a":1}')
        await asyncio.sleep(0.15)
        stats = server.peer.stats()
        heard = [(at, b) for at, b in server.blocks if not b.concealed]
        shift = heard[0][1].index
        delays = [at - sent[(b.index - shift) // 960] for at, b in heard if b.index > shift + 9600]
        # Stock aiortc holds voice for 80 ms here.
        assert np.percentile(delays, 50) < 0.030
        assert stats.webcam_frames >= 30
        assert stats.audio_lost == 0
        assert client.messages == [b'{"a":1}']
        line = np.concatenate([b.pcm for _, b in server.blocks])
        assert len(line) == server.blocks[-1][1].index + len(server.blocks[-1][1].pcm)
        frame = server.frames[-1][1]
        heard_s = server.peer.audio_time_s(heard[0][1].index)
        seen_s = server.peer.video_time_s(frame.pts or 0)
        assert heard_s is not None
        assert seen_s is not None
        # Both tracks are stamped by one capture clock, to the sample (the encoder's delay apart).
        assert ((seen_s - heard_s) * 25 + 0.1) % 1 < 0.2


async def test_after_lost_voice_the_delay_is_what_it_was() -> None:
    async with pair() as (client, server):
        client.peer.set_capture_origin(0)
        # Ten packets of 10 ms in a row, twice: stock aiortc stays 200 ms late after the first.
        # RED brings the last packet of either gap back.
        transceiver = server.peer._pc.getTransceivers()[0]
        voice = {codec.payloadType for codec in transceiver._codecs}
        first = None

        def lose(data: bytes) -> bool:
            nonlocal first
            if not is_media(data) or data[1] & 0x7F not in voice:
                return False
            number = int.from_bytes(data[2:4])
            first = number if first is None else first
            return (number - first) % 0x10000 in (*range(40, 50), *range(90, 100))

        server.drop_received(lose)
        sent = await talk(client, 2.5)
        await asyncio.sleep(0.1)
        stats = server.peer.stats()
        assert stats.audio_lost == 18
        assert stats.recovered_ms == 20
        assert stats.concealed_ms + stats.filled_ms >= 180
        real = [(at, b) for at, b in server.blocks if not b.concealed and len(b.pcm) == 480]
        delays = np.array([at - sent[min(b.index // 960, max(sent))] for at, b in real])
        before = np.median(delays[20:38])
        after = np.median(delays[-40:])
        assert abs(after - before) < 0.015


async def test_lost_pictures_are_repaired_or_a_key_frame_is_asked_for() -> None:
    async with pair() as (client, server):
        client.peer.set_capture_origin(0)
        rng = np.random.default_rng(5)
        video_type = server.peer._pc.getTransceivers()[1]._codecs[0].payloadType
        server.drop_received(
            lambda d: is_media(d) and d[1] & 0x7F == video_type and rng.random() < 0.2
        )
        await talk(client, 2.0)
        await asyncio.sleep(0.2)
        assert client.peer.stats().retransmitted > 0
        assert server.peer.stats().webcam_frames > 30
        assert client.peer.stats().key_frames <= 4


async def test_a_key_frame_comes_when_asked() -> None:
    async with pair() as (client, _):
        client.peer.set_capture_origin(0)
        await talk(client, 0.6)
        before = client.peer.stats().key_frames
        client.peer.request_key_frame()
        await talk(client, 0.3, first=30)
        assert client.peer.stats().key_frames == before + 1


async def test_a_peer_that_falls_silent_is_closed_by_the_watchdog() -> None:
    async with pair(watchdog_s=0.8) as (client, server):
        await talk(client, 0.3)
        server.drop_received(lambda data: True)
        async with asyncio.timeout(3):
            await server.closed.wait()
        assert server.reasons == ["nothing received"]


async def test_a_peer_that_never_connects_is_closed() -> None:
    with ThreadPoolExecutor(1) as pool:
        client, server = Recorder(pool), Recorder(pool, PeerOptions(connect_s=0.4))
        await server.peer.accept(await client.peer.offer())
        await client.peer.close()
        async with asyncio.timeout(3):
            await server.closed.wait()
        assert server.reasons == ["no connection in time"]
        await server.peer.close()


async def test_leaving_is_noticed_and_told_once() -> None:
    async with pair() as (client, server):
        await client.peer.close("enough")
        async with asyncio.timeout(3):
            await server.closed.wait()
        await server.peer.close()
        assert client.reasons == ["enough"]
        assert server.reasons == ["peer left"]
        assert not server.peer.connected
        assert not server.peer.send_message(b"late")
        server.peer.send_frame(picture(0), 1)
        server.peer.send_audio(np.zeros(480, np.int16), 0)


async def test_a_failing_handler_ends_only_its_own_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pair() as (client, server):
        server.fail_on_message = True
        client.peer.send_message(b"boom")
        async with asyncio.timeout(3):
            await server.closed.wait()
        assert server.reasons == ["internal error"]
        assert "handler failed" in caplog.text


async def test_bad_offers_and_candidates_are_refused() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = Recorder(pool)
        with pytest.raises(BadDescriptionError):
            await server.peer.accept("v=0")
        await server.peer.close()
    async with pair() as (_, server):
        await server.peer.add_candidate("")
        with pytest.raises(BadDescriptionError):
            await server.peer.add_candidate("candidate:nonsense")
        for port in range(1, 33):
            await server.peer.add_candidate(f"candidate:1 1 udp 1 192.0.2.9 {port} typ host")
        with pytest.raises(BadDescriptionError, match="Too many"):
            await server.peer.add_candidate("candidate:1 1 udp 1 192.0.2.9 99 typ host")


class _Tone(AudioStreamTrack):
    """20 ms of a tone every 20 ms."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._at = 0

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        await asyncio.sleep(max(0.0, self._began + self._at / 48000 - time.monotonic()))
        at = np.arange(self._at, self._at + 960)
        pcm = (6000 * np.sin(2 * np.pi * 220 * at / 48000)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, self._at, Fraction(1, 48000)
        self._at += 960
        return frame


async def test_a_stock_aiortc_client_is_served() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = Recorder(pool)
        stock = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        stock.addTrack(_Tone())
        stock.addTrack(VideoStreamTrack())
        channel = stock.createDataChannel("control")
        said: list[str] = []
        channel.on("message", said.append)
        seen: asyncio.Queue[int] = asyncio.Queue()
        readers: list[asyncio.Task[None]] = []

        def on_track(track: VideoStreamTrack) -> None:
            async def read() -> None:
                while True:
                    frame = await track.recv()
                    if track.kind == "video":
                        seen.put_nowait(frame.width)  # type: ignore[union-attr]

            readers.append(asyncio.create_task(read()))

        stock.on("track", on_track)
        try:
            await stock.setLocalDescription()
            answer = await server.peer.accept(stock.localDescription.sdp)
            await stock.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            async with asyncio.timeout(8):
                await server.open.wait()
                server.peer.send_message(b"hello")
                index = 0
                while seen.qsize() < 10 or not server.frames or not said:
                    server.peer.send_frame(picture(index), index)
                    server.peer.send_audio(np.zeros(1920, np.int16), index * 1920)
                    index += 1
                    await asyncio.sleep(0.04)
            assert said == ["hello"]
            assert seen.get_nowait() == 128
            assert server.frames[0][1].width == 640
            real = [b for _, b in server.blocks if not b.concealed]
            assert len(real) > 10
            assert max(int(np.abs(b.pcm).max()) for b in real) > 4000
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await stock.close()
            await server.peer.close()


def test_it_runs_on_uvloop_too() -> None:
    async def converse() -> int:
        async with pair() as (client, server):
            client.peer.set_capture_origin(0)
            await talk(client, 0.5)
            await asyncio.sleep(0.1)
            assert any(not b.concealed for _, b in server.blocks)
            return len(server.frames)

    assert uvloop.run(converse()) > 5
