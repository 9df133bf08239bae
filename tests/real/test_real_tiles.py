"""The main job on real tiles and real weights, where they are at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nuclora.data import TileSet, open_tiles
from nuclora.data.check import check_data
from nuclora.data.convert import convert_data
from nuclora.data.folds import ALL_TILES, make_folds
from nuclora.inference.loading import load_model
from nuclora.metrics import score
from nuclora.models.adapter import load_adapter
from nuclora.models.checkpoints import load_base
from nuclora.recipe import Recipe, load_recipe
from nuclora.training.crossval import cross_validate
from nuclora.training.samples import TrainingSamples
from nuclora.training.step import TileLoss

ORGANS = ("human liver", "mouse kidney")


@pytest.fixture(scope="module")
def real_tree(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles of each of two organs, in the official layout."""
    unpack = shared_data / "nuinsseg" / "unpack.py"
    if not unpack.is_file():
        pytest.skip(f"no NuInsSeg tiles: {unpack} is missing")
    folder = tmp_path_factory.mktemp("nuinsseg")
    command = [sys.executable, unpack, folder, "--organs", ",".join(ORGANS), "--per-organ", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def real_tiles(real_tree: Path) -> TileSet:
    return open_tiles(real_tree)


@pytest.fixture(scope="module")
def mobile_sam(shared_data: Path) -> Path:
    path = shared_data / "weights" / "mobile_sam.pt"
    if not path.is_file():
        pytest.skip(f"no MobileSAM weights: {path} is missing")
    return path


def test_the_reader_finds_the_official_tree(real_tree: Path, real_tiles: TileSet):
    assert real_tiles.format == "nuinsseg"
    assert real_tiles.groups == list(ORGANS)
    assert [tile.name for tile in real_tiles] == sorted(tile.name for tile in real_tiles)
    assert len(real_tiles) == 4
    for tile in real_tiles:
        sample = tile.read()
        assert sample.image.shape == (512, 512, 3)
        assert sample.labels.shape == sample.ignore.shape == (512, 512)
        assert tile.labels.parent.name == "label masks modify"
        assert tile.labels.is_relative_to(real_tree)
        # Haematoxylin takes out red: nuclei are darker there than what surrounds them.
        assert sample.image[sample.labels > 0, 0].mean() < sample.image[sample.labels == 0, 0].mean() - 10


def test_data_check_counts_what_is_there(real_tree: Path, real_tiles: TileSet):
    report = check_data(real_tree)
    assert report.faults == ()
    nuclei = dict.fromkeys(ORGANS, 0)
    for tile in real_tiles:
        nuclei[tile.group] += len(np.unique(tile.read().labels)) - 1
    assert {row.group: (row.tiles, row.nuclei) for row in report.groups} == {g: (2, n) for g, n in nuclei.items()}
    assert (report.total.tiles, report.total.nuclei) == (4, sum(nuclei.values()))
    assert report.total.sizes == ((512, 512, 4),)
    # The design's facts: nuclei are 12 to 60 pixels wide, some 30 in the middle.
    low, middle, high = report.total.diameter
    assert 8 < low < middle < high < 70
    assert 15 < middle < 45


def test_boxes_from_the_truth_segment_a_tile_without_any_training(real_tiles: TileSet, mobile_sam: Path):
    predictor = load_model("mobile_sam", weights=mobile_sam, device="cpu", input_size=512)
    sample = real_tiles[0].read()
    labels = predictor.segment(sample.image, "oracle-box", labels=sample.labels)
    assert labels.dtype == np.int32
    assert score(sample.labels, labels, sample.ignore)["aji"] > 0.5


def _three_steps() -> Recipe:
    overrides = (
        "base=mobile_sam input.size=256 input.normalise=base adapter.dropout=0 prompts.per_tile=4 "
        "augment.rotation=0 augment.flip=0 augment.noise=0 loss.stride=2 "
        "train.epochs=3 train.batch_size=4 train.learning_rate=2e-4 train.workers=0"
    )
    return load_recipe("paper", overrides.split())


def _loss(model: torch.nn.Module, tiles: TileSet, recipe: Recipe) -> float:
    samples = TrainingSamples(tiles, recipe, size=256, normalise="imagenet", epoch=99)
    model.eval()
    with torch.no_grad():
        return float(TileLoss(model, recipe.loss, 64)([samples[index] for index in range(len(tiles))]))


def test_three_steps_of_fine_tuning_lower_the_loss(real_tiles: TileSet, mobile_sam: Path, tmp_path: Path):
    """On the same tiles, with prompts that none of the steps has seen."""
    from nuclora.models.lora import adapt

    recipe = _three_steps()
    before = _loss(adapt(load_base("mobile_sam", mobile_sam).model, recipe.adapter, seed=0), real_tiles, recipe)
    run = cross_validate(
        real_tiles, recipe, tmp_path / "run", fold_table=make_folds(real_tiles, 2), folds=[ALL_TILES],
        weights=mobile_sam, zero_shot=False,
    )  # fmt: skip
    assert [r["step"] for r in run.training_records(ALL_TILES) if r["kind"] == "step"] == [1, 2, 3]
    after = _loss(load_adapter(run.adapter_folder(ALL_TILES), mobile_sam).model, real_tiles, recipe)
    assert after < 0.9 * before


@pytest.mark.parametrize("to", ["folder", "nuinsseg"])
def test_converted_tiles_are_the_same(real_tiles: TileSet, to, tmp_path: Path):
    convert_data(real_tiles, tmp_path / "new", to)
    again = open_tiles(tmp_path / "new")
    assert (again.names, again.groups) == (real_tiles.names, real_tiles.groups)
    for tile in real_tiles:
        old, new = tile.read(), again[tile.name].read()
        for part in ("image", "labels", "ignore"):
            np.testing.assert_array_equal(getattr(new, part), getattr(old, part))
