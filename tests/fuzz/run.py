"""Run the fuzz targets under atheris: `python -m tests.fuzz.run --seconds 60 [--only NAME]`.

One process per target, guided by the branches of our own code, until the time is over or
something is found; the bytes that did it are then in `crash-...` in the working folder and the
command fails. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

MAX_BYTES = 8192


def run_one(name: str, seconds: int) -> None:
    """Fuzz one target in this process; ends it."""
    import atheris

    with atheris.instrument_imports(include=["realtime", "models.portrait", "aiortc"]):
        from tests.fuzz.targets import BY_NAME
    target = BY_NAME[name]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.seeds):
            (Path(folder) / str(number)).write_bytes(seed)
        arguments = [
            sys.argv[0], folder, f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}",
            "-timeout=10", "-rss_limit_mb=3000", "-print_final_stats=1", "-verbosity=0",
        ]  # fmt: skip
        atheris.Setup(arguments, lambda data: target.feed(bytes(data)) and None)
        atheris.Fuzz()


def main() -> int:
    """Command line; the exit code is the number of targets in which something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", default="", help="one target")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        run_one(chosen.only, chosen.seconds)
        return 0
    from tests.fuzz.targets import TARGETS

    found = 0
    for target in TARGETS:
        if chosen.only in ("", target.name):
            command = [sys.executable, "-m", "tests.fuzz.run", "--here", "--only", target.name]
            command += ["--seconds", str(chosen.seconds)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            runs = [line for line in done.stderr.splitlines() if "number_of_executed" in line]
            verdict = "found something" if done.returncode else "nothing found"
            print(
                f"{target.name}: {verdict}; {runs[-1].split(':')[-1].strip() if runs else '?'} runs"
            )
            if done.returncode:
                found += 1
                print(done.stderr[-4000:])
            sys.stdout.flush()
    return found


if __name__ == "__main__":
    sys.exit(main())
