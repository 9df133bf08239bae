from __future__ import annotations

import io
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from report_fakes import fake_run
from rich.console import Console

from nuclora.data.folds import make_folds
from nuclora.data.tiles import TileSet
from nuclora.metrics.aggregate import summarise
from nuclora.recipe import load_recipe
from nuclora.report import published
from nuclora.report.facts import cards, comparison, organs, partial_notes
from nuclora.report.plates import plates
from nuclora.report.summary import is_comparable, main_protocol, print_table, summarise_run, write_summary
from nuclora.report.tuning import print_thresholds
from nuclora.run import Run

NUINSSEG = {"tiles": published.NUINSSEG_TILES, "folds": [1, 2, 3, 4, 5]}


def entry_of(summary: dict, stage: str, protocol: str) -> dict:
    (entry,) = [e for e in summary["results"] if (e["stage"], e["protocol"]) == (stage, protocol)]
    return entry


def test_entries_have_the_form_of_the_results_file(run: Run) -> None:
    summary = summarise_run(run)
    assert [(e["stage"], e["protocol"]) for e in summary["results"]] == [
        (stage, protocol)
        for protocol in ("oracle-box", "oracle-point", "automatic")
        for stage in ("zero-shot", "fine-tuned")
    ]
    entry = entry_of(summary, "fine-tuned", "automatic")
    expected = {"recipe": "paper", "base": "mobile_sam", "seed": 42, "epochs": 5, "input_size": 1024}
    assert expected.items() <= entry.items()
    assert entry["command"] == run.info["sessions"][-1]["command"]
    assert [fold["fold"] for fold in entry["folds"]] == [1, 2, 3]
    assert entry_of(summary, "zero-shot", "automatic")["epochs"] == 0
    assert (summary["tiles"], summary["folds"]) == (12, [1, 2, 3])


def test_scores_and_thresholds_stand_where_there_are_any(run: Run, dense_run: Run) -> None:
    summary = summarise_run(dense_run)
    with_scores = [(e["stage"], e["protocol"]) for e in summary["results"] if "calibration" in e]
    assert with_scores == [("fine-tuned", "automatic")]
    assert {"error", "nuclei", "bins"} <= set(entry_of(summary, "fine-tuned", "automatic")["calibration"])
    assert [row["fold"] for row in summary["thresholds"]] == [1, 2, 3]
    assert summary["thresholds"][1] == {
        "fold": 2, "foreground": 0.52, "smooth": 3.5, "valley": 0.75, "core": 0.4, "min_size": 30.0,
    }  # fmt: skip
    assert json.loads(json.dumps(summary)) == summary
    plain = summarise_run(run)
    assert plain["thresholds"] == []
    assert not any("calibration" in entry for entry in plain["results"])


def test_input_size_is_the_bases_own_where_the_recipe_says_none(tiles: TileSet, tmp_path: Path) -> None:
    overrides = {"protocols": ["automatic"], "k": 2, "settings": ["input.size=null"]}
    named = fake_run(tmp_path / "named", tiles, base="lite_medsam", trained=(), **overrides)
    assert [entry["input_size"] for entry in summarise_run(named)["results"]] == [256]
    untrained = fake_run(tmp_path / "untrained", tiles, base="custom", trained=(), **overrides)
    assert [entry["input_size"] for entry in summarise_run(untrained)["results"]] == [None]
    trained = fake_run(tmp_path / "trained", tiles, base="custom", trained=(2,), **overrides)
    assert [entry["input_size"] for entry in summarise_run(trained)["results"]] == [640, 640]


def test_numbers_are_those_of_the_rows(run: Run) -> None:
    entry = entry_of(summarise_run(run), "fine-tuned", "oracle-box")
    rows = run.rows("fine-tuned", "oracle-box")
    for metric in ("dice", "aji", "pq", "sq", "count_error"):
        means = [np.mean([row[metric] for row in rows if row["fold"] == fold]) for fold in (1, 2, 3)]
        assert [fold[metric] for fold in entry["folds"]] == pytest.approx(means, abs=1e-12)
        assert entry["mean"][metric] == pytest.approx(np.mean(means), abs=1e-12)
        assert entry["pooled"][metric] == pytest.approx(np.mean([row[metric] for row in rows]), abs=1e-12)
        assert entry["deviation"][metric] == pytest.approx(statistics.stdev(means), abs=1e-12)
        assert entry["interval"][metric][0] < entry["mean"][metric] < entry["interval"][metric][1]
    assert entry["groups"] == summarise(rows).groups
    assert entry["errors"]["nuclei"] == sum(row["nuclei_true"] for row in rows)
    assert entry["errors"]["missed"] == sum(row["missed"] for row in rows) > 0


