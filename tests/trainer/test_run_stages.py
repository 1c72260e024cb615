"""The stages as runs: exact resume, frozen parts, broken losses, several processes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import DEFAULT_PATH, open_checkpoint
from models.networks import load_networks
from tests.trainer.tiny import tiny, write_cache
from trainer.gains import amplify_reading
from trainer.loader import to_unit
from trainer.loop import OutOfTime
from trainer.recipes import recipe_of
from trainer.stages import stage2a, stage2c
from trainer.stages.run import Run
from trainer.stages.sampling import Data, damaged, moment_rows
from trainer.stages.system import StartError, System, load_start
from trainer.stages.training import (
    Options,
    StageError,
    begin,
    make_critics,
    make_system,
    run_stage,
    train,
)

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(folder: Path) -> Data:
    return Data.open(folder)


def run(stage: str, data: Data, out: Path, *, stop_after_each: bool = False, **options) -> System:
    """Train one stage of the tiny recipe in `out`."""
    recipe = tiny()
    system = make_system(recipe, data)
    begin(system, stage, out, ())
    critics = make_critics(recipe, out, CPU)
    deadline = 0.0 if stop_after_each else None
    chosen = Options(device="cpu", show=False, deadline=deadline, **options)
    run_stage(stage, recipe, system, data, out, critics, chosen, CPU)
    return system


def flat(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for key, item in enumerate(value):
            yield from flat(item, f"{name}.{key}")
    elif isinstance(value, torch.Tensor):
        yield name, value


@pytest.mark.parametrize("stage", ["2a", "3"])
def test_a_stopped_run_goes_on_to_the_bit(data: Data, tmp_path: Path, stage: str) -> None:
    run(stage, data, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(OutOfTime):
            run(stage, data, tmp_path / "parts", stop_after_each=True)
    run(stage, data, tmp_path / "parts")
    found, wanted = (
        torch.load(tmp_path / name / f"stage-{stage}.pt", weights_only=True)
        for name in ("parts", "whole")
    )
    assert found["step"] == wanted["step"] == 4
    pairs = dict(flat(found))
    for name, value in flat(wanted):
        assert torch.equal(pairs.pop(name), value), name
    assert not pairs
    curves = [(tmp_path / n / f"curve-{stage}.jsonl").read_text() for n in ("parts", "whole")]
    assert curves[0] == curves[1]


#: What each stage may change; everything else must keep every bit, batch statistics included.
TRAINED = {
    "1": ("appearance.", "generator.", "judge."),
    "2a": ("audio.", "motion.heads.lip."),
    "2b": ("motion.heads.eye.",),
    "2c": ("motion.heads.pose.",),
    "3": ("generator.", "motion.heads.exp.", "judge."),
}


@pytest.mark.parametrize("stage", list(TRAINED))
def test_only_what_a_stage_trains_moves(data: Data, tmp_path: Path, stage: str) -> None:
    before = make_system(tiny(), data).state_dict()
    after = run(stage, data, tmp_path, steps=2).state_dict()
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    strangers = {k for k in moved if not k.startswith(TRAINED[stage])}
    assert not strangers
    for start in TRAINED[stage]:
        assert any(k.startswith(start) for k in moved), start
    lines = [json.loads(x) for x in (tmp_path / f"curve-{stage}.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [0, 1]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_kept_features_are_the_trunks_and_outlive_the_run(data: Data, tmp_path: Path) -> None:
    recipe = tiny()
    recipe = replace(recipe, stage2a=replace(recipe.stage2a, kept=2, steps=1))
    system = make_system(recipe, data)
    critics = make_critics(recipe, tmp_path, CPU)
    options = Options(device="cpu", show=False)
    run_stage("2a", recipe, system, data, tmp_path, critics, options, CPU)
    path = tmp_path / "features-2a.npz"
    written = path.stat().st_mtime_ns
    stage = Run(tmp_path, "2a", device=CPU, precision="fp32", seed=recipe.seed, show=False)
    kept = stage2a.keep_features(recipe, system, data, stage)
    assert path.stat().st_mtime_ns == written, "read, not made again"
    spec, model = recipe.stage2a, recipe.model
    rows = np.sort(np.concatenate(list(moment_rows(data, spec, model).values())))
    row, version = int(rows[3]), 1
    face = damaged(np.random.default_rng((stage.seed, row, version)), data, spec, model, row)
    with torch.no_grad():
        feature = system.motion.eval().features(to_unit(torch.from_numpy(face[None])) * 2 - 1)
    found = kept.pick(torch.tensor([float(row)]), torch.tensor([float(version)]))
    torch.testing.assert_close(found, feature, atol=5e-3, rtol=5e-3)
    with pytest.raises(KeyError):
        kept.pick(torch.tensor([0.0]), torch.tensor([0.0]))
    # Another trunk reads anew.
    with torch.no_grad():
        system.motion.feature.weight.mul_(1.5)
    stage2a.keep_features(recipe, system, data, stage)
    assert path.stat().st_mtime_ns != written


def test_a_broken_loss_saves_its_batch_and_changes_nothing(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_system(tiny(), data).motion.heads["pose"].state_dict()
    monkeypatch.setattr(stage2c, "pose_loss", lambda a, b: (a - b).sum() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"broken-2c-0-0\.pt"):
        run("2c", data, tmp_path)
    saved = torch.load(tmp_path / "broken-2c-0-0.pt", weights_only=True)
    assert saved["batch"]["face"].shape == (2, 256, 256, 3)
    assert not (tmp_path / "stage-2c.pt").exists()
    again = make_system(tiny(), data).motion.heads["pose"].state_dict()
    assert all(torch.equal(v, again[k]) for k, v in before.items())


def test_stages_begin_from_the_one_before_and_from_named_parts(data: Data, tmp_path: Path) -> None:
    done = run("2b", data, tmp_path, steps=1)
    fresh = make_system(tiny(), data)
    begin(fresh, "2c", tmp_path, ())
    torch.testing.assert_close(fresh.state_dict(), done.state_dict())
    other = make_system(replace(tiny(), seed=1), data)
    pose = other.motion.heads["pose"][0].weight.clone()
    taken = load_start(other, f"motion.heads.eye={tmp_path / 'stage-2b.pt'}")
    assert taken == ["motion"]
    torch.testing.assert_close(other.motion.heads["eye"].state_dict(),
                               done.motion.heads["eye"].state_dict())  # fmt: skip
    assert torch.equal(other.motion.heads["pose"][0].weight, pose)
    with pytest.raises(StartError, match="nothing that fits"):
        load_start(other, f"nowhere={tmp_path / 'stage-2b.pt'}")


def test_files_of_the_single_stages_are_understood(data: Data, tmp_path: Path) -> None:
    system, given = make_system(tiny(), data), make_system(replace(tiny(), seed=2), data)
    parameters = [*given.appearance.parameters(), *given.generator.parameters()]
    average = [torch.full_like(p, 0.5) for p in parameters]
    torch.save({"encoder": given.appearance.state_dict(), "net": given.generator.state_dict(),
                "average": average, "step": 1}, tmp_path / "gen.pt")  # fmt: skip
    torch.save({"net": given.audio.state_dict(), "right_frames": 1}, tmp_path / "audio.pt")
    torch.save({"net": given.motion.state_dict(), "step": 1}, tmp_path / "motion.pt")
    taken = [load_start(system, str(tmp_path / f"{n}.pt")) for n in ("gen", "audio", "motion")]
    assert taken == [["appearance", "generator"], ["audio"], ["motion"]]
    assert all((p == 0.5).all() for p in system.generator.parameters()), "its moving average"
    torch.testing.assert_close(system.motion.state_dict(), given.motion.state_dict())


def test_the_shipped_networks_are_a_beginning(data: Data) -> None:
    system = make_system(tiny(), data)
    taken = load_start(system, "shipped")
    assert taken == ["audio", "motion", "appearance", "generator"]
    shipped = open_checkpoint(verify=False)
    wanted = load_networks(shipped)
    amplify_reading(system.motion, shipped.manifest["reading_gain"])
    torch.testing.assert_close(system.motion.state_dict(), wanted.motion.net.state_dict())
    gain = shipped.manifest["audio_gain"]
    torch.testing.assert_close(system.audio.lip.bias * gain, wanted.audio.net.lip.bias)
    heard = load_start(make_system(tiny(), data), f"audio={DEFAULT_PATH}")
    assert heard == ["audio"], "a folder, and one part of it"


def test_wrong_wishes_are_refused(folder: Path, data: Data, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no stage '4'"):
        train(tiny(), folder, tmp_path, Options(("4",), device="cpu"))
    silent = replace(data, speech=None)
    system = make_system(tiny(), data)
    with pytest.raises(StageError, match="needs sound"):
        run_stage("2a", tiny(), system, silent, tmp_path, make_critics(tiny(), tmp_path, CPU),
                  Options(device="cpu", show=False), CPU)  # fmt: skip
    with pytest.raises(ValueError, match="there is no recipe"):
        recipe_of("nothing")
    assert recipe_of("tests.trainer.tiny.tiny").name == "tiny"


# --- several processes -------------------------------------------------------------------------

WORKER = """
import sys, torch
from pathlib import Path
from torch import nn
from models.checkpoint import DEFAULT_PATH, open_checkpoint
from models.networks import load_networks
from tests.trainer.tiny import tiny
from trainer.stages import parallel
from trainer.stages.sampling import Data
from trainer.stages.training import Options, begin, make_critics, make_system, run_stage

