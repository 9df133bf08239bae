"""Ablations of a tiny SAM: what is checked first, what is done, and what is left undone."""

from __future__ import annotations

import os
import signal
import weakref
from pathlib import Path
from typing import Any

import pytest

from nuclora.data import open_tiles
from nuclora.data.folds import inner_split, make_folds
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.files import hold_file
from nuclora.recipe import load_recipe
from nuclora.report import ablation as report
from nuclora.report.ablation import summarise_ablation, write_ablation
from nuclora.run import Run
from nuclora.training.ablation import RESULT, Ablation, plan_ablation, run_ablation
from nuclora.training.changes import Change, ChangeList, load_list
from nuclora.training.interrupt import Stopped
from nuclora.training.monitor import Monitor

LIST = ChangeList(
    name="tiny",
    recipe="given below",
    rows=(
        Change(name="high-rate", why="ten times the rate", set=("train.learning_rate=1e-2",)),
        Change(name="mlp", why="more layers", set=("adapter.targets=[qkv,mlp]",)),
    ),
)


@pytest.fixture(scope="module")
def plan(tiny_data, tiny_recipe, tiny_sam_folder, tmp_path_factory):
    """Plans an ablation of the tiny recipe: two folds, of which the first is worked on."""
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    recipe.write_text(tiny_recipe.to_yaml())
    tiles = open_tiles(tiny_data)

    def planned(out: Path, changes: ChangeList = LIST, **other) -> Ablation:
        given = {"recipe": recipe, "weights": tiny_sam_folder, "fold_table": make_folds(tiles, 2, 7)}
        return plan_ablation(tiles, changes, out, **given | other)

    return planned


def _work(ablation: Ablation, **watch) -> dict[str, NucloraError]:
    write_ablation(ablation)
    return run_ablation(ablation, after=lambda row: write_ablation(ablation), **watch)


@pytest.fixture(scope="module")
def finished(plan, tmp_path_factory) -> Ablation:
    out = tmp_path_factory.mktemp("ablation") / "out"
    assert _work(plan(out)) == {}
    return plan(out)


def _states(ablation: Ablation) -> list[str]:
    return [row["state"] for row in summarise_ablation(ablation)["rows"]]


def test_each_row_is_a_run_of_its_own_recipe_on_the_same_folds(finished, tiny_recipe):
    runs = [Run(finished.folder / name) for name in ("reference", "high-rate", "mlp")]
    assert runs[0].recipe == tiny_recipe
    assert runs[1].recipe.train.learning_rate == 1e-2
    assert runs[2].recipe.adapter.targets == ("qkv", "mlp")
    assert len({run.folds.sha256 for run in runs}) == 1
    for run in runs:
        assert run.adapter_folder(1).exists()
        assert not run.fold_folder(2).exists()
        assert not (run.folder / "zero-shot").exists()
        assert len(run.fine_tuned(1, "automatic").rows) == 5


def test_a_finished_ablation_has_nothing_to_do(finished):
    assert finished.pending == ()
    assert _states(finished) == ["done"] * 3
    sessions = [len(Run(finished.run_folder(row)).info["sessions"]) for row in finished.rows]
    assert run_ablation(finished, before=lambda row: pytest.fail("nothing is to be done")) == {}
    assert [len(Run(finished.run_folder(row)).info["sessions"]) for row in finished.rows] == sessions


class _StopAt(Monitor):
    """Sends the process a SIGINT at the nth record, as a user at the keyboard would."""

    def __init__(self, record: int) -> None:
        self.left = record

    def record(self, fold, record):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_stopped_in_a_row_and_taken_up_again(finished, plan, tmp_path):
    out = tmp_path / "out"
    first = plan(out)
    with pytest.raises(Stopped):
        _work(first, before=lambda row: _StopAt(3) if row.name == "high-rate" else None)
    assert _states(first) == ["done", "begun", "lacking"]
    summary = summarise_ablation(first)
    assert summary["rows"][1]["results"] == []
    assert "results" not in summary["rows"][2]
    adapter = out / "reference" / "fold-1" / "adapter" / "adapter_model.safetensors"
    written = adapter.stat().st_mtime_ns

    again = plan(out)
    assert again.pending == ("high-rate", "mlp")
    assert _work(again) == {}
    assert adapter.stat().st_mtime_ns == written
    for name in ("reference", "high-rate", "mlp"):
        for protocol in ("oracle-box", "automatic"):
            ours, theirs = (Run(folder / name).fine_tuned(1, protocol).rows for folder in (out, finished.folder))
            assert ours == theirs


def test_some_rows_only_and_then_the_rest(plan, tmp_path):
    out = tmp_path / "out"
    some = plan(out, only=["mlp"])
    assert some.pending == ("mlp",)
    assert _work(some) == {}
    assert _states(some) == ["lacking", "lacking", "done"]
    (result, _) = summarise_ablation(some)["rows"][2]["results"]
    assert result["difference"] == {}
    assert plan(out).pending == ("reference", "high-rate")


