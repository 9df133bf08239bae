"""The run folder: its paths, atomic writes, and what of it survives an interruption.

Nobody else joins paths inside a run. Its layout::

    RUN/
      run.json              what the run is made from (recipe, base, folds) and every session that worked on it
      recipe.yaml           the resolved recipe
      folds.csv             the fold table
      zero-shot/PROTOCOL/   scores.csv, labels/TILE.tif      the base as it came, on every fold's test tiles
      fold-K/
        metrics.jsonl       a line a step, an epoch, a validation and a halving of the parts
        checkpoint.safetensors
        adapter/            there once the fold is trained
        PROTOCOL/           scores.csv, labels/TILE.tif, nuclei/TILE.csv where the model scores its nuclei
      all-tiles/            like a fold, where training held nothing back
      summary.json          what was evaluated when the last session of `cv` or `train --fold` came to its end
      report/
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from nuclora.data.folds import ALL_TILES, FoldTable
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError, require_choice
from nuclora.evaluation import Evaluation, Row
from nuclora.files import AppendLog, damaged, disk_errors, hold, remove_torn, require_utf8, unreadable, write_atomic
from nuclora.machine import environment
from nuclora.recipe import PROTOCOLS, Recipe, load_recipe

ZERO_SHOT = "zero-shot"
FINE_TUNED = "fine-tuned"
STAGES = (ZERO_SHOT, FINE_TUNED)

_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "step": ("loss", "seconds", "memory_mb"),
    "epoch": ("loss",),
    "validation": ("tiles", "dice", "aji", "pq"),
    "memory": ("tiles_at_once",),
}
"""What each kind of record of a training counts, beside `epoch` and `step`."""

_MEANS: Final = (
    ("prompts", "chunk"),
    ("train", "checkpoint_steps"),
    ("train", "checkpointing"),
    ("train", "workers"),
)
"""Fields of a recipe that say how to compute and change no result, but for rounding: a run goes on with others."""


class _Base(BaseModel):
    name: str
    sha256: str


class _Data(BaseModel):
    root: str
    format: str
    sha256: str | None = None


class _Session(BaseModel):
    started: str
    command: str


class _Info(BaseModel):
    """What `run.json` must hold."""

    recipe: dict[str, Any]
    base: _Base
    folds_sha256: str
    data: _Data
    base_path: str
    sessions: list[_Session]


@contextlib.contextmanager
def _of_the_run(source: str) -> Iterator[None]:
    """Give the errors of a file that the run depends on the mend that fits there."""
    try:
        yield
    except NucloraError as error:
        raise NucloraError(error.reason, path=error.path, mend=f"put it back: {source}") from error


class Run:
    """One cross-validation run on disk."""

    def __init__(self, folder: str | Path) -> None:
        """Open an existing run.

        Raises:
            NucloraError: The folder holds no run, or its `run.json` is damaged or cannot be read.
        """
        self.folder = folder = Path(folder)
        try:
            self.info: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))
            _Info.model_validate(self.info)
        except (FileNotFoundError, NotADirectoryError) as error:
            mend = "name the folder given to -o"
            raise NucloraError("holds no nuclora run (it has no run.json)", path=folder, mend=mend) from error
        except OSError as error:
            raise unreadable(folder / "run.json", error) from error
        except ValueError as error:
            mend = "put back a copy of it, or remove this run and begin anew"
            raise NucloraError("damaged", path=folder / "run.json", mend=mend) from error
        with _of_the_run("the recipe in run.json beside it is the same"):
            self.recipe: Recipe = load_recipe(folder / "recipe.yaml")

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        recipe: Recipe,
        folds: FoldTable,
        base: Mapping[str, str],
        data: Mapping[str, str],
    ) -> Run:
        """Create the run, or go on with the one that is there if it is made from the same things.

        Args:
            folder: The run folder.
            recipe: The resolved recipe.
            folds: The fold table.
            base: `name` and `sha256` of the base checkpoint, and the `path` it was read from.
            data: `root`, `format` and `sha256` of the labelled tiles, see
                :meth:`nuclora.data.tiles.TileSet.digest`.

        Raises:
            NucloraError: Another recipe, base or fold table, or other tiles, made the run that is there.
        """
        asked = {
            "recipe": recipe.model_dump(mode="json"),
            "base": {"name": base["name"], "sha256": base["sha256"]},
        }
        own = {"recipe.yaml": recipe.to_yaml(), "folds.csv": folds.to_csv()}
        require_utf8(folder)
        # Looked at before run.json is, which of several processes that start together another may write meanwhile.
        strangers = folder.is_dir() and not all(_left_by_a_start(path, own) for path in folder.iterdir())
        if not (folder / "run.json").exists():
            if folder.exists() and not folder.is_dir():
                raise NucloraError("not a folder", path=folder, mend="name a new folder with -o")
            if strangers:
                raise NucloraError("neither empty nor a nuclora run", path=folder, mend="name a new folder with -o")
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with hold(folder, "run", patience=60):
                if not (folder / "run.json").exists():
                    write_atomic(folder / "recipe.yaml", recipe.to_yaml())
                    folds.write(folder / "folds.csv")
                    made = {**asked, "folds_sha256": folds.sha256, "data": dict(data), "base_path": base["path"]}
                    info = {**made, "sessions": []}
                    write_atomic(folder / "run.json", json.dumps(info, indent=2) + "\n")
        run = cls(folder)
        # Of recipe and folds the files count: they are what the run works with, and somebody may have edited them.
        there = {
            "recipe": run.recipe.model_dump(mode="json"),
            "base": run.info["base"],
        }
        differences = _differences(_without_means(there), _without_means(asked))
        if run.folds.sha256 != folds.sha256:
            differences.append("folds.csv is not what is asked (-k, --by, --fold-table, the seed or the tiles differ)")
        if differences:
            raise NucloraError(
                "made from something else: " + "; ".join(differences),
                path=folder,
                mend="use another -o, or the same settings to go on",
            )
        run._refuse_others(data.get("sha256"), data["root"], "use another -o, or put the old ones back")
        run._take_means(recipe)
        # Where things lie may have changed since; what they are has not.
        run.info["data"] = dict(data)
        run.info["base_path"] = base["path"]
        return run

    def _take_means(self, recipe: Recipe) -> None:
        """Go on with what a recipe says of how to compute, where that differs."""
        if recipe != self.recipe:
            with hold(self.folder, "run", patience=60):
                info = {**Run(self.folder).info, "recipe": recipe.model_dump(mode="json")}
                write_atomic(self.folder / "recipe.yaml", recipe.to_yaml())
                write_atomic(self.folder / "run.json", json.dumps(info, indent=2) + "\n")
            self.info, self.recipe = info, recipe

    def check_tiles(self, tiles: TileSet, mend: str = "put the old ones back") -> None:
        """Require that tiles are those that the run was made from.

        Args:
            tiles: The tiles.
            mend: What to do where they are others of the same names.

        Raises:
            NucloraError: They have other names, images or labels.
        """
        self.folds.check_against(tiles)
        self._refuse_others(tiles.digest(), str(tiles.root), mend)

    def _refuse_others(self, sha256: str | None, root: str, mend: str) -> None:
        # Runs of before tiles were noted lack it.
        if (known := self.info["data"].get("sha256")) and known != sha256:
            reason = f"made from other tiles than those in {root} are now: images or labels differ"
            raise NucloraError(reason, path=self.folder, mend=f"{mend} (`nuclora data check` finds damaged files)")

    def begin_session(self, precision: str) -> None:
        """Note this process among the sessions.

        Args:
            precision: What it computes in, which a recipe may leave to the machine.
        """
        # Processes that were started together note theirs together.
        with hold(self.folder, "run", patience=60):
            remove_torn(self.folder)
            # Other processes may have noted theirs since this one opened the run.
            self.info["sessions"] = [*Run(self.folder).info["sessions"], {**environment(), "precision": precision}]
            write_atomic(self.folder / "run.json", json.dumps(self.info, indent=2) + "\n")

    @contextlib.contextmanager
    def locked(self, fold: int | None, patience: float = 0) -> Iterator[None]:
        """Hold one fold, or the zero-shot evaluation, for this process; a second one is refused.

        Processes may work on different folds of one run at the same time.

        Args:
            fold: The fold; none for the zero-shot evaluation.
            patience: Wait so many seconds for another process before this one is refused.
        """
        what = "zero-shot evaluation" if fold is None else "fold"
        folder = self.folder / ZERO_SHOT if fold is None else self.fold_folder(fold)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with hold(folder, what, patience):
            # A killed process may leave a checkpoint of a hundred megabytes.
            remove_torn(folder, deep=True)
            yield

    @property
    def folds(self) -> FoldTable:
        """The fold table."""
        with _of_the_run("`nuclora folds` with the run's data, -k, --seed and --by writes the same"):
            return FoldTable.read(self.folder / "folds.csv")

    def fold_folder(self, fold: int) -> Path:
        """Where one fold keeps its files."""
        return self.folder / ("all-tiles" if fold == ALL_TILES else f"fold-{fold}")

    def adapter_folder(self, fold: int) -> Path:
        """The fold's adapter; it is there once the fold is trained."""
        return self.fold_folder(fold) / "adapter"

    def checkpoint_path(self, fold: int) -> Path:
        """The fold's latest checkpoint."""
        return self.fold_folder(fold) / "checkpoint.safetensors"

    def drop_checkpoints(self, fold: int) -> None:
        """Remove what a fold's training only kept to go on from: its adapter is there."""
        self.checkpoint_path(fold).unlink(missing_ok=True)
        self.best_path(fold).unlink(missing_ok=True)

    def best_path(self, fold: int) -> Path:
        """The fold's checkpoint that was best on inner validation."""
        return self.fold_folder(fold) / "best.safetensors"

    def training_log(self, fold: int) -> AppendLog:
        """The fold's `metrics.jsonl`."""
        return AppendLog(self.fold_folder(fold) / "metrics.jsonl")

    def training_records(self, fold: int) -> list[Row]:
        """The fold's `metrics.jsonl`: each record has `kind` (step, epoch, validation, memory), `epoch` and `step`.

        Raises:
            NucloraError: The file is damaged.
        """
        log = self.training_log(fold)
        with damaged(log.path, "delete it: only curves of the training are lost"):
            records = [json.loads(line) for line in log.lines()]
            for record in records:
                _check_record(record)
            return records

    def zero_shot(self, protocol: str) -> Evaluation:
        """The base's own evaluation, over the test tiles of every fold."""
        return Evaluation(self.folder / ZERO_SHOT / protocol)

    def fine_tuned(self, fold: int, protocol: str) -> Evaluation:
        """The evaluation of one fold's adapter on its test tiles."""
        return Evaluation(self.fold_folder(fold) / protocol)

    def evaluation_of(self, stage: str, protocol: str, fold: int) -> Evaluation:
        """The evaluation that a row of :meth:`rows` came from."""
        return self.zero_shot(protocol) if stage == ZERO_SHOT else self.fine_tuned(fold, protocol)

    def rows(self, stage: str, protocol: str) -> list[Row]:
        """All evaluated tiles of a stage under a protocol, over all folds.

        Raises:
            NucloraError: A file of scores is damaged, or there is no such stage or protocol.
        """
        require_choice("stage", stage, STAGES)
        require_choice("protocol", protocol, PROTOCOLS)
        folds = self.folds.folds
        if stage == ZERO_SHOT:
            return self.zero_shot(protocol).rows_of(folds)
        return [row for fold in folds for row in self.fine_tuned(fold, protocol).rows_of([fold])]

    @property
    def summary_path(self) -> Path:
        """`summary.json`."""
        return self.folder / "summary.json"

    @property
    def report_folder(self) -> Path:
        """Where the report goes unless told otherwise."""
        return self.folder / "report"


