"""The `control` channel's logic, free of I/O: bounds, dispatch and notices with hysteresis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from realtime.limits import RateLimit
from realtime.pipeline import Pipeline, SourceError
from realtime.protocol import (
    MAX_MESSAGE_BYTES,
    ClientStats,
    Notice,
    Pause,
    Ping,
    Pong,
    Quality,
    Recenter,
    ServerMessage,
    SetGain,
    SetMark,
    SetSlider,
    SetSource,
    State,
    decode_client,
)
from realtime.settings import LIMITS, Limits
from realtime.sources import WebcamStatus

MISSING_AFTER_S = 2.0
FOUND_AFTER_S = 0.5
QUALITY_AFTER_S = 2.0
REPORTS_PER_S, REPORT_BURST = 2.0, 4


class Control:
    """Applies the messages of one client to one pipeline. Belongs to the session's loop."""

    def __init__(
        self,
        pipeline: Pipeline,
        clock: Callable[[], float],
        limits: Limits = LIMITS,
        *,
        mark_required: bool = False,
    ) -> None:
        """`mark_required`: the pictures' mark cannot be switched off."""
        self.client_stats: ClientStats | None = None
        """What the receiver measured last."""
        self.acted_at = clock()
        """When a person last did something here."""
        self._pipeline = pipeline
        self._clock = clock
        self._limits = limits
        self._mark_required = mark_required
        self._rate = RateLimit(limits.messages_per_s, limits.message_burst, clock)
        self._reports = RateLimit(REPORTS_PER_S, REPORT_BURST, clock)
        self._warned_at = float("-inf")

    @property
    def abusive(self) -> bool:
        """Whether the client ignores its limits so much that the session should end."""
        return self._rate.refused > self._limits.message_abuse

    def handle(self, data: bytes) -> list[ServerMessage]:
        """Decode and apply one message; returns the replies. Bad ones change nothing."""
        if not self._rate.allow():
            return self._warn()
        if len(data) > MAX_MESSAGE_BYTES:
            return [Notice("error", "message_too_long", "That message was too long.")]
        try:
            message = decode_client(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return [Notice("error", "message_unknown", f"That message was not understood: {error}")]
        if isinstance(message, Ping):
            return [Pong(message.t_ms)]
        if isinstance(message, ClientStats):
            # More often than the page sends them tells nothing: the excess is not kept.
            if self._reports.allow():
                self.client_stats = message
            return []
        self.acted_at = self._clock()
        try:
            self._apply(message)
        except (SourceError, ValueError) as error:
            return [Notice("error", "source_unusable", str(error)), self.state()]
        return [self.state()]

    def state(self) -> State:
        """Sources, gains and pause as they are now."""
        pipeline = self._pipeline
        return State(pipeline.paused, pipeline.states(), pipeline.marked)

    def _apply(self, message: SetSource | SetGain | SetSlider | Pause | SetMark | Recenter) -> None:
        pipeline = self._pipeline
        if isinstance(message, SetSource):
            pipeline.set_source(message.factor, message.source, message.name, message.fade_ms)
        elif isinstance(message, SetGain):
            pipeline.set_gain(message.factor, message.gain)
        elif isinstance(message, SetSlider):
            pipeline.set_sliders(message.factor, message.values)
        elif isinstance(message, Pause):
            pipeline.set_paused(message.paused)
        elif isinstance(message, SetMark):
            if self._mark_required and not message.marked:
                raise ValueError("This server marks every picture as made by AI.")
            pipeline.marked = message.marked
        else:
            pipeline.recenter()

    def _warn(self) -> list[ServerMessage]:
        now = self._clock()
        if now - self._warned_at < 1.0:
            return []
        self._warned_at = now
        text = "Too many messages at once; some were ignored."
        return [Notice("warning", "too_many_messages", text)]


class FaceNotices:
    """`face_missing` and `face_found`, without chatter."""

    def __init__(self) -> None:
        self._missing = False
        self._since: float | None = None

    def update(self, status: WebcamStatus, now: float) -> Notice | None:
        """Take the webcam's status at `now` (seconds); returns a notice when it is due.

        A face must be missing for 2 s, and then be back for 0.5 s. A webcam that is off is
        nobody's fault.
        """
        if status == "off":
            self._missing, self._since = False, None
            return None
        changes = (status == "searching") != self._missing
        if not changes:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        wait = FOUND_AFTER_S if self._missing else MISSING_AFTER_S
        if now - self._since < wait:
            return None
        self._missing, self._since = not self._missing, None
        if self._missing:
            text = "No face is seen. Sit in front of the camera, in the light."
            return Notice("warning", "face_missing", text)
        return Notice("info", "face_found", "Your face is seen again.")


class QualityNotices:
    """`quality_reduced`, `picture_frozen` and `quality_restored`: each once, and not in a row."""

    def __init__(self) -> None:
        self._told: Literal["full", "reduced", "frozen"] = "full"
        self._since: float | None = None

    def update(self, quality: Quality, now: float) -> Notice | None:
        """Take the present quality at `now` (seconds); returns a notice when it is due.

        A state must last for two seconds before it is worth a sentence.
        """
        state: Literal["full", "reduced", "frozen"] = "full" if quality.level == 0 else "reduced"
        if quality.fps == 0.0:
            state = "frozen"
        if state == self._told:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        if now - self._since < QUALITY_AFTER_S:
            return None
        self._told, self._since = state, None
        why = "The network is slow" if quality.reason == "network" else "The server is busy"
        if state == "frozen":
            text = f"{why}: the picture stands still for a while. Your voice goes on."
            return Notice("warning", "picture_frozen", text)
        if state == "reduced":
            text = f"{why}, so the picture is simpler for a while. Your voice is not affected."
            return Notice("info", "quality_reduced", text)
        return Notice("info", "quality_restored", "The picture is at full quality again.")
