from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nuclora.data.folds import FoldRow, FoldTable
from nuclora.errors import NucloraError
from nuclora.files import write_atomic
from nuclora.metrics import METRICS
from nuclora.recipe import load_recipe
from nuclora.run import FINE_TUNED, ZERO_SHOT, Run

TABLE = FoldTable(tuple(FoldRow(f"human liver/tile {n}", "human liver", 1 + n % 2) for n in range(4)))
BASE = {"name": "mobile_sam", "sha256": "ab" * 32, "path": "/somewhere/mobile_sam.pt"}
DATA = {"root": "/somewhere/tiles", "format": "nuinsseg"}


def _start(folder: Path, recipe=None, folds=TABLE, base=BASE, data=DATA) -> Run:
    return Run.start(folder, recipe=recipe or load_recipe("paper"), folds=folds, base=base, data=data)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_run_reads_back_what_it_was_started_with(tmp_path):
    recipe = load_recipe("paper", ["train.learning_rate=5e-4"])
    _start(tmp_path / "run", recipe)
    assert _files(tmp_path / "run") == [".lock", "folds.csv", "recipe.yaml", "run.json"]
    run = Run(tmp_path / "run")
    assert run.recipe == recipe
    assert run.folds == TABLE
    assert run.info["base"] == {"name": "mobile_sam", "sha256": "ab" * 32}
    assert (run.info["data"], run.info["base_path"]) == (DATA, BASE["path"])
    assert run.info["recipe"] == recipe.model_dump(mode="json")
    assert run.info["folds_sha256"] == TABLE.sha256


def test_what_killed_writers_left_is_removed(tmp_path):
    run = _start(tmp_path / "run")
    labels = run.fine_tuned(1, "automatic").folder / "labels" / "human liver"
    other = run.fold_folder(2)
    for folder in (run.folder, run.fold_folder(1), labels, other):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".checkpoint.safetensors.0a1b2c3d.tmp").touch()
        (folder / "mine.tmp").touch()
    run.begin_session("no")
    with run.locked(1):
        assert sorted(path.parent for path in run.folder.rglob(".*.tmp")) == [other]
    assert len(list(run.folder.rglob("mine.tmp"))) == 4


def test_each_session_is_noted_and_places_may_move(tmp_path):
    _start(tmp_path / "run").begin_session("no")
    moved = {"root": "/elsewhere", "format": "nuinsseg"}
    _start(tmp_path / "run", base={**BASE, "path": "/elsewhere/weights.pt"}, data=moved).begin_session("no")
    info = Run(tmp_path / "run").info
    assert (info["data"], info["base_path"]) == (moved, "/elsewhere/weights.pt")
    assert len(info["sessions"]) == 2
    for session in info["sessions"]:
        assert session["packages"].keys() >= {"nuclora", "torch", "transformers", "peft"}
        assert session["cores"] >= 1
        assert session["command"]
        assert session["started"].endswith("+00:00")


