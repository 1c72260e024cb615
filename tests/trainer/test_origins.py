"""What a checkpoint's manifest says it was made from, whichever way the networks came about."""

import json
from pathlib import Path

import pytest

from models.checkpoint import open_checkpoint
from tests.trainer.tiny import write_cache
from trainer import origins
from trainer.joined import cache_of, join

pytestmark = pytest.mark.unit
OWN = {"name": "filmed by us", "licence": "own recording"}
READ = {"name": "labels by E_mot", "licence": "Apache-2.0"}


def prepared(folder: Path) -> Path:
    """A folder as `visavis prepare` leaves it, as far as its origin goes."""
    (folder / "cache").mkdir(parents=True)
    write_cache(folder / "cache", ("grid", "grid"), filmed="")
    said = {"format": 1, "labels": "E_mot", "data": [OWN], "clips": []}
    (folder / "manifest.json").write_text(json.dumps(said))
    return folder


def test_ones_own_videos_are_named_and_no_others(tmp_path: Path) -> None:
    cache = prepared(tmp_path / "mine") / "cache"
    origins.remember(tmp_path / "run", cache)
    assert origins.behind(cache, [tmp_path / "run" / "stage-3.pt"]) == [OWN, READ]


def test_what_a_run_began_from_stays_with_it(tmp_path: Path) -> None:
    cache = prepared(tmp_path / "mine") / "cache"
    shipped = open_checkpoint(verify=False).manifest["data"]
    origins.remember(tmp_path / "first", cache, ["shipped"])
    # Another run takes one part of the first one's file, and is called again without it.
    start = f"generator={tmp_path / 'first' / 'stage-1.pt'}"
    origins.remember(tmp_path / "second", cache, [start])
    origins.remember(tmp_path / "second", cache)
    assert origins.of_run(tmp_path / "second") == [OWN, READ, *shipped]


def test_a_joined_cache_names_all_it_stands_for(tmp_path: Path) -> None:
    cache = prepared(tmp_path / "mine") / "cache"
    (tmp_path / "pack").mkdir()
    pack = write_cache(tmp_path / "pack")
    join(tmp_path / "both", [str(cache), f"{pack}:synth"])
    assert origins.of_cache(tmp_path / "both") == [OWN, READ, *origins.PACK]


def test_a_prepared_folder_stands_for_its_cache(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "mine")
    assert cache_of(folder) == cache_of(folder / "cache") == folder / "cache"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no training cache; `visavis prepare` makes one"):
        cache_of(tmp_path / "empty")
    (tmp_path / "empty" / "report.txt").write_text("Nothing was usable")
    with pytest.raises(ValueError, match=r"report\.txt says why"):
        cache_of(tmp_path / "empty")
