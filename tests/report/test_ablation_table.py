from __future__ import annotations

import csv
import io
import itertools
import re
from typing import Any

import pytest
from rich.console import Console

from nuclora.report.ablation_table import WIDTH, print_ablation, to_csv, to_markdown
from nuclora.report.published import METRICS


def _result(protocol: str, **other: Any) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "scored": "test",
        "tiles": 133,
        "of_tiles": 133,
        "mean": {"dice": 0.8, "aji": 0.5556, "pq": 1.0},
        "interval": {"dice": [0.75, 0.85], "aji": [0.5, 0.6], "pq": [1.0, 1.0]},
        "paired_tiles": 133,
        "difference": {"dice": [-0.012, -0.021, -0.003], "aji": [0.0001, -0.0004, 0.01], "pq": [0.2, 0.1, 1.0]},
    } | other


def _row(name: str, *fields: str, state: str = "done", **other: Any) -> dict[str, Any]:
    entry = {"name": name, "why": f"why {name}", "set": list(fields), "state": state}
    if state == "lacking":
        return entry
    costs = {"parameters": {"trainable": 6_686_000, "total": 643_712_048}, "steps": 40}
    results = [_result("oracle-point"), _result("automatic")]
    return entry | costs | {"seconds_per_step": 12.345, "memory_mb": 79_812.3, "results": results} | other


@pytest.fixture
def summary() -> dict[str, Any]:
    reference = [_result("oracle-point", difference={}, paired_tiles=0)]
    return {
        "list": "paper",
        "recipe": "paper",
        "base": "sam_vit_h",
        "folds": [1],
        "rows": [
            _row("reference", results=reference),
            _row("a-name-of-23-characters", "adapter.targets=[]", "adapter.train_parts=[mask_decoder,vision_encoder]"),
            _row("partial", "seed=1", state="begun", results=[_result("automatic", tiles=100, paired_tiles=40)]),
            _row("begun", "seed=2", state="begun", results=[], seconds_per_step=None, memory_mb=None),
            _row("later", "evaluate.grid.stability_threshold=0.99", state="lacking"),
        ],
    }


def _printed(summary: dict[str, Any], width: int = WIDTH) -> list[str]:
    text = io.StringIO()
    print_ablation(Console(file=text, width=width), summary)
    return text.getvalue().splitlines()


def test_the_terminal_has_every_number_and_cuts_none(summary):
    lines = _printed(summary)
    assert max(map(len, lines)) <= WIDTH
    assert "…" not in "\n".join(lines)
    start = next(number for number, line in enumerate(lines) if line.startswith("a-name-of-23-characters"))
    assert [line.rstrip() for line in lines[start : start + 7]] == [
        "a-name-of-23-characters oracle-point  0.800 [.750, .850]   0.556 [.500, .600]   1.000 [1.00, 1.00]",
        "adapter.targets=[]      133 tiles     -.012 [-.021, -.003] +.000 [-.000, +.010] +.200 [+.100, +1.00]",
        "adapter.train_parts=    automatic     0.800 [.750, .850]   0.556 [.500, .600]   1.000 [1.00, 1.00]",
        "  [mask_decoder,        133 tiles     -.012 [-.021, -.003] +.000 [-.000, +.010] +.200 [+.100, +1.00]",
        "  vision_encoder]",
        "6,686,000 trained",
        "12.3 s/step, 79.8 GB",
    ]


def test_names_and_reasons_are_text_whatever_is_in_them(summary):
    summary["list"] = "mine [draft] [/b]"
    summary["rows"][1]["why"] = "milder\nstain | less\n"
    assert any("mine [draft] [/b]" in line for line in _printed(summary, 160))
    (line,) = (line for line in to_markdown(summary).splitlines() if "milder" in line)
    assert r"milder stain \| less" in line


def test_a_wider_terminal_changes_nothing(summary):
    narrow, wide = ([line.rstrip() for line in _printed(summary, width)] for width in (WIDTH, 160))
    legend = next(number for number, line in enumerate(narrow) if line.startswith("Mean of fold 1"))
    assert narrow[:legend] == wide[:legend]