def test_of_several_that_start_together_one_creates_the_run_and_all_are_noted(tmp_path, monkeypatch):
    waiting, slowly = threading.Barrier(6), itertools.count()
    exists, write = Path.exists, FoldTable.write

    def exists_for_none(path, **options):
        found = exists(path, **options)
        # All see that there is no run before any of them makes it.
        if path.name == "run.json" and not found and not waiting.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                waiting.wait(5)
            waiting.abort()
        return found

    def write_one_after_the_other(table, path):
        time.sleep(0.2 * next(slowly))
        write(table, path)

    monkeypatch.setattr(Path, "exists", exists_for_none)
    monkeypatch.setattr(FoldTable, "write", write_one_after_the_other)

    def start(fold: int) -> None:
        run = _start(tmp_path / "run")
        run.begin_session("no")
        with run.locked(fold):
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(start, range(1, 7)))
    assert len(Run(tmp_path / "run").info["sessions"]) == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"recipe": load_recipe("paper", ["train.epochs=10", "loss.dice=1"])},
            r"made from something else: recipe\.loss\.dice is 0\.0 there, 1\.0 asked; "
            r"recipe\.train\.epochs is 5 there, 10 asked; use another -o",
        ),
        ({"base": {**BASE, "sha256": "cd" * 32}}, rf"base\.sha256 is {'ab' * 32} there, {'cd' * 32} asked"),
        ({"base": {**BASE, "name": "sam_vit_b"}}, r"base\.name is mobile_sam there, sam_vit_b asked"),
        ({"folds": FoldTable(TABLE.rows[::-1])}, r"else: folds\.csv is not what is asked \(-k, --by"),
    ],
)
def test_something_else_is_refused_with_the_differences(changes, told, tmp_path):
    _start(tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(NucloraError, match=told) as caught:
        _start(tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_run_goes_on_with_other_means_as_its_errors_advise(tmp_path):
    _start(tmp_path / "run").begin_session("no")
    means = ["train.workers=0", "train.checkpoint_steps=7", "train.checkpointing=true", "prompts.chunk=8"]
    recipe = load_recipe("paper", means)
    run = _start(tmp_path / "run", recipe)
    assert run.recipe == Run(tmp_path / "run").recipe == recipe
    info = Run(tmp_path / "run").info
    assert info["recipe"] == recipe.model_dump(mode="json")
    assert len(info["sessions"]) == 1
    with pytest.raises(NucloraError, match=r"else: recipe\.train\.epochs is 5 there, 6 asked; use"):
        _start(tmp_path / "run", load_recipe("paper", ["train.epochs=6"]))


def test_the_command_of_a_session_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/nuclora", "cv", "my tiles", "-o", "run [a]"])
    run = _start(tmp_path / "run")
    run.begin_session("no")
    assert run.info["sessions"][0]["command"] == "nuclora cv 'my tiles' -o 'run [a]'"


def test_a_recipe_or_fold_table_edited_inside_the_run_is_noticed(tmp_path):
    _start(tmp_path / "run")
    path = tmp_path / "run" / "recipe.yaml"
    original = path.read_text()
    path.write_text(original.replace("epochs: 5", "epochs: 6"))
    with pytest.raises(NucloraError, match=r"recipe\.train\.epochs is 6 there, 5 asked"):
        _start(tmp_path / "run")
    path.write_text(original)
    FoldTable(TABLE.rows[:2]).write(tmp_path / "run" / "folds.csv")
    with pytest.raises(NucloraError, match=r"folds\.csv is not what is asked"):
        _start(tmp_path / "run")


@pytest.mark.parametrize("name", ["thesis.docx", ".git", "fold-1"])
def test_a_foreign_folder_is_left_alone(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(NucloraError, match=r"neither empty nor a nuclora run; name a new folder"):
        _start(tmp_path)
    assert _files(tmp_path) == [name]


@pytest.mark.parametrize("name", ["recipe.yaml", "folds.csv"])
def test_a_users_own_recipe_and_fold_table_are_left_alone(name, tmp_path):
    (tmp_path / name).write_text("# mine\n")
    with pytest.raises(NucloraError, match=r"neither empty nor a nuclora run; name a new folder"):
        _start(tmp_path)
    assert (tmp_path / name).read_text() == "# mine\n"


def test_other_tiles_of_the_same_names_are_refused(tmp_path):
    # As runs were noted before: they take up what they are gone on with.
    _start(tmp_path / "run").begin_session("no")
    _start(tmp_path / "run", data={**DATA, "sha256": "ab"}).begin_session("no")
    _start(tmp_path / "run", data={"root": "/elsewhere", "format": "nuinsseg", "sha256": "ab"})
    with pytest.raises(NucloraError, match=r"run: made from other tiles than those in /somewhere/tiles are now"):
        _start(tmp_path / "run", data={**DATA, "sha256": "cd"})


@pytest.mark.parametrize("write", [1, 2, 3, 4])
def test_a_start_that_dies_at_any_write_can_be_repeated(write, tmp_path):
    """SIGKILL before the nth file is put in place."""
    driver = f"""
import os, signal
from pathlib import Path
from tests_driver import start
replace, left = Path.replace, {write}
def dying(self, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = dying
start()
"""
    module = (
        "from pathlib import Path\n"
        "from nuclora.data.folds import FoldTable\n"
        "from nuclora.recipe import load_recipe\n"
        "from nuclora.run import Run\n"
        "def start():\n"
        f"    Run.start(Path({str(tmp_path / 'run')!r}), recipe=load_recipe('paper'),\n"
        f"        folds=FoldTable.read({str(tmp_path / 'folds.csv')!r}), base={BASE!r}, data={DATA!r}\n"
        "    ).begin_session('no')\n"
    )
    (tmp_path / "tests_driver.py").write_text(module)
    TABLE.write(tmp_path / "folds.csv")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", driver], env=environment, check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    run = _start(tmp_path / "run")
    assert (run.recipe, run.folds) == (load_recipe("paper"), TABLE)


def test_a_run_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    _start(tmp_path / "run")

    def forbidden(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(NucloraError, match=r"run\.json: cannot be read \(Permission denied\); check the path"):
        Run(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b'{"recipe": ', b"\xff", b"[]", b"null", b"3", b"{}"])
def test_a_damaged_run_json_is_told(content, tmp_path):
    _start(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(content)
    with pytest.raises(NucloraError, match=r"run\.json: damaged; put back a copy of it, or remove this run"):
        Run(tmp_path / "run")


@pytest.mark.parametrize(("number", "why"), [(errno.EIO, "Input/output error"), (errno.ESTALE, "Stale file handle")])
def test_a_disk_that_does_not_answer_damages_no_run(number, why, tmp_path, monkeypatch):
    def fails(path, *_, **__):
        raise OSError(number, why, str(path))

    _start(tmp_path / "run")
    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(NucloraError, match=rf"run\.json: cannot be read \({why}\); check the path"):
        Run(tmp_path / "run")


@pytest.mark.parametrize("name", ["run", "file", "file/run", "nothing"])
def test_a_folder_without_run_json_is_no_run(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(NucloraError, match=rf"{name}: holds no nuclora run \(it has no run\.json\); name the folder"):
        Run(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("recipe.yaml", "name: [", r"recipe\.yaml: not YAML"),
        ("recipe.yaml", None, r"recipe\.yaml: no such recipe"),
        ("folds.csv", "tile,group\n", r"folds\.csv: not a fold table"),
        ("folds.csv", None, r"folds\.csv: no such file"),
    ],
)
def test_another_damaged_file_of_a_run_is_named(file, content, told, tmp_path):
    _start(tmp_path / "run")
    path = tmp_path / "run" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(NucloraError, match=told):
        _start(tmp_path / "run")


def test_a_fold_is_held_by_one_process_and_the_others_are_free(tmp_path):
    run = _start(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from nuclora.run import Run\n"
        "from nuclora.errors import NucloraError\n"
        "try:\n"
        "    with Run(Path(sys.argv[1])).locked(int(sys.argv[2])): print('held')\n"
        "except NucloraError as error: print(error)\n"
    )

    def other(fold: int) -> str:
        command = [sys.executable, "-c", code, str(run.folder), str(fold)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with run.locked(1):
        assert "another nuclora works on this fold; wait for it or stop it" in other(1)
        assert other(2) == "held\n"
    assert other(1) == "held\n"
    with pytest.raises(ZeroDivisionError), run.locked(1):
        raise ZeroDivisionError
    with run.locked(1):
        pass


def _score(row: FoldRow) -> dict:
    counts = dict.fromkeys(("nuclei_true", "nuclei_predicted", "missed", "false", "merged", "split"), 3)
    return {"tile": row.tile, "group": row.group, "fold": row.fold, **counts, **dict.fromkeys(METRICS, 0.5)}


@pytest.mark.parametrize("stage", [ZERO_SHOT, FINE_TUNED])
def test_a_row_of_a_fold_that_is_none_is_named(stage, tmp_path):
    run = _start(tmp_path / "run")
    evaluation = run.evaluation_of(stage, "automatic", 1)
    evaluation.add(_score(TABLE.rows[0]) | {"fold": 7}, np.zeros((3, 4), np.int32))
    with pytest.raises(NucloraError, match=r"scores\.csv: damaged \(ValueError: tile .* is of fold 7\); delete it"):
        run.rows(stage, "automatic")


def test_rows_of_a_stage_are_those_of_all_its_folds(tmp_path):
    run = _start(tmp_path / "run")
    labels = np.zeros((3, 4), np.int32)
    for row in TABLE.rows:
        for evaluation in (run.fine_tuned(row.fold, "automatic"), run.zero_shot("automatic")):
            evaluation.add(_score(row), labels)
    assert sorted(row["tile"] for row in run.rows(FINE_TUNED, "automatic")) == [row.tile for row in TABLE.rows]
    assert [row["tile"] for row in run.rows(ZERO_SHOT, "automatic")] == [row.tile for row in TABLE.rows]
    assert run.rows(FINE_TUNED, "oracle-box") == []
    with pytest.raises(NucloraError, match="no stage 'zero_shot'; choose one of zero-shot, fine-tuned"):
        run.rows("zero_shot", "automatic")
    with pytest.raises(
        NucloraError, match="no protocol 'oracle_box'; choose one of oracle-box, oracle-point, automatic"
    ):
        run.rows(FINE_TUNED, "oracle_box")
    assert Run(str(run.folder)).rows(FINE_TUNED, "automatic") == run.rows(FINE_TUNED, "automatic")
    assert run.evaluation_of(ZERO_SHOT, "automatic", 2).folder == run.folder / "zero-shot" / "automatic"
    assert run.evaluation_of(FINE_TUNED, "automatic", 2).folder == run.folder / "fold-2" / "automatic"


def test_training_records_pass_over_a_torn_line(tmp_path):
    run = _start(tmp_path / "run")
    costs = {"seconds": 1.5, "memory_mb": 900.0}
    records = [{"kind": "step", "epoch": 1, "step": n, "loss": 1 / (n + 1), **costs} for n in range(3)]
    for record in records:
        run.training_log(1).append(json.dumps(record))
    path = run.fold_folder(1) / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert run.training_records(1) == records[:2]
    assert run.training_records(2) == []


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "step", "seconds": 1, "memory_mb": 1},
        {"kind": "epoch", "loss": "low"},
        {"kind": "validation", "protocol": "automatic", "tiles": 3, "aji": 0.5, "pq": 0.5},
        {"kind": "validation", "tiles": 3, "dice": 0.5, "aji": 0.5, "pq": 0.5},
        {"kind": "memory"},
        {"kind": "something"},
    ],
)
def test_a_training_record_that_lacks_its_numbers_is_named(record, tmp_path):
    run = _start(tmp_path / "run")
    astray = {"kind": "epoch", "epoch": 1, "step": 1, "loss": float("nan")}
    run.training_log(1).append(json.dumps(astray))
    assert len(run.training_records(1)) == 1
    run.training_log(1).append(json.dumps(record | {"epoch": 1, "step": 1}))
    with pytest.raises(NucloraError, match=r"metrics\.jsonl: damaged .*; delete it"):
        run.training_records(1)


def test_everything_is_inside_the_run(tmp_path):
    run = _start(tmp_path / "run")
    assert run.adapter_folder(3) == run.folder / "fold-3" / "adapter"
    assert run.checkpoint_path(3).parent == run.best_path(3).parent == run.fold_folder(3)
    write_atomic(run.summary_path, "{}")
    assert run.report_folder.parent == run.folder


def test_a_folder_whose_weights_could_not_be_read_again_is_refused_at_once(tmp_path):
    with pytest.raises(NucloraError, match="not UTF-8, and weights are only read from such; rename the folder"):
        _start(tmp_path / "run\udcff")
    assert not any(tmp_path.iterdir())
