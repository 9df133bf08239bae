from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nuclora.data.tiles import Sample, Tile, TileSet
from nuclora.evaluation import Evaluation
from nuclora.inference.evaluate import automatic_subset, evaluate_tiles, nucleus_outcomes, score_tile
from nuclora.inference.predictor import Nuclei, Predictor
from nuclora.metrics import METRICS, score
from nuclora.recipe import PROTOCOLS, DenseSettings, EvaluateSettings, GridSettings

SETTINGS = EvaluateSettings(grid=GridSettings(points_per_side=4))
MakeFake = Callable[..., Predictor]


def _evaluate(predictor: Predictor, tiles: TileSet, out: Path, settings: EvaluateSettings = SETTINGS) -> list[int]:
    fold_of = {name: 1 + index % 2 for index, name in enumerate(tiles.names)}
    evaluations = {protocol: Evaluation(out / protocol) for protocol in PROTOCOLS}
    heard: list[int] = []

    def progress(done: int, total: int) -> None:
        heard.append(done)
        assert done <= total

    evaluate_tiles(predictor, tiles, fold_of, PROTOCOLS, settings, evaluations, progress)
    return heard


def _content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_rows_say_all_of_a_tile(make_fake: MakeFake, labelled_tiles: TileSet, tmp_path: Path) -> None:
    assert _evaluate(make_fake(64), labelled_tiles, tmp_path / "out") == [0, 1, 2, 3, 4, 5, 6]
    evaluation = Evaluation(tmp_path / "out" / "oracle-box")
    rows = evaluation.rows
    assert [row["tile"] for row in rows] == labelled_tiles.names
    for row in rows:
        tile = labelled_tiles[row["tile"]]
        sample = tile.read()
        assert row["group"] == tile.group
        expected = score(sample.labels, evaluation.labels(tile.name), sample.ignore)
        assert {metric: row[metric] for metric in METRICS} == expected
        assert row["nuclei_true"] == row["nuclei_predicted"] == len(np.unique(sample.labels)) - 1
        assert [row[kind] for kind in ("missed", "false", "merged", "split")] == [0, 0, 0, 0]
    assert {row["fold"] for row in rows} == {1, 2}


def test_an_image_is_encoded_once_for_all_protocols(
    make_fake: MakeFake, labelled_tiles: TileSet, tmp_path: Path
) -> None:
    predictor = make_fake(64)
    _evaluate(predictor, labelled_tiles, tmp_path)
    assert predictor.model.encoded == len(labelled_tiles)
    assert _evaluate(predictor, labelled_tiles, tmp_path) == []
    assert predictor.model.encoded == len(labelled_tiles)


@pytest.mark.parametrize("keep", [0, 0.3, 0.7])
def test_a_cut_evaluation_ends_as_an_unbroken_one(
    make_fake: MakeFake, labelled_tiles: TileSet, tmp_path: Path, keep: float
) -> None:
    _evaluate(make_fake(64), labelled_tiles, tmp_path / "whole")
    _evaluate(make_fake(64), labelled_tiles, tmp_path / "cut")
    for number, protocol in enumerate(PROTOCOLS):
        scores = tmp_path / "cut" / protocol / "scores.csv"
        content = scores.read_bytes()
        # Torn in the middle of a line, and not at the same tile for each protocol.
        scores.write_bytes(content[: int(len(content) * keep) + 11 * number])
        for labels in list((scores.parent / "labels").rglob("*.tif"))[number:]:
            if labels.stem not in scores.read_text():
                labels.unlink()
    _evaluate(make_fake(64), labelled_tiles, tmp_path / "cut")
    assert _content(tmp_path / "cut") == _content(tmp_path / "whole")


