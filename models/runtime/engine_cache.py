"""Built engines on disk, and the sidecar that says what they were built from.

Layout: `<root>/<configuration>/<flavour>-<target>/` holds one `.plan` per network and
`engines.json`. An engine that does not fit the checkpoint, the flavour's version or the card
is refused with a sentence that says what to run; nothing is rebuilt behind the user's back.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.checkpoint import DEFAULT_PATH, NETWORKS, Checkpoint, file_hash
from models.runtime.engine import EngineError
from models.runtime.flavour import MAX_BATCH, FlavourName

FORMAT = 1
#: Version of `models.runtime.graph`'s rewrites; raise it when they change what is computed.
CONVERSION = 1
PRECISION = "float16, positions float32"
MANIFEST = "engines.json"


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """One network of an engine set, as in `engines.json`."""

    plan_sha256: str
    plan_bytes: int
    onnx_sha256: str
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    conversion_error: dict[str, float]
    """Largest difference per output of the float16 graph on the CPU from the original."""
    parity_error: dict[str, float] | None
    """The same for the built engine on its card; None when it was built without that card."""


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """The sidecar of one engine set."""

    config: str
    weights_sha256: str
    flavour: FlavourName
    flavour_version: str
    target: str
    """Architecture, e.g. `sm86`."""
    device: str | None
    """Name of the card that it was built on and is bound to; None for `tensorrt_rtx`."""
    networks: dict[str, NetworkRecord]
    precision: str = PRECISION
    conversion: int = CONVERSION
    max_batch: int = MAX_BATCH
    format: int = FORMAT
    git_commit: str | None = None

    def write(self, folder: Path) -> None:
        """Write `engines.json`."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> EngineManifest:
        """Read `engines.json`. Raises FileNotFoundError, or ValueError for a damaged one."""
        try:
            data = json.loads((folder / MANIFEST).read_text())
            networks = {n: NetworkRecord(**r) for n, r in data.pop("networks").items()}
            return EngineManifest(networks=networks, **data)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{MANIFEST} is damaged or of another version: {error}") from error


def default_root() -> Path:
    """`VISAVIS_ENGINES`, or `visavis/engines` in the user's cache folder."""
    if chosen := os.environ.get("VISAVIS_ENGINES"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "visavis" / "engines"


def engine_folder(root: Path, config: str, flavour: FlavourName, target: str) -> Path:
    """Where one engine set lives."""
    return root / config / f"{flavour}-{target}"


def export_command(checkpoint: Checkpoint, flavour: FlavourName, target: str) -> str:
    """What builds the engines that are missing."""
    command = f"visavis export --engine tensorrt --flavour {flavour} --target {target}"
    if checkpoint.path.resolve() != DEFAULT_PATH.resolve():
        command += f" --checkpoint {checkpoint.path}"
    return command


def open_engines(
    checkpoint: Checkpoint,
    flavour: FlavourName,
    version: str,
    target: str,
    device: str | None = None,
    root: Path | None = None,
) -> dict[str, bytes]:
    """Plans by network, checked against the checkpoint, the installed flavour and the card.

    Raises:
        EngineError: there are none, or they do not fit; the message ends with the command.
    """
    folder = engine_folder(root or default_root(), checkpoint.config.name, flavour, target)
    command = export_command(checkpoint, flavour, target)
    try:
        manifest = EngineManifest.read(folder)
        _check(manifest, checkpoint, version, target, device)
        plans = {name: (folder / f"{name}.plan").read_bytes() for name in NETWORKS}
        for name, plan in plans.items():
            if hashlib.sha256(plan).hexdigest() != manifest.networks[name].plan_sha256:
                raise ValueError(f"{name}.plan is damaged")
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise EngineError(
            f"There is no {flavour} engine of {checkpoint.config.name} for {target} "
            f"({missing} is missing). Run: {command}"
        ) from None
    except ValueError as error:
        raise EngineError(
            f"The {flavour} engine of {checkpoint.config.name} for {target} cannot be used: "
            f"{error}. Run: {command}"
        ) from None
    return plans


def _check(
    manifest: EngineManifest, checkpoint: Checkpoint, version: str, target: str, device: str | None
) -> None:
    """Raise ValueError with the first thing that does not fit."""
    weights = checkpoint.manifest["files"].get(checkpoint.weights.name)
    facts = (
        ("built in format", manifest.format, FORMAT),
        ("built from the weights", manifest.weights_sha256[:12], str(weights)[:12]),
        ("built by version", manifest.flavour_version, version),
        ("built for", manifest.target, target),
        ("built with graph rewrites", manifest.conversion, CONVERSION),
        ("of precision", manifest.precision, PRECISION),
        ("made for batches up to", manifest.max_batch, MAX_BATCH),
    )
    for what, found, wanted in facts:
        if found != wanted:
            raise ValueError(f"it was {what} {found}, and {wanted} is needed")
    if manifest.device is not None and device is not None and manifest.device != device:
        raise ValueError(f"it was built on {manifest.device}, and this is {device}")
    for name in NETWORKS:
        if name not in manifest.networks:
            raise ValueError(f"it has no {name} network")
        if manifest.networks[name].onnx_sha256 != onnx_hash(checkpoint, name):
            raise ValueError(f"it was built from another {name}.onnx")


def onnx_hash(checkpoint: Checkpoint, name: str) -> str:
    """SHA-256 of a network's ONNX file; the manifest has it, else it is computed."""
    path = checkpoint.network(name)
    known = checkpoint.manifest["files"].get(path.name)
    return str(known) if known else file_hash(path)
