"""INT8: the shipped generator draws what float32 draws; refused where it would not."""

import json
import shutil
from pathlib import Path

import numpy as np
import openvino
import pytest

from models import quantize
from models.checkpoint import DEFAULT_PATH, CheckpointError, open_checkpoint
from models.codes import DIMS
from models.composite import compose
from models.portrait import prepare_portrait
from models.runtime import load_engine
from models.runtime.base import BaseEngine, generator_inputs
from models.runtime.engine import EngineError

pytestmark = pytest.mark.unit
CODES = [(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.5, 0.25, 0.0), (0.0, -0.2, 1.0), (1.5, 0.1, 0.6)]


@pytest.fixture(scope="module")
def small() -> BaseEngine:
    return load_engine("openvino", threads=2, precision="int8")


def feeds(engine: BaseEngine, picture: np.ndarray) -> list[quantize.Feed]:
    """One portrait, its mouth, head and lids moved as in `CODES`."""
    appearance = prepare_portrait(picture, engine, id="a", name="A").appearance
    made = []
    for lip, yaw, shut in CODES:
        lips = np.zeros(DIMS["lip"], np.float32)
        lips[0] = lip
        pose, eye = appearance.code.pose.copy(), appearance.code.eye.copy()
        pose[0] += yaw
        eye[:2] = np.maximum(eye[:2], shut)
        code = appearance.code.with_("lip", lips).with_("pose", pose).with_("eye", eye)
        made.append(generator_inputs(appearance, code))
    return made


def test_int8_draws_what_float32_draws(
    engine: BaseEngine, small: BaseEngine, portrait_picture: np.ndarray
) -> None:
    assert "INT8" in small.reason
    portrait = prepare_portrait(portrait_picture, engine, id="a", name="A")
    for feed in feeds(engine, portrait_picture):
        a, b = (one.run("generator", feed) for one in (engine, small))
        assert np.abs(a["flow"] - b["flow"]).max() * 256 < quantize.MAX_FLOW_PX
        pictures = []
        for out in (a, b):
            flow, rgb = (
                np.ascontiguousarray(out[n][0].transpose(1, 2, 0)) for n in ("flow", "rgb")
            )
            drawing = quantize.Drawing(flow, out["mask"][0, 0], rgb)
            pictures.append(compose(drawing, portrait.image, 512).astype(float))
        noise = np.mean((pictures[0] - pictures[1]) ** 2)
        assert 10 * np.log10(255**2 / max(noise, 1e-9)) > quantize.MIN_PSNR_DB


def test_the_manifest_tells_the_parity() -> None:
    parity = open_checkpoint().manifest["int8"]["generator"]
    assert parity["psnr_db_min"] >= quantize.MIN_PSNR_DB
    assert parity["flow_px_max"] <= quantize.MAX_FLOW_PX
    assert parity["samples"] >= 50


def test_a_checkpoint_without_int8(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(DEFAULT_PATH, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("generator.int8.xml", "generator.int8.bin"):
        (folder / name).unlink()
        del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "INT8" not in load_engine("openvino", folder, 1).reason
    with pytest.raises(EngineError, match="no INT8 generator"):
        load_engine("openvino", folder, 1, "int8")
    with pytest.raises(EngineError, match="torch engine has no INT8"):
        load_engine("torch", folder, 1, "int8")


def test_a_damaged_int8_file_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(DEFAULT_PATH, folder)
    with (folder / "generator.int8.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x55" * 64)
    with pytest.raises(CheckpointError, match=r"generator\.int8\.bin differs"):
        open_checkpoint(folder)


def test_the_gate_keeps_what_is_equal_and_refuses_the_rest(
    engine: BaseEngine, portrait_picture: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "gate"
    shutil.copytree(DEFAULT_PATH, folder)
    small = openvino.Core().read_model(str(DEFAULT_PATH / "generator.int8.xml"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    some = feeds(engine, portrait_picture)
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "MIN_PSNR_DB", 120.0)
        with pytest.raises(quantize.QuantisationError, match="differs too much"):
            quantize.keep_if_equal(folder, small, some)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    parity = quantize.keep_if_equal(folder, small, some)
    assert open_checkpoint(folder).manifest["int8"] == {"generator": parity}
