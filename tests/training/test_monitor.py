from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from nuclora.errors import NucloraError
from nuclora.training.monitor import Monitor, Monitors, TensorBoardMonitor

STEPS = [
    {"kind": "step", "epoch": 1, "step": n, "loss": 1.0 / n, "seconds": 0.5, "tiles_per_second": 8.0} for n in (1, 2, 3)
]
VALIDATION = {
    "kind": "validation",
    "epoch": 1,
    "step": 3,
    "protocol": "oracle-box",
    "tiles": 4,
    "dice": 0.5,
    "aji": 0.25,
}

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed: pip install 'nuclora[track]'"
)


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@needs_tensorboard
def test_tensorboard_gets_every_number_a_run_a_fold(tmp_path):
    monitor = TensorBoardMonitor(tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()
    monitor.training(1, 3, 0)
    for record in STEPS:
        monitor.record(1, record)
    monitor.record(1, VALIDATION)
    monitor.record(2, {"kind": "epoch", "epoch": 1, "step": 3, "loss": 0.125})
    monitor.evaluated("fold 1", 0, 4)
    monitor.close()
    monitor.close()
    first, second = (_scalars(tmp_path / "tensorboard" / f"fold-{fold}") for fold in (1, 2))
    assert first.keys() == {
        "step/loss", "step/seconds", "step/tiles_per_second", "validation/dice", "validation/aji"
    }  # fmt: skip
    assert first["step/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert (first["validation/dice"], first["validation/aji"]) == ([(3, 0.5)], [(3, 0.25)])
    assert second == {"epoch/loss": [(3, 0.125)]}


@needs_tensorboard
def test_a_run_with_tensorboard(tiny_data, tiny_recipe, tiny_sam_folder, tmp_path):
    from nuclora.cli.runs import cross_validate_and_print
    from nuclora.data import open_tiles
    from nuclora.data.folds import make_folds
    from nuclora.training.crossval import CrossValidation

    recipe = tiny_recipe.model_copy(
        update={"evaluate": tiny_recipe.evaluate.model_copy(update={"protocols": ("oracle-box",)})}
    )
    tiles = open_tiles(tiny_data)
    table = make_folds(tiles, 5, recipe.seed)
    work = CrossValidation(tiles, recipe, tmp_path / "run", table, [2], tiny_sam_folder, zero_shot=False)
    run = cross_validate_and_print(work, tensorboard=True)
    records = run.training_records(2)
    scalars = _scalars(run.folder / "tensorboard" / "fold-2")
    for kind, name in (("step", "loss"), ("epoch", "loss"), ("validation", "pq")):
        expected = [(r["step"], pytest.approx(r[name])) for r in records if r["kind"] == kind]
        assert expected
        assert scalars[f"{kind}/{name}"] == expected


def test_tensorboard_without_the_package_is_told(tmp_path, monkeypatch):
    from nuclora.cli import runs

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(NucloraError, match="--tensorboard needs the package tensorboard"):
        runs._tensorboard(tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _Heard(Monitor):
    def __init__(self) -> None:
        self.events: list[tuple] = []

    def training(self, fold, steps, done):
        self.events.append(("training", fold, steps, done))

    def record(self, fold, record):
        self.events.append(("record", fold, record["step"]))

    def evaluated(self, title, done, tiles):
        self.events.append(("evaluated", title, done, tiles))

    def close(self):
        self.events.append(("close",))


def test_several_monitors_hear_the_same():
    heard = [_Heard(), _Heard()]
    monitors = Monitors([*heard, Monitor()])
    monitors.training(1, 10, 2)
    monitors.record(1, STEPS[0])
    monitors.evaluated("fold 1", 3, 4)
    monitors.close()
    assert heard[0].events == heard[1].events
    assert heard[0].events == [("training", 1, 10, 2), ("record", 1, 1), ("evaluated", "fold 1", 3, 4), ("close",)]


def test_progress_goes_to_standard_error_and_names_what_it_does(capsys):
    from nuclora.cli.progress import ProgressMonitor

    monitor = ProgressMonitor()
    monitor.training(2, 3, 0)
    for record in STEPS:
        monitor.record(2, {**record, "memory_mb": 512.0})
    monitor.record(2, {"kind": "epoch", "epoch": 1, "step": 3, "loss": 0.125})
    monitor.record(2, {**VALIDATION, "pq": 0.75})
    for done in range(3):
        monitor.evaluated("fold 2", done, 2)
    monitor.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("train fold 2: 3/3  loss 0.3333  8.00 tiles/s  512 MB")
    assert lines[1:3] == [
        "train fold 2: epoch 1, mean loss 0.1250",
        "train fold 2: step 3, oracle-box on 4 tiles  DICE 0.500  AJI 0.250  PQ 0.750",
    ]
    assert lines[3].startswith("evaluate fold 2: 2/2")


def test_progress_of_a_training_that_is_gone_on_with_counts_from_there(capsys):
    from nuclora.cli.progress import ProgressMonitor

    monitor = ProgressMonitor()
    monitor.training(0, 3, 1)
    for record in STEPS[1:]:
        monitor.record(0, {**record, "memory_mb": 512.0})
    monitor.close()
    assert capsys.readouterr().err.startswith("train: 3/3")
