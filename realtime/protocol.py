"""Messages of the `control` data channel and the JSON of the HTTP API, defined once.

Every message is a JSON object with a `type` field. The page's types
(`web/protocol.d.ts`) are generated from this file by `python -m realtime.protocol`; a
test fails when they differ. Everything that comes from outside is decoded here, with
bounds, by msgspec: a bad message raises `msgspec.ValidationError` and changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import inspect

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 16_384
MAX_SDP_BYTES = 65_536

Factor = Literal["lip", "pose", "eye", "exp"]
SourceKind = Literal["mic", "webcam", "preset", "slider", "idle", "clip"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[\w .-]+$")]
FadeMs = Annotated[int, msgspec.Meta(ge=0, le=5000)]
Gain = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
ReceiverMs = Annotated[float, msgspec.Meta(ge=0, le=60_000)]
ReceiverCount = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
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


class SetMark(Message, tag="set_mark", frozen=True):
    """Lay the visible mark "AI" over every picture, or leave it out where the server allows."""

    marked: bool


class Recenter(Message, tag="recenter", frozen=True):
    """Take the person's present webcam pose and face as neutral."""


class Ping(Message, tag="ping", frozen=True):
    """Answered at once by `pong` with the same `t_ms` (client clock)."""

    t_ms: float


class ClientStats(Message, tag="client_stats", frozen=True):
    """What the receiver measured: getStats and requestVideoFrameCallback, about once a second.

    `present_ms` is from a frame's last packet until it is shown, `glass_ms` from its capture
    by the sender's reports until it is shown, both 95th percentiles; 0 where unknown.
    """

    fps: Annotated[float, msgspec.Meta(ge=0, le=1000)]
    jitter_buffer_ms: ReceiverMs = 0.0
    voice_buffer_ms: ReceiverMs = 0.0
    decode_ms: ReceiverMs = 0.0
    present_ms: ReceiverMs = 0.0
    glass_ms: ReceiverMs = 0.0
    rtt_ms: ReceiverMs = 0.0
    jitter_ms: ReceiverMs = 0.0
    av_skew_ms: Annotated[float, msgspec.Meta(ge=-60_000, le=60_000)] = 0.0
    freezes: ReceiverCount = 0
    freeze_ms: Annotated[float, msgspec.Meta(ge=0, le=86_400_000)] = 0.0
    frames_dropped: ReceiverCount = 0
    packets_lost: ReceiverCount = 0


ClientMessage = SetSource | SetGain | SetSlider | Pause | SetMark | Recenter | Ping | ClientStats


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
    presets: dict[Factor, list[str]]
    clips: list[str]
    sliders: dict[Factor, list[Slider]]
    allowed_sources: dict[Factor, list[SourceKind]]
    factors: list[FactorState]
    mark_required: bool = False
    """The server marks every picture; `set_mark` cannot change that."""


class State(Message, tag="state", frozen=True):
    """Sent after every change of sources, gains, pause or mark."""

    paused: bool
    factors: list[FactorState]
    marked: bool = False
    """Whether the pictures carry the visible mark."""


class StageMs(msgspec.Struct, frozen=True):
    """Percentiles of one stage over the last seconds, milliseconds."""

    p50: float
    p95: float
    p99: float


class Quality(msgspec.Struct, frozen=True):
    """How much picture the session gets now; `reason` says what does not allow for more."""

    level: int = 0
    """0 is full quality, every step costs less."""
    name: str = "full"
    fps: float = 25.0
    size: int = 512
    reason: Literal["none", "machine", "network"] = "none"


class Stats(Message, tag="stats", frozen=True):
    """Once a second. Added latency: mic packet in to avatar packet out, no algorithmic part."""

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
    quality: Quality = Quality()


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
    marked: bool = False
    """Begin with the visible mark in the picture."""


class ResumeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /api/sessions/{id}/resume`: a new peer for a session that lost its own."""

    sdp: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SDP_BYTES)]
    type: Literal["offer"]


class SessionAnswer(msgspec.Struct, frozen=True):
    """Answer of `POST /api/sessions` and of a resume; `token` authorises everything else."""

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


# --- TypeScript ---------------------------------------------------------------------

TYPESCRIPT_FILE = "web/protocol.d.ts"
_ALIASES: dict[str, object] = {"Factor": Factor, "SourceKind": SourceKind}
_UNIONS: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "ClientMessage": get_args(ClientMessage),
    "ServerMessage": get_args(ServerMessage),
}
_PLAIN: tuple[type[msgspec.Struct], ...] = (
    SourceChoice, SessionRequest, ResumeRequest, SessionAnswer, Candidate, PortraitInfo, Problem,
)  # fmt: skip


def typescript() -> str:
    """Return the text of `web/protocol.d.ts`: every message, union and HTTP body as a type.

    `T?` marks a field that a *sender* may leave out; one with a default that only the
    server sends is always there.
    """
    parts = [
        "// Generated by `python -m realtime.protocol` from realtime/protocol.py; do not edit.",
        f"export const PROTOCOL_VERSION: {PROTOCOL_VERSION};",
    ]
    literals = {get_args(alias): name for name, alias in _ALIASES.items()}
    for values, name in literals.items():
        parts.append(f"export type {name} = {' | '.join(map(json.dumps, values))};")
    structs: dict[str, inspect.StructType] = {}
    for cls in (*_UNIONS["ClientMessage"], *_UNIONS["ServerMessage"], *_PLAIN):
        _collect(inspect.type_info(cls), structs)
    sent: list[type[msgspec.Struct]] = [SourceChoice, SessionRequest, ResumeRequest, Candidate]
    sent += _UNIONS["ClientMessage"]
    for name, struct in structs.items():
        parts.append(_interface(name, struct, literals, optional=struct.cls in sent))
    for name, members in _UNIONS.items():
        parts.append(f"export type {name} = {' | '.join(cls.__name__ for cls in members)};")
    return "\n\n".join(parts) + "\n"


def _collect(info: inspect.Type, structs: dict[str, inspect.StructType]) -> None:
    """Find all structs below `info`, the contained ones first."""
    if isinstance(info, inspect.StructType):
        for field in info.fields:
            _collect(field.type, structs)
        structs.setdefault(info.cls.__name__, info)
    elif isinstance(info, inspect.ListType):
        _collect(info.item_type, structs)
    elif isinstance(info, inspect.DictType):
        _collect(info.value_type, structs)
    elif isinstance(info, inspect.UnionType):
        for member in info.types:
            _collect(member, structs)


def _interface(
    name: str,
    struct: inspect.StructType,
    literals: dict[tuple[object, ...], str],
    *,
    optional: bool,
) -> str:
    doc = " ".join((struct.cls.__doc__ or "").split())
    lines = [f"/** {doc} */", f"export interface {name} {{"]
    if struct.tag_field is not None:
        lines.append(f"  {struct.tag_field}: {json.dumps(struct.tag)};")
    for field in struct.fields:
        may_lack = optional or struct.cls.__struct_config__.omit_defaults
        mark = "?" if may_lack and not field.required else ""
        text = _typescript_type(field.type, literals, partial=optional)
        lines.append(f"  {field.encode_name}{mark}: {text};")
    return "\n".join([*lines, "}"])


def _typescript_type(
    info: inspect.Type, literals: dict[tuple[object, ...], str], *, partial: bool
) -> str:
    """The type of one field; `partial` dictionaries need not have all keys."""
    if isinstance(info, inspect.LiteralType):
        named = [name for values, name in literals.items() if set(values) == set(info.values)]
        return named[0] if named else " | ".join(map(json.dumps, info.values))
    if isinstance(info, inspect.StructType):
        return info.cls.__name__
    if isinstance(info, inspect.ListType):
        item = _typescript_type(info.item_type, literals, partial=partial)
        return f"({item})[]" if " " in item else f"{item}[]"
    if isinstance(info, inspect.DictType):
        key = _typescript_type(info.key_type, literals, partial=partial)
        value = _typescript_type(info.value_type, literals, partial=partial)
        record = f"Record<{key}, {value}>"
        return f"Partial<{record}>" if partial and key != "string" else record
    if isinstance(info, inspect.UnionType):
        return " | ".join(_typescript_type(m, literals, partial=partial) for m in info.types)
    simple = {
        inspect.StrType: "string", inspect.IntType: "number", inspect.FloatType: "number",
        inspect.BoolType: "boolean", inspect.NoneType: "null",
    }  # fmt: skip
    return simple[type(info)]


def main() -> None:
    """Write `web/protocol.d.ts` of this checkout."""
    path = Path(__file__).resolve().parent.parent / TYPESCRIPT_FILE
    path.write_text(typescript(), encoding="utf-8")


if __name__ == "__main__":
    main()
