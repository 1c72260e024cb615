"""Small parts of the adapter: sequence numbers, clocks, bit rate, session descriptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.rtc.bitrate import BitrateController, ceiling_bps
from realtime.rtc.description import (
    BadDescriptionError,
    check_offer,
    finish_answer,
    parse_candidate,
)
from realtime.rtc.sequence import Unwrapper
from realtime.rtc.timing import CaptureClock, RemoteClock, ntp_from_unix_ns, ntp_seconds

pytestmark = pytest.mark.unit

HEAD = """v=0
o=- 1 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1 2
"""
TRANSPORT = """c=IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=fingerprint:sha-256 {}
a=setup:actpass
a=rtcp-mux
""".format(":".join(["AB"] * 32))
AUDIO = f"""m=audio 9 UDP/TLS/RTP/SAVPF 111
{TRANSPORT}a=mid:0
a=sendrecv
a=rtpmap:111 opus/48000/2
"""
VIDEO = f"""m=video 9 UDP/TLS/RTP/SAVPF 96
{TRANSPORT}a=mid:1
a=recvonly
a=rtpmap:96 VP8/90000
"""
DATA = f"""m=application 9 UDP/DTLS/SCTP webrtc-datachannel
{TRANSPORT}a=mid:2
a=sctp-port:5000
"""
OFFER = HEAD + AUDIO + VIDEO + DATA
HOST = "1 1 udp 2122260223 192.0.2.7 40000 typ host"


@given(st.lists(st.integers(-20_000, 20_000), max_size=50), st.integers(0, 65535))
def test_unwrapping_follows_any_walk(steps: list[int], start: int) -> None:
    unwrapper, true, top = Unwrapper(16), start, start
    assert unwrapper.unwrap(start) == start
    for step in steps:
        true = top + step
        top = max(top, true)
        assert unwrapper.unwrap(true % 65536) == true


def test_both_clocks_name_one_instant() -> None:
    clock = CaptureClock(ntp_from_unix_ns(1_700_000_000_000_000_000))
    assert ntp_seconds(clock.ntp(48000, 48000)) == pytest.approx(
        ntp_seconds(clock.ntp(90000, 90000))
    )
    audio, video = RemoteClock(48000), RemoteClock(90000)
    assert audio.seconds(0) is None
    audio.on_report(clock.ntp(48000, 48000), 2**32 - 10)
    video.on_report(clock.ntp(90000, 90000), 77)
    heard, seen = audio.seconds(2**32 - 10 + 48000), video.seconds(77 + 90000)
    assert heard is not None
    assert seen is not None
    assert heard == pytest.approx(seen, abs=1e-6)
    assert audio.seconds(2**32 - 10 - 480) == pytest.approx(heard - 1.01, abs=1e-6)


def test_bit_rate_falls_soon_and_rises_late() -> None:
    control = BitrateController(2_000_000)
    assert not control.on_estimate(2_100_000, 0.0)
    assert control.on_estimate(1_000_000, 0.1)
    assert control.target == 900_000
    assert not control.on_estimate(500_000, 0.5)
    assert control.on_estimate(500_000, 1.2)
    assert not control.on_estimate(3_000_000, 3.0)
    assert control.on_estimate(3_000_000, 6.3)
    assert control.target == 2_000_000
    assert control.on_estimate(1, 8.0)
    assert control.target == 150_000


def test_small_fluctuation_never_costs_a_key_frame() -> None:
    control = BitrateController(1_000_000)
    control.on_estimate(800_000, 0.0)
    assert not any(control.on_estimate(800_000 + 80_000 * (k % 3 - 1), k) for k in range(2, 60))


def test_bigger_pictures_may_use_more() -> None:
    assert ceiling_bps(256) < ceiling_bps(384) < ceiling_bps(512) == 2_000_000


def test_an_offer_is_accepted_without_useless_candidates() -> None:
    noise = (
        "a=candidate:1 1 udp 1 4ab1c2-d.local 5 typ host\n"
        "a=candidate:2 1 tcp 1 192.0.2.7 9 typ host tcptype active\n"
        "a=end-of-candidates\n"
    )
    cleaned = check_offer(OFFER.replace("a=mid:0\n", f"a=mid:0\na=candidate:{HOST}\n{noise}"))
    assert cleaned.count("a=candidate") == 1
    assert "end-of-candidates" not in cleaned
    flood = "".join(f"a=candidate:{HOST.replace('40000', str(p))}\n" for p in range(1, 200))
    assert check_offer(OFFER.replace("a=mid:0\n", "a=mid:0\n" + flood)).count("candidate") == 32


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        ("", "media sections"),
        ("garbage", "parsed|media sections"),
        ("v=0\nm=audio", "parsed"),
        (HEAD + AUDIO, "no video"),
        (HEAD + VIDEO, "no audio"),
        (OFFER + VIDEO, "more than one"),
        (OFFER + VIDEO + AUDIO, "1 to 4"),
        (OFFER.replace("VP8/90000", "AV1/90000"), "VP8"),
        (OFFER.replace("opus/48000/2", "PCMU/8000"), "opus"),
        (OFFER.replace("a=recvonly", "a=sendonly"), "receive video"),
        (OFFER.replace("a=ice-ufrag:abcd\n", ""), "ICE"),
        (OFFER.replace("a=fingerprint:", "a=x:"), "fingerprint"),
        (OFFER.replace("m=application", "m=text"), "audio, video or data|parsed"),
    ],
)
def test_an_unusable_offer_is_refused_with_a_reason(offer: str, why: str) -> None:
    with pytest.raises(BadDescriptionError, match=why):
        check_offer(offer)


@given(st.text(max_size=300))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (check_offer, parse_candidate):
        try:
            parse(text)
        except BadDescriptionError:
            continue


def test_trickled_candidates() -> None:
    parsed = parse_candidate(f"candidate:{HOST}")
    assert parsed is not None
    assert (parsed.ip, parsed.port) == ("192.0.2.7", 40000)
    assert parse_candidate("") is None
    assert parse_candidate("candidate:1 1 udp 1 abc.local 5 typ host") is None
    with pytest.raises(BadDescriptionError, match="candidate"):
        parse_candidate("candidate:1 1 udp")


def test_the_answer_asks_for_short_packets_and_can_announce_a_public_address() -> None:
    answer = HEAD + AUDIO.replace("a=mid:0", f"a=mid:0\na=candidate:{HOST}") + VIDEO
    plain = finish_answer(answer)
    assert plain.count("a=ptime:10") == 1
    assert "192.0.2.7" in plain
    public = finish_answer(answer, public_ip="198.51.100.1")
    assert "198.51.100.1 40000" in public
    assert "192.0.2.7" not in public
