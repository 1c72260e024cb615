"""Bytes that nobody should send: seeds that are right, and ways to spoil them. Seeded, no I/O."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np

_NASTY_TEXT = (
    "", " ", "\0", "-1", "0", "999999999999999999999", "65536", "1e309", "NaN", "\u202e", "\ud7ff",
    "${jndi:ldap://x}", "../../etc/passwd", "a" * 3000, "%s%n", "<script>", "é" * 50, "::1", "{",
)  # fmt: skip


def candidate_seeds() -> list[str]:
    """Candidate lines as browsers send them."""
    return [
        "candidate:1 1 udp 2113937151 192.0.2.7 54321 typ host generation 0 ufrag ab",
        "candidate:2 1 udp 1677729535 198.51.100.4 40000 typ srflx raddr 10.0.0.1 rport 9",
        "candidate:3 1 tcp 1518280447 192.0.2.7 9 typ host tcptype active",
        "candidate:4 1 udp 2113939711 2001:db8::1 50001 typ host",
        "candidate:5 1 udp 2113937151 3f1c6b2e-0000-4d5c-9f2a-aaaaaaaaaaaa.local 9 typ host",
    ]


def message_seeds() -> list[bytes]:
    """One control message of every kind."""
    messages: list[dict[str, object]] = [
        {"type": "set_source", "factor": "exp", "source": "preset", "name": "smile", "fade_ms": 10},
        {"type": "set_gain", "factor": "lip", "gain": 1.0},
        {"type": "set_slider", "factor": "pose", "values": {"yaw": 0.5, "pitch": -0.5}},
        {"type": "pause", "paused": True},
        {"type": "recenter"},
        {"type": "set_mark", "marked": True},
        {"type": "ping", "t_ms": 12.5},
        {"type": "client_stats", "fps": 25.0, "rtt_ms": 3.0, "freezes": 1},
    ]
    return [json.dumps(message).encode() for message in messages]


def image_seeds() -> list[bytes]:
    """A small picture in every accepted format."""
    image = np.random.default_rng(1).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    return [bytes(cv2.imencode(kind, image)[1]) for kind in (".png", ".jpg", ".webp")]


def bombs() -> list[bytes]:
    """Pictures whose headers promise far more pixels than their few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    found = []
    for width, height in (
        (65_535, 65_535),
        (2**31 - 1, 1),
        (20_000, 20_000),
        (0, 5),
        (16_000, 16_000),
    ):
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        rows = zlib.compress(b"\0" * 100_000, 9)
        png = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        )
        found.append(png)
        size = struct.pack(">HH", min(height, 65_535), min(width, 65_535))
        found.append(b"\xff\xd8\xff\xc0\x00\x11\x08" + size + b"\x03" + b"\x11" * 9 + b"\xff\xd9")
    bits = (16_383 | 16_383 << 14).to_bytes(4, "little")
    found.append(
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 10) + b"\x2f" + bits
    )
    return found


def spoil(data: bytes, rng: random.Random) -> bytes:
    """`data` with a few bytes flipped, cut, doubled, swapped or put in."""
    spoiled = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(spoiled) + 1)
        kind = rng.randrange(6)
        if kind == 0 and spoiled:
            spoiled[at % len(spoiled)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del spoiled[at:]
        elif kind == 2:
            del spoiled[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            spoiled[at:at] = spoiled[at : at + rng.randrange(1, 400)]
        elif kind == 4:
            spoiled[at:at] = rng.choice(_NASTY_TEXT).encode("utf-8", "replace")
        else:
            spoiled[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(spoiled)


def spoil_lines(text: str, rng: random.Random) -> str:
    """A description with lines lost, doubled, swapped, or given nasty values."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(lines)) if lines else 0
        kind = rng.randrange(6)
        if not lines or kind == 0:
            lines.insert(
                at,
                rng.choice(("a=", "m=", "c=IN IP4", "a=rtpmap:", "a=fmtp:", "="))
                + rng.choice(_NASTY_TEXT),
            )
        elif kind == 1:
            del lines[at]
        elif kind == 2:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 3:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            parts = lines[at].replace(":", " ").split(" ")
            old = rng.choice(parts)
            lines[at] = lines[at].replace(old, rng.choice(_NASTY_TEXT), 1) if old else lines[at]
    return "\r\n".join(lines)


def malformed_requests(offer: str, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """(what is wrong, body) of `POST /api/sessions`, without end; none of them can be answered."""
    right = {"sdp": offer, "type": "offer", "portrait": "grey"}
    while True:
        yield "no JSON", spoil(b'{"sdp":', rng)
        yield "nested", b"[" * rng.randrange(1000, 90_000)
        yield "nested field", b'{"sdp":' + b'{"a":' * rng.randrange(1000, 9000)
        lost = rng.choice(list(right))
        lacking = {key: value for key, value in right.items() if key != lost}
        yield "lacks a field", json.dumps(lacking).encode()
        yield (
            "wrong kind",
            json.dumps(
                {**right, rng.choice(list(right)): rng.choice([None, 1, [], {}, True])}
            ).encode(),
        )
        yield "unknown field", json.dumps({**right, "more": rng.choice(_NASTY_TEXT)}).encode()
        yield "bad id", json.dumps({**right, "portrait": rng.choice(_NASTY_TEXT) + "/"}).encode()
        yield (
            "bad source",
            json.dumps(
                {**right, "sources": {"pose": {"source": rng.choice(_NASTY_TEXT) + "!"}}}
            ).encode(),
        )
        yield (
            "bad size",
            json.dumps({**right, "size": rng.choice([-1, 0, 511, 2**70, 1e300])}).encode(),
        )
        yield (
            "no description",
            json.dumps({**right, "sdp": rng.choice(_NASTY_TEXT) or "x"}).encode(),
        )
        lost = rng.choice(("a=fingerprint", "a=ice-", "m=video", "m=audio"))
        kept = [line for line in offer.splitlines() if not line.startswith(lost)]
        yield "lacks lines", json.dumps({**right, "sdp": "\r\n".join(kept)}).encode()
        cut = offer[: rng.randrange(1, len(offer) // 3)]
        yield "cut", json.dumps({**right, "sdp": cut}).encode()
        yield "not UTF-8", b'{"sdp":"' + rng.randbytes(20).replace(b'"', b"\xff") + b'\xff"}'
