"""What one session is, and how it introduces itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.codes import Factor
from models.config import ModelConfig
from models.portrait import Portrait
from models.rates import FPS
from realtime.pipeline import ALLOWED_SOURCES
from realtime.presets import preset_names
from realtime.protocol import PROTOCOL_VERSION, FactorState, Hello, SourceKind
from realtime.rtc import PeerOptions
from realtime.sources import Clip, slider_list


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What one session is."""

    portrait: Portrait
    size: int
    config: ModelConfig
    engine: str
    engine_reason: str
    sources: Mapping[Factor, tuple[SourceKind, str | None]] = field(default_factory=dict)
    clips: Mapping[str, Clip] = field(default_factory=dict)
    idle_s: float = 0.0
    resume_s: float = 0.0
    """How long a session waits for its vanished peer; 0: not at all."""
    address: str = ""
    peer: PeerOptions = field(default_factory=PeerOptions)
    prefix: str = ""
    """What the session's id begins with: names the process it lives in (`realtime.cluster`)."""
    stamp: bool = False
    """Draw the frame's number into every picture (measurements only)."""
    trace: bool = False
    """Begin a trace at once."""
    marked: bool = False
    """Begin with the visible mark in every picture."""
    mark_required: bool = False
    """Mark every picture, whatever the client wants."""


def hello(spec: SessionSpec, session_id: str, factors: Sequence[FactorState]) -> Hello:
    """The first message of a session: what it is and what it can do."""
    return Hello(
        version=PROTOCOL_VERSION,
        session_id=session_id,
        engine=spec.engine,
        engine_reason=spec.engine_reason,
        portrait=spec.portrait.name,
        size=spec.size,
        fps=FPS,
        algorithmic_latency_ms=spec.config.lookahead_ms,
        presets=preset_names(),
        clips=sorted(spec.clips),
        sliders={factor: slider_list(factor) for factor in ALLOWED_SOURCES},
        allowed_sources={f: list(kinds) for f, kinds in ALLOWED_SOURCES.items()},
        factors=list(factors),
        mark_required=spec.mark_required,
    )
