"""Motion codes and configuration: shapes are checked, vectors round-trip."""

import numpy as np
import pytest

from models.codes import CODE_DIM, DIMS, FACTOR_SLICES, FACTORS, MotionCode
from models.config import ModelConfig

pytestmark = pytest.mark.unit


def test_split_is_the_inverse_of_concat() -> None:
    vector = np.arange(CODE_DIM, dtype=np.float32)
    code = MotionCode.split(vector)
    np.testing.assert_array_equal(code.concat(), vector)
    for factor in FACTORS:
        np.testing.assert_array_equal(code.get(factor), vector[FACTOR_SLICES[factor]])
        assert code.get(factor).shape == (DIMS[factor],)


def test_with_replaces_one_factor_only() -> None:
    code = MotionCode().with_("eye", np.ones(6, np.float32))
    assert code.eye.sum() == 6
    assert not code.lip.any()
    assert not code.pose.any()


@pytest.mark.parametrize("bad", [np.zeros(5, np.float32), np.zeros(6, np.float64)])
def test_a_wrong_shape_or_type_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pose code must be float32"):
        MotionCode(pose=bad)


def test_a_wrong_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="motion vector"):
        MotionCode.split(np.zeros(3, np.float32))


def test_configuration_round_trips_and_refuses_unknown_keys() -> None:
    config = ModelConfig(right_frames=2)
    assert ModelConfig.from_json(config.to_json()) == config
    assert config.lookahead_ms == 120
    with pytest.raises(ValueError, match="colour"):
        ModelConfig.from_json({"colour": 1})