def test_what_progress_raises_stops_with_everything_kept(
    make_fake: MakeFake, labelled_tiles: TileSet, tmp_path: Path
) -> None:
    fold_of = dict.fromkeys(labelled_tiles.names, 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    evaluations = {"oracle-box": Evaluation(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        evaluate_tiles(make_fake(64), labelled_tiles, fold_of, ["oracle-box"], SETTINGS, evaluations, stop)
    assert [row["tile"] for row in Evaluation(tmp_path).rows] == labelled_tiles.names[:2]


def test_automatic_runs_on_a_subset_only(make_fake: MakeFake, labelled_tiles: TileSet, tmp_path: Path) -> None:
    _evaluate(make_fake(64), labelled_tiles, tmp_path, SETTINGS.model_copy(update={"automatic_tiles": 1}))
    assert [row["fold"] for row in Evaluation(tmp_path / "automatic").rows] in ([1, 2], [2, 1])
    assert len(Evaluation(tmp_path / "oracle-box").rows) == 6


def test_ignored_nuclei_count_nowhere() -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[2:8, 2:8], labels[20:28, 20:28] = 1, 2
    ignore = np.zeros((30, 30), bool)
    ignore[15:, 15:] = True
    row = score_tile(
        Sample(np.zeros((30, 30, 3), np.uint8), labels, ignore), np.where(labels == 1, 1, 0).astype(np.int32)
    )
    assert (row["nuclei_true"], row["nuclei_predicted"], row["missed"], row["aji"]) == (1, 1, 0, 1.0)


def _tiles(counts: dict[str, int]) -> list[Tile]:
    return [
        Tile(f"{group}/{index}", group, Path("x"), Path("x"))
        for group, count in counts.items()
        for index in range(count)
    ]


def test_the_subset_is_spread_over_organs_and_grows_by_whole_tiles() -> None:
    tiles = _tiles({"brain": 9, "liver": 4, "lung": 1})
    fold_of = {tile.name: 1 for tile in tiles}
    chosen = [automatic_subset(tiles, fold_of, limit) for limit in range(1, 15)]
    assert [len(names) for names in chosen] == list(range(1, 15))
    assert {name.split("/")[0] for name in chosen[2]} == {"brain", "liver", "lung"}
    for smaller, larger in itertools.pairwise(chosen):
        assert smaller < larger
    assert automatic_subset(tiles, fold_of, None) == set(fold_of) == automatic_subset(tiles, fold_of, 99)


def test_the_subset_depends_neither_on_order_nor_on_other_folds() -> None:
    tiles = _tiles({"brain": 20, "liver": 20})
    fold_of = {tile.name: 1 + index % 2 for index, tile in enumerate(tiles)}
    both = automatic_subset(tiles, fold_of, 5)
    second = [tile for tile in reversed(tiles) if fold_of[tile.name] == 2]
    assert automatic_subset(second, fold_of, 5) == {name for name in both if fold_of[name] == 2}
    assert len(both) == 10


def test_tiles_are_predicted_at_their_own_scale(labelled_tiles, tmp_path):
    asked = []

    class Dense:
        dense = DenseSettings()

        def nuclei(self, image, settings, *, mpp=None):
            asked.append(mpp)
            return Nuclei(np.zeros(image.shape[:2], np.int32), np.zeros(0, np.float32))

    tiles = [replace(tile, microns_per_pixel=size) for tile, size in zip(labelled_tiles, (0.5, None), strict=False)]
    fold_of = {tile.name: 1 for tile in tiles}
    evaluate_tiles(Dense(), tiles, fold_of, ["automatic"], EvaluateSettings(), {"automatic": Evaluation(tmp_path)})
    assert asked == [0.5, None]


def test_scores_stay_with_their_nuclei_where_some_are_in_vague_areas():
    labels = np.zeros((30, 30), np.int32)
    labels[2:8, 2:8], labels[20:28, 20:28] = 1, 2
    ignore = np.zeros((30, 30), bool)
    ignore[:15] = True
    sample = Sample(np.zeros((30, 30, 3), np.uint8), labels, ignore)
    assert nucleus_outcomes(sample, Nuclei(labels, np.array([0.25, 0.75], np.float32))) == [
        {"label": 2, "area": 64, "score": 0.75, "iou": 1.0}
    ]
