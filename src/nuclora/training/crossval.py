"""Cross-validation: every fold trained, every test tile segmented, one summary."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from nuclora.data import open_tiles
from nuclora.data.folds import ALL_TILES, FoldTable, fold_name, make_folds, scored_tiles
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError, shortage_told
from nuclora.evaluation import Evaluation
from nuclora.inference.evaluate import evaluate_tiles
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Predictor
from nuclora.models.checkpoints import LoadedBase, load_base
from nuclora.models.precision import Precision, resolve_precision
from nuclora.recipe import Recipe, load_recipe
from nuclora.run import Run
from nuclora.training.interrupt import Interrupt
from nuclora.training.monitor import Monitor
from nuclora.training.plan import check_recipe, input_frame
from nuclora.training.trainer import FoldTrainer
from nuclora.training.tuning import is_tuned, tune_fold


def cross_validate(
    data: str | Path | TileSet,
    recipe: str | Recipe,
    out: str | Path,
    *,
    fold_table: FoldTable | None = None,
    folds: Sequence[int] | None = None,
    weights: str | Path | None = None,
    zero_shot: bool = True,
    train: bool = True,
    evaluate: bool = True,
    monitor: Monitor | None = None,
    patience: float = 0,
) -> Run:
    """Train and evaluate folds, going on from whatever `out` holds.

    Args:
        data: Labelled tiles.
        recipe: A recipe, or the name or path of one.
        out: The run folder.
        fold_table: Which tile is in which fold; by default 5 random folds with the recipe's seed.
        folds: Folds to work on; all by default.
        weights: File of the base's weights; by default it is looked for.
        zero_shot: Also evaluate the base as it came.
        train: Train the folds and go on to the next two; without it the base alone is evaluated, on all their tiles.
        evaluate: Tune each fold's adapter, where the recipe says so, and evaluate it on the fold's test tiles.
        monitor: Hears of every record.
        patience: Seconds to wait for another process that works on the same fold, before it is refused.

    Returns:
        The run, to be read.

    Raises:
        NucloraError: Bad input, or `out` was made from something else.
        Stopped: A stop was asked for; everything is saved.
    """
    tiles = data if isinstance(data, TileSet) else open_tiles(Path(data))
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    table = fold_table or make_folds(tiles, 5, recipe.seed)
    file = Path(weights) if weights else None
    return CrossValidation(tiles, recipe, Path(out), table, folds, file, zero_shot, train, evaluate).run(
        monitor, patience
    )


@dataclass(frozen=True)
class CrossValidation:
    """What is to be trained and evaluated, and where; goes to the workers of a cluster.

    Attributes:
        tiles: Labelled tiles.
        recipe: The recipe.
        out: The run folder.
        fold_table: Which tile is in which fold.
        folds: Folds to work on; all by default.
        weights: As in :func:`cross_validate`; by default each machine looks for its own.
        zero_shot: As there.
        train: As there.
        evaluate: As there.
    """

    tiles: TileSet
    recipe: Recipe
    out: Path
    fold_table: FoldTable
    folds: Sequence[int] | None = None
    weights: Path | None = None
    zero_shot: bool = True
    train: bool = True
    evaluate: bool = True

    def choose_folds(self) -> tuple[int, ...]:
        """The folds to work on: those asked for, or all of the table.

        Raises:
            NucloraError: The table is not one of these tiles, or has no such fold.
        """
        self.fold_table.check_against(self.tiles)
        chosen = tuple(dict.fromkeys(self.folds or self.fold_table.folds))
        unknown = sorted(set(chosen) - {*self.fold_table.folds, ALL_TILES})
        if unknown:
            raise NucloraError(f"no fold {unknown[0]}: the fold table has {', '.join(map(str, self.fold_table.folds))}")
        return chosen

    def load_base(self) -> LoadedBase:
        """The base network as it came.

        Raises:
            NucloraError: Its weights are not at hand, or not the right ones.
        """
        return load_base(self.recipe.base, self.weights)

    def start(self, base: LoadedBase) -> Run:
        """Create the run folder, or check that the one that is there is made from the same things.

        Raises:
            NucloraError: It was made from something else, or scores another fold's inner tiles.
        """
        run = Run.start(
            self.out,
            recipe=self.recipe,
            folds=self.fold_table,
            base={"name": base.name, "sha256": base.sha256, "path": str(base.path)},
            data={
                "root": str(self.tiles.root.resolve()),
                "format": self.tiles.format,
                "sha256": self.tiles.digest(),
            },
        )
        if self.recipe.evaluate.tiles == "inner":
            _check_one_fold(run, self.choose_folds())
        return run

    def run(self, monitor: Monitor | None = None, patience: float = 0) -> Run:
        """Train and evaluate, going on from whatever the run folder holds.

        Args:
            monitor: As in :func:`cross_validate`.
            patience: As there.

        Raises:
            NucloraError: As there.
            Stopped: A stop was asked for; everything is saved.
        """
        with shortage_told(
            "lower prompts.chunk or set train.checkpointing=true; or, in another -o, a lower input.size"
        ):
            return self._run(monitor, patience)

    def _run(self, monitor: Monitor | None, patience: float) -> Run:
        chosen = self.choose_folds()
        accelerator = _accelerator(self.recipe)
        base = self.load_base()
        check_recipe(self.recipe, self.fold_table, chosen, base, accelerator.num_processes)
        monitor = monitor or Monitor()
        if accelerator.is_main_process:
            run = self.start(base)
        # The other processes read what that one has written.
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            run = Run(self.out)
        work = _Work(run, self.tiles, base.path, accelerator, monitor)

        def locked(fold: int | None) -> contextlib.AbstractContextManager[None]:
            return run.locked(fold, patience) if accelerator.is_main_process else contextlib.nullcontext()

        with Interrupt() as interrupt:
            tested = [fold for fold in chosen if fold != ALL_TILES]
            if self.zero_shot and tested and accelerator.is_main_process:
                with locked(None):
                    work.evaluate_zero_shot(base, tested, interrupt)
            # Each fold loads its own; this one's memory, on a GPU too, is theirs.
            del base
            accelerator.wait_for_everyone()
            for fold in chosen if self.train else ():
                with locked(fold):
                    work.train(fold, interrupt)
                    if self.evaluate and accelerator.is_main_process:
                        work.tune(fold, interrupt)
                        if fold != ALL_TILES:
                            work.evaluate_fold(fold, interrupt)
                    accelerator.wait_for_everyone()
        monitor.close()
        return run


def _check_one_fold(run: Run, chosen: Sequence[int]) -> None:
    """Refuse a second fold in a run that scores inner tiles: those of two folds overlap, and no table could hold them.

    Raises:
        NucloraError: The run holds an adapter or scores of another fold.
    """
    if ALL_TILES in chosen:
        # It is scored on nothing.
        return
    scored = {row["fold"] for protocol in run.recipe.evaluate.protocols for row in run.zero_shot(protocol).rows}
    for fold in set(run.folds.folds) - set(chosen):
        has_scores = any(run.fine_tuned(fold, protocol).rows for protocol in run.recipe.evaluate.protocols)
        if fold in scored or has_scores or run.adapter_folder(fold).exists():
            raise NucloraError(
                f"evaluate.tiles=inner scores one fold a run, and this one holds fold {fold}",
                path=run.folder,
                mend=f"use another -o for fold {chosen[0]}",
            )


class _Work:
    """The parts of a cross-validation; each is skipped when the run already holds its result."""

    def __init__(self, run: Run, tiles: TileSet, weights: Path, accelerator: Accelerator, monitor: Monitor) -> None:
        self.run = run
        self.tiles = tiles
        self.weights = weights
        self.accelerator = accelerator
        self.precision = cast(Precision, accelerator.mixed_precision)
        self.monitor = monitor
        self._is_noted = False

    def note_session(self) -> None:
        """Note this process among the run's sessions when it has something to do, so that the last made something."""
        if self.accelerator.is_main_process and not self._is_noted:
            self.run.begin_session(self.precision)
            self._is_noted = True

    def train(self, fold: int, interrupt: Interrupt) -> None:
        """Train a fold unless its adapter is there."""
        interrupt.check()
        if self.run.adapter_folder(fold).exists():
            # A kill may have come before.
            self.run.drop_checkpoints(fold)
            return
        for protocol in self.run.recipe.evaluate.protocols:
            if self.run.fine_tuned(fold, protocol).rows:
                folder = self.run.fold_folder(fold)
                raise NucloraError(
                    "holds scores of an adapter that is gone", path=folder, mend="delete this folder to begin it anew"
                )
        self.note_session()
        base = load_base(self.run.recipe.base, self.weights)
        FoldTrainer(
            self.run, fold, self.tiles, base, accelerator=self.accelerator, monitor=self.monitor, interrupt=interrupt
        ).train()
        self.accelerator.free_memory()

    def evaluate_zero_shot(self, base: LoadedBase, folds: Sequence[int], interrupt: Interrupt) -> None:
        """Evaluate the base with its own normalisation on the test tiles of the folds.

        Where the fine-tuned model has a dense decoder, prompts alone are compared: SAM's grid of points takes minutes a
        tile on a CPU, and is another method.
        """
        settings = self.run.recipe.evaluate
        if self.run.recipe.dense is not None:
            prompted = tuple(protocol for protocol in settings.protocols if protocol != "automatic")
            settings = settings.model_copy(update={"protocols": prompted})
        size, _ = input_frame(self.run.recipe, base)
        predictor = Predictor(
            base.model,
            input_size=size,
            normalise=base.normalise,
            device=self.accelerator.device,
            precision=self.precision,
            multimask_points=True,
            settings=settings,
        )
        self._evaluate(f"zero-shot {base.name}", predictor, folds, self.run.zero_shot, interrupt)

    def evaluate_fold(self, fold: int, interrupt: Interrupt) -> None:
        """Evaluate a fold's adapter on the tiles that it never saw."""
        predictor = self._adapter(fold)
        self._evaluate(
            f"fold {fold}", predictor, [fold], lambda protocol: self.run.fine_tuned(fold, protocol), interrupt
        )

    def tune(self, fold: int, interrupt: Interrupt) -> None:
        """Choose a fold's thresholds on its inner validation tiles, if the recipe asks for it and it has none yet."""
        if not self.run.recipe.evaluate.tune or is_tuned(self.run, fold):
            return

        def progress(done: int, total: int) -> None:
            self.note_session()
            self.monitor.evaluated(f"{fold_name(fold)}, tuning", done, total)
            interrupt.check()

        tune_fold(self.run, fold, self.tiles, self._adapter(fold), progress)

    def _adapter(self, fold: int) -> Predictor:
        return load_model(
            self.run.adapter_folder(fold),
            weights=self.weights,
            device=self.accelerator.device,
            precision=self.precision,
        )

    def _evaluate(
        self,
        title: str,
        predictor: Predictor,
        folds: Sequence[int],
        evaluation: Callable[[str], Evaluation],
        interrupt: Interrupt,
    ) -> None:
        settings = predictor.settings
        fold_of = {tile: fold for fold in folds for tile in scored_tiles(self.run.folds, fold, self.run.recipe)}

        def progress(done: int, total: int) -> None:
            self.note_session()
            self.monitor.evaluated(title, done, total)
            interrupt.check()

        evaluate_tiles(
            predictor,
            self.tiles.subset(fold_of),
            fold_of,
            settings.protocols,
            settings,
            {protocol: evaluation(protocol) for protocol in settings.protocols},
            progress,
        )


def _accelerator(recipe: Recipe) -> Accelerator:
    # It remembers the precision of the first run of a process, and refuses another; the process group stays.
    AcceleratorState._reset_state()
    # Without a GPU accelerate joins the processes of torchrun only when told that the CPU is meant.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = found or torch.device("cpu")
    if recipe.train.precision == "fp16" and device.type == "cpu":
        # accelerate would train in float32 without a word, and note float16.
        raise NucloraError("train.precision=fp16 is for GPUs, and there is none", mend="set train.precision=auto")
    return Accelerator(
        cpu=not alone and found is None,
        mixed_precision=resolve_precision(recipe.train.precision, device),
        kwargs_handlers=[
            # Mask prompts never come and the predicted IoU is not trained, so some parameters get no gradient.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # One process evaluates while the others wait, for longer than the default time-out.
            InitProcessGroupKwargs(timeout=datetime.timedelta(days=7)),
        ],
    )
