"""A whole measurement: servers, clients, figures, report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.rates import FRAME_S
from realtime.bench.browser import browse
from realtime.bench.client import Plan, Record, run_clients
from realtime.bench.errors import BenchError
from realtime.bench.impair import Impairment
from realtime.bench.measure import evaluate
from realtime.bench.media import load_pictures, load_voice
from realtime.bench.path import PathLoop
from realtime.bench.schema import SCHEMA_VERSION, Arm, Report, Series, ServerUse
from realtime.bench.site import machine, warnings
from realtime.bench.web import ServerWatch, first_portrait, own_server, server_facts

OURS, STOCK = "visavis", "stock"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure. Without `url` a server is started for the occasion."""

    url: str | None = None
    audio: Path | None = None
    video: Path | None = None
    seconds: float = 10.0
    sessions: int = 1
    portrait: str | None = None
    size: int = 512
    impairment: Impairment = field(default_factory=Impairment)
    seed: int = 1
    against_stock: bool = False
    rounds: int = 2
    """Turns of each server when two are compared; they alternate."""
    browser: bool = False
    """Let a Chromium converse too, after the clients."""
    trace: Path | None = None
    """Write the first session's trace there."""
    serve_args: tuple[str, ...] = ()


def run_bench(options: BenchOptions) -> Report:
    """Measure; blocks for about `seconds` plus the servers' start. Raises BenchError."""
    if options.against_stock and options.url is not None:
        raise BenchError("--against-stock starts both servers itself: leave --url out.")
    plans = make_plans(options)
    facts = machine()
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(server) for name, server in _servers(options)}
        facts |= server_facts(next(iter(urls.values())))
        arms = _measure(options, plans, urls)
    return Report(
        schema_version=SCHEMA_VERSION,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=facts,
        settings=_settings(options),
        arms=arms,
        warnings=warnings(facts),
    )


def make_plans(options: BenchOptions) -> list[Plan]:
    """One plan per client, spread over a frame so that they do not tick in lockstep."""
    voice = load_voice(options.audio)
    pictures = load_pictures(options.video, options.seconds)
    return [
        Plan(
            portrait=options.portrait or "",
            size=options.size,
            seconds=options.seconds,
            voice=voice,
            pictures=pictures,
            impairment=options.impairment,
            seed=options.seed + k,
            delay_s=k * FRAME_S / options.sessions,
        )
        for k in range(options.sessions)
    ]


def _servers(
    options: BenchOptions,
) -> Iterator[tuple[str, contextlib.AbstractContextManager[str]]]:
    if options.url is not None:
        yield OURS, contextlib.nullcontext(options.url.rstrip("/"))
        return
    yield OURS, own_server(options.sessions, options.serve_args)
    if options.against_stock:
        yield STOCK, own_server(options.sessions, (*options.serve_args, "--rtc", "stock"))


def _measure(options: BenchOptions, plans: list[Plan], urls: dict[str, str]) -> list[Arm]:
    """Every server in turn, as often as asked; each turn's clients start afresh."""
    arms = {name: Arm(name, [], ServerUse(), rounds=0) for name in urls}
    rounds = options.rounds if len(urls) > 1 else 1
    for turn in range(rounds):
        for name, url in urls.items():
            portrait = options.portrait or first_portrait(url)
            mine = [
                replace(plan, portrait=portrait, seed=plan.seed + turn * len(plans))
                for plan in plans
            ]
            with ServerWatch(url) as watch, asyncio.Runner(loop_factory=PathLoop) as runner:
                records = runner.run(run_clients(url, mine))
            arm = arms[name]
            arm.sessions += [evaluate(record) for record in records]
            arm.server = _joined(arm.server, watch.use())
            arm.rounds += 1
            if options.trace is not None and turn == 0 and name == OURS:
                _write_trace(records[0], options.trace)
    if options.browser:
        for name, url in urls.items():
            portrait = options.portrait or first_portrait(url)
            arms[name].browser = browse(
                url, plans[0].voice, options.seconds, portrait, options.size
            )
    return list(arms.values())


def _joined(one: ServerUse, other: ServerUse) -> ServerUse:
    """Two turns' use as one; a slope over a pause would mean nothing."""
    if one.rss_mb is None:
        return other

    def join(a: Series | None, b: Series | None) -> Series | None:
        if a is None or b is None:
            return a or b
        begin = a.t_s[-1] + 1.0 if a.t_s else 0.0
        return Series(a.unit, [*a.t_s, *(begin + t for t in b.t_s)], [*a.values, *b.values])

    return ServerUse(
        join(one.rss_mb, other.rss_mb), join(one.cpu_percent, other.cpu_percent),
        other.rss_slope_mb_per_hour,
    )  # fmt: skip


def _write_trace(record: Record, path: Path) -> None:
    if record.trace is None or not record.trace.events:
        raise BenchError("The server gave no trace.")
    path.write_text(json.dumps(record.trace.document()))


def _settings(options: BenchOptions) -> dict[str, Any]:
    """What was asked for, without paths: names of files are enough to repeat it."""
    return {
        "seconds": options.seconds,
        "sessions": options.sessions,
        "size": options.size,
        "portrait": options.portrait or "first",
        "audio": options.audio.name if options.audio else "speech-like",
        "video": options.video.name if options.video else "none",
        "impairment": options.impairment.describe(),
        "browser": "afterwards, on a path as it is" if options.browser else "none",
        "seed": options.seed,
        "server": "given" if options.url else " ".join(options.serve_args),
    }
