"""The published configuration: counts and costs of METHOD.md section 2, export, engine surface."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import open_checkpoint
from models.codes import FACTORS
from models.composite import compose
from models.config import ModelConfig, paper_config
from models.export import example_inputs, export_checkpoint
from models.networks import Networks, build
from models.networks.paper.audio import AudioEncoder
from models.networks.paper.generator import Generator, StyledConv, blur_kernel
from models.networks.paper.motion import MotionEncoder
from models.runtime import load_engine

pytestmark = pytest.mark.unit

#: Millions of parameters and GMAC per frame, as METHOD.md gives them.
PUBLISHED = {
    "appearance": (24.0, 4.29), "motion": (9.0, 6.33), "audio": (7.6, 0.47),
    "generator": (37.3, 34.7),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return build(paper_config())


def size(networks: Networks, name: str) -> float:
    net = networks[name].net
    count = sum(p.numel() for p in net.parameters())
    if isinstance(net, MotionEncoder):
        count -= sum(p.numel() for p in net.landmarks.parameters())
    return count / 1e6


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_parameters_and_cost_are_the_published_ones(networks: Networks, name: str) -> None:
    inputs = example_inputs(name, networks.config, open_checkpoint(verify=False).face, 0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        networks[name](*inputs)
    parameters, gmac = PUBLISHED[name]
    assert size(networks, name) == pytest.approx(parameters, abs=0.05)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


def test_shapes(networks: Networks) -> None:
    config = networks.config
    assert (config.mel_window, config.lookahead_ms, config.code_dim) == (20, 120, 542)
    face = open_checkpoint(verify=False).face
    with torch.no_grad():
        motion = networks.motion(*example_inputs("motion", config, face, 0))
        lip = networks.audio(*example_inputs("audio", config, face, 0))[0]
        features, identity = networks.appearance(*example_inputs("appearance", config, face, 0))
        flow, mask, rgb = networks.generator(features, identity, torch.randn(1, 542))
    assert [tuple(m.shape) for m in motion] == [(1, 500), (1, 6), (1, 6), (1, 30), (1, 152, 2)]
    assert lip.shape == (1, 500)
    assert features.shape == (1, 512, 7, 7)
    assert identity.shape == (1, 2048)
    assert flow.shape == (1, 2, 64, 64)
    assert mask.shape == (1, 1, 224, 224)
    assert not mask.any(), "nothing of the source is reused"
    assert rgb.shape == (1, 3, 224, 224)
    assert 0 <= rgb.min() <= rgb.max() <= 1


def test_heads_and_sound_give_pre_embeddings_of_512(networks: Networks) -> None:
    motion, audio = networks.motion.net, networks.audio.net
    assert isinstance(motion, MotionEncoder)
    assert isinstance(audio, AudioEncoder)
    feature = torch.randn(2, 512)
    with torch.no_grad():
        for factor in FACTORS:
            pre, code = motion.embed(factor, feature)
            assert pre.shape == (2, 512)
            torch.testing.assert_close(code, motion.heads[factor](feature))
        pre, code = audio.embed(torch.rand(2, 20, 80))
        assert pre.shape == (2, 512)
        torch.testing.assert_close(code, audio.lip(F.relu(pre)))


def test_modulation_equals_the_published_one_on_weights() -> None:
    torch.manual_seed(1)
    layer = StyledConv(6, 4, style=5, size=8, up=False)
    x, style = torch.randn(1, 6, 8, 8), torch.randn(1, 5)
    s = layer.affine(style)[0, :, 0, 0]
    weight = layer.weight * layer.scale * s[None, :, None, None]
    weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    wanted = F.leaky_relu(F.conv2d(x, weight, padding=1), 0.2) * 2**0.5
    torch.testing.assert_close(layer(x, style), wanted, atol=1e-5, rtol=1e-4)


def test_blur_keeps_brightness_and_sizes_double() -> None:
    assert blur_kernel(4.0).sum().item() == pytest.approx(4.0)
    layer = StyledConv(3, 2, style=4, size=14, up=True)
    assert layer(torch.randn(2, 3, 7, 7), torch.randn(2, 4)).shape == (2, 2, 14, 14)


def test_the_code_moves_the_picture_and_noise_does_not(networks: Networks) -> None:
    generator = networks.generator.net
    assert isinstance(generator, Generator)
    features, identity = torch.randn(1, 512, 7, 7), torch.randn(1, 2048)
    with torch.no_grad():
        a, again, b = (
            generator.picture(features, identity, code)
            for code in (torch.zeros(1, 542), torch.zeros(1, 542), torch.ones(1, 542))
        )
    assert torch.equal(a, again)
    assert (a - b).abs().mean() > 1e-3


@pytest.mark.parametrize("config", [ModelConfig(), paper_config()], ids=["live", "paper"])
def test_no_tensor_stays_on_the_cpu(config: ModelConfig) -> None:
    face = open_checkpoint(verify=False).face
    nets = build(config).to("meta")
    for name, net in nets.named():
        inputs = (x.to("meta") for x in example_inputs(name, config, face, 0))
        assert all(out.device.type == "meta" for out in net(*inputs))


def test_paper_exports_and_draws_through_the_engine(networks: Networks, tmp_path: Path) -> None:
    face = open_checkpoint(verify=False).face
    parity = export_checkpoint(networks, face, tmp_path / "paper", about={"name": "paper"})
    assert max(e for errors in parity.errors.values() for e in errors.values()) < 4e-3
    engine = load_engine("openvino", tmp_path / "paper", threads=1)
    picture = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    appearance = engine.appearance(picture)
    lip = engine.audio(np.random.default_rng(1).random((20, 80), np.float32))
    assert lip.shape == (500,)
    driving = engine.motion(picture).code.with_("lip", lip)
    drawing = engine.draw(appearance, driving)
    assert drawing.rgb.shape == (224, 224, 3)
    assert not drawing.mask.any()
    out = compose(drawing, picture, 224)
    np.testing.assert_allclose(out, drawing.rgb * 255, atol=1)
