"""A run that was killed and one that was not must end alike, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import tifffile
import torch

from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.errors import NucloraError
from nuclora.run import Run
from nuclora.training import validation
from nuclora.training.crossval import cross_validate
from nuclora.training.interrupt import Stopped
from nuclora.training.monitor import Monitor

FOLDS = 2


def _run(data: Path, recipe, out: Path, weights: Path, monitor: Monitor | None = None) -> Run:
    tiles = open_tiles(data)
    table = make_folds(tiles, FOLDS, recipe.seed)
    return cross_validate(tiles, recipe, out, fold_table=table, weights=weights, monitor=monitor)


def _same_results(a: Path, b: Path) -> None:
    """Equal weights, scores, labels and losses."""
    for fold in range(1, FOLDS + 1):
        name = f"fold-{fold}/adapter/adapter_model.safetensors"
        left, right = safetensors.torch.load_file(a / name), safetensors.torch.load_file(b / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
        assert [_untimed(r) for r in Run(a).training_records(fold)] == [
            _untimed(r) for r in Run(b).training_records(fold)
        ]
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.name == "scores.csv" or p.suffix == ".tif")
    assert len(files) == 2 * 2 * 10 + 2 + 4  # labels of 10 tiles, 2 protocols, 2 stages; their scores
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def _untimed(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("seconds", "tiles_per_second", "memory_mb")}


@pytest.fixture(scope="module")
def unbroken(tiny_data, tiny_recipe, tiny_sam_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    _run(tiny_data, tiny_recipe, out, tiny_sam_folder)
    return out


class _StopAt(Monitor):
    """Sends the process a SIGINT at the nth event, as a user at the keyboard would."""

    def __init__(self, event: int) -> None:
        self.left = event

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    def record(self, fold, record):
        self._count()

    def evaluated(self, title, done, tiles):
        self._count()


@pytest.mark.parametrize("event", [3, 14, 19, 30, 36])
def test_sigint_saves_and_the_same_call_goes_on(event, unbroken, tiny_data, tiny_recipe, tiny_sam_folder, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        _run(tiny_data, tiny_recipe, out, tiny_sam_folder, _StopAt(event))
    _run(tiny_data, tiny_recipe, out, tiny_sam_folder)
    _same_results(unbroken, out)
    assert len(Run(out).info["sessions"]) == 2


@pytest.mark.parametrize("tile", [1, 4])
def test_a_stop_is_heard_between_validation_tiles(
    tile, unbroken, tiny_data, tiny_recipe, tiny_sam_folder, tmp_path, monkeypatch
):
    segment, seen = validation.segment, 0

    def stopping(*arguments):
        nonlocal seen
        seen += 1
        if seen == tile:
            os.kill(os.getpid(), signal.SIGINT)
        return segment(*arguments)

    monkeypatch.setattr(validation, "segment", stopping)
    with pytest.raises(Stopped):
        _run(tiny_data, tiny_recipe, tmp_path / "run", tiny_sam_folder)
    assert seen == tile
    assert list((tmp_path / "run").glob("fold-*/checkpoint.safetensors"))
    _run(tiny_data, tiny_recipe, tmp_path / "run", tiny_sam_folder)
    _same_results(unbroken, tmp_path / "run")


DRIVER = """
import os, signal, sys
from pathlib import Path
import nuclora.files
from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.recipe import Recipe
from nuclora.training.crossval import cross_validate

data, out, weights, recipe, where, count = sys.argv[1:]
left = int(count)

def die():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

if where == "before-replace":  # the new file is written and not yet in place
    replace = Path.replace
    def dying(self, target):
        die()
        return replace(self, target)
    Path.replace = dying
