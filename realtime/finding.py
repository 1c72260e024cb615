"""One finding of `visavis doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """`fix` is a command or a sentence; empty when nothing is to be done."""

    verdict: Verdict
    subject: str
    detail: str
    fix: str = ""
