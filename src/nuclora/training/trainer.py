"""Training of one fold: from a base and labelled tiles to an adapter on disk."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

import psutil
import torch
from accelerate import Accelerator

from nuclora.allocator import keep_freed_memory
from nuclora.data.folds import fold_name
from nuclora.data.tiles import Tile, TileSet
from nuclora.errors import NucloraError
from nuclora.inference.predictor import Predictor
from nuclora.models.adapter import AdapterCard, save_adapter
from nuclora.models.checkpoints import LoadedBase
from nuclora.models.compiled import compile_blocks
from nuclora.models.lora import adapt
from nuclora.models.precision import Precision
from nuclora.run import Run
from nuclora.training.average import MovingAverage
from nuclora.training.checkpoint import load_checkpoint, save_checkpoint, trained_state
from nuclora.training.gradients import BatchGradients
from nuclora.training.interrupt import Interrupt
from nuclora.training.loader import load_batches
from nuclora.training.monitor import Monitor
from nuclora.training.optimizer import make_optimizer
from nuclora.training.plan import input_frame, learning_rate_factor, make_plan, split_tiles, thin, training_size
from nuclora.training.records import TrainingRecords
from nuclora.training.samples import TrainingSample, TrainingSamples
from nuclora.training.seeds import derive_seed
from nuclora.training.step import TileLoss
from nuclora.training.validation import score_validation, validation_protocol

_NOT_FINITE = "lower train.learning_rate or dense.learning_rate, or set train.precision=no, under another -o"


class FoldTrainer:
    """Trains one fold of a run, going on from its checkpoint if there is one.

    Args:
        run: The run.
        fold: Fold held out; `ALL_TILES` holds none out.
        tiles: All tiles of the data set.
        base: A freshly loaded base; it is changed.
        accelerator: Device, precision and processes.
        monitor: Hears of every record.
        interrupt: Polled after each step.
    """

    def __init__(
        self,
        run: Run,
        fold: int,
        tiles: TileSet,
        base: LoadedBase,
        *,
        accelerator: Accelerator,
        monitor: Monitor,
        interrupt: Interrupt,
    ) -> None:
        self.run = run
        self.fold = fold
        self.base = base
        self.accelerator = accelerator
        self.monitor = monitor
        self.interrupt = interrupt
        self.recipe = run.recipe
        self.size, self.normalise = input_frame(self.recipe, base)
        fit, validation = split_tiles(self.recipe, run.folds, fold)
        self.fit_tiles = tiles.subset(fit)
        # Thresholds are tuned on tiles as they are: an adapter knows a scale only where those have it too.
        self.microns_per_pixel = scale_of(tiles.subset([*fit, *validation]))
        self.validation_tiles = tiles.subset(thin(validation, self.recipe.train.validation_tiles))
        train = self.recipe.train
        self.plan = make_plan(self.recipe, fold, [tile.group for tile in self.fit_tiles], accelerator.num_processes)
        if train.checkpointing:
            base.model.vision_encoder.checkpoint_blocks()
        self.model = adapt(base.model, self.recipe.adapter, seed=derive_seed(self.recipe.seed, "adapter"))
        if train.compile:
            compile_blocks(base.model, accelerator.device)
        if self.recipe.dense is not None:
            base.model.add_dense_decoder(self.recipe.dense, seed=derive_seed(self.recipe.seed, "dense decoder"))
        optimizer = make_optimizer(self.model, self.recipe)
        self.learning_rates = [group["lr"] for group in optimizer.param_groups]
        loss = TileLoss(self.model, self.recipe.loss, self.recipe.prompts.chunk, self.recipe.dense)
        self.loss, self.optimizer = accelerator.prepare(loss, optimizer)
        # Only now, where the weights are on the device that their average must be on.
        self.average = MovingAverage(self.model, train.ema) if train.ema else None
        if accelerator.scaler is not None:
            # A scale that another fold left behind would make this one depend on which folds its process had trained.
            accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())
        # A mean over tiles, unless the dense decoder's loss is in it.
        is_mean = self.recipe.dense is None
        self.gradients = BatchGradients(self.loss, is_mean, accelerator, self.plan.at_once)
        self.records = TrainingRecords(run, fold, monitor, accelerator.is_main_process)
        self.best_score = -math.inf
        self.last_validation: dict[str, float] = {}
        self.validation_due = False

    def train(self) -> None:
        """Train to the last epoch and write the adapter.

        Raises:
            Stopped: A stop was asked for; everything is saved.
            NucloraError: The loss is not finite, or a file cannot be read or written.
        """
        if self.accelerator.device.type == "cuda":
            # Of this fold's training, not of what the process did before.
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)
        else:
            keep_freed_memory()
        done = self._resume()
        steps = self.plan.steps
        self.monitor.training(self.fold, steps * self.recipe.train.epochs, done)
        if self.validation_due:
            self._validate((done - 1) // steps, done)
        for epoch in range(done // steps, self.recipe.train.epochs):
            self._train_epoch(epoch, max(0, done - epoch * steps))
        if self.accelerator.is_main_process:
            self._write_adapter()
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Load the checkpoint, cut the log back to it, and return the number of steps done."""
        path = self.run.checkpoint_path(self.fold)
        done = 0
        if path.exists():
            position = load_checkpoint(path, self.model, self.optimizer.optimizer, self.average)
            done, self.best_score = position["step"], position["best_score"]
            self.last_validation = position["last_validation"]
            # Trainings of before were saved after their validations only.
            self.validation_due = position.get("validation_due", False)
            # Trainings that began before parts could be halved have no such number.
            self.gradients.at_once = position.get("at_once", self.gradients.at_once)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(position["scaler"])
        self.records.cut_back(done, self.gradients.at_once, self.validation_due)
        self.accelerator.wait_for_everyone()
        return int(done)

    def _train_epoch(self, epoch: int, first_step: int) -> None:
        train, steps = self.recipe.train, self.plan.steps
        validate_after = {
            round(steps * (n + 1) / train.validations_per_epoch) for n in range(train.validations_per_epoch)
        }
        batches = self._batches(epoch, first_step)
        self.loss.train()
        for step in range(first_step, steps):
            self._record_step(epoch, step, batches)
            done = epoch * steps + step + 1
            if step + 1 == steps:
                self.records.add_epoch(epoch, done)
            # Which saves by itself.
            validates = step + 1 in validate_after and bool(len(self.validation_tiles))
            if validates:
                # First, since it may take minutes, and a stop in them is not to cost the steps.
                self.validation_due = True
                self._save(done)
                self._validate(epoch, done)
            stop = self._anybody_asked_to_stop()
            if not validates and (stop or step + 1 == steps or done % train.checkpoint_steps == 0):
                self._save(done)
            if stop:
                self.interrupt.requested = True
                self.interrupt.check()

    def _batches(self, epoch: int, first_step: int) -> Iterator[list[TrainingSample]]:
        samples = TrainingSamples(
            self.fit_tiles,
            self.recipe,
            size=training_size(self.recipe, self.base),
            normalise=self.normalise,
            epoch=epoch,
        )
        batches = self.plan.batches(epoch, self.accelerator.process_index, first_step)
        return load_batches(samples, batches, self.accelerator.device, self.recipe.train.workers)

    def _record_step(self, epoch: int, step: int, batches: Iterator[list[TrainingSample]]) -> None:
        """Do one optimiser step and log it."""
        started = time.perf_counter()
        done = epoch * self.plan.steps + step
        self._set_learning_rates(done)
        samples = next(batches)

        def seed(part: int) -> int:
            # Dropout draws from here, so that a resumed run repeats it; after the loader, which draws too.
            return derive_seed(self.plan.seed, "step", epoch, step, part, self.accelerator.process_index)

        total = self.gradients.compute(samples, seed, lambda: self._record_halving(epoch, done))
        if self.recipe.train.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.loss.parameters(), self.recipe.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(done)
        value = float(self.accelerator.reduce(total, "mean"))
        if not math.isfinite(value):
            raise NucloraError(
                f"{fold_name(self.fold)}: the loss is {value} at epoch {epoch + 1}, step {step + 1}",
                mend=_NOT_FINITE,
            )
        seconds = time.perf_counter() - started
        self.records.add(
            "step",
            epoch,
            done + 1,
            loss=value,
            seconds=seconds,
            tiles_per_second=self.plan.batch_size / seconds,
            memory_mb=self._memory_mb(),
        )

    def _record_halving(self, epoch: int, done: int) -> None:
        """Keep that fewer tiles go through the network together, so that a resumed run goes on as an unbroken one."""
        # In this order: a record without its checkpoint is found out, a checkpoint without its record is not.
        self.records.add("memory", epoch, done, tiles_at_once=self.gradients.at_once)
        self._save(done)

    def _set_learning_rates(self, done: int) -> None:
        train = self.recipe.train
        factor = learning_rate_factor(train, done, self.plan.steps * train.epochs)
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate * factor

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model with its averaged weights, which is the one that counts."""
        return self.average.in_place() if self.average is not None else contextlib.nullcontext()

    def _validate(self, epoch: int, done: int) -> None:
        """Score the validation tiles, and keep the best parameters; until then the checkpoint says that it is due."""
        if self.accelerator.is_main_process:
            with self._averaged():
                self._record_validation(epoch, done)
        self.loss.train()
        self.validation_due = False
        self._save(done)

    def _record_validation(self, epoch: int, done: int) -> None:
        predictor = Predictor(
            self.model.get_base_model(),
            input_size=self.size,
            normalise=self.normalise,
            device=self.accelerator.device,
            precision=cast(Precision, self.accelerator.mixed_precision),
            dense=self.recipe.dense,
        )
        # Of several processes the others wait for this one, and would wait for ever.
        check = self.interrupt.check if self.accelerator.num_processes == 1 else None
        means = score_validation(predictor, self.validation_tiles, self.recipe, check)
        self.last_validation = means
        protocol, tiles = validation_protocol(self.recipe), len(self.validation_tiles)
        self.records.add("validation", epoch, done, protocol=protocol, tiles=tiles, **means)
        if self.recipe.train.select == "best" and means["pq"] > self.best_score:
            self.best_score = means["pq"]
            save_checkpoint(self.run.best_path(self.fold), self.model, None, {"step": done, **means})

    def _anybody_asked_to_stop(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.interrupt.requested
        asked = torch.tensor(float(self.interrupt.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum") > 0)

    def _save(self, done: int) -> None:
        if self.accelerator.is_main_process:
            state = trained_state(self.model)
            if not all(bool(torch.isfinite(value).all()) for value in state.values()):
                raise NucloraError(
                    f"{fold_name(self.fold)}: the weights are no longer finite after step {done}", mend=_NOT_FINITE
                )
            position: dict[str, Any] = {
                "step": done,
                "best_score": self.best_score,
                "last_validation": self.last_validation,
                "at_once": self.gradients.at_once,
                "validation_due": self.validation_due,
            }
            if self.accelerator.scaler is not None:
                position["scaler"] = self.accelerator.scaler.state_dict()
            save_checkpoint(
                self.run.checkpoint_path(self.fold), self.model, self.optimizer.optimizer, position, self.average
            )
        self.accelerator.wait_for_everyone()

    def _write_adapter(self) -> None:
        with self._averaged():
            self._save_adapter()
        self.run.drop_checkpoints(self.fold)

    def _save_adapter(self) -> None:
        metrics = {f"validation_{name}": value for name, value in self.last_validation.items()}
        if self.recipe.train.select == "best":
            position = load_checkpoint(self.run.best_path(self.fold), self.model)
            metrics = {f"validation_{name}": position[name] for name in ("dice", "aji", "pq")}
        card = AdapterCard(
            base=self.base.name,
            base_sha256=self.base.sha256,
            input_size=self.size,
            normalise=self.normalise,
            microns_per_pixel=self.microns_per_pixel,
            recipe=self.recipe.model_dump(mode="json"),
            metrics=metrics,
        )
        save_adapter(self.model, self.run.adapter_folder(self.fold), card)

    def _memory_mb(self) -> float:
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.accelerator.device) / 1e6
        return float(psutil.Process().memory_info().rss) / 1e6


def scale_of(tiles: Iterable[Tile]) -> float | None:
    """Microns per pixel of the tiles, where all of them say the same."""
    scales = {tile.microns_per_pixel for tile in tiles}
    return scales.pop() if len(scales) == 1 else None