else:  # a line of a log is half written
    append = nuclora.files.AppendLog.append
    def torn(self, line):
        if left == 1:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(line[: len(line) // 2])
        die()
        append(self, line)
    nuclora.files.AppendLog.append = torn

tiles = open_tiles(Path(data))
recipe = Recipe.model_validate_json(recipe)
cross_validate(tiles, recipe, out, fold_table=make_folds(tiles, 2, recipe.seed), weights=weights)
"""


@pytest.mark.parametrize(
    ("where", "count"),
    [("before-replace", 8), ("before-replace", 28), ("torn-line", 6), ("torn-line", 17), ("torn-line", 26)],
)
def test_sigkill_anywhere_loses_nothing(where, count, unbroken, tiny_data, tiny_recipe, tiny_sam_folder, tmp_path):
    out = tmp_path / "run"
    arguments = [tiny_data, out, tiny_sam_folder, tiny_recipe.model_dump_json(), where, count]
    killed = subprocess.run([sys.executable, "-c", DRIVER, *map(str, arguments)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    _run(tiny_data, tiny_recipe, out, tiny_sam_folder)
    _same_results(unbroken, out)


def test_a_changed_recipe_is_refused_and_the_difference_shown(unbroken, tiny_data, tiny_recipe, tiny_sam_folder):
    changed = tiny_recipe.model_copy(update={"train": tiny_recipe.train.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(NucloraError, match=r"recipe\.train\.learning_rate is 0\.001 there, 0\.5 asked"):
        _run(tiny_data, changed, unbroken, tiny_sam_folder)


def test_a_changed_base_is_refused(unbroken, tiny_data, tiny_recipe, tiny_sam_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_sam_folder, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["mask_decoder.iou_token.weight"] += 1
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(NucloraError, match=r"base\.sha256 is .* there"):
        _run(tiny_data, tiny_recipe, unbroken, other)


def test_another_fold_table_is_refused(unbroken, tiny_data, tiny_recipe, tiny_sam_folder):
    tiles = open_tiles(tiny_data)
    with pytest.raises(NucloraError, match=r"folds\.csv is not what is asked"):
        cross_validate(tiles, tiny_recipe, unbroken, fold_table=make_folds(tiles, FOLDS, 99), weights=tiny_sam_folder)


def test_a_fold_at_work_is_not_touched_by_another(unbroken, tiny_data, tiny_recipe, tiny_sam_folder):
    with Run(unbroken).locked(1), pytest.raises(NucloraError, match="another nuclora works on this fold"):
        _run(tiny_data, tiny_recipe, unbroken, tiny_sam_folder)


def test_a_finished_run_is_read_and_not_done_again(unbroken, tiny_data, tiny_recipe, tiny_sam_folder):
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*.safetensors")}
    sessions = Run(unbroken).info["sessions"]
    _run(tiny_data, tiny_recipe, unbroken, tiny_sam_folder)
    assert {p: p.stat().st_mtime_ns for p in unbroken.rglob("*.safetensors")} == before
    # The last is the one that made the results.
    assert Run(unbroken).info["sessions"] == sessions


def test_corrected_labels_are_not_taken_for_those_of_the_run(
    unbroken, tiny_data, tiny_recipe, tiny_sam_folder, tmp_path
):
    corrected = tmp_path / "corrected"
    shutil.copytree(tiny_data, corrected)
    assert open_tiles(corrected).digest() == open_tiles(tiny_data).digest()
    path = open_tiles(corrected)[0].labels
    labels = tifffile.imread(path)
    labels[labels == labels.max()] = 0
    tifffile.imwrite(path, labels)
    with pytest.raises(NucloraError, match=r"run: made from other tiles than those in .*corrected are now"):
        _run(corrected, tiny_recipe, unbroken, tiny_sam_folder)


def test_logs_hold_every_step_epoch_and_validation(unbroken):
    records = Run(unbroken).training_records(1)
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4]
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == [1, 2]
    validations = [r for r in records if r["kind"] == "validation"]
    assert [r["step"] for r in validations] == [2, 4]
    assert all({"dice", "aji", "pq"} <= r.keys() for r in validations)
    card = json.loads((unbroken / "fold-1" / "adapter" / "nuclora.json").read_text())
    assert card["metrics"]["validation_pq"] == validations[-1]["pq"]
