"""Evaluation outside of a cross-validation: any model on any labelled set."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuclora.data.folds import ALL_TILES
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.evaluation import Evaluation
from nuclora.files import disk_errors, hold, remove_torn, write_atomic
from nuclora.inference.evaluate import automatic_subset, evaluate_tiles
from nuclora.inference.loading import load_model
from nuclora.inference.protocols import DESCRIPTIONS
from nuclora.inference.provenance import identify_adapter
from nuclora.machine import environment
from nuclora.metrics import summarise
from nuclora.models.adapter import CARD, read_card, read_recipe, tuned_settings
from nuclora.models.bases import BASES
from nuclora.models.checkpoints import find_weights, sha256_of
from nuclora.models.precision import Precision
from nuclora.recipe import EvaluateSettings
from nuclora.run import Run

_NOTE = "evaluation.json"
NO_FOLD = 0
"""Fold of tiles that were not dealt into folds."""


@dataclass(frozen=True)
class Source:
    """What is to be evaluated.

    Attributes:
        models: An adapter's folder or a base's name for each fold of the tiles.
        settings: How each fold's model segments: the defaults of a base, the recipe's of an adapter, with the
            thresholds that were tuned for it.
        fold_of: Fold of each tile, by name.
    """

    models: dict[int, str | Path]
    settings: dict[int, EvaluateSettings]
    fold_of: dict[str, int]


def find_source(model: str, tiles: TileSet) -> Source:
    """What a name on the command line means.

    Args:
        model: Name of a base, folder of an adapter, or folder of a run. A run is evaluated on its own tiles only,
            every fold's adapter on the fold's test tiles.
        tiles: The labelled set.

    Raises:
        NucloraError: It is none of these, the run lacks an adapter, or the tiles are not those of the run.
    """
    if model in BASES:
        return Source({NO_FOLD: model}, {NO_FOLD: EvaluateSettings()}, dict.fromkeys(tiles.names, NO_FOLD))
    folder = Path(model)
    if (folder / CARD).is_file():
        return Source({NO_FOLD: folder}, {NO_FOLD: _settings(folder)}, dict.fromkeys(tiles.names, NO_FOLD))
    if not (folder / "run.json").is_file():
        raise NucloraError(
            "neither an adapter (nuclora.json) nor a run (run.json)",
            path=folder,
            mend=f"name such a folder, or a base: {', '.join(BASES)}",
        )
    run = Run(folder)
    adapters: dict[int, str | Path] = {fold: run.adapter_folder(fold) for fold in run.folds.folds}
    trained = [run.adapter_folder(fold) for fold in (ALL_TILES, *run.folds.folds) if run.adapter_folder(fold).is_dir()]
    mend = f"name one adapter, e.g. {trained[0]}" if trained else "finish it with the command that began it"
    if {row.tile for row in run.folds.rows} != set(tiles.names):
        raise NucloraError(
            "these are not the tiles that the run was trained on, so no fold's adapter is the one to test on them",
            path=tiles.root,
            mend=mend,
        )
    run.check_tiles(tiles, f"put the old ones back, or {mend}" if trained else mend)
    for fold, adapter in adapters.items():
        if adapter not in trained:
            raise NucloraError(f"fold {fold} is not trained", path=folder, mend=mend)
    settings = {fold: _settings(run.adapter_folder(fold)) for fold in adapters}
    return Source(adapters, settings, {row.tile: row.fold for row in run.folds.rows})


def _settings(adapter: Path) -> EvaluateSettings:
    card = read_card(adapter)
    return tuned_settings(card, read_recipe(adapter, card))


def evaluate_source(
    source: Source,
    tiles: TileSet,
    out: Path,
    *,
    protocols: Sequence[str],
    settings: Mapping[int, EvaluateSettings],
    weights: Path | None = None,
    precision: Precision = "no",
    input_size: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate on labelled tiles, going on from what `out` holds.

    Writes `out/PROTOCOL/scores.csv`, the labels beside it, and `out/summary.json`.

    Args:
        source: From :func:`find_source` with the same tiles.
        tiles: The labelled set.
        out: Folder of the results.
        protocols: Names of protocols.
        settings: How to segment, for each fold of the source.
        weights: The base's weights; by default they are looked for.
        precision: `bf16` or `fp16` computes in it where that is safe.
        input_size: Side of the square input; by default the one that the model was trained on.
        progress: Called with a fold, then as in :func:`nuclora.inference.evaluate.evaluate_tiles`; one fold after
            another.

    Returns:
        The content of `summary.json`: `models`, `data`, `settings`, the `session` that finished it, and for each
        protocol that is scored in `out` its `description`, `tiles` of `of_tiles` and the
        :class:`nuclora.metrics.Summary`.

    Raises:
        NucloraError: Bad input, or `out` holds the results of something else.
    """
    made_from = {
        "models": {str(fold): _identity(model, weights) for fold, model in source.models.items()},
        "data": {"root": str(tiles.root.resolve()), "tiles": len(tiles), "sha256": tiles.digest()},
        "settings": {str(fold): of.model_dump(mode="json", exclude={"protocols"}) for fold, of in settings.items()},
        "precision": precision,
        "input_size": input_size,
    }
    # Before a lock is put among files that are not ours, or the folder is claimed by what cannot be done.
    _refuse_others(out)
    fold, model = next(iter(source.models.items()))
    predictors = {fold: load_model(model, weights=weights, precision=precision, input_size=input_size)}
    predictors[fold].model.check_input(predictors[fold].input_size, predictors[fold].input_size)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with hold(out, "evaluation"):
        _claim(out, made_from)
        evaluations = {protocol: Evaluation(out / protocol) for protocol in protocols}
        for fold, model in source.models.items():
            predictor = predictors.pop(fold, None) or load_model(
                model, weights=weights, precision=precision, input_size=input_size
            )
            mine = [tile for tile in tiles if source.fold_of[tile.name] == fold]
            of_fold = functools.partial(progress, fold) if progress else None
            evaluate_tiles(predictor, mine, source.fold_of, protocols, settings[fold], evaluations, of_fold)
    by_protocol = {}
    expected = {protocol: len(tiles) for protocol in DESCRIPTIONS} | {
        "automatic": _automatic_tiles(source, tiles, settings)
    }
    # Those that earlier commands have scored as well.
    for protocol in DESCRIPTIONS:
        rows = Evaluation(out / protocol).rows
        if not rows:
            continue
        by_protocol[protocol] = {
            "description": DESCRIPTIONS[protocol],
            "tiles": len(rows),
            "of_tiles": expected[protocol],
            **summarise(rows).to_dict(),
        }
    summary = {**made_from, "session": environment(), "protocols": by_protocol}
    write_atomic(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _automatic_tiles(source: Source, tiles: TileSet, settings: Mapping[int, EvaluateSettings]) -> int:
    """How many tiles `automatic` runs on."""
    by_fold = {fold: [tile for tile in tiles if source.fold_of[tile.name] == fold] for fold in source.models}
    return sum(
        len(automatic_subset(mine, source.fold_of, settings[fold].automatic_tiles)) for fold, mine in by_fold.items()
    )


def _identity(model: str | Path, weights: Path | None) -> dict[str, str]:
    if isinstance(model, Path):
        return identify_adapter(model, read_card(model))
    return {"base": model, "base_sha256": sha256_of(find_weights(model, weights))}


def _refuse_others(out: Path) -> None:
    if not out.exists() or (out / _NOTE).exists():
        return
    # A kill may have come in the middle of the note.
    if not out.is_dir() or any(
        entry.name != ".lock" and not entry.name.startswith(f".{_NOTE}") for entry in out.iterdir()
    ):
        raise NucloraError("neither empty nor an evaluation", path=out, mend="name a new folder with -o")


def _claim(out: Path, made_from: dict[str, Any]) -> None:
    """Note what the results in `out` are made from, or see that those there are made from the same."""
    note = out / _NOTE
    remove_torn(out)
    if not note.exists():
        _refuse_others(out)
        write_atomic(note, json.dumps(made_from, indent=2) + "\n")
        return
    try:
        there = json.loads(note.read_text("utf-8"))
        differing = [key for key, value in made_from.items() if there.get(key) != value]
    except (OSError, AttributeError, ValueError) as error:
        raise NucloraError("damaged", path=note, mend="name a new folder with -o") from error
    if differing:
        raise NucloraError(
            f"holds the evaluation of something else: other {', '.join(differing)}",
            path=out,
            mend="name a new folder with -o, or repeat the command that made it to go on",
        )
