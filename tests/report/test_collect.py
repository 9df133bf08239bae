from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nuclora.recipe import EvaluateSettings
from nuclora.report.summary import write_summary
from nuclora.run import Run

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "collect.py"


def collect(*folders: Path) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), *map(str, folders)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_entries_have_the_form_of_the_study(dense_run: Run) -> None:
    summary = write_summary(dense_run)
    entries = collect(dense_run.folder)
    (study, *_) = json.loads(SCRIPT.with_name("study.json").read_text("utf-8"))
    assert [(e["stage"], e["protocol"]) for e in entries] == [(e["stage"], e["protocol"]) for e in summary["results"]]
    for entry, full in zip(entries, summary["results"], strict=True):
        scored = (entry["stage"], entry["protocol"]) == ("fine-tuned", "automatic")
        assert set(entry) == set(study) | ({"calibration", "thresholds"} if scored else set())
        assert entry["mean"]["aji"] == full["mean"]["aji"]
        if scored:
            assert entry["calibration"] == full["calibration"]
            assert entry["thresholds"] == summary["thresholds"]


def test_an_evaluation_beside_the_run(dense_run: Run, tmp_path: Path) -> None:
    write_summary(dense_run)
    (tmp_path / "automatic").symlink_to(dense_run.fine_tuned(1, "automatic").folder)
    scores = {key: {"fold": 1, "tiles": 4, "dice": 0.5} for key in ("a", "b")}
    settings = EvaluateSettings().model_dump(mode="json", exclude={"protocols"})
    summary = {
        "models": {"1": {"base": "another", "adapter_sha256": "ab"}},
        "input_size": 96,
        "settings": {"1": settings, "2": settings},
        "session": {"command": "nuclora evaluate", "commit": "c"},
        "protocols": {"automatic": {"tiles": 4, "interval": {}, "folds": [scores["a"]], "mean": scores["b"]}},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary), "utf-8")
    entry = collect(dense_run.folder, tmp_path)[-1]
    assert (entry["base"], entry["input_size"]) == ("another", 96)
    assert (entry["stage"], entry["epochs"], entry["settings"]) == ("fine-tuned", 8, settings)
    assert entry["calibration"]["tiles"] == 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"1": {"min_size": 10}, "2": {"min_size": 10}}, {"min_size": 10}),
        ({"1": {"min_size": 10}, "2": {"min_size": 20}}, {"1": {"min_size": 10}, "2": {"min_size": 20}}),
        ({"min_size": 10, "grid": {}}, {"min_size": 10, "grid": {}}),
        ({"0": {"min_size": 10}}, {"min_size": 10}),
    ],
)
def test_settings_are_said_once(settings: dict, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    assert runpy.run_path(str(SCRIPT))["said_once"](settings) == expected
