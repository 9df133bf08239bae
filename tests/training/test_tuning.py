"""Tuning on inner validation, from the trained fold to the card that predictions go by."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nuclora.cli.main import app
from nuclora.data import open_tiles
from nuclora.data.folds import inner_split, make_folds
from nuclora.data.targets import dense_targets
from nuclora.data.tiles import Sample, Tile
from nuclora.errors import NucloraError
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Maps, Predictor
from nuclora.inference.scores import calibrate, find_nuclei, true_ious
from nuclora.inference.standalone import find_source
from nuclora.inference.tune import Trial
from nuclora.metrics import OverlapTable
from nuclora.models.adapter import (
    DENSE_WEIGHTS,
    AdapterCard,
    read_card,
    read_recipe,
    read_tensors,
    save_half,
    shipped_adapter,
    tuned_settings,
    write_card,
)
from nuclora.recipe import Recipe
from nuclora.run import Run
from nuclora.training import tuning
from nuclora.training.crossval import cross_validate
from nuclora.training.tuning import is_tuned, tune_fold, tune_run


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    fields = tiny_recipe.model_dump()
    fields["augment"] |= {"crop": 32}
    fields["dense"] = {"window": 64, "channels": 8, "fine_channels": 8}
    fields["train"] |= {"validate_on": "inner", "epochs": 6, "learning_rate": 5e-3}
    # So low that something is found in the maps of next to random weights.
    decode = {"views": 2, "core": 0.0, "foreground": 0.4}
    fields["evaluate"] = {"protocols": ("automatic",), "decode": decode, "min_size": 1, "tune": True}
    return Recipe.model_validate(fields)


@pytest.fixture(scope="module")
def run(recipe, tiny_data, tiny_sam_folder, tmp_path_factory):
    tiles = open_tiles(tiny_data)
    return cross_validate(
        tiles,
        recipe,
        tmp_path_factory.mktemp("tuning") / "run",
        fold_table=make_folds(tiles, 2, 0),
        folds=[1],
        weights=tiny_sam_folder,
        zero_shot=False,
    )


def test_what_is_scored_on_inner_tiles_is_not_tuned_on_them(run, tiny_data, monkeypatch):
    inner = run.recipe.evaluate.model_copy(update={"tiles": "inner", "tune": False})
    monkeypatch.setattr(run, "recipe", run.recipe.model_copy(update={"evaluate": inner}))
    with pytest.raises(NucloraError, match="its folds are scored on the inner tiles"):
        tune_fold(run, 1, open_tiles(tiny_data), None)


def test_only_inner_validation_tiles_are_read(run, tiny_data, tiny_sam_folder, monkeypatch):
    read = []
    tiles = open_tiles(tiny_data)
    names = {tile.read().image.tobytes(): tile.name for tile in tiles}
    original = Predictor.maps

    def maps(self, image, views):
        read.append(names[image.tobytes()])
        return original(self, image, views)

    monkeypatch.setattr(Predictor, "maps", maps)
    tune_fold(run, 1, tiles, load_model(run.adapter_folder(1), weights=tiny_sam_folder))
    assert set(read) == set(inner_split(run.folds, 1, seed=run.recipe.seed)[1])
    assert not set(read) & set(run.folds.test(1))


def test_card_holds_what_was_tuned_and_predictions_go_by_it(run, recipe, tiny_sam_folder):
    folder = run.adapter_folder(1)
    assert is_tuned(run, 1)
    card = read_card(folder)
    settings = tuned_settings(card, read_recipe(folder, card))
    assert settings.decode.core == card.thresholds["core"]
    assert settings.min_size == card.thresholds["min_size"]
    assert settings.decode.views == 2
    assert load_model(folder, weights=tiny_sam_folder).settings == settings
    assert {"tuned_dice", "tuned_aji", "tuned_pq"} <= card.metrics.keys()


def test_scores_of_test_nuclei_are_kept_beside_the_labels(run, tiny_data):
    evaluation = run.fine_tuned(1, "automatic")
    assert sum(row["nuclei_predicted"] for row in evaluation.rows) > 0
    for row in evaluation.rows:
        nuclei = evaluation.nuclei(row["tile"])
        assert len(nuclei) == row["nuclei_predicted"]
        labels = evaluation.labels(row["tile"])
        for nucleus in nuclei:
            assert nucleus["area"] == np.count_nonzero(labels == nucleus["label"])
            assert 0 <= nucleus["score"] <= 1
            assert 0 <= nucleus["iou"] <= 1


def test_run_is_evaluated_with_each_folds_own_thresholds(run, tiny_data):
    card = run.adapter_folder(1) / "nuclora.json"
    source = find_source(str(card.parent), open_tiles(tiny_data))
    assert source.settings[0].decode.core == read_card(card.parent).thresholds["core"]


def test_command_tunes_what_is_trained_and_leaves_alone_what_is_evaluated(run, tiny_sam_folder, tmp_path):
    arguments = ["tune", str(run.folder), "--weights", str(tiny_sam_folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert "fold 1 is evaluated already" in str(result.exception)
    evaluated = run.fine_tuned(1, "automatic").folder
    evaluated.rename(tmp_path / "away")
    try:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0
        assert json.loads(result.stdout) == {"1": read_card(run.adapter_folder(1)).thresholds}
        assert "core" in CliRunner().invoke(app, [*arguments, "--folds", "1"]).stdout
        assert "fold 2: not trained; train it with `nuclora train`" in str(
            CliRunner().invoke(app, [*arguments, "--folds", "2"]).exception
        )
    finally:
        (tmp_path / "away").rename(evaluated)


def test_other_protocols_were_scored_with_the_thresholds_too(run, monkeypatch):
    asked = run.recipe.evaluate.model_copy(update={"protocols": ("oracle-box",)})
    monkeypatch.setattr(run, "recipe", run.recipe.model_copy(update={"evaluate": asked}))
    scores = run.fine_tuned(1, "oracle-box").folder
    shutil.copytree(run.fine_tuned(1, "automatic").folder, scores)
    try:
        with pytest.raises(NucloraError, match=r"oracle-box: fold 1 is evaluated already"):
            tune_run(run, [1])
    finally:
        shutil.rmtree(scores)


def test_fold_that_is_evaluated_while_another_is_tuned_is_left_alone(run, tiny_sam_folder, tmp_path, monkeypatch):
    evaluated = run.fine_tuned(1, "automatic").folder
    card = read_card(run.adapter_folder(1))
    locked = type(run).locked

    def late(self, fold):
        (tmp_path / "away").rename(evaluated)
        return locked(self, fold)

    monkeypatch.setattr(type(run), "locked", late)
    evaluated.rename(tmp_path / "away")
    with pytest.raises(NucloraError, match="evaluated already"):
        tune_run(run, weights=tiny_sam_folder)
    assert read_card(run.adapter_folder(1)) == card


def test_tiles_that_have_gone_are_named(run, tmp_path, tiny_sam_folder):
    moved = Run(shutil.copytree(run.folder, tmp_path / "run"))
    shutil.rmtree(moved.fine_tuned(1, "automatic").folder)
    moved.info["data"]["root"] = str(tmp_path / "none")
    with pytest.raises(NucloraError, match="none: the run's tiles are no longer there; put them back"):
        tune_run(moved, weights=tiny_sam_folder)


def test_recipe_that_validates_on_the_test_fold_cannot_be_tuned(run, tiny_data, tiny_sam_folder):
    class Leaking:
        recipe = run.recipe.model_copy(update={"train": run.recipe.train.model_copy(update={"validate_on": "test"})})
        folder = run.folder

    with pytest.raises(NucloraError, match="would leak"):
        tune_fold(Leaking(), 1, open_tiles(tiny_data), load_model(run.adapter_folder(1), weights=tiny_sam_folder))


def test_half_precision_copy_is_half_as_large_and_finds_the_same(run, tiny_data, tiny_sam_folder, tmp_path):
    folder, half = run.adapter_folder(1), tmp_path / "half"
    save_half(folder, half)
    sizes = [sum(file.stat().st_size for file in f.glob("*.safetensors")) for f in (folder, half)]
    assert sizes[1] < 0.6 * sizes[0]
    image = next(iter(open_tiles(tiny_data))).read().image
    full, copied = (load_model(f, weights=tiny_sam_folder).maps(image, 1).values for f in (folder, half))
    np.testing.assert_allclose(copied, full, atol=0.05 * np.abs(full).max())
    with pytest.raises(NucloraError, match="exists already"):
        save_half(folder, half)
    # The tiles' format does not say how large a pixel is; who knows it can.
    assert read_card(half).microns_per_pixel is None
    with pytest.raises(NucloraError, match="--mpp nan: not a plausible size of a pixel"):
        save_half(folder, tmp_path / "scaled", microns_per_pixel=float("nan"))
    save_half(folder, tmp_path / "scaled", microns_per_pixel=0.25)
    assert read_card(tmp_path / "scaled") == read_card(half).model_copy(update={"microns_per_pixel": 0.25})


def test_adapter_without_its_dense_decoder_is_not_exported(run, tmp_path):
    folder = shutil.copytree(run.adapter_folder(1), tmp_path / "adapter")
    (folder / "dense_decoder.safetensors").unlink()
    with pytest.raises(NucloraError, match=r"dense_decoder\.safetensors: missing from the adapter"):
        save_half(folder, tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_damaged_nuclei_file_is_named(run):
    evaluation = run.fine_tuned(1, "automatic")
    tile = evaluation.rows[0]["tile"]
    path = evaluation.folder / "nuclei" / f"{tile}.csv"
    before = path.read_text()
    try:
        path.write_text("label,score\n1,abc\n")
        with pytest.raises(NucloraError, match="damaged"):
            evaluation.nuclei(tile)
    finally:
        path.write_text(before)
    assert list(csv.reader(before.splitlines()))[:1] in ([], [["label", "area", "score", "iou"]])


def test_package_without_an_adapter_says_so(monkeypatch):
    monkeypatch.setattr("nuclora.models.adapter.SHIPPED", "none-such")
    with pytest.raises(NucloraError, match="has no adapter"):
        shipped_adapter()


class Exact:
    """Predicts the truth of tiles, with so many pixels of doubt."""

    def __init__(self, tiles, doubt):
        self.samples = {sample.image.tobytes(): sample for sample in map(Tile.read, tiles)}
        self.doubt = doubt
        self.views = []

    def maps(self, image, count):
        self.views.append(count)
        maps = dense_targets(self.samples[image.tobytes()].labels)
        maps[0] *= 0.8
        return Maps(maps, self.doubt * np.random.default_rng(0).random(maps[0].shape, dtype=np.float32))


def test_calibration_is_learnt_on_the_nuclei_that_count(run, tiny_data, tiny_sam_folder, tmp_path, monkeypatch):
    copy, read = Run(shutil.copytree(run.folder, tmp_path / "run")), Tile.read

    def half_vague(tile):
        sample = read(tile)
        ignore = np.zeros(sample.labels.shape, bool)
        ignore[:32] = True
        return Sample(sample.image, sample.labels, ignore)

    monkeypatch.setattr(Tile, "read", half_vague)
    tiles = open_tiles(tiny_data)
    exact = Exact(tiles, doubt=4)
    tune_fold(copy, 1, tiles, exact)
    views = set(exact.views)
    card = read_card(copy.adapter_folder(1))
    scores, ious = [], []
    for name in inner_split(copy.folds, 1, seed=copy.recipe.seed)[1]:
        sample = tiles[name].read()
        maps = exact.maps(sample.image, 2)
        labels, found = find_nuclei(*maps, sample.labels.shape, copy.recipe.evaluate.decode, 10)
        table = OverlapTable.from_labels(sample.labels, labels, sample.ignore)
        assert 0 < len(table.pred_ids) < labels.max()
        scores += [found[label - 1] for label in table.pred_ids]
        ious += true_ious(table).tolist()
    assert card.calibration == calibrate(np.array(scores), np.array(ious))
    assert views == {2}
    predictor = load_model(copy.adapter_folder(1), weights=tiny_sam_folder)
    assert predictor.calibration == card.calibration
    saved = read_tensors(copy.adapter_folder(1) / DENSE_WEIGHTS)
    loaded = predictor.model.dense_decoder.state_dict()
    assert all((saved[name] == loaded[name]).all() for name in saved)


@pytest.fixture
def untuned(tmp_path, recipe, tiny_data):
    """A run whose first fold has an adapter of a card alone, and its tiles, a copy."""
    tiles = open_tiles(shutil.copytree(tiny_data, tmp_path / "tiles"))
    run = Run.start(
        tmp_path / "run",
        recipe=recipe,
        folds=make_folds(tiles, 2, 0),
        base={"name": "custom", "sha256": "0", "path": "x"},
        data={"root": str(tiles.root), "format": tiles.format, "sha256": tiles.digest()},
    )
    run.adapter_folder(1).mkdir(parents=True)
    card = AdapterCard(
        base="custom", base_sha256="0" * 64, input_size=64, normalise="unit", recipe=recipe.model_dump(mode="json")
    )
    write_card(run.adapter_folder(1), card)
    return run, tiles


def test_the_card_has_calibration_and_measures_of_what_was_chosen(untuned, monkeypatch):
    run, tiles = untuned
    exact = Exact(tiles, doubt=6)
    start = run.recipe.evaluate.decode
    chosen = start.model_copy(update={"foreground": 0.7, "smooth": 2.5})
    trials = [
        Trial(start, 1, 0.1, 0.1, 0.1, (0.1,)),
        Trial(chosen, 30, 0.2, 0.3, 0.4, (0.35,)),
        Trial(chosen, 50, 0.1, 0.1, 0.1, (0.1,)),
    ]
    monkeypatch.setattr(tuning, "tune_decode", lambda *_: (chosen, 30, trials))
    tune_fold(run, 1, tiles, exact)
    card = read_card(run.adapter_folder(1))
    assert card.metrics == {"tuned_dice": 0.2, "tuned_aji": 0.3, "tuned_pq": 0.4}
    assert (card.thresholds["foreground"], card.thresholds["min_size"]) == (0.7, 30)
    scores, ious = [], []
    for name in inner_split(run.folds, 1, seed=run.recipe.seed)[1]:
        sample = tiles[name].read()
        maps = exact.maps(sample.image, chosen.views)
        labels, found = find_nuclei(*maps, sample.labels.shape, chosen, 30)
        scores += found.tolist()
        ious += true_ious(OverlapTable.from_labels(sample.labels, labels, sample.ignore)).tolist()
    assert card.calibration == calibrate(np.array(scores, np.float32), np.array(ious))


def test_tiles_that_were_changed_since_are_not_tuned_on(untuned):
    run, tiles = untuned
    first = tiles.tiles[0].image
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    with pytest.raises(NucloraError, match="differ"):
        tune_run(run)
