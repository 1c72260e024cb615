"""The ground that everything stands on: packaging, import rules, bundled files, house rules."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import wave
from importlib import metadata
from pathlib import Path

import cv2
import pytest
from packaging.requirements import Requirement

from tests.conftest import DATA, ROOT

pytestmark = pytest.mark.unit

PORTRAITS = ROOT / "web" / "portraits"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_serving_needs_no_torch_and_no_measuring_tool() -> None:
    code = (
        "import sys, realtime.cli, models, models.runtime, models.portrait, models.tracking\n"
        "loaded = {'torch', 'mediapipe', 'trainer', 'tensorrt', 'pycuda'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = _run("-c", code)
    assert result.returncode == 0, result.stderr


def test_core_dependencies_are_installed_in_range_and_without_torch() -> None:
    names = set()
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        names.add(requirement.name)
        if requirement.marker is None or requirement.marker.evaluate():
            version = metadata.version(requirement.name)
            assert requirement.specifier.contains(version), f"{line}: {version} is installed"
    assert not names & {"torch", "onnx", "scipy", "tensorrt"}


def test_only_one_opencv() -> None:
    installed = {
        name
        for name in ("opencv-python", "opencv-contrib-python", "opencv-python-headless")
        if any(metadata.distributions(name=name))
    }
    assert installed == {"opencv-python-headless"}


def test_the_entry_point_is_the_command_line() -> None:
    (entry,) = metadata.entry_points(group="console_scripts", name="visavis")
    assert entry.value == "realtime.cli:main"


def test_every_dependency_has_a_sentence_in_design() -> None:
    design = (ROOT / "DESIGN.md").read_text()
    extras = PROJECT["optional-dependencies"].values()
    listed = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    names = {Requirement(line).name for line in listed} - {"visavis"}
    assert not [name for name in sorted(names) if f"`{name}`" not in design]


@pytest.mark.parametrize(
    ("name", "rate"), [("speech_a_16k.wav", 16_000), ("speech_b_48k.wav", 48_000)]
)
def test_speech_is_mono_and_has_a_pause(name: str, rate: int) -> None:
    import numpy as np

    with wave.open(str(DATA / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (rate, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    seconds = len(samples) // rate
    assert 8 <= seconds <= 10
    hop = rate // 10
    loud = np.abs(samples[: len(samples) // hop * hop].astype(int)).reshape(-1, hop).max(1) > 300
    speech = np.flatnonzero(loud)
    assert np.diff(speech).max() >= 10, "a second of silence inside"


def test_portraits_are_listed_and_well_formed() -> None:
    entries = json.loads((PORTRAITS / "portraits.json").read_text())
    files = {entry["file"] for entry in entries}
    assert files == {path.name for path in PORTRAITS.glob("*.jpg")}
    assert len({entry["id"] for entry in entries}) == len(entries) >= 7
    for entry in entries:
        assert set(entry["id"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert entry["name"]
        assert entry["how"]
        image = cv2.imread(str(PORTRAITS / entry["file"]))
        assert image.shape == (512, 512, 3)
        assert (PORTRAITS / entry["file"]).stat().st_size < 120_000


def test_no_file_names_a_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = ("/wor" + "k/", "/roo" + "t/")
    named = [
        name
        for name in listed.stdout.split()
        if Path(name).suffix in {".py", ".md", ".toml", ".sh", ".js", ".ts", ".json", ".cu", ""}
        and (ROOT / name).is_file()
        and any(place in (ROOT / name).read_text(errors="replace") for place in places)
    ]
    assert not named


# --- the house rules bite -------------------------------------------------------------


def _try_rules(folder: Path, test_code: str) -> str:
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    (folder / "test_it.py").write_text(test_code)
    result = _run(
        "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder),
        "-p", "no:cacheprovider", str(folder / "test_it.py"),
    )  # fmt: skip
    return f"rc={result.returncode}\n{result.stdout}{result.stderr}"


HEAD = "import asyncio\nimport pytest\npytestmark = pytest.mark.unit\n"


def test_a_module_without_a_marker_fails_collection(tmp_path: Path) -> None:
    output = _try_rules(tmp_path, "def test_nothing():\n    assert 1 + 1 == 2\n")
    assert output.startswith("rc=4")
    assert "test modules without a marker: test_it.py" in output


def test_a_leaked_task_fails_its_test(tmp_path: Path) -> None:
    output = _try_rules(
        tmp_path,
        HEAD
        + "async def test_leaks():\n"
        + "    asyncio.get_running_loop().set_debug(False)\n"
        + "    test_leaks.task = asyncio.create_task(asyncio.sleep(60), name='forgotten')\n"
        + "async def test_cleans_up():\n"
        + "    task = asyncio.create_task(asyncio.sleep(60))\n"
        + "    await asyncio.sleep(0)\n"
        + "    task.cancel()\n"
        + "def test_plain():\n"
        + "    assert True\n",
    )
    assert "tasks left running: forgotten" in output
    assert "3 passed, 1 error" in output


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    output = _try_rules(
        tmp_path,
        HEAD + "import warnings\ndef test_warns():\n    warnings.warn('old', stacklevel=1)\n",
    )
    assert "1 failed" in output
