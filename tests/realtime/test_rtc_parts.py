"""Small parts of the adapter: sequence numbers, clocks, bit rate, session descriptions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.rtc.bitrate import BitrateController, ceiling_bps
from realtime.rtc.description import (
    BadDescriptionError,
    announce,
    check_offer,
    parse_candidate,
    short_packets,
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


def test_bit_rate_falls_soon_and_rises_a_second_later() -> None:
    control = BitrateController(2_000_000)
    assert not control.on_estimate(2_100_000, 0.0)
    assert control.on_estimate(1_200_000, 0.1)
    assert control.target == 1_080_000
    assert not control.on_estimate(1_000_000, 0.5)
    assert control.on_estimate(1_000_000, 1.2)
    assert not control.on_estimate(3_000_000, 1.5)
    assert control.on_estimate(3_000_000, 2.3)
    assert control.target == 2_000_000
    # Less than half is no time to wait.
    assert control.on_estimate(800_000, 2.4)
    assert control.on_estimate(1, 2.5)
    assert control.target == 150_000


def test_with_a_costly_encoder_the_rate_rises_late() -> None:
    control = BitrateController(2_000_000, in_place=False)
    assert control.on_estimate(1_000_000, 0.1)
    assert not control.on_estimate(3_000_000, 3.0)
    assert control.on_estimate(3_000_000, 6.3)


@pytest.mark.parametrize("in_place", [True, False])
def test_small_fluctuation_changes_nothing(in_place: bool) -> None:
    control = BitrateController(1_000_000, in_place=in_place)
    control.on_estimate(800_000, 0.0)
    spread = 30_000 if in_place else 80_000
    estimates = [800_000 + spread * (k % 3 - 1) for k in range(60)]
    assert not any(control.on_estimate(bps, k + 2.0) for k, bps in enumerate(estimates))


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 3)), max_size=60))
def test_the_target_stays_between_floor_and_ceiling_and_rises_once_a_second(
    script: list[tuple[int, float]],
) -> None:
    control, now, changed = BitrateController(900_000), 0.0, float("-inf")
    for bps, wait in script:
        now += wait
        before = control.target
        if control.on_estimate(bps, now):
            assert control.target < before or now - changed >= 1.0
            changed = now
        assert 150_000 <= control.target <= 900_000
    control.set_ceiling(100_000)
    assert control.target == control.ceiling == 100_000


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
        (OFFER.replace("VP8/90000", "H264/90000"), "H.264 baseline"),
        (OFFER.replace("opus/48000/2", "PCMU/8000"), "Opus"),
        (OFFER.replace("a=recvonly", "a=sendonly"), "receive video"),
        (OFFER.replace("a=ice-ufrag:abcd\n", ""), "ICE"),
        (OFFER.replace("a=fingerprint:", "a=x:"), "fingerprint"),
        (OFFER.replace("m=application", "m=text"), "audio, video or data|parsed"),
    ],
)
def test_an_unusable_offer_is_refused_with_a_reason(offer: str, why: str) -> None:
    with pytest.raises(BadDescriptionError, match=why):
        check_offer(offer)


def test_an_offer_with_h264_only_is_accepted() -> None:
    profile = "a=fmtp:96 packetization-mode=1;profile-level-id={}\n"
    offer = OFFER.replace("96 VP8/90000\n", "96 H264/90000\n" + profile)
    assert "H264" in check_offer(offer.format("42e01f"))
    with pytest.raises(BadDescriptionError, match="baseline"):
        check_offer(offer.format("64001f"))


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
    plain = announce(short_packets(answer), None)
    assert plain.count("a=ptime:10") == 1
    assert "192.0.2.7" in plain
    public = announce(answer, "198.51.100.1")
    assert "198.51.100.1 40000" in public
    assert "192.0.2.7" not in public


def test_sections_that_are_bundled_must_be_there_and_have_names() -> None:
    with pytest.raises(BadDescriptionError, match="bundles"):
        check_offer(OFFER.replace("BUNDLE 0 1 2", "BUNDLE 0 1 7"))
    with pytest.raises(BadDescriptionError, match="mid of its own"):
        check_offer(OFFER.replace("a=mid:1", "a=mid:0"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, OFFER.count("\n") - 1),
            st.sampled_from(["drop", "double", "cut", "number", "junk"]),
            st.text(max_size=12),
        ),
        max_size=6,
    )
)
def test_a_damaged_offer_is_usable_or_refused_with_a_sentence(
    damage: list[tuple[int, str, str]],
) -> None:
    lines = OFFER.split("\n")
    for at, kind, junk in damage:
        line = lines[at % len(lines)]
        changed = {
            "drop": "",
            "double": f"{line}\n{line}",
            "cut": line[: len(line) // 2],
            "number": line.replace("1", "99999999999999999999"),
            "junk": line + junk,
        }
        lines[at % len(lines)] = changed[kind]
    try:
        cleaned = check_offer("\n".join(lines))
    except BadDescriptionError:
        return
    # What is accepted stays acceptable: nothing is lost by cleaning.
    assert check_offer(cleaned) == cleaned
    for text in (cleaned, announce(short_packets(cleaned), "198.51.100.1")):
        assert "m=audio" in text
