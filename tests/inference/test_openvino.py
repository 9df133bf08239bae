"""OpenVINO's maps against PyTorch's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from nuclora.errors import NucloraError
from nuclora.inference.openvino import OpenVinoNetwork, convert
from nuclora.inference.predictor import Predictor
from nuclora.models.checkpoints import load_base
from nuclora.models.sam import NucleiSam
from nuclora.recipe import DenseSettings

DENSE = DenseSettings(window=96, channels=8, fine_channels=8)


@pytest.fixture
def model(tiny_sam_folder: Path) -> NucleiSam:
    sam = load_base("custom", tiny_sam_folder).model
    sam.add_dense_decoder(DENSE, seed=0)
    return sam


def _predictor(model: NucleiSam, network: OpenVinoNetwork | None = None, size: int = 64) -> Predictor:
    return Predictor(model, input_size=size, normalise="unit", dense=DENSE, network=network)


# The tiny base's own size, and one that its positions have to be resized for.
@pytest.mark.parametrize(("size", "precision", "tolerance"), [(64, "no", 1e-3), (64, "bf16", 1.0), (96, "no", 1e-3)])
def test_maps_are_those_of_torch(model, size, precision, tolerance):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'nuclora[openvino]'")
    image = np.random.default_rng(0).integers(0, 256, (130, 100, 3), dtype=np.uint8)
    expected = _predictor(model, size=size).maps(image, 2)
    network = OpenVinoNetwork(convert(model, size, DENSE.window), precision)
    found = _predictor(model, network, size).maps(image, 2)
    # Offsets are in pixels, up to some tens; the other maps are within 0..1.
    np.testing.assert_allclose(found.values, expected.values, atol=tolerance)
    assert np.abs(found.values[:3] - expected.values[:3]).max() < tolerance / 5
    np.testing.assert_allclose(found.disagreement, expected.disagreement, atol=tolerance)


def test_what_it_cannot_compute_is_refused(model):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'nuclora[openvino]'")
    with pytest.raises(NucloraError, match="does not compute in fp16"):
        OpenVinoNetwork(convert(model, 64, DENSE.window), "fp16")


def test_the_mend_is_not_what_was_refused():
    with pytest.raises(NucloraError, match=r"does not compute in int8 here; --precision no or bf16$"):
        OpenVinoNetwork(None, "int8")


def test_without_openvino_the_way_to_get_it_is_told(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(NucloraError, match="needs the package openvino") as caught:
        convert(model, 64, DENSE.window)
    assert caught.value.mend == "pip install 'nuclora[openvino]'"
