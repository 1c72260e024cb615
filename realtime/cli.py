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

from realtime.bench.command import bench_app
from realtime.logs import LogFormat, configure
from realtime.settings import EngineChoice, PrecisionChoice, RtcChoice, Settings

COMMAND_GROUP = "visavis.commands"

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="A portrait moved live by your microphone and webcam.",
)  # fmt: skip
app.add_typer(bench_app, name="bench")
_err = Console(stderr=True)
_log = logging.getLogger("visavis.cli")

Engine = Annotated[EngineChoice, typer.Option(help="Which runtime draws.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Folder of the networks; the shipped one by default.")
]
Precision = Annotated[
    PrecisionChoice, typer.Option(help="Numbers of the CPU engine; auto: INT8 where it is quick.")
]
Mark = Annotated[
    bool,
    typer.Option("--mark", envvar="VISAVIS_MARK", help='Show "AI" in the corner of every picture.'),
]
Threads = Annotated[int, typer.Option(help="Inference threads; 0: by the processor.", min=0)]


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
    precision: Precision = "auto",
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
    udp_ports: Annotated[
        str | None, typer.Option(help="FIRST-LAST: UDP ports for media, to open in a firewall.")
    ] = None,
    video_kbps: Annotated[
        int, typer.Option(help="Most that a session's pictures may take; 0: by size.", min=0)
    ] = 0,
    playout_delay: Annotated[
        str | None, typer.Option(help="MIN-MAX ms that viewers shall add; their choice else.")
    ] = None,
    rtc: Annotated[RtcChoice, typer.Option(hidden=True)] = "visavis",
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Answer only to this name; may be repeated.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file; makes it https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens.")] = False,
    log_format: Annotated[LogFormat, typer.Option(help="Logs for people or machines.")] = "text",
    processes: Annotated[
        int, typer.Option(help="Server processes behind the one URL.", min=1, max=64)
    ] = 1,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="Another site whose pages may use this server; may be repeated."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address whose X-Forwarded-For is believed; may be repeated."),
    ] = None,
    sessions_per_address: Annotated[
        int, typer.Option(help="Conversations of one address; 0: no limit.", min=0)
    ] = 0,
    mark: Mark = False,
    trace: Annotated[bool, typer.Option("--trace", help="Trace every session.")] = False,
    stamp: Annotated[bool, typer.Option("--stamp", hidden=True)] = False,
) -> None:
    """Run the server and its page."""
    configure(log_format, verbose=verbose)
    for folder in (*(portraits or ()), *(clips or ())):
        if not folder.is_dir():
            raise fail(f"{folder} is not a folder.")
    try:
        settings = Settings(
            host=host, port=port, engine=engine, checkpoint=checkpoint, threads=threads,
            precision=precision,
            max_size_px=size, max_sessions=max_sessions,
            portrait_dirs=tuple(portraits or ()), clip_dirs=tuple(clips or ()),
            idle_s=idle_minutes * 60,
            ice_servers=tuple(parse_ice_server(text) for text in ice_server or ()),
            udp_ports=parse_span(udp_ports, "--udp-ports"), max_video_bps=video_kbps * 1000,
            playout_delay_ms=parse_span(playout_delay, "--playout-delay"), rtc=rtc,
            public_ip=public_ip, allowed_hosts=tuple(allowed_host or ()),
            tls_certificate=tls_certificate, tls_key=tls_key,
            processes=min(processes, max_sessions), allowed_origins=tuple(allowed_origin or ()),
            trusted_proxies=tuple(trusted_proxy or ()),
            max_sessions_per_address=sessions_per_address, trace=trace, stamp=stamp,
            mark=mark,
        )  # fmt: skip
    except ValueError as error:
        raise fail(str(error)) from None
    from realtime.serve import ServeError, run_server

    try:
        run_server(settings)
    except ServeError as error:
        raise fail(str(error)) from None


def parse_span(text: str | None, option: str) -> tuple[int, int] | None:
    """`A-B` -> (A, B); one number is both. Raises ValueError."""
    if text is None:
        return None
    low, _, high = text.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal():
        raise ValueError(f"{option} takes FIRST-LAST, not {text!r}")
    return int(low), int(high or low)


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
    precision: Precision = "auto",
    mark: Mark = False,
) -> None:
    """Make a video file with the live pipeline."""
    from models.checkpoint import CheckpointError
    from models.runtime.engine import EngineError
    from realtime.render import RenderError, RenderOptions, render_with_progress

    options = RenderOptions(
        portrait=portrait, audio=audio, output=output, pose=pose, eyes=eyes,
        expression=expression, lip=lip, size=size, engine=engine, checkpoint=checkpoint,
        threads=threads, precision=precision, mark=mark,
    )  # fmt: skip
    try:
        report = render_with_progress(options)
    except (RenderError, EngineError, CheckpointError) as error:
        raise fail(str(error)) from None
    print(
        f"{output}: {report.frames} frames, {report.seconds:.1f} s, "
        f"{report.speed:.1f} times real time with {report.engine}"
    )


# --- doctor ---------------------------------------------------------------------------


@app.command()
def doctor(
    host: Annotated[str, typer.Option(help="Address it would listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port it would use.")] = 8080,
    engine: Engine = "auto",
    checkpoint: Checkpoint = None,
    threads: Threads = 0,
    ice_server: Annotated[
        list[str] | None, typer.Option(help="As for serve: is it reachable? May be repeated.")
    ] = None,
    public_ip: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    udp_ports: Annotated[
        str | None, typer.Option(help="As for serve: are they free, and enough?")
    ] = None,
) -> None:
    """Say what would run here and why, and what would keep it from working."""
    from realtime.doctor import examine

    try:
        settings = Settings(
            host=host, port=port, engine=engine, checkpoint=checkpoint, threads=threads,
            ice_servers=tuple(parse_ice_server(text) for text in ice_server or ()),
            public_ip=public_ip, udp_ports=parse_span(udp_ports, "--udp-ports"),
        )  # fmt: skip
    except ValueError as error:
        raise fail(str(error)) from None
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


def main() -> None:
    """Run the command line; other packages' commands are looked up now, not on import."""
    register_others()
    app()


if __name__ == "__main__":
    main()
