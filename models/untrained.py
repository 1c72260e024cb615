"""A checkpoint without training, to measure speed and to prove that a configuration builds.

Written once into the user's cache folder. Needs torch and the export's packages; what such
networks draw means nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.checkpoint import Checkpoint, CheckpointError, open_checkpoint, write_manifest
from models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from models.networks import Networks


def cache_folder() -> Path:
    """`visavis/untrained` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "visavis" / "untrained"


def untrained_checkpoint(
    config: ModelConfig, root: Path | None = None, *, exported: bool = True
) -> Checkpoint:
    """The checkpoint of an untrained set of networks, made when it is not there yet (minutes).

    Without `exported` there are only weights, which is all that torch reads, made in seconds.

    Raises:
        CheckpointError: torch or the packages of the export are not installed.
    """
    key = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode()).hexdigest()[:12]
    kind = "" if exported else "-weights"
    folder = (root or cache_folder()) / f"{config.name}-{key}{kind}"
    if not (folder / "manifest.json").exists():
        try:
            _write(config, folder, exported)
        except ImportError as error:
            raise CheckpointError(
                f"{error.name} is needed to make {config.name} networks: pip install -e '.[train]'"
            ) from error
    return open_checkpoint(folder)


def _write(config: ModelConfig, folder: Path, exported: bool) -> None:
    import torch
    from safetensors.torch import save_file

    from models.networks import Networks, half_precision

    face = open_checkpoint(verify=False).face
    torch.manual_seed(0)
    networks = Networks(config)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(half_precision(networks), fresh / "weights.safetensors")
    np.savez(fresh / "face.npz", mean=face.mean, basis=face.basis)
    if exported:
        _export(networks, fresh)
    sizes = {n: sum(p.numel() for p in net.parameters()) for n, net in networks.named()}
    write_manifest(fresh, config, name=f"{config.name}, untrained", parameters=sizes)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _export(networks: Networks, folder: Path) -> None:
    from models.export import export_network, store_half

    for name, inputs in _inputs(networks).items():
        path = folder / f"{name}.onnx"
        export_network(networks[name], inputs, path)
        store_half(path)


def _inputs(networks: Networks) -> dict[str, tuple[Tensor, ...]]:
    """One example for each network; the generator's features are what E_app makes."""
    import torch

    from models.face import LANDMARKS
    from models.rates import MEL_BANDS

    config = networks.config
    picture = torch.rand(1, 3, config.image_size, config.image_size) * 2 - 1
    code = 0.3 * (torch.rand(1, config.code_dim) - 0.5)
    with torch.no_grad():
        made = networks.appearance(picture)
    named = dict(zip(networks.appearance.outputs, made, strict=True)) | {
        "rgb128": torch.rand(1, 3, 128, 128) * 2 - 1,
        "shape": torch.rand(1, LANDMARKS, 3) * 0.1,
        "source_code": code,
        "driving_code": code,
    }
    return {
        "audio": (torch.rand(1, config.mel_window, MEL_BANDS),),
        "motion": (picture,),
        "appearance": (picture,),
        "generator": tuple(named[n] for n in networks.generator.inputs),
    }
