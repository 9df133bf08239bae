"""`nuclora cv`, `train`, `evaluate`, `report` and the API, end to end on a tiny SAM and ten tiny tiles."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import Result
from typer.testing import CliRunner

import nuclora
from nuclora.cli.main import app
from nuclora.errors import NucloraError

Invoke = Callable[..., Result]

SCORES = ("dice", "aji", "aji_plus", "dq", "sq", "pq", "f1", "msa", "count_error")


@pytest.fixture(scope="module")
def invoke() -> Invoke:
    def run(*arguments: object) -> Result:
        runner = CliRunner(env={"COLUMNS": "120"})
        return runner.invoke(app, [str(part) for part in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(tiny_recipe.to_yaml())
    return path


@pytest.fixture(scope="module")
def given(tiny_data, recipe_file, tiny_sam_folder) -> list[object]:
    """What every training command here is given, but for the run folder."""
    return [tiny_data, "--recipe", recipe_file, "--weights", tiny_sam_folder]


@pytest.fixture(scope="module")
def finished(invoke, given, tmp_path_factory) -> tuple[Path, Result]:
    """A run of two folds, and what `nuclora cv` printed."""
    out = tmp_path_factory.mktemp("cv") / "run"
    return out, invoke("cv", *given, "-k", 2, "-o", out)


def _weights(adapter: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(adapter / "adapter_model.safetensors")


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _scores(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("scores.csv")}


def test_cv_prints_a_table_and_writes_the_summary(finished, tiny_data):
    out, result = finished
    assert result.exit_code == 0, result.output
    assert "zero-shot, oracle-box" in result.stdout
    assert "fine-tuned, automatic" in result.stdout
    assert "upper bound" in result.stdout
    assert f"next: nuclora report {out}" in result.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["tiles"], summary["folds"]) == (10, [1, 2])
    assert {(entry["stage"], entry["protocol"]) for entry in summary["results"]} == {
        (stage, protocol) for stage in ("zero-shot", "fine-tuned") for protocol in ("oracle-box", "automatic")
    }
    assert any(row["nuclei_predicted"] for row in nuclora.Run(out).fine_tuned(1, "automatic").rows)
    for entry in summary["results"]:
        assert (entry["tiles"], entry["base"], entry["recipe"], entry["seed"]) == (10, "custom", "tiny", 7)
        assert f"{entry['mean']['pq']:.3f}" in result.stdout
        assert {fold["fold"] for fold in entry["folds"]} == {1, 2}


def test_the_table_is_the_mean_of_the_folds_of_the_tiles_scores(finished):
    """Recomputed from tiles and predicted labels, by way of nothing that `cv` used but the metric itself."""
    out, _ = finished
    run = nuclora.Run(out)
    tiles = nuclora.open_tiles(run.info["data"]["root"])
    means = []
    for fold in (1, 2):
        evaluation = run.fine_tuned(fold, "oracle-box")
        assert sorted(row["tile"] for row in evaluation.rows) == sorted(run.folds.test(fold))
        scores = []
        for row in evaluation.rows:
            sample = tiles[row["tile"]].read()
            score = nuclora.metrics.score(sample.labels, evaluation.labels(row["tile"]), sample.ignore)
            assert {name: row[name] for name in SCORES} == dict(score)
            scores.append([score[name] for name in SCORES])
        means.append(np.mean(scores, axis=0))
    entry = next(
        entry
        for entry in json.loads(run.summary_path.read_text())["results"]
        if (entry["stage"], entry["protocol"]) == ("fine-tuned", "oracle-box")
    )
    np.testing.assert_allclose([entry["mean"][name] for name in SCORES], np.mean(means, axis=0), rtol=1e-12)


def test_cv_again_as_json_is_the_summary_and_only_that(finished, invoke, given):
    out, _ = finished
    before = (out / "summary.json").read_text()
    result = invoke("cv", *given, "-k", 2, "-o", out, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document == json.loads((out / "summary.json").read_text())
    for now, then in zip(document["results"], json.loads(before)["results"], strict=True):
        assert now == {**then, "command": now["command"]}


def test_one_fold_and_then_all_is_all_at_once(finished, invoke, given, tmp_path):
    out, _ = finished
    other = tmp_path / "run"
    first = invoke("cv", *given, "-k", 2, "-o", other, "--folds", "2")
    assert first.exit_code == 0, first.output
    assert not (other / "fold-1").exists()
    assert "5/10" in first.stdout
    assert invoke("cv", *given, "-k", 2, "-o", other).exit_code == 0
    for fold in (1, 2):
        assert _equal(_weights(out / f"fold-{fold}" / "adapter"), _weights(other / f"fold-{fold}" / "adapter"))
    ours, theirs = nuclora.Run(out), nuclora.Run(other)
    for stage in ("zero-shot", "fine-tuned"):
        for protocol in ("oracle-box", "automatic"):
            left, right = (sorted(run.rows(stage, protocol), key=lambda row: row["tile"]) for run in (ours, theirs))
            assert left == right


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cv", "--folds", "0"], "--folds 0: folds count from 1"),
        (["train", "--fold", "0"], "Invalid value for '--fold'"),
        (["cv", "--set", "train.precision=fp16"], "train.precision=fp16 is for GPUs, and there is none"),
    ],
)
def test_what_would_end_in_another_training_is_refused_before_anything_is_written(arguments, told, given, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("float16 is at home here")
    command, *options = arguments
    done = subprocess.run(
        [sys.executable, "-m", "nuclora", command, *map(str, given), *options, "-o", tmp_path / "run"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_fold_table_from_a_file(finished, invoke, given, tmp_path):
    out, _ = finished
    result = invoke("cv", *given, "--fold-table", out / "folds.csv", "-o", out)
    assert result.exit_code == 0


def test_the_api_does_what_the_command_does(finished, tiny_data, tiny_recipe, tiny_sam_folder, tmp_path):
    out, _ = finished
    table = nuclora.make_folds(nuclora.open_tiles(tiny_data), 2, tiny_recipe.seed)
    run = nuclora.cross_validate(
        tiny_data, tiny_recipe, tmp_path / "run", fold_table=table, folds=[1], weights=tiny_sam_folder, zero_shot=False
    )
    assert _equal(_weights(run.adapter_folder(1)), _weights(out / "fold-1" / "adapter"))
    theirs = nuclora.Run(out)
    for protocol in ("oracle-box", "automatic"):
        assert run.fine_tuned(1, protocol).rows == theirs.fine_tuned(1, protocol).rows
    predictor = nuclora.load_model(run.adapter_folder(1), weights=tiny_sam_folder)
    for name in run.folds.test(1)[:2]:
        sample = nuclora.open_tiles(tiny_data)[name].read()
        for protocol in ("oracle-box", "automatic"):
            truth = sample.labels if protocol == "oracle-box" else None
            labels = predictor.segment(sample.image, protocol, tiny_recipe.evaluate, truth)
            assert np.array_equal(labels, theirs.fine_tuned(1, protocol).labels(name))


def test_report_of_the_run(finished, invoke, tmp_path):
    out, _ = finished
    result = invoke("report", out, "-o", tmp_path / "page", "--json")
    assert result.exit_code == 0, result.output
    named = json.loads(result.stdout)
    page = Path(named["report"])
    assert page.parent == tmp_path / "page"
    assert "oracle-box" in page.read_text()
    assert list(Path(named["figures"]).glob("*.svg"))


def test_train_without_a_fold_trains_on_all_tiles(invoke, given, tiny_sam_folder, tmp_path):
    result = invoke("train", *given, "-o", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    adapter = Path(json.loads(result.stdout)["adapter"])
    run = nuclora.Run(tmp_path / "run")
    assert adapter == run.adapter_folder(0)
    # Ten tiles in batches of two, two epochs; nothing is held out that could validate.
    records = run.training_records(0)
    assert [r["step"] for r in records if r["kind"] == "step"] == list(range(1, 11))
    assert not [r for r in records if r["kind"] == "validation"]
    predictor = nuclora.load_model(adapter, weights=tiny_sam_folder)
    labels = predictor.segment(np.full((40, 50, 3), 200, np.uint8))
    assert labels.shape == (40, 50)
    again = invoke("train", *given, "-o", tmp_path / "run")
    assert again.exit_code == 0
    assert "adapter: " in again.stdout


def test_train_without_a_fold_keeps_its_best_on_inner_validation(invoke, given, tmp_path):
    chosen = ["--set", "train.select=best", "--set", "train.validate_on=inner"]
    result = invoke("train", *given, *chosen, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    run = nuclora.Run(tmp_path / "run")
    validations = [r for r in run.training_records(0) if r["kind"] == "validation"]
    # One tile of ten is kept for it.
    assert [r["tiles"] for r in validations] == [1, 1]
    card = json.loads((run.adapter_folder(0) / "nuclora.json").read_text())
    assert card["metrics"]["validation_pq"] == max(r["pq"] for r in validations)


def test_train_one_fold_tests_on_it(invoke, given, tmp_path):
    result = invoke("train", *given, "--fold", 1, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    run = nuclora.Run(tmp_path / "run")
    assert sorted(row["tile"] for row in run.fine_tuned(1, "oracle-box").rows) == sorted(run.folds.test(1))
    assert not (run.folder / "zero-shot").exists()
    assert "2/10" in result.stdout


def test_evaluate_a_run_gives_the_scores_of_cv(finished, invoke, tiny_data, tiny_sam_folder, tmp_path):
    out, _ = finished
    chosen = ["-p", "oracle-box", "-p", "automatic", "--weights", tiny_sam_folder]
    result = invoke("evaluate", out, tiny_data, *chosen, "-o", tmp_path / "e", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    run = nuclora.Run(out)
    for protocol in ("oracle-box", "automatic"):
        rows = nuclora.evaluation.Evaluation(tmp_path / "e" / protocol).rows
        assert sorted(rows, key=lambda r: r["tile"]) == sorted(
            run.rows("fine-tuned", protocol), key=lambda r: r["tile"]
        )
        entry = next(
            entry
            for entry in json.loads(run.summary_path.read_text())["results"]
            if (entry["stage"], entry["protocol"]) == ("fine-tuned", protocol)
        )
        assert summary["protocols"][protocol]["mean"] == entry["mean"]


def test_evaluate_an_adapter_on_any_labelled_tiles(finished, invoke, tiny_data, tiny_sam_folder, tmp_path):
    out, _ = finished
    adapter = out / "fold-1" / "adapter"
    arguments = [adapter, tiny_data, "-p", "oracle-box", "--weights", tiny_sam_folder, "-o", tmp_path / "e"]
    result = invoke("evaluate", *arguments)
    assert result.exit_code == 0, result.output
    assert "oracle-box" in result.stdout
    assert "10 tiles" in result.stdout
    rows = {row["tile"]: row for row in nuclora.evaluation.Evaluation(tmp_path / "e" / "oracle-box").rows}
    for row in nuclora.Run(out).fine_tuned(1, "oracle-box").rows:
        assert {**rows[row["tile"]], "fold": 1} == row


def test_another_base_than_the_adapters_is_refused(finished, invoke, tiny_data, tiny_sam_folder, tmp_path):
    import shutil

    out, _ = finished
    other = tmp_path / "other"
    shutil.copytree(tiny_sam_folder, other)
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["mask_decoder.iou_token.weight"] += 1
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(NucloraError, match="trained on custom with sha256"):
        invoke("evaluate", out / "fold-1" / "adapter", tiny_data, "--weights", other, "-o", tmp_path / "e")


@pytest.mark.parametrize("command", ["train", "cv"])
def test_missing_data_are_told_before_torch_is_loaded(command, tmp_path):
    code = "import sys, nuclora.cli.main as cli\ntry: cli.run()\nfinally: print('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code, command, "missing", "-o", "run"]
    told = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "missing: no such folder" in told.stderr
    assert told.stdout.strip() == "False"


def test_an_evaluation_of_one_tile_has_a_dash_for_an_interval():
    from rich.console import Console

    from nuclora.cli.evaluate import _SHOWN, _print_table

    interval = dict.fromkeys(_SHOWN) | {_SHOWN[0]: [0.25, 0.75]}
    summary = {"tiles": 1, "of_tiles": 2, "mean": dict.fromkeys(_SHOWN, 0.5), "interval": interval, "description": "d"}
    text = io.StringIO()
    _print_table(Console(file=text, width=80), "model", {"automatic": summary})
    assert "0.500 [0.250, 0.750]" in text.getvalue()
    assert text.getvalue().count("0.500 –") == len(_SHOWN) - 1
