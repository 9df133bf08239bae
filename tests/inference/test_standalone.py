from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adapters import write_adapter
from nuclora.cli.main import app
from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.evaluation import Evaluation
from nuclora.inference import standalone
from nuclora.inference.evaluate import evaluate_tiles
from nuclora.inference.loading import load_model
from nuclora.inference.protocols import DESCRIPTIONS
from nuclora.inference.provenance import identify_adapter
from nuclora.inference.standalone import NO_FOLD, evaluate_source, find_source
from nuclora.models.adapter import CARD, CONFIG, AdapterCard, read_card, write_card
from nuclora.models.checkpoints import load_base
from nuclora.models.lora import adapt
from nuclora.recipe import EvaluateSettings, GridSettings, load_recipe
from nuclora.run import Run

SETTINGS = EvaluateSettings(grid=GridSettings(points_per_side=2))


def _save_adapter(folder: Path, weights: Path, seed: int) -> None:
    base = load_base("custom", weights)
    recipe = load_recipe("smoke", ["base=custom", "input.size=64", "evaluate.grid.points_per_side=2"])
    model = adapt(base.model, recipe.adapter, seed=seed)
    write_adapter(folder, model, base, recipe, "unit", seed)


@pytest.fixture
def run(tmp_path: Path, labelled_tiles: TileSet, tiny_sam_folder: Path) -> Run:
    """A run of two folds whose adapters are there."""
    run = Run.start(
        tmp_path / "run",
        recipe=load_recipe("smoke"),
        folds=make_folds(labelled_tiles, k=2),
        base={"name": "custom", "sha256": "0", "path": "x"},
        data={"root": "x", "format": "folder"},
    )
    for fold in (1, 2):
        _save_adapter(run.adapter_folder(fold), tiny_sam_folder, fold)
    return run


def test_a_base_as_it_came(labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path) -> None:
    source = find_source("custom", labelled_tiles)
    arguments = (source, labelled_tiles, tmp_path / "out")
    summary = evaluate_source(
        *arguments, protocols=["oracle-box", "automatic"], settings={NO_FOLD: SETTINGS}, weights=tiny_sam_folder
    )
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert set(summary["protocols"]) == {"oracle-box", "automatic"}
    assert summary["protocols"]["oracle-box"]["description"] == DESCRIPTIONS["oracle-box"]
    assert summary["protocols"]["oracle-box"]["tiles"] == 6
    rows = Evaluation(tmp_path / "out" / "oracle-box").rows
    mean = sum(row["dice"] for row in rows) / 6
    assert summary["protocols"]["oracle-box"]["mean"]["dice"] == pytest.approx(mean)

    # Again: nothing changes. With other settings: refused.
    again = evaluate_source(
        *arguments, protocols=["oracle-box", "automatic"], settings={NO_FOLD: SETTINGS}, weights=tiny_sam_folder
    )
    assert {**again, "session": None} == {**summary, "session": None}
    other = SETTINGS.model_copy(update={"min_size": 3})
    with pytest.raises(NucloraError, match="something else: other settings"):
        evaluate_source(*arguments, protocols=["oracle-box"], settings={NO_FOLD: other}, weights=tiny_sam_folder)


def test_each_protocol_that_is_scored_is_in_the_summary(
    labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path
) -> None:
    source = find_source("custom", labelled_tiles)
    for protocols in (["oracle-box"], ["oracle-point"]):
        summary = evaluate_source(
            source,
            labelled_tiles,
            tmp_path / "out",
            protocols=protocols,
            settings={NO_FOLD: SETTINGS},
            weights=tiny_sam_folder,
        )
    assert {name: found["tiles"] for name, found in summary["protocols"].items()} == {
        "oracle-box": 6,
        "oracle-point": 6,
    }


def test_an_adapter_brings_its_recipe(labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path) -> None:
    _save_adapter(tmp_path / "adapter", tiny_sam_folder, seed=1)
    source = find_source(str(tmp_path / "adapter"), labelled_tiles)
    assert source.settings[NO_FOLD].grid.points_per_side == 2
    summary = evaluate_source(
        source,
        labelled_tiles,
        tmp_path / "out",
        protocols=["oracle-point"],
        settings=source.settings,
        weights=tiny_sam_folder,
    )
    assert summary["protocols"]["oracle-point"]["tiles"] == 6