def test_what_lacks_is_said_and_not_invented(summary):
    text = "\n".join(_printed(summary))
    names = ["\npartial", "\nbegun", "\nlater", "\nMean of"]
    partial, begun, later = (text[text.index(a) : text.index(b)] for a, b in itertools.pairwise(names))
    assert "100/133 tiles" in partial
    assert "40 paired" in partial
    assert "begun" in begun.splitlines()[1][24:]
    assert "s/step" not in begun
    assert "lacking" in later
    assert "trained" not in later
    assert "." not in begun[begun.index("trained") :]
    assert "no differences" not in text
    summary["rows"][0] = _row("reference", state="lacking")
    assert "there are no differences" in " ".join("\n".join(_printed(summary)).split())


def test_inner_tiles_are_told_from_test_tiles(summary):
    assert "inner" not in "\n".join(_printed(summary)) + to_markdown(summary)
    for row in summary["rows"]:
        row["results"] = [result | {"scored": "inner"} for result in row.get("results", ())]
    for told in ("\n".join(_printed(summary)), to_markdown(summary)):
        assert "133 inner" in told
        assert "100/133 inner" in told
        assert "no test tile was read" in " ".join(told.split())
    assert {row["scored"] for row in csv.DictReader(io.StringIO(to_csv(summary)))} == {"inner", ""}


def test_oracles_are_named_as_bounds(summary):
    told = " ".join("\n".join(_printed(summary)).split())
    assert "oracle-point: upper bound: prompts from the truth." in told
    assert "oracle-point: upper bound" in to_markdown(summary)


def test_csv_has_numbers_in_full(summary):
    rows = list(csv.DictReader(io.StringIO(to_csv(summary))))
    assert [(row["row"], row["protocol"]) for row in rows] == [
        ("reference", "oracle-point"),
        ("a-name-of-23-characters", "oracle-point"),
        ("a-name-of-23-characters", "automatic"),
        ("partial", "automatic"),
        ("begun", ""),
        ("later", ""),
    ]
    assert (rows[1]["aji"], rows[1]["aji_low"], rows[1]["aji_high"]) == ("0.5556", "0.5", "0.6")
    assert (rows[1]["dice_difference"], rows[1]["dice_difference_low"]) == ("-0.012", "-0.021")
    assert rows[1]["set"] == "adapter.targets=[] adapter.train_parts=[mask_decoder,vision_encoder]"
    assert (rows[0]["trainable"], rows[0]["seconds_per_step"], rows[0]["dice_difference"]) == ("6686000", "12.345", "")
    assert not any(rows[5][column] for column in rows[5] if column not in ("row", "why", "set", "state"))


def test_markdown_has_a_line_a_row_and_protocol(summary):
    lines = to_markdown(summary).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 6
    assert len({line.count(" | ") for line in table}) == 1
    assert "| partial | why partial: `seed=1` |" in table[5]
    assert "0.800 [.750, .850]<br>-.012 [-.021, -.003]" in table[3]
    assert table[7].startswith("| later |")
    assert "lacking" in table[7]


def test_without_an_interval_there_is_a_dash_and_no_colour(summary):
    alone = {"interval": dict.fromkeys(METRICS), "difference": {name: [0.1, None, None] for name in METRICS}}
    summary["rows"][2]["results"] = [_result("automatic", tiles=1, of_tiles=1, paired_tiles=1, **alone)]
    text = io.StringIO()
    print_ablation(Console(file=text, width=WIDTH, force_terminal=True, color_system="standard"), summary)
    (line,) = [line for line in text.getvalue().splitlines() if "1 tiles" in line]
    assert line.count("+.100 –") == 3
    assert not {"\x1b[32m", "\x1b[31m"} & set(re.findall(r"\x1b\[[0-9;]*m", line))
    assert "0.800 –<br>+.100 –" in to_markdown(summary)
    (row,) = [row for row in csv.DictReader(io.StringIO(to_csv(summary))) if row["row"] == "partial"]
    assert (row["aji"], row["aji_low"], row["aji_high"]) == ("0.5556", "", "")
    assert (row["aji_difference"], row["aji_difference_low"]) == ("0.1", "")
