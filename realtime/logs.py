"""Logs for people or for machines; never media, never an address.

`--log-format json` writes one object per line: time (UTC), level, logger, message, and
where they are known `session` and `pts` (90 kHz ticks on the session clock), given through
`extra=`. Addresses that a library puts into its text are taken out in both formats.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
from typing import IO, Literal

LogFormat = Literal["text", "json"]

#: The only things that may come with a record besides its text.
FIELDS = ("session", "pts", "frame", "reason", "stage", "status")
HIDDEN = "(address)"
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_V4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_V6 = re.compile(r"(?<![\w:])[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(?![\w])")
_NOISY = ("aioice", "aiortc")


def configure(
    style: LogFormat = "text", *, verbose: bool = False, stream: IO[str] | None = None
) -> None:
    """Set the root logger up, once per process; `stream` is stderr by default."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter(_TEXT))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose or style == "json" else logging.WARNING)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """The usual line, without addresses; the session's id at its end."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        session = getattr(record, "session", None)
        text = super().format(record)
        return hide_addresses(f"{text} [session {session}]" if session else text)


class JsonFormatter(logging.Formatter):
    """One record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as JSON without line breaks."""
        out: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}"
            f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide_addresses(record.getMessage()),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if isinstance(value, (str, int, float)):
                out[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            out["error"] = record.exc_info[0].__name__
            out["trace"] = hide_addresses(self.formatException(record.exc_info))
        return json.dumps(out, ensure_ascii=False)


def hide_addresses(text: str) -> str:
    """Put `(address)` in place of everything that is an IPv4 or IPv6 address."""
    text = _V4.sub(lambda found: HIDDEN if _is_address(found[0]) else found[0], text)
    return _V6.sub(lambda found: HIDDEN if _is_address(found[0]) else found[0], text)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.rstrip("."))
    except ValueError:
        return False
    return True
