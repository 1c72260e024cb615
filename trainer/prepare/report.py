"""What happened to every second of every file, for a person and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from models.rates import FPS


@dataclass(slots=True)
class FileReport:
    """One video."""

    file: str
    seconds: float = 0.0
    kept_s: float = 0.0
    clips: int = 0
    error: str = ""
    """Why nothing of the file was used; empty if something was."""
    dropped_s: dict[str, float] = field(default_factory=dict)
    """Seconds by reason."""
    offset_frames: float = 0.0
    sync_r: float = 0.0

    def drop(self, reason: str, frames: int) -> None:
        """Count frames that are not used."""
        if frames <= 0:
            return
        self.dropped_s[reason] = round(self.dropped_s.get(reason, 0.0) + frames / FPS, 2)


@dataclass(slots=True)
class Report:
    """All files of one run."""

    files: list[FileReport] = field(default_factory=list)
    people: dict[str, float] = field(default_factory=dict)
    """Seconds kept by person."""
    held_out: list[str] = field(default_factory=list)
    split: str = ""
    warnings: list[str] = field(default_factory=list)
    resumed: int = 0
    """Files that were done in an earlier run."""

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return asdict(self)

    def text(self) -> str:
        """Everything that matters, for a person."""
        total, kept = (sum(getattr(f, k) for f in self.files) for k in ("seconds", "kept_s"))
        clips = sum(f.clips for f in self.files)
        lines = [
            f"{counted(len(self.files), 'file')}, {_time(total)}; kept {_time(kept)} in "
            f"{counted(clips, 'clip')} of {counted(len(self.people), 'person', 'people')}.",
        ]
        if self.resumed:
            lines.append(f"Done before and not read again: {counted(self.resumed, 'file')}.")
        reasons: dict[str, float] = {}
        for file in self.files:
            for reason, seconds in file.dropped_s.items():
                reasons[reason] = reasons.get(reason, 0.0) + seconds
        if reasons:
            lines.append("Dropped:")
            for reason, seconds in sorted(reasons.items(), key=lambda r: -r[1]):
                lines.append(f"  {_time(seconds):>10}  {reason}")
        corrected = [f for f in self.files if f.clips and f.offset_frames]
        for file in corrected:
            late = "late" if file.offset_frames > 0 else "early"
            lines.append(
                f"  {file.file}: lips were {abs(file.offset_frames) * 1000 / FPS:.0f} ms {late}; "
                "the sound was moved"
            )
        unused = [f for f in self.files if f.error]
        if unused:
            lines.append("Not used at all:")
            lines += [f"  {f.file}: {f.error}" for f in unused]
        if self.split:
            lines.append(self.split)
        lines += [f"Note: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def counted(number: int, one: str, many: str = "") -> str:
    """`1 clip`, `2 clips`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"
