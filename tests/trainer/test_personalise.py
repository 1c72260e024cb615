"""From a minute of one person to a checkpoint of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from models.checkpoint import file_hash, open_checkpoint
from models.networks import load_networks
from models.portrait import decode_image, prepare_portrait
from models.runtime import load_engine
from tests.trainer.talking import write_empty_room, write_talking
from trainer.personalise import PersonaliseError, personalise
from trainer.personalise.quality import FIGURES, verdict
from trainer.personalise.run import _about, split_tail
from trainer.personalise.tuning import ADAPTERS, DECODER, Anchor, TuningRecipe, tuned_parts
from trainer.prepare.clips import Clip
from trainer.prepare.faces import FaceClip
from trainer.prepare.media import pictures
from trainer.prepare.report import FileReport

pytestmark = [pytest.mark.unit, pytest.mark.timeout(600)]
QUIET = Console(quiet=True)
RECIPE = TuningRecipe(sources=1, driving=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of three steps on a few seconds of a drawn person."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr("trainer.personalise.run.MIN_SECONDS", 4.0)
    folder = tmp_path_factory.mktemp("me")
    write_talking(folder / "me.mp4", "mei", seconds=4.4)
    out = folder / "mine"
    report = personalise(
        folder / "me.mp4", None, out, 3, i_am_the_owner=True, threads=1, console=QUIET,
        recipe=RECIPE,
    )  # fmt: skip
    patch.undo()
    return out, report


def test_people_shown_for_replay_are_named_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    film = {"name": "filmed by us", "licence": "own recording"}
    said = {"labels": "E_mot", "data": [film], "clips": []}
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    base = open_checkpoint()
    told = _about(base, FileReport("me.mp4"), 3, tmp_path / "cache")
    assert film in told["data"]
    assert told["data"][: len(base.manifest["data"])] == base.manifest["data"]
    assert "the portrait's owner (me.mp4)" in told["data"][-1]["name"]
    assert film not in _about(base, FileReport("me.mp4"), 3, None)["data"]


def test_the_result_is_a_checkpoint_that_an_engine_loads(
    made: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = made
    engine = load_engine("openvino", out, 1)
    listing = json.loads((out / "portraits" / "portraits.json").read_text())
    picture = decode_image((out / "portraits" / listing[0]["file"]).read_bytes())
    portrait = prepare_portrait(picture, engine, id="owner", name="Owner")
    drawing = engine.draw(portrait.appearance, portrait.appearance.code)
    assert np.isfinite(drawing.rgb).all()
    manifest = open_checkpoint(out).manifest
    assert manifest["personalised"]["steps"] == 3
    assert manifest["data"][-1]["licence"] == "own recording"


def test_only_decoder_and_adapters_were_tuned(made: tuple[Path, dict[str, Any]]) -> None:
    base, mine = (load_networks(open_checkpoint(p)).state_dict() for p in (None, made[0]))
    changed = {k for k in base if not torch.equal(base[k], mine[k])}
    allowed = tuple(f"generator.net.{n}" for n in DECODER) + tuple(
        f"appearance.net.{n}" for n in ADAPTERS
    )
    assert changed
    assert all(name.startswith(allowed) for name in changed), sorted(changed)[:5]
    for name in ("audio.onnx", "motion.onnx"):
        assert file_hash(made[0] / name)
    assert not any(k.endswith(("running_mean", "running_var")) for k in changed)


def test_the_report_compares_base_and_own_on_the_tail(made: tuple[Path, dict[str, Any]]) -> None:
    out, report = made
    assert set(report["before"]) == set(report["after"]) == {key for key, *_ in FIGURES}
    assert report["before"]["psnr_db"] > 20
    assert report["seconds_held_out"] >= 2
    assert report["seconds_trained"] + report["seconds_held_out"] == pytest.approx(4.4, abs=0.1)
    frames = list(pictures(out / "preview.mp4"))
    assert frames[0].shape == (256, 768, 3)
    assert len(frames) == round(report["seconds_held_out"] * 25)
    page = (out / "report.html").read_text()
    assert "not independently" in page
    assert "data:image/jpeg" in page
    assert not list(out.parent.glob("*.work")), "unfinished work is cleared away"


def test_without_consent_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(PersonaliseError, match="--i-am-the-owner"):
        personalise(tmp_path / "x.mp4", None, tmp_path / "o", 1, console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_video_that_shows_nobody_is_refused_with_reasons(tmp_path: Path) -> None:
    write_empty_room(tmp_path / "room.mp4")
    with pytest.raises(PersonaliseError, match=r"only 0\.0 s can be used.*no face"):
        personalise(tmp_path / "room.mp4", None, tmp_path / "o", 1, i_am_the_owner=True,
                    threads=1, console=QUIET)  # fmt: skip
    with pytest.raises(PersonaliseError, match="no file"):
        personalise(tmp_path / "nothing.mp4", None, tmp_path / "o", 1, i_am_the_owner=True,
                    threads=1, console=QUIET)  # fmt: skip


def made_clip(frames: int, start: int) -> Clip:
    crops = [np.zeros((4, 4, 3), np.uint8)] * frames
    face = FaceClip(crops, np.zeros((frames, 58), "f4"), np.zeros((frames, 152, 2), "f4"))
    return Clip(face, np.zeros(frames * 640, "f4"), start, np.eye(2, 3, dtype="f4"), np.zeros(64))


def test_the_last_fifth_is_held_out() -> None:
    split = split_tail([made_clip(200, 0), made_clip(300, 200)])
    assert len(split.tail.crops) == 100
    assert [len(c.face.crops) for c in split.train] == [200, 200]
    whole = split_tail([made_clip(200, 0), made_clip(60, 200)])
    assert len(whole.tail.crops) == 52
    assert [len(c.face.crops) for c in whole.train] == [200], "eight frames teach nothing"
    with pytest.raises(PersonaliseError, match="too short"):
        split_tail([made_clip(60, 0)])


def test_the_anchor_pulls_back_to_the_base() -> None:
    networks = load_networks(open_checkpoint())
    decoder, adapters = tuned_parts(networks.appearance.net, networks.generator.net)
    anchor = Anchor([*decoder, *adapters])
    assert float(anchor().detach()) == 0
    with torch.no_grad():
        decoder[0].add_(0.1)
    loss = anchor()
    loss.backward()
    assert decoder[0].grad is not None
    assert bool((decoder[0].grad > 0).all()), "against the change"
    frozen = [p for p in networks.generator.parameters() if not p.requires_grad]
    assert len(frozen) > len(decoder)


def test_the_verdict_does_not_call_a_loss_a_win() -> None:
    before = {key: 1.0 for key, *_ in FIGURES}
    worse = before | {"psnr_db": 0.9, "perceptual": 1.2, "sharp_mouth": 1.5}
    assert verdict(before, worse).startswith("Worse than the base")
    assert verdict(before, before).startswith("No better")
    mixed = before | {"perceptual": 0.8, "ssim": 0.9}
    assert verdict(before, mixed) == "Better than the base in 1 of 8 figures; worse in: SSIM."
