"""The wire protocol: round trips, bounds, and the generated TypeScript."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import protocol
from realtime.protocol import (
    Candidate,
    ClientMessage,
    Notice,
    Pong,
    ServerMessage,
    SessionRequest,
    SetSlider,
    SetSource,
    decode_client,
    decode_server,
    encode,
    typescript,
)

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def test_messages_survive_the_wire() -> None:
    for message in (SetSource("exp", "preset", "smile"), SetSlider("pose", {"yaw": -1.0})):
        assert decode_client(encode(message)) == message
    for reply in (Notice("info", "face_found", "seen"), Pong(1.5)):
        assert decode_server(encode(reply)) == reply


def test_every_message_has_its_own_tag() -> None:
    for union in (ClientMessage, ServerMessage):
        tags = [cls.__struct_config__.tag for cls in get_args(union)]
        assert len(set(tags)) == len(tags)
        for cls in get_args(union):
            snake = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
            assert cls.__struct_config__.tag == snake


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(data: bytes) -> None:
    try:
        decode_client(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"sdp": "", "type": "offer", "portrait": "a"},
        {"sdp": "x", "type": "answer", "portrait": "a"},
        {"sdp": "x", "type": "offer", "portrait": "../a"},
        {"sdp": "x", "type": "offer", "portrait": "a", "size": 4096},
        {"sdp": "x", "type": "offer", "portrait": "a", "extra": 1},
        {"sdp": "x", "type": "offer", "portrait": "a", "sources": {"nose": {"source": "mic"}}},
        {"sdp": "x" * 70_000, "type": "offer", "portrait": "a"},
    ],
)
def test_a_session_request_out_of_bounds_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(body).encode(), type=SessionRequest)


def test_candidates_use_the_browsers_names() -> None:
    raw = b'{"candidate":"c","sdpMid":"0","sdpMLineIndex":0,"usernameFragment":null}'
    assert msgspec.json.decode(raw, type=Candidate) == Candidate("c", "0", 0, None)


def test_the_pages_types_are_generated_from_the_protocol() -> None:
    path = ROOT / protocol.TYPESCRIPT_FILE
    assert path.read_text(encoding="utf-8") == typescript(), (
        "run `python -m realtime.protocol` (or `make generated`) and commit web/protocol.d.ts"
    )


def test_the_types_say_what_may_be_left_out_and_what_may_be_null() -> None:
    text = typescript()
    assert "name?: string | null;" in text
    assert "fade_ms?: number;" in text
    assert 'type: "set_source";' in text
    assert "sliders: Record<Factor, Slider[]>;" in text
    assert "size?: 256 | 384 | 512;" in text
    assert "sdpMLineIndex?: number | null;" in text
    assert "export type ServerMessage = Hello | State | Stats | Notice | Pong;" in text
    assert text.count("{") == text.count("}")
