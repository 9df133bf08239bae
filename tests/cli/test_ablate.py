"""`nuclora ablate` end to end on a tiny SAM."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from nuclora.cli.main import app
from nuclora.errors import NucloraError

ROWS = [
    {"name": "high-rate", "why": "ten times the rate", "set": ["train.learning_rate=1e-2"]},
    {"name": "mlp", "why": "more layers", "set": ["adapter.targets=[qkv,mlp]"]},
]


@pytest.fixture(scope="module")
def invoke():
    def run(*arguments: object):
        return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(part) for part in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def given(tiny_data, tiny_recipe, tiny_sam_folder, invoke, tmp_path_factory) -> list[object]:
    """What every ablation here is given, but for its folder."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "tiny.yaml").write_text(tiny_recipe.to_yaml())
    (folder / "list.yaml").write_text(yaml.safe_dump({"name": "tiny", "recipe": "tiny.yaml", "rows": ROWS}))
    assert invoke("folds", tiny_data, "-k", 2, "-o", folder / "folds.csv").exit_code == 0
    return [tiny_data, "-c", folder / "list.yaml", "--weights", tiny_sam_folder, "--fold-table", folder / "folds.csv"]


@pytest.fixture(scope="module")
def finished(invoke, given, tmp_path_factory):
    """A finished ablation, and what `nuclora ablate` printed."""
    out = tmp_path_factory.mktemp("ablate") / "out"
    return out, invoke("ablate", *given, "-o", out)


def _scores(out: Path, row: str, protocol: str) -> Path:
    return out / row / "fold-1" / protocol / "scores.csv"


def _files(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_table_of_all_rows(finished):
    out, result = finished
    assert result.exit_code == 0, result.output
    for row in ("reference", "high-rate", "mlp"):
        assert f"\n{row} " in result.stdout
        assert (out / row / "fold-1" / "adapter").is_dir()
    assert "lacking" not in result.stdout
    assert f"table: {out}/ablation.md, .csv, .json" in result.stdout
    assert "row mlp: more layers" in result.stderr
    document = json.loads((out / "ablation.json").read_text())
    assert [row["state"] for row in document["rows"]] == ["done"] * 3
    for row in document["rows"]:
        records = (out / row["name"] / "fold-1" / "metrics.jsonl").read_text().splitlines()
        steps = [record for record in map(json.loads, records) if record["kind"] == "step"]
        assert row["steps"] == len(steps) == 4
        assert row["seconds_per_step"] == pytest.approx(np.median([record["seconds"] for record in steps]))
        assert row["memory_mb"] == max(record["memory_mb"] for record in steps)
        assert {result["protocol"]: result["tiles"] for result in row["results"]} == {"oracle-box": 5, "automatic": 5}
    trained = {row["name"]: row["parameters"]["trainable"] for row in document["rows"]}
    assert trained["mlp"] > trained["reference"] == trained["high-rate"]
    assert (out / "ablation.csv").read_text().count("\n") == 1 + 6


def test_parameters_are_those_of_nuclora_params(finished, invoke, given):
    out, _ = finished
    weights = given[given.index("--weights") + 1]
    named = invoke("params", "--recipe", out / "mlp" / "recipe.yaml", "--weights", weights, "--json")
    counted = json.loads(named.stdout)
    row = json.loads((out / "ablation.json").read_text())["rows"][2]
    assert row["parameters"] == {"trainable": counted["trainable"], "total": counted["total"]}


def test_again_it_only_prints(finished, invoke, given):
    out, first = finished
    before = _files(out)
    again = invoke("ablate", *given, "-o", out)
    assert (again.exit_code, again.stdout, again.stderr) == (0, first.stdout, "")
    assert _files(out) == before
    as_json = invoke("ablate", *given, "-o", out, "--json")
    assert json.loads(as_json.stdout) == json.loads((out / "ablation.json").read_text())


def test_differences_are_those_of_the_score_tables(finished, invoke, given, tmp_path):
    """Recomputed from the two CSV files with nothing of nuclora, on scores that a tiny SAM does not reach."""
    import shutil

    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    rng = np.random.default_rng(1)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("reference", "mlp"):
        path = _scores(out, name, "automatic")
        rows = list(csv.DictReader(path.read_text().splitlines()))
        rng.shuffle(rows)
        for row in rows:
            row |= {metric: str(rng.uniform(0.4, 0.9)) for metric in ("dice", "aji", "pq")}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        table[name] = {row["tile"]: {m: float(row[m]) for m in ("dice", "aji", "pq")} for row in rows}
    document = json.loads(invoke("ablate", *given, "-o", out, "--json").stdout)
    (entry,) = [result for result in document["rows"][2]["results"] if result["protocol"] == "automatic"]
    assert entry["paired_tiles"] == 5
    for metric in ("dice", "aji", "pq"):
        differences = np.array([table["mlp"][tile][metric] - table["reference"][tile][metric] for tile in table["mlp"]])
        means = rng.choice(differences, (40_000, 5)).mean(axis=1)
        middle, low, high = entry["difference"][metric]
        assert middle == pytest.approx(differences.mean(), abs=1e-12)
        assert [low, high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1 * np.ptp(differences))
        assert entry["mean"][metric] == pytest.approx(np.mean([row[metric] for row in table["mlp"].values()]))


def test_rows_that_are_not_there_are_lacking(invoke, given, tmp_path):
    out = tmp_path / "out"
    result = invoke("ablate", *given, "-o", out, "--only", "reference")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("lacking") == 2
    assert "| lacking |" in (out / "ablation.md").read_text()
    assert not (out / "mlp").exists()


def test_a_failed_row_ends_in_an_error_under_the_table(finished, given, tmp_path, capsys, monkeypatch):
    import shutil
    import sys

    from nuclora.cli.main import run

    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "high-rate")
    (out / "high-rate").mkdir()
    (out / "high-rate" / "notes.txt").touch()
    monkeypatch.setattr(sys, "argv", ["nuclora", "ablate", *map(str, given), "-o", str(out)])
    with pytest.raises(SystemExit) as done:
        run()
    assert done.value.code == 2
    told = capsys.readouterr()
    assert "lacking" in told.out
    assert "nuclora: " in told.err
    assert "1 row failed: high-rate: neither empty nor a nuclora run" in told.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "train.epoch=3"], "train.epoch: no such field"),
        (["--set", "train.learning_rate=0.01"], "rows reference and high-rate are the same recipe"),
        (["--only", "lmp"], "no row 'lmp'; choose from reference, high-rate, mlp"),
        (["--folds", "3"], "no fold 3; the table has folds 1 to 2"),
        (["--folds", "one"], "--folds one: not numbers"),
        (["-c", "no.yaml"], "no.yaml: no such list of changes"),
    ],
)
def test_bad_arguments_write_nothing(arguments, told, invoke, given, tmp_path):
    with pytest.raises(NucloraError) as error:
        invoke("ablate", *given, "-o", tmp_path / "out", *arguments)
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_a_list(invoke, tiny_data, tmp_path):
    with pytest.raises(NucloraError, match="no list of changes goes with the recipe smoke"):
        invoke("ablate", tiny_data, "-o", tmp_path / "out", "--recipe", "smoke")
