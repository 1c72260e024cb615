"""Networks: within the budget of DESIGN.md, and geometry in torch equals geometry in numpy."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, MotionCode
from models.config import ModelConfig
from models.export import example_inputs
from models.face import LANDMARKS
from models.networks import Networks
from models.networks.generator import Geometry, KernelFlow, Motion, _plane_turn

pytestmark = pytest.mark.unit

BUDGET_GMAC = {"audio": 0.08, "motion": 0.35, "generator": 2.5}


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(ModelConfig())


@pytest.mark.parametrize("name", list(BUDGET_GMAC))
def test_cost_per_frame_is_within_budget(networks: Networks, name: str) -> None:
    inputs = example_inputs(name, networks.config, open_checkpoint().face, 0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        networks[name](*inputs)
    assert counter.get_total_flops() / 2e9 < BUDGET_GMAC[name]


def test_torch_geometry_equals_numpy() -> None:
    face = open_checkpoint().face
    geometry = Geometry()
    geometry.load_face_model(face)
    vector = np.random.default_rng(0).uniform(-0.3, 0.3, CODE_DIM).astype(np.float32)
    found = geometry(torch.from_numpy(face.mean)[None], torch.from_numpy(vector)[None])
    wanted = face.project(face.mean, MotionCode.split(vector))
    np.testing.assert_allclose(found[0, :LANDMARKS].numpy(), wanted, atol=1e-5)


def test_no_motion_is_no_flow() -> None:
    geometry, kernel = Geometry(), KernelFlow(64)
    geometry.load_face_model(open_checkpoint().face)
    code = torch.zeros(1, CODE_DIM)
    points = geometry(geometry.mean[None], code)
    with torch.no_grad():
        flow, maps = kernel(points, points, _plane_turn(code, code))
    still = kernel.grid.t().reshape(1, 2, 64, 64)
    np.testing.assert_allclose(flow.numpy(), still.numpy(), atol=1e-5)
    np.testing.assert_allclose(maps.sum(1).numpy(), 1, atol=1e-5)


def test_the_head_turns_and_the_rim_stays() -> None:
    geometry, kernel = Geometry(), KernelFlow(64)
    geometry.load_face_model(open_checkpoint().face)
    source, driving = torch.zeros(1, CODE_DIM), torch.zeros(1, CODE_DIM)
    driving[0, 16] = 0.2
    shape = geometry.mean[None]
    with torch.no_grad():
        flow, _ = kernel(geometry(shape, source), geometry(shape, driving),
                         _plane_turn(source, driving))  # fmt: skip
    shift = (flow - kernel.grid.t().reshape(1, 2, 64, 64))[0, 0]
    assert shift[34:44, 28:36].mean() < -0.02, "the face's pixels come from further left"
    assert shift[:, [0, -1]].abs().max() < 0.01


def test_a_window_decodes_like_the_whole(networks: Networks) -> None:
    rgb, f64, f32, identity, shape, source, driving = example_inputs(
        "generator", networks.config, open_checkpoint().face, 1
    )
    generator = networks.generator.net
    with torch.no_grad():
        motion = generator.motion(f32, identity, shape, source, driving)
        assert isinstance(motion, Motion)
        mask, drawn = generator.decode(rgb, f64, motion)
        part_mask, part = generator.decode(rgb, f64, motion.window(16, 20, 32))
    inner = slice(32, -32)
    rows, columns = slice(80 + 32, 208 - 32), slice(64 + 32, 192 - 32)
    np.testing.assert_allclose(part[0, :, inner, inner], drawn[0, :, rows, columns], atol=1e-4)
    np.testing.assert_allclose(part_mask[0, :, inner, inner], mask[0, :, rows, columns], atol=1e-4)
