"""The adapter inside the package: a stranger's first prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from typer.testing import CliRunner

import nuclora
from nuclora.cli.main import app
from nuclora.data import open_tiles
from nuclora.metrics import score
from nuclora.models.adapter import read_card, read_recipe, shipped_adapter
from nuclora.recipe import load_recipe

IHC = Path(skimage.__file__).parent / "data" / "ihc.png"


@pytest.fixture(scope="module")
def predictor():
    return nuclora.load_model(shipped_adapter())


def test_it_is_small_and_documented():
    folder = shipped_adapter()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 16e6
    card = (folder / "README.md").read_text()
    for word in ("NuInsSeg", "CC BY 4.0", "LiteMedSAM", "Limits", "nuclora train"):
        assert word in card


def test_it_is_made_by_the_shipped_recipe_and_tuned():
    folder = shipped_adapter()
    card = read_card(folder)
    made = read_recipe(folder, card)
    # What it was trained with besides: in float32, with fewer processes that read, unwatched and without checkpoints.
    besides = [
        "train.precision=no",
        "train.workers=2",
        "train.validations_per_epoch=0",
        "train.checkpoint_steps=100000",
    ]
    assert made == load_recipe("embedded", besides)
    assert card.base == "lite_medsam"
    assert card.thresholds
    assert card.calibration


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """scikit-image's immunohistochemistry sample, enlarged to the scale that the adapter knows."""
    path = tmp_path_factory.mktemp("sample") / "ihc-3x.png"
    Image.open(IHC).convert("RGB").crop((200, 200, 512, 512)).resize((936, 936), Image.Resampling.BICUBIC).save(path)
    return path


def test_predict_works_after_installation_with_nothing_given(sample, tmp_path):
    result = CliRunner().invoke(app, ["predict", str(sample), "-o", str(tmp_path), "--views", "1", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["images"][0]
    assert 20 < told["nuclei"] < 400
    assert {path.suffix for path in tmp_path.iterdir()} >= {".tif", ".png", ".geojson", ".csv"}


def test_specks_elsewhere_leave_the_nuclei(predictor, sample):
    # Ink and holes, as slides have: a scaling of pixel values by a window's extremes lost nuclei to them. Dimmed, as
    # microscopes show tissue, so that the specks are darker and brighter than all else.
    image = np.rint(0.6 * np.asarray(Image.open(sample))[:512, -512:]).astype(np.uint8)
    specked = image.copy()
    specked[:12, :12], specked[-12:, -12:] = 0, 255
    settings = predictor.settings.with_views(1)
    clean, other = (predictor.nuclei(pixels, settings).labels[40:-40, 40:-40] > 0 for pixels in (image, specked))
    assert clean.any()
    assert (clean & other).sum() > 0.95 * (clean | other).sum()


def test_nuclei_of_the_sample_are_its_blue_parts(predictor, sample):
    image = np.asarray(Image.open(sample))
    settings = predictor.settings.with_views(1)
    nuclei = predictor.nuclei(image, settings)
    inside = nuclei.labels > 0
    # Brown is never blue: the stain in the glands is not taken for nuclei.
    blue = image[..., 2].astype(int) - image[..., 0]
    assert blue[inside].mean() > 0 > blue[~inside].mean()
    assert nuclei.scores.min() >= 0
    assert nuclei.scores.max() <= 1


def test_real_tiles_are_segmented(predictor, shared_data):
    # It was trained on them: this tells a broken adapter, and nothing of its accuracy.
    tiles = open_tiles(shared_data / "nuinsseg" / "official-sample")
    scores = []
    for tile in tiles:
        sample = tile.read()
        scores.append(score(sample.labels, predictor.nuclei(sample.image).labels, sample.ignore)["pq"])
    assert np.mean(scores) > 0.45