def test_gain_is_over_common_tiles_only(partial_run: Run) -> None:
    summary = summarise_run(partial_run)
    after, before = partial_run.rows("fine-tuned", "oracle-box"), partial_run.rows("zero-shot", "oracle-box")
    assert 0 < len(after) < len(before) == 12
    theirs = {row["tile"]: row["aji"] for row in before}
    entry = entry_of(summary, "fine-tuned", "oracle-box")
    mean, low, high = entry["gain"]["aji"]
    assert mean == pytest.approx(np.mean([row["aji"] - theirs[row["tile"]] for row in after]), abs=1e-12)
    assert low <= mean <= high
    assert entry_of(summary, "zero-shot", "oracle-box")["gain"] == {}


def test_a_partial_run_says_how_many_tiles(partial_run: Run) -> None:
    entry = entry_of(summarise_run(partial_run), "fine-tuned", "oracle-box")
    assert (entry["tiles"], entry["of_tiles"]) == (4, 12)
    assert [(f["fold"], f["tiles"], f["of_tiles"]) for f in entry["folds"]] == [(2, 4, 4)]
    assert entry["deviation"]["aji"] is None
    automatic = entry_of(summarise_run(partial_run), "zero-shot", "automatic")
    assert [(f["tiles"], f["of_tiles"]) for f in automatic["folds"]] == [(1, 4)] * 3


def test_the_main_protocol_is_automatic_unless_it_has_fewer_tiles(run: Run, partial_run: Run) -> None:
    assert main_protocol(summarise_run(run)) == "automatic"
    assert main_protocol(summarise_run(partial_run)) == "oracle-box"
    assert main_protocol({"results": []}) is None


def test_summary_file(partial_run: Run) -> None:
    summary = write_summary(partial_run)
    assert json.loads(partial_run.summary_path.read_text()) == summary


def test_table_names_every_protocol_and_its_bound(partial_run: Run) -> None:
    text = io.StringIO()
    summary = summarise_run(partial_run)
    print_table(Console(file=text, width=140), summary)
    lines = text.getvalue().splitlines()
    assert text.getvalue().count("upper bound: prompts from the truth") == 2
    (row,) = [line for line in lines if "fine-tuned" in line and "oracle-box" in line]
    entry = entry_of(summary, "fine-tuned", "oracle-box")
    assert "4/12" in row
    assert f"{entry['mean']['pq']:.3f}" in row
    assert "The study" not in text.getvalue()


def test_the_published_rows_stand_under_the_whole_nuinsseg_alone(partial_run: Run) -> None:
    text = io.StringIO()
    print_table(Console(file=text, width=140), summarise_run(partial_run) | NUINSSEG)
    (study,) = [line for line in text.getvalue().splitlines() if "The study" in line]
    assert all(part in study for part in ("unstated", "0.823", "0.620", "0.572"))


@pytest.mark.parametrize("change", [{"folds": [1, 2]}, {"dealt": "organ"}, {"tiles": 664}, {"scored": "inner"}])
def test_other_folds_and_tiles_do_not_compare(change: dict, run: Run) -> None:
    summary = summarise_run(run) | NUINSSEG
    assert is_comparable(summary)
    assert not is_comparable(summary | change)
    assert "do not compare" not in comparison(summary)
    assert comparison(summary | change).count("the published ones do not compare") == 1


def test_folds_of_whole_organs_are_told_by_their_table(tiles: TileSet, tmp_path: Path) -> None:
    by_organ = make_folds(tiles, 3, by="organ")
    places = {
        "base": {"name": "mobile_sam", "sha256": "ab" * 32, "path": "base.pt"},
        "data": {"root": "", "format": ""},
    }
    run = Run.start(tmp_path / "organs", recipe=load_recipe("paper"), folds=by_organ, **places)
    assert summarise_run(run)["dealt"] == "organ"


