"""The `visavis` command.

Commands that do not belong to the server (prepare, train, evaluate, export) register
themselves: every entry point of the group `visavis.commands` is a function that takes
this module's `app` and adds its commands, so the server never imports the trainer.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from realtime.settings import EngineChoice, Settings

COMMAND_GROUP = "visavis.commands"

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="A portrait moved live by your microphone and webcam.",
)  # fmt: skip
_err = Console(stderr=True)
_log = logging.getLogger("visavis.cli")

Engine = Annotated[EngineChoice, typer.Option(help="Which runtime draws.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Folder of the networks; the shipped one by default.")
]
Threads = Annotated[int, typer.Option(help="Inference threads; 0: the engine chooses.", min=0)]


def fail(message: str) -> typer.Exit:
    """Say what went wrong on stderr; raise the result."""
    _err.print(f"visavis: {message}", style="red", highlight=False)
    return typer.Exit(1)


# --- serve ----------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8080,
    engine: Engine = "auto",
    checkpoint: Checkpoint = None,
    threads: Threads = 0,
    size: Annotated[int, typer.Option(help="Largest picture: 256, 384 or 512 pixels.")] = 512,
    max_sessions: Annotated[int, typer.Option(help="Conversations at a time.", min=1)] = 4,
    portraits: Annotated[
        list[Path] | None, typer.Option(help="Folder with more portraits; may be repeated.")
    ] = None,
    clips: Annotated[
        list[Path] | None, typer.Option(help="Folder with driving clips; may be repeated.")
    ] = None,
    idle_minutes: Annotated[float, typer.Option(help="End idle sessions; 0: never.")] = 30.0,
    ice_server: Annotated[
        list[str] | None,
        typer.Option(help="stun:HOST[:PORT] or turn:HOST[:PORT]|USER|PASSWORD; may be repeated."),
    ] = None,
    public_ip: Annotated[
        str | None, typer.Option(help="Address to announce instead of private ones (NAT 1:1).")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Answer only to this name; may be repeated.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file; makes it https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens.")] = False,
) -> None:
    """Run the server and its page."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("aioice", "aiortc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for folder in (*(portraits or ()), *(clips or ())):
        if not folder.is_dir():
            raise fail(f"{folder} is not a folder.")
    try:
        settings = Settings(
            host=host, port=port, engine=engine, checkpoint=checkpoint, threads=threads,
            max_size_px=size, max_sessions=max_sessions,
            portrait_dirs=tuple(portraits or ()), clip_dirs=tuple(clips or ()),
            idle_s=idle_minutes * 60,
            ice_servers=tuple(parse_ice_server(text) for text in ice_server or ()),
            public_ip=public_ip, allowed_hosts=tuple(allowed_host or ()),
            tls_certificate=tls_certificate, tls_key=tls_key,
        )  # fmt: skip
    except ValueError as error:
        raise fail(str(error)) from None
    from realtime.serve import ServeError, run_server

    try:
        run_server(settings)
    except ServeError as error:
        raise fail(str(error)) from None


def parse_ice_server(text: str) -> Any:
    """`url` or `url|username|credential` -> IceServer. Raises ValueError."""
    from realtime.rtc import IceServer

    parts = text.split("|")
    if not text.startswith(("stun:", "stuns:", "turn:", "turns:")) or len(parts) not in (1, 3):
        raise ValueError(f"{text!r} is no ICE server: stun:HOST or turn:HOST|USER|PASSWORD")
    return IceServer(*parts)