def test_a_run_tests_each_adapter_on_its_own_fold(
    run: Run, labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path
) -> None:
    source = find_source(str(run.folder), labelled_tiles)
    evaluate_source(
        source,
        labelled_tiles,
        tmp_path / "out",
        protocols=["oracle-box"],
        settings=dict.fromkeys((1, 2), SETTINGS),
        weights=tiny_sam_folder,
    )
    rows = {row["tile"]: row for row in Evaluation(tmp_path / "out" / "oracle-box").rows}
    assert {name: row["fold"] for name, row in rows.items()} == {row.tile: row.fold for row in run.folds.rows}
    for fold in (1, 2):
        predictor = load_model(run.adapter_folder(fold), weights=tiny_sam_folder)
        alone = Evaluation(tmp_path / f"alone-{fold}")
        fold_of = dict.fromkeys(labelled_tiles.names, fold)
        mine = labelled_tiles.subset(run.folds.test(fold))
        evaluate_tiles(predictor, mine, fold_of, ["oracle-box"], SETTINGS, {"oracle-box": alone})
        assert {row["tile"]: row for row in alone.rows} == {name: rows[name] for name in mine.names}


def test_a_run_is_no_model_for_other_tiles(run: Run, labelled_tiles: TileSet) -> None:
    other = labelled_tiles.subset(labelled_tiles.names[:3])
    with pytest.raises(NucloraError, match=r"not the tiles that the run was trained on.*fold-1"):
        find_source(str(run.folder), other)


def test_a_run_is_no_model_for_other_tiles_of_the_same_names(tmp_path: Path, run: Run, labelled_tiles: TileSet) -> None:
    known = json.loads((run.folder / "run.json").read_text())
    known["data"]["sha256"] = labelled_tiles.digest()
    (run.folder / "run.json").write_text(json.dumps(known))
    copy = tmp_path / "copy"
    shutil.copytree(labelled_tiles.root, copy)
    assert len(find_source(str(run.folder), open_tiles(copy)).models) == 2
    first = open_tiles(copy).tiles[0].image
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    with pytest.raises(NucloraError, match=r"labels differ; put the old ones back, or name one adapter, e\.g\."):
        find_source(str(run.folder), open_tiles(copy))


def test_a_run_that_is_not_finished(run: Run, labelled_tiles: TileSet) -> None:
    run.adapter_folder(2).rename(run.folder / "gone")
    with pytest.raises(NucloraError, match=r"fold 2 is not trained; name one adapter, e\.g\. .*fold-1/adapter"):
        find_source(str(run.folder), labelled_tiles)


def test_neither_this_nor_that(labelled_tiles: TileSet, tmp_path: Path) -> None:
    with pytest.raises(NucloraError, match=r"neither an adapter .* nor a run .*mobile_sam"):
        find_source(str(tmp_path), labelled_tiles)


@pytest.mark.parametrize(
    ("wrong", "told"), [({"precision": "fp16"}, "fp16 is for GPUs"), ({"input_size": 33}, "the nearest is 32")]
)
def test_what_is_refused_claims_nothing(
    wrong: dict[str, Any], told: str, labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path
) -> None:
    source = find_source("custom", labelled_tiles)
    options = {"protocols": ["oracle-box"], "settings": {NO_FOLD: SETTINGS}, "weights": tiny_sam_folder}
    with pytest.raises(NucloraError, match=told):
        evaluate_source(source, labelled_tiles, tmp_path / "out", **options, **wrong)
    summary = evaluate_source(source, labelled_tiles, tmp_path / "out", **options)
    assert summary["protocols"]["oracle-box"]["tiles"] == 6


def test_an_adapter_whose_card_was_edited_is_another(
    labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path
) -> None:
    _save_adapter(tmp_path / "adapter", tiny_sam_folder, seed=1)
    options = {"protocols": ["oracle-box"], "settings": {NO_FOLD: SETTINGS}, "weights": tiny_sam_folder}
    evaluate_source(find_source(str(tmp_path / "adapter"), labelled_tiles), labelled_tiles, tmp_path / "out", **options)
    card = tmp_path / "adapter" / "nuclora.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"microns_per_pixel": 0.5}))
    source = find_source(str(tmp_path / "adapter"), labelled_tiles)
    with pytest.raises(NucloraError, match="the evaluation of something else: other models"):
        evaluate_source(source, labelled_tiles, tmp_path / "out", **options)


def test_results_are_not_put_among_other_files(labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NucloraError, match="neither empty nor an evaluation"):
        evaluate_source(
            find_source("custom", labelled_tiles),
            labelled_tiles,
            labelled_tiles.root,
            protocols=["oracle-box"],
            settings={NO_FOLD: SETTINGS},
            weights=tiny_sam_folder,
        )
    assert not (labelled_tiles.root / ".lock").exists()