def test_zero_shot_is_given_over_the_same_tiles_only(run: Run, partial_run: Run) -> None:
    whole, part = summarise_run(run), summarise_run(partial_run)
    before = entry_of(whole, "zero-shot", "automatic")
    assert f"zero-shot {before['mean']['dice']:.3f}" in cards(whole, None)[0]["detail"]
    assert all(row["before"] == before["groups"][row["name"]] for row in organs(whole))
    gain = entry_of(part, "fine-tuned", "oracle-box")["gain"]["dice"][0]
    assert cards(part, None)[0]["detail"].endswith(f"; {gain:+.3f} from zero-shot on the same tiles")
    assert [row["before"] for row in organs(part)] == [None] * len(organs(part))
    for of_run, summary, labels in ((run, whole, 4), (partial_run, part, 3)):
        (plate,) = [one for one in plates(of_run, summary, None) if one.name == "by-organ"]
        assert len(plate.draw().axes[0].get_legend().get_texts()) == labels


def test_a_protocol_that_was_not_begun_is_noted(run: Run, tmp_path: Path) -> None:
    killed = Run(Path(shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("report"))))
    for folder in killed.folder.glob("fold-*/automatic"):
        shutil.rmtree(folder)
    assert partial_notes(killed, summarise_run(killed)) == ["automatic, fine-tuned: 0 of 12 test tiles."]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("nuclora cv DATA -o RUN", "The same command goes on with it."),
        ("nuclora cv DATA -o RUN --folds=1", "The same command without --folds goes on with it."),
        ("nuclora cv DATA --folds 1 -o RUN", "The same command without --folds goes on with it."),
        ("nuclora train DATA -o RUN --fold 1", "`nuclora cv` with the same settings goes on with it."),
    ],
)
def test_what_goes_on_with_a_run(command: str, told: str, partial_run: Run) -> None:
    run = Run(partial_run.folder)
    run.info["sessions"][-1]["command"] = command
    summary = summarise_run(run)
    assert partial_notes(run, summary)[0] == f"This run is not finished. Folds trained so far: 2, of 3. {told}"
    # Of inner tiles a run scores one fold.
    assert not any("not finished" in note for note in partial_notes(run, summary | {"scored": "inner"}))


def test_without_an_interval_there_is_a_dash(tiles: TileSet, tmp_path: Path) -> None:
    alone = fake_run(tmp_path / "alone", tiles, k=12, trained=range(1, 13), protocols=["oracle-box"], steps=1)
    summary = json.loads(json.dumps(summarise_run(alone)))
    entry = entry_of(summary, "fine-tuned", "oracle-box")
    assert entry["interval"]["aji"] is None
    assert entry["gain"]["aji"][1:] == [None, None]
    assert cards(summary, None)[0]["detail"].startswith("95 % interval –; zero-shot")
    text = io.StringIO()
    print_table(Console(file=text, width=80), summary)
    assert sum(line.split()[-3:] == ["–"] * 3 for line in text.getvalue().splitlines()) == 2


def test_thresholds_of_different_names_stand_in_their_columns() -> None:
    text = io.StringIO()
    print_thresholds(Console(file=text, width=80), {1: {"smooth": 3.5, "min_size": 30}, 2: {"agreement": 0.5}})
    rows = [line.split() for line in text.getvalue().splitlines()]
    assert ["fold", "smooth", "min_size", "agreement"] in rows
    assert ["1", "3.5", "30", "–"] in rows
    assert ["2", "–", "–", "0.5"] in rows


def test_table_fits_a_terminal_of_eighty_columns(run: Run) -> None:
    text = io.StringIO()
    summary = summarise_run(run)
    print_table(Console(file=text, width=80), summary)
    assert max(map(len, text.getvalue().splitlines())) <= 80
    assert "…" not in text.getvalue()
    for entry in summary["results"]:
        (line,) = [line for line in text.getvalue().splitlines() if f"{entry['stage']}, {entry['protocol']}" in line]
        assert all(
            f"{entry['mean'][metric]:.3f} ± {entry['deviation'][metric]:.3f}" in line
            for metric in ("dice", "aji", "pq")
        )


def test_the_study_averages_as_it_printed() -> None:
    folds = published.STUDY_FOLDS
    for metric in ("dice", "pq"):
        assert np.mean([getattr(fold, metric) for fold in folds]) == pytest.approx(
            getattr(published.STUDY, metric), abs=6e-5
        )
    assert np.mean([fold.aji for fold in folds]) == pytest.approx(0.6254, abs=5e-5)
    assert {row.protocol for row in published.PUBLISHED} == {"unstated", "automatic", "truth boxes"}
