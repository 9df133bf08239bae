"""After training: thresholds and the scores' calibration, learnt on a fold's inner validation tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from nuclora.data import open_tiles
from nuclora.data.folds import ALL_TILES, fold_name, inner_split
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Maps, Predictor
from nuclora.inference.scores import calibrate, find_nuclei, true_ious
from nuclora.inference.tune import Trial, tune_decode
from nuclora.metrics import OverlapTable
from nuclora.models.adapter import MIN_SIZE, read_card, write_card
from nuclora.run import Run

Progress = Callable[[int, int], None]


def tune_fold(
    run: Run, fold: int, tiles: TileSet, predictor: Predictor, progress: Progress | None = None
) -> list[Trial]:
    """Tune one fold's adapter on its inner validation tiles, and note the outcome on its card.

    The fold's test tiles are not read. An adapter of all tiles has held out its inner validation tiles as well.

    Args:
        run: The run; its recipe validates on inner tiles.
        fold: The fold.
        tiles: All tiles of the data set.
        predictor: The fold's adapter.
        progress: Called with the tiles predicted and all of them.

    Returns:
        What was tried.

    Raises:
        NucloraError: The recipe validates on the test fold or has no dense decoder, or there are no such tiles.
    """
    recipe = run.recipe
    if recipe.evaluate.tiles == "inner" and fold != ALL_TILES:
        raise NucloraError(
            "its folds are scored on the inner tiles that tuning would learn from",
            path=run.folder,
            mend="tune a run with evaluate.tiles=test",
        )
    if recipe.dense is None or recipe.train.validate_on != "inner":
        raise NucloraError(
            "only a recipe with dense and train.validate_on=inner can be tuned",
            path=run.folder,
            mend="tuning on the test fold would leak it",
        )
    _, names = inner_split(run.folds, fold, seed=recipe.seed)
    chosen = tiles.subset(names)
    predictions: list[Maps] = []
    samples = []
    for count, tile in enumerate(chosen):
        if progress and count == 0:
            progress(0, len(chosen))
        samples.append(tile.read())
        predictions.append(predictor.maps(samples[-1].image, recipe.evaluate.decode.views))
        if progress:
            progress(count + 1, len(chosen))
    settings, min_size, trials = tune_decode(
        [(maps, sample.labels, sample.ignore) for maps, sample in zip(predictions, samples, strict=True)],
        recipe.evaluate.decode,
        recipe.evaluate.min_size,
    )
    scores, ious = [], []
    for maps, sample in zip(predictions, samples, strict=True):
        height, width = sample.labels.shape
        labels, found = find_nuclei(*maps, (height, width), settings, min_size)
        table = OverlapTable.from_labels(sample.labels, labels, sample.ignore)
        # Nuclei in vague areas are not in the table.
        scores.append(found[table.pred_ids - 1])
        ious.append(true_ious(table))
    thresholds = settings.model_dump(exclude={"views"}) | {MIN_SIZE: float(min_size)}
    chosen_trial = next(trial for trial in trials if (trial.settings, trial.min_size) == (settings, min_size))
    tuned = {f"tuned_{name}": getattr(chosen_trial, name) for name in ("dice", "aji", "pq")}
    folder: Path = run.adapter_folder(fold)
    card = read_card(folder)
    write_card(
        folder,
        card.model_copy(
            update={
                "thresholds": thresholds,
                "calibration": calibrate(np.concatenate(scores), np.concatenate(ious)),
                "metrics": card.metrics | tuned,
            }
        ),
    )
    return trials


def tune_run(
    run: Run,
    folds: Sequence[int] | None = None,
    weights: Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> dict[int, dict[str, float]]:
    """Tune folds of a run that are trained.

    Args:
        run: The run.
        folds: Which; by default all that are trained.
        weights: The base's weights; by default they are looked for.
        progress: Called with the fold, the tiles predicted and all of them.

    Returns:
        The thresholds of each fold.

    Raises:
        NucloraError: A fold is not trained, or it is evaluated already: with other thresholds its test tiles would be
            read twice.
    """
    trained = [fold for fold in (ALL_TILES, *run.folds.folds) if run.adapter_folder(fold).is_dir()]
    chosen = trained if folds is None else list(folds)
    for fold in chosen:
        if fold not in trained:
            raise NucloraError(f"{fold_name(fold)}: not trained", path=run.folder, mend="train it with `nuclora train`")
        _require_unevaluated(run, fold)
    if not chosen:
        raise NucloraError("no fold is trained", path=run.folder, mend="train it with `nuclora train`")
    root = Path(run.info["data"]["root"])
    if not root.is_dir():
        raise NucloraError("the run's tiles are no longer there", path=root, mend="put them back")
    tiles = open_tiles(root, run.info["data"]["format"])
    run.check_tiles(tiles)
    tuned = {}
    for fold in chosen:
        with run.locked(fold):
            # A `nuclora cv` may have come to it while this process tuned the folds before.
            _require_unevaluated(run, fold)
            predictor = load_model(run.adapter_folder(fold), weights=weights, precision=run.recipe.train.precision)
            told = None if progress is None else partial(progress, fold)
            tune_fold(run, fold, tiles, predictor, told)
        tuned[fold] = read_card(run.adapter_folder(fold)).thresholds
    return tuned


def _require_unevaluated(run: Run, fold: int) -> None:
    # Of the thresholds min_size is there for every protocol.
    for protocol in run.recipe.evaluate.protocols:
        done = run.fine_tuned(fold, protocol)
        if done.rows:
            raise NucloraError(
                f"fold {fold} is evaluated already, with the thresholds that it has",
                path=done.folder,
                mend="move this folder away if it is to be evaluated with others",
            )


def is_tuned(run: Run, fold: int) -> bool:
    """Whether the fold's adapter has tuned thresholds."""
    return bool(read_card(run.adapter_folder(fold)).thresholds)
