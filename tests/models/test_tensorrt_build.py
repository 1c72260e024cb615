"""Engine sets: every network compiles for every target without a GPU; misfits are refused."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from models.checkpoint import NETWORKS, Checkpoint, open_checkpoint
from models.runtime import build
from models.runtime.engine import EngineError
from models.runtime.engine_cache import EngineManifest, engine_folder, open_engines
from models.runtime.flavour import TensorRT, installed_flavours
from tests.models.host_cuda import GraphFlavour

# Minutes only on a machine that is busy with other things.
pytestmark = [pytest.mark.unit, pytest.mark.timeout(400)]

TARGETS = ("sm75", "sm86", "sm89", "sm120")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(verify=False)


# --- the real builder -----------------------------------------------------------------


@pytest.fixture(scope="module")
def rtx() -> TensorRT:
    if "tensorrt_rtx" not in installed_flavours():
        pytest.skip("tensorrt_rtx is not installed: it is in the dev extra on Linux x86-64 only")
    return TensorRT("tensorrt_rtx")


@pytest.fixture(scope="module")
def conversions() -> build.Conversions:
    return {}


@pytest.mark.parametrize("target", TARGETS)
def test_every_network_compiles_ahead_of_time(
    rtx: TensorRT,
    checkpoint: Checkpoint,
    conversions: build.Conversions,
    target: str,
    tmp_path: Path,
) -> None:
    folder = build.build_engines(checkpoint, rtx, target, tmp_path, conversions=conversions)
    manifest = EngineManifest.read(folder)
    assert (manifest.flavour, manifest.flavour_version) == ("tensorrt_rtx", rtx.version)
    assert (manifest.target, manifest.device) == (target, None)
    for name in NETWORKS:
        record = manifest.networks[name]
        plan = (folder / f"{name}.plan").read_bytes()
        assert len(plan) == record.plan_bytes
        assert hashlib.sha256(plan).hexdigest() == record.plan_sha256
        parameters = checkpoint.manifest["parameters"][name]
        # Weights in float16; the rest are kernels, of which small graphs need many as well.
        assert 1.5 * parameters < len(plan) < 2.5 * parameters + 16_000_000, "float16 weights"
        assert record.parity_error is None, "no card was there to compare"
        assert max(record.conversion_error.values()) < build.TOLERANCE
    assert_tensors(manifest)
    assert set(open_engines(checkpoint, "tensorrt_rtx", rtx.version, target, root=tmp_path)) == set(
        NETWORKS
    )


def assert_tensors(manifest: EngineManifest) -> None:
    """Names, shapes and types of the `live` engines."""

    def table(specs: dict[str, dict]) -> dict[str, tuple]:  # type: ignore[type-arg]
        return {n: (tuple(s["shape"]), s["dtype"]) for n, s in specs.items()}

    networks = manifest.networks
    assert table(networks["audio"].inputs) == {"mel": ((28, 80), "float32")}
    assert table(networks["audio"].outputs) == {"lip": ((16,), "float32")}
    assert table(networks["motion"].inputs) == {"face": ((3, 256, 256), "float16")}
    assert table(networks["motion"].outputs) == {
        "lip": ((16,), "float32"), "pose": ((6,), "float32"), "eye": ((6,), "float32"),
        "exp": ((30,), "float32"), "landmarks": ((152, 2), "float32"),
    }  # fmt: skip
    assert table(networks["appearance"].outputs) == {
        "f64": ((48, 64, 64), "float32"), "f32": ((96, 32, 32), "float32"),
        "identity": ((64,), "float32"),
    }  # fmt: skip
    assert table(networks["generator"].inputs) == {
        "rgb128": ((3, 128, 128), "float16"), "f64": ((48, 64, 64), "float16"),
        "f32": ((96, 32, 32), "float16"), "identity": ((64,), "float32"),
        "shape": ((152, 3), "float32"), "source_code": ((58,), "float32"),
        "driving_code": ((58,), "float32"),
    }  # fmt: skip
    assert table(networks["generator"].outputs) == {
        "flow": ((2, 128, 128), "float32"), "mask": ((1, 256, 256), "float32"),
        "rgb": ((3, 256, 256), "float32"),
    }  # fmt: skip


def test_the_builders_own_words_reach_the_user(rtx: TensorRT, checkpoint: Checkpoint) -> None:
    converted = build.convert(checkpoint, "audio", "sm86")
    with pytest.raises(EngineError, match="does not build for sm90; it knows sm75"):
        rtx.build(converted.model, "sm90")
    with pytest.raises(EngineError, match="cannot read the graph"):
        rtx.build(b"no graph", "sm86")
    plain = build.convert(checkpoint, "generator", "sm86").model
    with pytest.raises(EngineError, match=r"could not build for sm75: .*GEMM"):
        rtx.build(plain, "sm75")
    with pytest.raises(EngineError, match="cannot load the engine"):
        rtx.load(b"no plan")


def test_a_flavour_that_is_missing_names_its_package() -> None:
    if "tensorrt" in installed_flavours():
        pytest.skip("tensorrt is installed here")
    with pytest.raises(EngineError, match=r"tensorrt cannot be used .*pip install -e '\.\[gpu\]'"):
        TensorRT("tensorrt")


# --- the cache ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engines")
    build.build_engines(checkpoint, GraphFlavour(), "sm86", root)
    return root


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    import shutil

    shutil.copytree(built, tmp_path / "engines")
    return tmp_path / "engines"


COMMAND = "Run: visavis export --engine tensorrt --flavour tensorrt_rtx --target sm86$"


def open_cached(checkpoint: Checkpoint, root: Path, **changed: str) -> dict[str, bytes]:
    wanted = {"version": "1.0", "target": "sm86"} | changed
    return open_engines(checkpoint, "tensorrt_rtx", root=root, **wanted)  # type: ignore[arg-type]


def test_engines_that_fit_are_opened(checkpoint: Checkpoint, cache: Path) -> None:
    plans = open_cached(checkpoint, cache)
    assert list(plans) == list(NETWORKS)


def test_missing_engines_name_the_command(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"no tensorrt_rtx engine of live for sm86.*{COMMAND}"):
        open_cached(checkpoint, tmp_path)


def test_another_version_is_refused(checkpoint: Checkpoint, cache: Path) -> None:
    with pytest.raises(EngineError, match=f"built by version 1.0, and 2.0 is needed.*{COMMAND}"):
        open_cached(checkpoint, cache, version="2.0")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("weights_sha256", "0" * 64, "from the weights 0000"),
        ("target", "sm89", "built for sm89, and sm86"),
        ("conversion", 0, "graph rewrites 0"),
        ("precision", "float32", "of precision float32"),
        ("max_batch", 8, "batches up to 8"),
        ("format", 99, "format 99"),
    ],
)
def test_what_was_built_from_something_else_is_refused(
    checkpoint: Checkpoint, cache: Path, field: str, value: object, words: str
) -> None:
    folder = engine_folder(cache, "live", "tensorrt_rtx", "sm86")
    changed = dataclasses.replace(EngineManifest.read(folder), **{field: value})  # type: ignore[arg-type]
    changed.write(folder)
    with pytest.raises(EngineError, match=f"{words}.*{COMMAND}"):
        open_cached(checkpoint, cache)


def test_an_engine_of_another_card_is_refused(checkpoint: Checkpoint, cache: Path) -> None:
    folder = engine_folder(cache, "live", "tensorrt_rtx", "sm86")
    dataclasses.replace(EngineManifest.read(folder), device="RTX A").write(folder)
    assert open_cached(checkpoint, cache, device="RTX A")
    with pytest.raises(EngineError, match="built on RTX A, and this is RTX B"):
        open_cached(checkpoint, cache, device="RTX B")


def test_another_graph_is_refused(checkpoint: Checkpoint, cache: Path) -> None:
    folder = engine_folder(cache, "live", "tensorrt_rtx", "sm86")
    manifest = EngineManifest.read(folder)
    record = dataclasses.replace(manifest.networks["motion"], onnx_sha256="0")
    manifest.networks["motion"] = record
    manifest.write(folder)
    with pytest.raises(EngineError, match=r"built from another motion\.onnx"):
        open_cached(checkpoint, cache)


@pytest.mark.parametrize("text", ["{", "[]", '{"networks": {}}', '{"networks": {"audio": {}}}'])
def test_a_damaged_sidecar_is_refused(checkpoint: Checkpoint, cache: Path, text: str) -> None:
    (engine_folder(cache, "live", "tensorrt_rtx", "sm86") / "engines.json").write_text(text)
    with pytest.raises(EngineError, match=f"engines.json is damaged.*{COMMAND}"):
        open_cached(checkpoint, cache)


def test_a_damaged_or_missing_plan_is_refused(checkpoint: Checkpoint, cache: Path) -> None:
    plan = engine_folder(cache, "live", "tensorrt_rtx", "sm86") / "audio.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"audio\.plan is damaged"):
        open_cached(checkpoint, cache)
    plan.unlink()
    with pytest.raises(EngineError, match=r"audio\.plan is missing"):
        open_cached(checkpoint, cache)


def test_a_build_that_fails_leaves_the_old_engines(
    checkpoint: Checkpoint, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(GraphFlavour):
        version = "2.0"

        def build(self, onnx_model: bytes, target: str):  # type: ignore[no-untyped-def]
            raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        build.build_engines(checkpoint, Broken(), "sm86", cache)
    assert open_cached(checkpoint, cache)


def test_parity_on_the_card_is_stored_and_enforced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def good(name: str, plan: bytes) -> dict[str, float]:
        return {"lip": 1e-3}

    folder = build.build_engines(checkpoint, GraphFlavour(), "sm86", tmp_path, measure=good)
    written = json.loads((folder / "engines.json").read_text())
    assert written["networks"]["audio"]["parity_error"] == {"lip": 1e-3}

    def bad(name: str, plan: bytes) -> dict[str, float]:
        return {"lip": float("nan")}

    with pytest.raises(EngineError, match="engine of audio differs by nan in lip on its card"):
        build.build_engines(checkpoint, GraphFlavour(), "sm86", tmp_path, measure=bad)
