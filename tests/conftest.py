"""Fixtures that several test modules use: the golden network, a tiny one, an image and a matte."""

from pathlib import Path

import numpy as np
import pytest
import torch

from golden_weights import golden_shapes, weights
from portraitmatting import Matte, ModelConfig, PortraitMatting, Predictor
from portraitmatting.checkpoint.format import from_author_keys

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def same_precision_everywhere(monkeypatch):
    """Precision "auto" means fp32 on every CPU, so that tests give the same results everywhere."""
    monkeypatch.setattr("portraitmatting.device.is_faster_in_bf16", lambda: False)


@pytest.fixture(scope="session")
def author_state() -> dict[str, torch.Tensor]:
    """The golden weights under the author's names."""
    return weights(golden_shapes())


@pytest.fixture(scope="session")
def golden_model(author_state) -> PortraitMatting:
    """The published network with the golden weights, which the converter has read."""
    model = PortraitMatting()
    model.load_state_dict(from_author_keys(author_state))
    return model.eval()


@pytest.fixture
def tiny_model() -> PortraitMatting:
    """A small network with fixed random weights."""
    torch.manual_seed(0)
    return PortraitMatting(ModelConfig.tiny()).eval()


@pytest.fixture
def tiny_predictor(tiny_model) -> Predictor:
    """A predictor of that network."""
    return Predictor(tiny_model, short_side=64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def photo(rng) -> np.ndarray:
    """A smooth image, 90x120x3 uint8."""
    rows, columns = np.mgrid[0:90, 0:120]
    shades = [128 + 120 * np.sin(rows / 17 + k) * np.cos(columns / 23 - k) for k in range(3)]
    return np.stack(shades, axis=-1).astype(np.uint8)


@pytest.fixture
def matte(photo) -> Matte:
    """The matte of `photo`: a disc with a soft edge."""
    rows, columns = np.mgrid[0:90, 0:120]
    alpha = np.clip((35 - np.hypot(rows - 45, columns - 60)) / 10, 0, 1).astype(np.float32)
    return Matte(photo, alpha, np.full(alpha.shape, 128, np.uint8))
