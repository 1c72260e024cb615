"""`visavis bench` and `visavis bench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from realtime.bench.errors import BenchError
from realtime.settings import EngineChoice

bench_app = typer.Typer(
    invoke_without_command=True,
    help="Measure connection time, latency, steadiness and sync from a client's side.",
)
_err = Console(stderr=True)
BATCHES = (1, 2, 4, 8)

Percent = Annotated[float, typer.Option(min=0, max=99)]


def _fail(message: str) -> typer.Exit:
    _err.print(f"visavis: {message}", style="red", highlight=False, markup=False)
    return typer.Exit(1)


def parse_stretch(text: str) -> tuple[float, float]:
    """`FROM-TO` in seconds of the conversation. Raises ValueError."""
    begin, dash, end = text.partition("-")
    try:
        low, high = float(begin), float(end)
    except ValueError:
        low, high = 0.0, -1.0
    if not dash or not 0 <= low < high:
        raise ValueError(f"{text!r} is no stretch: FROM-TO in seconds, e.g. 15-17")
    return low, high


@bench_app.callback()
def bench(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="Server to measure; without it one is started.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="Speech to say; WAV or anything.")] = None,
    video: Annotated[Path | None, typer.Option(help="Webcam video to show.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to speak.", min=2, max=7200)] = 10.0,
    sessions: Annotated[int, typer.Option(help="Clients at a time.", min=1, max=64)] = 1,
    portrait: Annotated[str | None, typer.Option(help="Portrait id; the first one else.")] = None,
    size: Annotated[int, typer.Option(help="Picture size: 256, 384 or 512.")] = 512,
    engine: Annotated[EngineChoice, typer.Option(help="Runtime of an own server.")] = "auto",
    loss: Annotated[float, typer.Option(help="Percent of packets lost, each way.")] = 0.0,
    burst: Annotated[float, typer.Option(help="Packets lost in a row, on average.")] = 1.0,
    delay: Annotated[float, typer.Option(help="Milliseconds more, each way.")] = 0.0,
    jitter: Annotated[float, typer.Option(help="Up to so many milliseconds more.")] = 0.0,
    reorder: Annotated[float, typer.Option(help="Percent of packets overtaken.")] = 0.0,
    duplicate: Annotated[float, typer.Option(help="Percent of packets doubled.")] = 0.0,
    rate: Annotated[float, typer.Option(help="Bottleneck in kbit/s, each way.")] = 0.0,
    impair_seconds: Annotated[
        str | None, typer.Option(metavar="FROM-TO", help="Impair only in these seconds.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the impairment.", min=0)] = 1,
    against_stock: Annotated[
        bool, typer.Option("--against-stock", help="Alternate with a server on stock aiortc.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="Turns of each, when two alternate.", min=1)] = 2,
    browser: Annotated[
        bool, typer.Option("--browser", help="Let Chromium converse too; report what it measures.")
    ] = False,
    engine_only: Annotated[
        bool, typer.Option("--engine-only", help="Only the networks, without a network.")
    ] = False,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size of --engine-only; may be repeated.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a report with plots to this file.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for Perfetto or chrome://tracing.")
    ] = None,
) -> None:
    """Measure connection time, latency, steadiness and sync from a client's side."""
    if context.invoked_subcommand is not None:
        return
    from realtime.bench.html import html_report
    from realtime.bench.impair import Impairment
    from realtime.bench.run import BenchOptions, run_bench

    if engine_only:
        _run_engine_only(engine, batch or list(BATCHES), seconds, json_file)
        return
    try:
        stretch = parse_stretch(impair_seconds) if impair_seconds else (0.0, None)
        impairment = Impairment(
            loss, burst, delay, jitter, reorder, duplicate, rate, from_s=stretch[0], to_s=stretch[1]
        )
        report = run_bench(
            BenchOptions(
                url=url, audio=audio, video=video, seconds=seconds, sessions=sessions,
                portrait=portrait, size=size, impairment=impairment, seed=seed,
                against_stock=against_stock, rounds=rounds, browser=browser, trace=trace,
                serve_args=("--engine", engine),
            )
        )  # fmt: skip
    except (BenchError, ValueError) as error:
        raise _fail(str(error)) from None
    if json_file is not None:
        json_file.write_bytes(report.to_json() + b"\n")
    if html_file is not None:
        html_file.write_text(html_report(report), encoding="utf-8")
    _show(report)


def _show(report: Any) -> None:
    from realtime.bench.compare import compare_arms, comparison_table
    from realtime.bench.table import footer, tables

    console = Console()
    for table in tables(report):
        console.print(table)
    if len(report.arms) == 2:
        ours, stock = report.arms
        console.print(comparison_table((stock.name, ours.name), compare_arms(stock, ours)))
    for line in footer(report):
        console.print(line, markup=False, highlight=False)


def _run_engine_only(
    engine: str, batches: list[int], seconds: float, json_file: Path | None
) -> None:
    """The networks alone, by `realtime.engine_bench`, which may need what a client does not."""
    from models.runtime.engine import EngineError
    from realtime.engine_bench import run_engine_bench

    try:
        run_engine_bench(engine, batches, seconds, json_file)
    except EngineError as error:
        raise _fail(str(error)) from None


@bench_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="JSON of one run.")],
    b: Annotated[Path, typer.Argument(help="JSON of another run.")],
) -> None:
    """Say in ratios how run B differs from run A, and what of it stands out of the noise."""
    from realtime.bench.compare import compare_arms, comparison_table, differences
    from realtime.bench.schema import load_report

    try:
        one, other = load_report(a), load_report(b)
    except BenchError as error:
        raise _fail(str(error)) from None
    console = Console()
    for difference in differences(one, other):
        console.print(f"not alike: {difference}", style="yellow", markup=False, highlight=False)
    for mine in one.arms:
        for theirs in (arm for arm in other.arms if arm.name == mine.name):
            names = (f"{a.name} {mine.name}", f"{b.name} {theirs.name}")
            console.print(comparison_table(names, compare_arms(mine, theirs)))
