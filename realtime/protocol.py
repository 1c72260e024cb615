"""Messages of the `control` data channel and the JSON of the HTTP API, defined once.

Every message is a JSON object with a `type` field. The page's types
(`web/protocol.d.ts`) are generated from this file by `python -m realtime.protocol`; a
test fails when they differ. Everything that comes from outside is decoded here, with
bounds, by msgspec: a bad message raises `msgspec.ValidationError` and changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 16_384
MAX_SDP_BYTES = 65_536

Factor = Literal["lip", "pose", "eye", "exp"]
SourceKind = Literal["mic", "webcam", "preset", "slider", "idle", "clip"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[\w .-]+$")]
FadeMs = Annotated[int, msgspec.Meta(ge=0, le=5000)]
Gain = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
SliderValue = Annotated[float, msgspec.Meta(ge=-1.0, le=1.0)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all messages; the tag is the class name in snake case."""


# --- client to server ---------------------------------------------------------------


class SetSource(Message, tag="set_source", frozen=True):
    """Take one factor from another source, cross-faded. `name` picks the preset or clip."""

    factor: Factor
    source: SourceKind
    name: Name | None = None
    fade_ms: FadeMs = 250


class SetGain(Message, tag="set_gain", frozen=True):
    """Strength of one factor: 0 is the neutral pose, 1 as read, up to 2."""

    factor: Factor
    gain: Gain


class SetSlider(Message, tag="set_slider", frozen=True):
    """Values of the sliders of one factor, by slider name; unnamed ones keep theirs."""

    factor: Factor
    values: Annotated[dict[Name, SliderValue], msgspec.Meta(max_length=64)]


class Pause(Message, tag="pause", frozen=True):
    """Paused: the portrait idles with a closed mouth and the returned audio is silence."""

    paused: bool


class Recenter(Message, tag="recenter", frozen=True):
    """Take the person's present webcam pose and face as neutral."""


class Ping(Message, tag="ping", frozen=True):
    """Answered at once by `pong` with the same `t_ms` (client clock)."""

    t_ms: float


class ClientStats(Message, tag="client_stats", frozen=True):
    """What the receiver measured: getStats and requestVideoFrameCallback, about once a second."""

    fps: Annotated[float, msgspec.Meta(ge=0, le=1000)]
    jitter_buffer_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    rtt_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    av_skew_ms: Annotated[float, msgspec.Meta(ge=-60_000, le=60_000)] = 0.0
    freezes: Annotated[int, msgspec.Meta(ge=0)] = 0
    frames_dropped: Annotated[int, msgspec.Meta(ge=0)] = 0


ClientMessage = SetSource | SetGain | SetSlider | Pause | Recenter | Ping | ClientStats


# --- server to client ---------------------------------------------------------------


class Slider(msgspec.Struct, frozen=True):
    """One slider of a factor; `label` is for people."""

    name: str
    label: str
    minimum: float = 0.0
    maximum: float = 1.0
    default: float = 0.0


class FactorState(msgspec.Struct, frozen=True):
    """Where one factor comes from now."""

    factor: Factor
    source: SourceKind
    name: str | None
    gain: float


class Hello(Message, tag="hello", frozen=True):
    """First message of the server: what this session is and what it can do."""

    version: int
    session_id: str
    engine: str
    engine_reason: str
    portrait: str
    size: int
    fps: int
    algorithmic_latency_ms: int
    presets: list[str]
    clips: list[str]
    sliders: dict[Factor, list[Slider]]
    allowed_sources: dict[Factor, list[SourceKind]]
    factors: list[FactorState]


class State(Message, tag="state", frozen=True):
    """Sent after every change of sources, gains or pause."""

    paused: bool
    factors: list[FactorState]


class StageMs(msgspec.Struct, frozen=True):
    """Percentiles of one stage over the last seconds, milliseconds."""

    p50: float
    p95: float
    p99: float


class Stats(Message, tag="stats", frozen=True):
    """Once a second. Added latency is mic packet in to avatar packet out, algorithmic part excluded."""

    fps: float
    added_latency_ms: StageMs
    algorithmic_latency_ms: int
    av_skew_ms: float
    frames: int
    late: int
    held: int
    dropped: int
    stages: dict[str, StageMs]
    webcam: Literal["off", "searching", "tracking"]


class Notice(Message, tag="notice", frozen=True):
    """Something a person should know, e.g. code `face_missing`."""

    level: Literal["info", "warning", "error"]
    code: str
    message: str


class Pong(Message, tag="pong", frozen=True):
    """Answer to `ping`."""

    t_ms: float


ServerMessage = Hello | State | Stats | Notice | Pong


# --- HTTP ---------------------------------------------------------------------------


class SourceChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Initial source of one factor."""

    source: SourceKind
    name: Name | None = None


class SessionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /api/sessions`."""

    sdp: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SDP_BYTES)]
    type: Literal["offer"]
    portrait: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9_-]+$")]
    sources: dict[Factor, SourceChoice] = {}
    size: Literal[256, 384, 512] = 512


class SessionAnswer(msgspec.Struct, frozen=True):
    """Answer of `POST /api/sessions`; `token` authorises everything else on this session."""

    sdp: str
    type: Literal["answer"]
    session_id: str
    token: str


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Body of `POST /api/sessions/{id}/candidates`; an empty candidate ends trickling."""

    candidate: Annotated[str, msgspec.Meta(max_length=1024)]
    sdp_mid: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    sdp_m_line_index: Annotated[int, msgspec.Meta(ge=0, le=16)] | None = None
    username_fragment: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class PortraitInfo(msgspec.Struct, frozen=True):
    """One entry of `GET /api/portraits`; `thumbnail` is a URL on this server."""

    id: str
    name: str
    kind: Literal["bundled", "uploaded"]
    thumbnail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457 problem detail, sent as application/problem+json."""

    type: str
    title: str
    status: int
    detail: str = ""
    instance: str = ""


decode_client = msgspec.json.Decoder(ClientMessage).decode
decode_server = msgspec.json.Decoder(ServerMessage).decode
encode = msgspec.json.Encoder().encode