def test_more_folds_later_leave_the_table_of_one(finished, plan, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    both = plan(out, folds=(1, 2), only=["reference"])
    assert both.pending == ("reference",)
    assert _work(both) == {}
    tiles = [row["results"][0]["tiles"] for row in summarise_ablation(both)["rows"]]
    assert tiles == [10, 5, 5]
    assert summarise_ablation(both)["rows"][1]["results"][0]["paired_tiles"] == 5
    one = summarise_ablation(plan(out))
    was = summarise_ablation(finished)
    assert [row["results"] for row in one["rows"]] == [row["results"] for row in was["rows"]]


def test_a_row_that_fails_leaves_the_others_their_turn(plan, tmp_path):
    ablation = plan(tmp_path / "out", only=["high-rate", "mlp"])
    # A run in whose folder somebody else's file lies is refused only when its turn comes.
    stray = ablation.folder / "high-rate"
    write_ablation(ablation)
    stray.mkdir()
    (stray / "notes.txt").touch()
    failed = _work(ablation)
    assert list(failed) == ["high-rate"]
    assert "neither empty nor a nuclora run" in str(failed["high-rate"])
    assert _states(ablation) == ["lacking", "lacking", "done"]


def test_a_row_that_runs_out_of_memory_gives_back_what_it_had(plan, tmp_path, monkeypatch):
    held = []

    class Network:
        pass

    def run_row(work, monitor):
        assert all(reference() is None for reference in held)
        network = Network()
        held.append(weakref.ref(network))
        raise NucloraError("out of memory")

    monkeypatch.setattr("nuclora.training.ablation.run_row", run_row)
    ablation = plan(tmp_path / "out", only=["high-rate", "mlp"])
    write_ablation(ablation)
    assert len(_work(ablation)) == len(held) == 2


def _changed(*rows: tuple[str, str]) -> ChangeList:
    return LIST.model_copy(update={"rows": tuple(Change(name=name, why="-", set=(field,)) for name, field in rows)})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (_changed(("a", "seed=1"), ("b", "train.epoch=3")), "row b: not a valid recipe: train.epoch: no such field"),
        (_changed(("a", "seed=1"), ("b", "seed=+1")), "rows a and b are the same recipe; leave one out: --only refer"),
        (_changed(("a", "seed=7")), "rows reference and a are the same recipe; leave one out: --only reference"),
        (_changed(("a", "seed=1"), ("b", "name=other")), "rows reference and b are the same recipe"),
        (_changed(("a", "seed=1"), ("b", "adapter.last_blocks=9")), "row b: adapter.last_blocks=9, but"),
        (_changed(("a", "seed=1"), ("b", "input.size=50")), "row b: "),
        (_changed(("a", "seed=1"), ("b", "train.batch_size=50")), "row b: 5 training tiles are fewer than a batch"),
        (_changed(("a", "seed=1"), ("b", "base=resnet")), "no base is called 'resnet'"),
    ],
)
def test_everything_is_checked_before_anything_is_written(changes, told, plan, tmp_path):
    with pytest.raises(NucloraError) as error:
        plan(tmp_path / "out", changes)
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_row_alone_that_changes_nothing(plan, tmp_path):
    with pytest.raises(NucloraError, match="rows reference and a are the same recipe; leave out the --set"):
        plan(tmp_path / "out", _changed(("a", "seed=7")), only=["a"])


def test_rows_that_are_not_asked_for_may_equal_others(plan, tmp_path):
    changes = _changed(("a", "seed=1"), ("b", "seed=7"))
    assert plan(tmp_path, changes, only=["reference", "a"]).pending == ("reference", "a")


def test_unknown_rows_and_folds(plan, tmp_path):
    with pytest.raises(NucloraError, match="no row 'lmp'; choose from reference, high-rate, mlp"):
        plan(tmp_path, only=["mlp", "lmp"])
    with pytest.raises(NucloraError, match="no fold 3; the table has folds 1 to 2"):
        plan(tmp_path, folds=(1, 3))


def test_a_folder_made_from_something_else_is_refused(finished, plan, tiny_data):
    with pytest.raises(NucloraError, match=r"reference: made from something else: recipe\.seed is 7 there, 8 asked"):
        plan(finished.folder, overrides=["seed=8"])
    with pytest.raises(NucloraError, match=r"folds\.csv is not what is asked"):
        plan(finished.folder, fold_table=make_folds(open_tiles(tiny_data), 5, 7))
    other = _changed(("mlp", "adapter.rank=1"))
    with pytest.raises(NucloraError, match=r"mlp: made from something else: .*recipe\.adapter\.rank is 2 there"):
        plan(finished.folder, other)
    with pytest.raises(NucloraError, match=r"high-rate: a row that the list of changes has not; put it back"):
        plan(finished.folder, _changed(("mlp", "adapter.targets=[qkv,mlp]")))
    with pytest.raises(NucloraError, match="holds a run, not an ablation"):
        plan(finished.folder / "reference")
    with pytest.raises(NucloraError, match="neither empty nor an ablation"):
        plan(tiny_data)