def _check_record(record: Mapping[str, Any]) -> None:
    """Require what readers of the log count on. Losses need not be finite: those of a training that went astray."""
    for key in ("epoch", "step", *_NUMBERS[record["kind"]]):
        if not isinstance(record[key], int | float):
            raise TypeError(f"{key} is {record[key]!r}")
    if record["kind"] == "validation" and not isinstance(record["protocol"], str):
        raise TypeError(f"protocol is {record['protocol']!r}")


def _left_by_a_start(path: Path, own: Mapping[str, str]) -> bool:
    """Whether a start that was killed before there was a run.json left this file, whole or in part.

    Args:
        path: The file.
        own: What the start wrote, by name; other files of these names are the user's.
    """
    if path.name in own:
        return path.is_file() and path.read_text("utf-8", "replace") == own[path.name]
    return path.name.startswith((".recipe.yaml", ".folds.csv", ".run.json", ".lock", "run.json"))


def _without_means(made: Mapping[str, Any]) -> dict[str, Any]:
    """What something was made from, without the recipe's fields that change no result, but for rounding."""
    recipe = {key: dict(value) if isinstance(value, Mapping) else value for key, value in made["recipe"].items()}
    for part, field in _MEANS:
        recipe[part].pop(field)
    return {**made, "recipe": recipe}


def _differences(have: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted(have.keys() | asked.keys()):
        left, right = have.get(key), asked.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key} is {left} there, {right} asked")
    return found