# --- render ---------------------------------------------------------------------------
@app.command()
def render(
    portrait: Annotated[str, typer.Option(help="Picture, or the id of a bundled portrait.")],
    audio: Annotated[Path, typer.Option(help="What is said; WAV or anything with sound.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="MP4 file to write.")],
    pose: Annotated[Path | None, typer.Option(help="Video that moves the head.")] = None,
    eyes: Annotated[Path | None, typer.Option(help="Video that moves gaze and lids.")] = None,
    expression: Annotated[
        str | None, typer.Option(help="Video, or an expression preset's name.")
    ] = None,
    lip: Annotated[str, typer.Option(help="'audio', or a video that moves the lips.")] = "audio",
    size: Annotated[int, typer.Option(help="Side of the picture in pixels.")] = 512,
    engine: Engine = "auto",
    checkpoint: Checkpoint = None,
    threads: Threads = 0,
) -> None:
    """Make a video file with the live pipeline."""
    from models.checkpoint import CheckpointError
    from models.runtime.engine import EngineError
    from realtime.render import RenderError, RenderOptions, render_with_progress

    options = RenderOptions(
        portrait=portrait, audio=audio, output=output, pose=pose, eyes=eyes,
        expression=expression, lip=lip, size=size, engine=engine, checkpoint=checkpoint,
        threads=threads,
    )  # fmt: skip
    try:
        report = render_with_progress(options)
    except (RenderError, EngineError, CheckpointError) as error:
        raise fail(str(error)) from None
    print(
        f"{output}: {report.frames} frames, {report.seconds:.1f} s, "
        f"{report.speed:.1f} times real time with {report.engine}"
    )


# --- bench ----------------------------------------------------------------------------


@app.command()
def bench(
    url: Annotated[
        str | None, typer.Option(help="Server to measure; without it one is started.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="Speech to say; WAV or anything.")] = None,
    video: Annotated[Path | None, typer.Option(help="Webcam video to show.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to speak.", min=2, max=3600)] = 10.0,
    sessions: Annotated[int, typer.Option(help="Clients at a time.", min=1, max=64)] = 1,
    portrait: Annotated[str | None, typer.Option(help="Portrait id; the first one else.")] = None,
    size: Annotated[int, typer.Option(help="Picture size: 256, 384 or 512.")] = 512,
    engine: Annotated[EngineChoice, typer.Option(help="Runtime of an own server.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
) -> None:
    """Measure connection time, latency, steadiness and sync from a client's side."""
    from realtime.bench import BenchError, BenchOptions, run_bench

    options = BenchOptions(
        url=url, audio=audio, video=video, seconds=seconds, sessions=sessions,
        portrait=portrait, size=size, serve_args=("--engine", engine),
    )  # fmt: skip
    try:
        result = run_bench(options)
    except BenchError as error:
        raise fail(str(error)) from None
    if json_file is not None:
        json_file.write_text(result.to_json() + "\n")
    console = Console()
    for number, session in enumerate(result.sessions, 1):
        console.print(bench_table(f"session {number} of {len(result.sessions)}", session))
    rss = [f"{mb:.0f} MB" if mb else "unknown" for mb in (result.rss_start_mb, result.rss_end_mb)]
    console.print(f"Server memory {rss[0]} at the start, {rss[1]} at the end; {result.url}")
    console.print(", ".join(f"{key} {value}" for key, value in result.machine.items()))


def bench_table(title: str, session: Any) -> Table:
    """One `realtime.bench.SessionResult` for a person."""
    table = Table(title=title, title_justify="left")
    for column in ("", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if not column else "right")

    def percentiles(name: str, stage: Any) -> None:
        if stage is not None:
            table.add_row(name, *(f"{value:.1f} ms" for value in (stage.p50, stage.p95, stage.p99)))

    table.add_row("connected after", f"{session.connect_ms:.0f} ms")
    table.add_row("first picture after", f"{session.first_frame_ms:.0f} ms")
    table.add_row("pictures", f"{session.frames}, {session.fps:.1f} fps")
    percentiles("between pictures", session.interval_ms)
    percentiles("said to seen", session.picture_ms)
    percentiles("said to heard", session.voice_ms)
    if session.av_skew_ms is not None:
        table.add_row("picture later than voice", f"{session.av_skew_ms:.1f} ms")
    server = session.server
    if server is not None:
        table.add_section()
        percentiles("server adds", server.added_latency_ms)
        table.add_row("algorithmic, besides", f"{server.algorithmic_latency_ms} ms")
        for name, stage in server.stages.items():
            percentiles(f"  {name}", stage)
        table.add_row("late / held / dropped", f"{server.late} / {server.held} / {server.dropped}")
        table.add_row("skew at the server", f"{server.av_skew_ms:.1f} ms")
    for notice in session.notices:
        table.add_row("notice", notice)
    return table


# --- doctor ---------------------------------------------------------------------------


@app.command()
def doctor(
    host: Annotated[str, typer.Option(help="Address it would listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port it would use.")] = 8080,
    engine: Engine = "auto",
    checkpoint: Checkpoint = None,
    threads: Threads = 0,
) -> None:
    """Say what would run here and why, and what would keep it from working."""
    from realtime.doctor import examine

    settings = Settings(host=host, port=port, engine=engine, checkpoint=checkpoint, threads=threads)
    console = Console(highlight=False)
    styles = {"ok": "green", "warning": "yellow", "problem": "red"}
    problems = 0
    for check in examine(settings):
        mark = f"[{styles[check.verdict]}]{check.verdict:8}[/]"
        console.print(f"{mark} {check.subject}: ", end="")
        console.print(check.detail, markup=False)
        if check.fix:
            console.print(f"         -> {check.fix}", markup=False)
        problems += check.verdict == "problem"
    if problems:
        raise typer.Exit(1)


def register_others() -> None:
    """Let other installed packages add their commands; a broken one is named, not fatal."""
    for entry in entry_points(group=COMMAND_GROUP):
        try:
            entry.load()(app)
        except Exception as error:
            _log.warning("the command %s is not available: %s", entry.name, error)


register_others()

if __name__ == "__main__":
    app()