def test_rows_begun_before_the_first_table_are_gone_on_with(plan, tmp_path):
    out = tmp_path / "out"

    def stop(row: Change) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run_ablation(plan(out), after=stop)
    assert plan(out).pending == ("high-rate", "mlp")
    (out / "notes.txt").touch()
    with pytest.raises(NucloraError, match="neither empty nor an ablation"):
        plan(out)


def test_a_folder_that_is_only_named_as_a_row_is_refused(plan, tmp_path):
    (tmp_path / "out" / "reference").mkdir(parents=True)
    (tmp_path / "out" / "reference" / "notes.txt").touch()
    with pytest.raises(NucloraError, match="neither empty nor an ablation"):
        plan(tmp_path / "out")


def test_the_table_is_held_while_the_rows_are_read(plan, tmp_path, monkeypatch):
    ablation = plan(tmp_path / "out")
    looks = []

    def looked(other: Ablation) -> dict[str, Any]:
        looks.append(other)
        with (
            pytest.raises(NucloraError, match="another nuclora works on this table"),
            hold_file(ablation.folder / RESULT, "table", 0),
        ):
            pass
        return summarise_ablation(other)

    monkeypatch.setattr(report, "summarise_ablation", looked)
    write_ablation(ablation)
    assert looks == [ablation]


def test_what_a_killed_write_of_the_table_left_goes_with_the_next(finished):
    torn = finished.folder / ".ablation.json.0123abcd.tmp"
    torn.touch()
    write_ablation(finished)
    assert not [path.name for path in finished.folder.iterdir() if path.name.startswith(".")]


def test_other_tiles_than_those_of_the_finished_rows_are_refused(finished, plan, monkeypatch):
    monkeypatch.setattr(TileSet, "digest", lambda self: "0" * 64)
    with pytest.raises(NucloraError, match=r"reference: made from other tiles than those in .* are now: images"):
        plan(finished.folder)


def test_another_base_is_refused_where_something_is_to_be_done(finished, plan, tiny_sam_folder, tmp_path):
    import shutil

    import safetensors.torch

    other = tmp_path / "other"
    shutil.copytree(tiny_sam_folder, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["mask_decoder.iou_token.weight"] += 1
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert plan(finished.folder, weights=other).pending == ()
    with pytest.raises(NucloraError, match=r"reference: made from something else: base\.sha256 is"):
        plan(finished.folder, _changed(("a", "seed=1")), weights=other)


def test_a_finished_ablation_is_read_without_its_base(finished, plan, tiny_sam_folder, tmp_path):
    import json
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished.folder, out)
    path = out / "mlp" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_path": str(tmp_path / "gone")}))
    ablation = plan(out, weights=tmp_path / "gone")
    rows, were = write_ablation(ablation)["rows"], summarise_ablation(finished)["rows"]
    assert (rows[2]["parameters"], rows[2]["results"]) == ({}, were[2]["results"])
    assert rows[1] == were[1]


@pytest.mark.parametrize("name", ["paper", "nuclora", "embedded"])
def test_the_shipped_lists_go_with_their_networks(name, tiny_data):
    """As far as it shows without weights: what trains can be counted in every row."""
    from nuclora.models.parameters import count_recipe
    from nuclora.training.changes import resolve_rows

    counts = {
        row.name: count_recipe(row.recipe).trainable for row in resolve_rows(load_list(name), None, ["base=mobile_sam"])
    }
    assert load_recipe(name)
    if name == "paper":
        # LoRA grows with its rank, and the parts that train in full do not.
        lora = counts["rank-32"] - counts["reference"]
        assert 0 < lora < counts["reference"] == counts["stain"] == counts["bce-dice"] < counts["mlp"]
    elif name == "embedded":
        assert counts["frozen-encoder"] < counts["lora"] < counts["reference"] == counts["balanced"] == counts["finer"]
    else:
        assert counts["last-half"] < counts["reference"] == counts["no-ema"] < counts["full"]
        assert counts["frozen-encoder"] < counts["rank-4"] < counts["reference"]


def test_rows_scored_on_inner_tiles_leave_the_test_tiles_unread(plan, tmp_path):
    inner = ("train.validate_on=inner", "evaluate.tiles=inner")
    ablation = plan(tmp_path / "out", overrides=inner)
    assert _work(ablation) == {}
    done = plan(tmp_path / "out", overrides=inner)
    assert done.pending == ()
    expected = set(inner_split(done.fold_table, 1, seed=done.rows[0].recipe.seed)[1])
    assert expected
    assert expected.isdisjoint(done.fold_table.test(1))
    for row in done.rows:
        assert {score["tile"] for score in done.run_of(row).fine_tuned(1, "automatic").rows} == expected


@pytest.mark.parametrize(
    ("overrides", "folds", "reason"),
    [
        (("evaluate.tiles=inner",), (1,), "no inner tiles are held back"),
        (("train.validate_on=inner", "evaluate.tiles=inner"), (1, 2), "one fold at a time"),
    ],
)
def test_inner_tiles_must_be_held_back_and_of_one_fold(plan, tmp_path, overrides, folds, reason):
    with pytest.raises(NucloraError, match=reason):
        plan(tmp_path / "out", overrides=overrides, folds=folds)
