"""What two peers agree on, and that it then works over real sockets."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import pairwise

import numpy as np
import pytest
from aiortc import rtp
from aiortc.rtcdtlstransport import RTCDtlsTransport
from numpy.typing import NDArray

from realtime.rtc import (
    IceOptions,
    NoResourcesError,
    PeerOptions,
    RtcPeer,
    StockPeer,
    make_peer,
)
from realtime.rtc.extensions import Extensions
from realtime.rtc.media_path import MediaPath
from tests.realtime.test_rtc_peer import Recorder, picture, talk

pytestmark = pytest.mark.unit


@asynccontextmanager
async def pair(
    client_options: PeerOptions | None = None,
    server_options: PeerOptions | None = None,
    edit: Callable[[str], str] = lambda sdp: sdp,
) -> AsyncIterator[tuple[Recorder, Recorder, str]]:
    """A connected client and server, and the answer; `edit` changes the offer on its way."""
    with ThreadPoolExecutor(2) as pool:
        made = []
        for options in (client_options, server_options):
            recorder = Recorder(pool, options or PeerOptions())
            recorder.peer = make_peer(recorder, pool, recorder.options)
            made.append(recorder)
        client, server = made
        try:
            answer = await server.peer.accept(edit(await client.peer.offer()))
            await client.peer.set_answer(answer)
            async with asyncio.timeout(8):
                await asyncio.gather(client.connected.wait(), server.connected.wait())
            client.peer.set_capture_origin(0)
            yield client, server, answer
        finally:
            await client.peer.close()
            await server.peer.close()


def without(*fragments: str) -> Callable[[str], str]:
    """Leave out the lines of an offer that contain one of the fragments."""

    def edit(sdp: str) -> str:
        lines = sdp.split("\r\n")
        return "\r\n".join(x for x in lines if not any(f in x for f in fragments))

    return edit


def grain(seed: int) -> NDArray[np.uint8]:
    """A 256 px picture that costs bits in every frame, but not more than an encoder can save."""
    noise = np.random.default_rng(seed).integers(0, 40, (384, 256), np.uint8)
    return noise + np.uint8(80)


def path_of(recorder: Recorder) -> MediaPath:
    """The path that carries media: the last one that bundling left."""
    sender = recorder.peer._video_out
    assert sender is not None
    return sender.path


def tap_received(path: MediaPath) -> list[rtp.RtpPacket]:
    """Every RTP packet that is routed from now on."""
    seen: list[rtp.RtpPacket] = []
    router = path.transport._rtp_router
    route = router.route_rtp

    def route_rtp(packet: rtp.RtpPacket) -> object:
        seen.append(packet)
        return route(packet)

    router.route_rtp = route_rtp  # type: ignore[method-assign, assignment]
    return seen


async def test_everything_is_agreed_and_voice_packets_are_10_ms_both_ways() -> None:
    async with pair() as (client, server, answer):
        for wanted in ("transport-wide-cc", "abs-capture-time", "abs-send-time", "ccm fir"):
            assert wanted in answer
        assert answer.count(" transport-cc") == 2
        assert "playout-delay" not in answer
        assert "a=ptime:10" in answer
        assert "minptime=10" in answer
        assert "H264" not in answer
        up, down = tap_received(path_of(server)), tap_received(path_of(client))
        server.peer.set_capture_origin(0)
        await asyncio.gather(talk(client, 0.6), talk(server, 0.6))
        await asyncio.sleep(0.2)
        for seen in (up, down):
            voice = sorted(p.timestamp for p in seen if p.payload_type == 96)
            assert len(voice) > 50
            assert {b - a for a, b in pairwise(voice)} == {480}
            numbers = [p.extensions.transport_sequence_number for p in seen]
            assert numbers == list(range(len(numbers)))
            assert all(
                p.extensions.playout_delay_ms is None
                for p in seen if isinstance(p.extensions, Extensions)
            )  # fmt: skip
        stats = client.peer.stats()
        assert stats.feedback == "transport-cc"
        assert stats.estimate_bps >= stats.target_bps > 0
        assert stats.encoder == "libvpx"
        assert stats.encode.p50_ms > 0
        assert stats.capture_to_send.p50_ms > 0
        assert stats.actual_bps > 0
        assert stats.key_frames == 1
        assert stats.malformed_packets == 0


async def test_capture_time_is_known_from_the_first_packet_on() -> None:
    async with pair() as (client, server, _):
        # No sender report at all: the header extension alone tells.
        for stream in (client.peer._audio_out, client.peer._video_out):
            assert stream is not None
            stream._send_report = _nothing  # type: ignore[method-assign]
        await talk(client, 0.4)
        await asyncio.sleep(0.1)
        frame = server.frames[-1][1]
        heard = next(b for _, b in server.blocks if not b.concealed)
        seen_s, heard_s = (
            server.peer.video_time_s(frame.pts or 0),
            server.peer.audio_time_s(heard.index),
        )
        assert seen_s is not None
        assert heard_s is not None
        clock = client.peer._capture
        assert clock is not None
        # The Opus encoder's own 2.5 ms are taken off.
        assert -0.003 <= heard_s - clock.origin_ntp / 2**32 < 0.1
        frames = (seen_s - clock.origin_ntp / 2**32) * 25
        assert frames == pytest.approx(round(frames), abs=0.01)


async def _nothing() -> None:
    """In place of a sender report."""


async def test_playout_delay_is_sent_where_it_is_set() -> None:
    options = PeerOptions(playout_delay_ms=(0, 120))
    async with pair(options, options) as (client, server, answer):
        assert "playout-delay" in answer
        seen = tap_received(path_of(server))
        await talk(client, 0.3)
        await asyncio.sleep(0.1)
        values = [p.extensions.playout_delay_ms for p in seen if p.payload_type == 97]
        assert set(values) <= {(0, 120), None}
        assert values.count((0, 120)) >= 5


async def test_a_peer_without_transport_wide_feedback_gets_and_gives_remb() -> None:
    edit = without("transport-wide-cc", "transport-cc")
    async with pair(edit=edit) as (client, server, answer):
        assert "transport-" not in answer
        assert "goog-remb" in answer
        sender, receiver = client.peer._video_out, server.peer._video_in
        assert sender is not None
        assert receiver is not None
        # aiortc's estimator watches for three seconds before its first word; here it is quick.
        receiver._estimator.add = lambda **_: (400_000, [sender._ssrc])  # type: ignore[method-assign]
        await talk(client, 0.3)
        await asyncio.sleep(0.1)
        assert path_of(server).stats.feedback_sent == 0
        stats = client.peer.stats()
        assert stats.feedback == "remb"
        assert stats.target_bps == 360_000
        assert stats.estimate_bps == 0


async def test_h264_is_used_when_vp8_is_absent_both_ways() -> None:
    edit = without("VP8", "a=rtcp-fb:97", "apt=97")
    async with pair(edit=edit) as (client, server, answer):
        assert "VP8" not in answer
        assert "profile-level-id=42e01f" in answer
        assert "packetization-mode=1" in answer
        server.peer.set_capture_origin(0)
        await asyncio.gather(talk(client, 0.6), talk(server, 0.6))
        await asyncio.sleep(0.2)
        for side in (client, server):
            assert len(side.frames) > 10
            assert side.peer.stats().video_codec == "video/H264"
            assert side.peer.stats().encoder == "libx264"
            shown = side.frames[-1][1].to_ndarray()[:128].astype(int)
            assert np.abs(shown - picture(28)[:128]).mean() < 8


async def test_every_request_path_gives_a_key_frame() -> None:
    async with pair() as (client, server, _):
        await talk(client, 0.4)
        sender = client.peer._video_out
        assert sender is not None
        to = path_of(server).transport
        pli = rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_PLI, ssrc=1, media_ssrc=sender._ssrc)
        fci = sender._ssrc.to_bytes(4) + b"\x01\x00\x00\x00"
        fir = rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_FIR, ssrc=1, media_ssrc=0, fci=fci)

        async def rtcp(packet: rtp.RtcpPsfbPacket) -> None:
            await to._send_rtp(bytes(packet))

        async def joined() -> None:
            client.peer.request_key_frame()

        first = 20
        for ask in (lambda: rtcp(pli), lambda: rtcp(fir), joined):
            before = client.peer.stats()
            await ask()
            await talk(client, 0.4, first=first)
            first += 20
            after = client.peer.stats()
            assert after.key_frame_requests == before.key_frame_requests + 1
            assert after.key_frames == before.key_frames + 1


async def test_a_lower_rate_costs_no_key_frame_and_a_ceiling_holds() -> None:
    async with pair(PeerOptions(video_bps=1_200_000)) as (client, _, _):
        sender = client.peer._video_out
        assert sender is not None
        frames = [grain(k) for k in range(12)]
        sizes: list[int] = []
        for k in range(90):
            if k == 30:
                client.peer.set_video_ceiling(300_000)
            before = sender.bytes_sent
            client.peer.send_frame(frames[k % 12], k)
            await asyncio.sleep(0.012)
            sizes.append(sender.bytes_sent - before)
        stats = client.peer.stats()
        assert stats.key_frames == 1
        assert stats.target_bps == stats.ceiling_bps == 300_000
        assert np.mean(sizes[60:]) < 0.5 * np.mean(sizes[10:30])


async def test_on_a_path_that_loses_packets_pictures_need_no_round_trip() -> None:
    """Of the pictures every 13th packet is lost, no request is answered, and every frame comes."""

    async def deaf(sequences: list[int]) -> None:
        asked.extend(sequences)

    asked: list[int] = []
    frames_sent: list[int] = []
    async with pair(PeerOptions(video_bps=2_500_000)) as (client, server, _):
        sender = client.peer._video_out
        assert sender is not None
        media = 0

        def lose(data: bytes) -> bool:
            nonlocal media
            if len(data) < 12 or data[0] >> 6 != 2 or data[1] & 0x7F != 97:
                return False
            media += 1
            # The first frame is a key frame, whose size has to be saved up again.
            return len(frames_sent) > 20 and media % 13 == 0

        server.drop_received(lose)
        sender._retransmit = deaf  # type: ignore[method-assign]
        # Three or four packets each, wherever the rate is.
        frames = [np.full((384, 256), 100, np.uint8) for _ in range(12)]
        for k, frame in enumerate(frames):
            frame[:96, :96] = grain(k)[:96, :96] // 2 + np.uint8(60)
        for k in range(60):
            # What the other side's reports of this path would say.
            sender.protection.note_loss(0.05, time.monotonic())
            client.peer.send_frame(frames[k % 12], k)
            frames_sent.append(k)
            await asyncio.sleep(0.040)
        await asyncio.sleep(0.1)
        sent, got = client.peer.stats(), server.peer.stats()
        assert sent.copies_sent > 30
        assert sent.key_frames == 1
        assert got.recovered_packets >= 3
        assert got.plis_sent == 0
        assert got.webcam_frames == sent.frames_sent
        assert got.malformed_packets == 0
        # Together they keep to the rate that the pictures had.
        assert sent.target_bps == 2_500_000


async def test_on_a_path_that_loses_packets_no_voice_is_missing() -> None:
    """Every tenth voice packet is lost, and is found in the next one."""
    async with pair() as (client, server, answer):
        assert "red/48000" in answer
        sender = client.peer._audio_out
        assert sender is not None
        voices = 0

        def lose(data: bytes) -> bool:
            nonlocal voices
            if len(data) < 12 or data[0] >> 6 != 2 or data[1] & 0x7F not in (96, 63):
                return False
            voices += 1
            return voices > 30 and voices % 10 == 0

        server.drop_received(lose)
        sender.on_loss(0.05)
        await talk(client, 1.2)
        stats = server.peer.stats()
        assert stats.recovered_ms >= 70
        assert stats.concealed_ms == 0
        assert client.peer.stats().redundant_sent > 100
        line = np.concatenate([b.pcm for _, b in server.blocks if not b.concealed])
        # The tone goes on through every gap.
        loud = np.abs(line[:48_000].reshape(-1, 480)).max(axis=1) > 3000
        assert loud[20:].all()


async def test_a_peer_without_red_gets_plain_opus() -> None:
    async with pair(edit=without("red/48000", "fmtp:63")) as (client, server, answer):
        assert "red" not in answer
        for side in (client, server):
            sender = side.peer._audio_out
            assert sender is not None
            sender.on_loss(0.05)
        await talk(client, 0.3)
        assert client.peer.stats().redundant_sent == 0
        assert any(not b.concealed for _, b in server.blocks)


async def test_media_keeps_to_the_port_range() -> None:
    async with pair(None, PeerOptions(ice=IceOptions(udp_ports=(42_000, 42_019)))) as made:
        lines = [x.split() for x in made[2].splitlines() if x.startswith("a=candidate")]
        assert lines
        assert all(42_000 <= int(parts[5]) <= 42_019 for parts in lines)


async def test_a_full_port_range_is_said() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taken, ThreadPoolExecutor(1) as pool:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", 0))
        port = taken.getsockname()[1]
        client = Recorder(pool)
        server = Recorder(pool, PeerOptions(ice=IceOptions(udp_ports=(port, port))))
        with pytest.raises(NoResourcesError, match=f"No UDP port from {port} to {port} is free"):
            await server.peer.accept(await client.peer.offer())
        await server.peer.close()
        await client.peer.close()


async def test_a_system_without_sockets_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with ThreadPoolExecutor(1) as pool:
        client, server = Recorder(pool), Recorder(pool)
        offer = await client.peer.offer()
        monkeypatch.setattr(asyncio.get_running_loop(), "create_datagram_endpoint", none_left)
        with pytest.raises(NoResourcesError, match="No UDP socket"):
            await server.peer.accept(offer)
        monkeypatch.undo()
        await server.peer.close()
        await client.peer.close()


@pytest.mark.parametrize("ours", ["none", "client", "server"])
async def test_the_stock_peer_has_the_same_interface(ours: str) -> None:
    client_options = PeerOptions(stock=ours != "client")
    server_options = PeerOptions(stock=ours != "server")
    async with pair(client_options, server_options) as (client, server, _):
        assert isinstance(client.peer, StockPeer) == client_options.stock
        async with asyncio.timeout(5):
            await asyncio.gather(client.open.wait(), server.open.wait())
        server.peer.set_capture_origin(0)
        server.peer.request_key_frame()
        await asyncio.gather(talk(client, 0.8), talk(server, 0.8))
        await asyncio.sleep(0.3)
        assert client.peer.send_message(b"hello")
        await asyncio.sleep(0.1)
        assert server.messages == [b"hello"]
        for side in (client, server):
            assert len(side.frames) > 10
            assert side.peer.stats().frames_sent > 10
            assert side.peer.stats().webcam_frames == len(side.frames)
            line = np.concatenate([b.pcm for _, b in side.blocks])
            assert int(np.abs(line).max()) > 3000
        assert isinstance(server.peer, RtcPeer)


async def test_media_bytes_that_aiortc_would_die_of_are_counted() -> None:
    async with pair() as (client, server, _):
        transport: RTCDtlsTransport = path_of(client).transport
        # A REMB that names more streams than it holds.
        remb = rtp.RtcpPsfbPacket(fmt=15, ssrc=1, media_ssrc=0, fci=b"REMB\xff\x00\x00\x01")
        await transport._send_rtp(bytes(remb))
        await talk(client, 0.3)
        assert server.peer.stats().malformed_packets == 1
        assert server.peer.connected
        assert len(server.frames) > 3