def test_the_command(labelled_tiles: TileSet, tiny_sam_folder: Path, tmp_path: Path) -> None:
    shared = [str(labelled_tiles.root), "--weights", str(tiny_sam_folder), "--set", "evaluate.grid.points_per_side=2"]
    told = CliRunner().invoke(app, ["evaluate", "custom", *shared, "-o", str(tmp_path / "a")], catch_exceptions=False)
    assert told.exit_code == 0
    assert "oracle-box" in told.stdout
    assert "6 tiles" in told.stdout
    assert "upper bound" in told.stdout
    data = CliRunner().invoke(
        app,
        ["evaluate", "--base", "custom", *shared, "-o", str(tmp_path / "b"), "-p", "oracle-box", "--json"],
        catch_exceptions=False,
    )
    summary = json.loads(data.stdout)
    assert summary["settings"]["0"]["grid"]["points_per_side"] == 2
    assert list(summary["protocols"]) == ["oracle-box"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["DATA"], "1 places given, 2 wanted"),
        (["custom", "DATA", "-p", "magic"], "no such choice: magic; choose one of oracle-box"),
        (["custom", "DATA", "--precision", "int8"], "no such choice: int8; choose one of no"),
    ],
)
def test_wrong_use_of_the_command(labelled_tiles: TileSet, tmp_path: Path, arguments: list[str], told: str) -> None:
    words = [str(labelled_tiles.root) if word == "DATA" else word for word in arguments]
    with pytest.raises(NucloraError, match=told):
        CliRunner().invoke(app, ["evaluate", *words, "-o", str(tmp_path / "out")], catch_exceptions=False)


def test_each_fold_is_segmented_with_the_thresholds_of_its_own_adapter(
    run, labelled_tiles, tiny_sam_folder, tmp_path, monkeypatch
):
    for fold in (1, 2):
        folder = run.adapter_folder(fold)
        write_card(folder, read_card(folder).model_copy(update={"thresholds": {"core": 0.1 * fold, "min_size": fold}}))
    source = find_source(str(run.folder), labelled_tiles)
    assert {fold: (of.decode.core, of.min_size) for fold, of in source.settings.items()} == {1: (0.1, 1), 2: (0.2, 2)}
    assert find_source(str(run.adapter_folder(2)), labelled_tiles).settings[NO_FOLD] == source.settings[2]
    asked = {}

    def evaluate(predictor, tiles, fold_of, protocols, settings, *_):
        asked.update({tile.name: settings.min_size for tile in tiles})

    monkeypatch.setattr(standalone, "evaluate_tiles", evaluate)
    options = {"protocols": ["oracle-box"], "settings": source.settings, "weights": tiny_sam_folder}
    evaluate_source(source, labelled_tiles, tmp_path / "out", **options)
    assert asked == source.fold_of


def test_a_base_of_other_weights_is_another(labelled_tiles, tiny_sam_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(standalone, "evaluate_tiles", lambda *_: None)
    other = shutil.copytree(tiny_sam_folder, tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-4] ^= 1
    (other / "model.safetensors").write_bytes(content)
    source = find_source("custom", labelled_tiles)
    options = {"protocols": ["oracle-box"], "settings": {NO_FOLD: SETTINGS}}
    evaluate_source(source, labelled_tiles, tmp_path / "out", weights=tiny_sam_folder, **options)
    with pytest.raises(NucloraError, match="something else: other models"):
        evaluate_source(source, labelled_tiles, tmp_path / "out", weights=other, **options)


def test_of_how_many_tiles_automatic_is_told(labelled_tiles, tiny_sam_folder, tmp_path):
    settings = SETTINGS.model_copy(update={"automatic_tiles": 2})
    summary = evaluate_source(
        find_source("custom", labelled_tiles),
        labelled_tiles,
        tmp_path / "out",
        protocols=["automatic"],
        settings={NO_FOLD: settings},
        weights=tiny_sam_folder,
    )
    assert (summary["protocols"]["automatic"]["tiles"], summary["protocols"]["automatic"]["of_tiles"]) == (2, 2)


def test_every_file_that_makes_an_adapter_tells_it_from_another(tmp_path):
    card = AdapterCard(base="custom", base_sha256="0" * 64, input_size=64, normalise="unit", recipe={})
    files = (CARD, CONFIG, "adapter_model.safetensors", "dense_decoder.safetensors", "dense_int8.xml", "dense_int8.bin")
    for name in files:
        (tmp_path / name).write_text("a")
    known = {identify_adapter(tmp_path, card)["adapter_sha256"]}
    for name in files:
        (tmp_path / name).write_text("b")
        known.add(identify_adapter(tmp_path, card)["adapter_sha256"])
    assert len(known) == len(files) + 1
    (tmp_path / "README.md").write_text("who made it")
    assert identify_adapter(tmp_path, card)["adapter_sha256"] in known
