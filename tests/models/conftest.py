"""The real engine and a bundled portrait, loaded once."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.runtime import load_engine
from models.runtime.base import BaseEngine

PORTRAITS = Path(__file__).parents[2] / "web" / "portraits"


@pytest.fixture(scope="session")
def engine() -> BaseEngine:
    """OpenVINO in float32 with the shipped weights."""
    return load_engine("openvino", threads=2, precision="float32")


@pytest.fixture(scope="session")
def portrait_picture() -> np.ndarray:
    """The first bundled portrait, (512, 512, 3) RGB."""
    entry = json.loads((PORTRAITS / "portraits.json").read_text())[0]
    image = cv2.imread(str(PORTRAITS / entry["file"]))
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