torch.set_num_threads(1)
device = parallel.start("cpu")
cache, out, recipe = Path(sys.argv[1]), Path(sys.argv[2]), tiny()
data = Data.open(cache)
for stage in ("2a", "3"):
    system = make_system(recipe, data)
    for module in system.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    critics = make_critics(recipe, out, device)
    options = Options(device="cpu", show=False, steps=2)
    run_stage(stage, recipe, system, data, out, critics, options, device)
parallel.stop()
"""


def curve(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_train_like_one(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = Path(__file__).parents[2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    env = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}
    for count in ("1", "2"):
        command = [*launch, count, str(script), str(folder), str(tmp_path / count)]
        done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True,
                              timeout=300, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("2a", "3"):
        one, two = (curve(tmp_path / n / f"curve-{stage}.jsonl") for n in ("1", "2"))
        assert len(one) == 2
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, abs=1e-5, rel=1e-4), stage
    weights = [
        torch.load(tmp_path / n / "stage-3.pt", weights_only=True)["system"] for n in ("1", "2")
    ]
    for name, value in weights[0].items():
        if name.startswith("judge."):
            continue  # its biases under an instance norm have no gradient but rounding
        torch.testing.assert_close(weights[1][name], value, atol=2e-4, rtol=1e-3, msg=name)
