"""House rules that the test run itself enforces; `tests/conftest.py` plugs them in.

* Every test module says what it needs with one of the markers of `LEVELS`.
* A test that leaves an asyncio task running fails, and the task is named.
* Tests marked `gpu` or `soak` run only when asked for with `-m`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

LEVELS = ("unit", "e2e", "gpu", "soak")
#: Passes of the event loop in which tasks that are already ending may end.
GRACE_PASSES = 10


def unmarked_modules(items: Iterable[pytest.Item]) -> list[str]:
    """Node ids of modules with a test that has no marker of `LEVELS`, sorted."""
    bare = {
        item.nodeid.split("::")[0]
        for item in items
        if not any(item.get_closest_marker(level) for level in LEVELS)
    }
    return sorted(bare)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    bare = unmarked_modules(items)
    if bare:
        raise pytest.UsageError(
            f"test modules without a marker: {', '.join(bare)}; "
            f"say `pytestmark = pytest.mark.unit` or one of {', '.join(LEVELS)}"
        )


@pytest.fixture
async def task_watch() -> AsyncIterator[None]:
    """Fail the test when a task that it or its fixtures started is still running at the end."""
    before = asyncio.all_tasks()
    yield
    for _ in range(GRACE_PASSES):
        await asyncio.sleep(0)
    leaked = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]
    names = sorted(f"{task.get_name()} ({task.get_coro()})" for task in leaked)
    for task in leaked:
        task.cancel()
    await asyncio.gather(*leaked, return_exceptions=True)
    if names:
        pytest.fail("tasks left running: " + "; ".join(names), pytrace=False)


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest) -> None:
    """Put `task_watch` first in every async test, so that it is torn down last."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("task_watch")


def find_chromium() -> str | None:
    """Path of a Chromium for the browser tests: VISAVIS_CHROMIUM, else the usual names."""
    wanted = os.environ.get("VISAVIS_CHROMIUM")
    if wanted:
        return wanted if Path(wanted).is_file() else None
    names = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


NO_CHROMIUM = (
    "no Chromium: the browser tests are skipped. Install one (Debian: apt install chromium) "
    "or name one with VISAVIS_CHROMIUM=/path/to/chromium"
)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium; without one the test is skipped, or fails if VISAVIS_REQUIRE_BROWSER=1."""
    path = find_chromium()
    if path is None:
        if os.environ.get("VISAVIS_REQUIRE_BROWSER") == "1":
            pytest.fail("VISAVIS_REQUIRE_BROWSER=1 but there is " + NO_CHROMIUM)
        pytest.skip(NO_CHROMIUM)
    return path


def pytest_report_header() -> str:
    return f"chromium: {find_chromium() or NO_CHROMIUM}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if find_chromium() is None:
        terminalreporter.write_line(NO_CHROMIUM, yellow=True, bold=True)
