"""What all training loops share: learning rate, guarded steps, running means, saved state."""

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.loop import Parts, Report, cosine, descend, resume, save, set_rate

pytestmark = pytest.mark.unit


def test_rate_warms_up_then_falls_to_its_floor() -> None:
    rates = [cosine(s, peak=2.0, steps=1000, warm_up=100, floor=0.03) for s in range(1200)]
    assert rates[0] == pytest.approx(0.02, rel=1e-3)
    assert rates.index(max(rates)) == pytest.approx(99, abs=1)
    assert rates[500] == pytest.approx(1.03)
    assert rates[1000] == pytest.approx(0.06)
    assert rates[1199] == rates[1000], "past the end it stays"


def test_without_a_floor_the_last_rate_is_nothing() -> None:
    assert cosine(1000, peak=1.0, steps=1000, warm_up=1) == pytest.approx(0.0, abs=1e-12)


def test_groups_keep_their_own_scale() -> None:
    slow, quick = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.Adam([{"params": [slow]}, {"params": [quick], "scale": 8.0}], 1.0)
    set_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 4.0]


def test_the_gradient_is_cut_at_its_limit() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([weight], 1.0)
    descend(optimiser, {"a": weight[0] * 30, "b": weight[1] * 40}, [weight], limit=5.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-3.0, -4.0]))


def test_a_broken_loss_changes_nothing_and_is_named() -> None:
    weight = nn.Parameter(torch.ones(1))
    terms = {"fine": weight.sum(), "broken": weight.sum() * float("nan")}
    with pytest.raises(FloatingPointError, match=r"'broken': nan"):
        descend(torch.optim.SGD([weight], 1.0), terms, [weight], limit=1.0)
    assert weight.item() == 1.0


def test_means_follow_the_losses_and_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(every=2, keep=0.5, digits=2)
    report.add(1, {"lip": torch.tensor(1.0)})
    assert capsys.readouterr().out == ""
    report.add(2, {"lip": torch.tensor(2.0)})
    assert report.means == {"lip": 1.5}
    assert "{'lip': 1.5}" in capsys.readouterr().out


def test_saved_state_comes_back_with_what_was_added(tmp_path: Path) -> None:
    def parts() -> tuple[nn.Linear, Parts]:
        net = nn.Linear(3, 2)
        return net, {"net": net, "optimiser": torch.optim.Adam(net.parameters(), 1e-3)}

    path = tmp_path / "run.pt"
    first, saved = parts()
    assert resume(path, saved) == {"step": 0}
    save(path, saved, step=7, average=[torch.ones(2)], right_frames=1)
    assert set(torch.load(path, weights_only=True)) == {
        "net", "optimiser", "step", "average", "right_frames",
    }  # fmt: skip
    second, loaded = parts()
    state = resume(path, loaded)
    assert set(state) == {"step", "average", "right_frames"}
    assert state["step"] == 7
    torch.testing.assert_close(first.weight, second.weight)
