"""The table of an ablation: on the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nuclora.report.published import METRICS
from nuclora.report.summary import UPPER_BOUND

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Entry = Mapping[str, Any]

WIDTH = 100
"""Columns of the table on the terminal."""
_NAME_WIDTH = 23

_PARTS = ("", "_low", "_high")
_CSV_COLUMNS = (
    *("row", "why", "set", "state", "trainable", "total", "steps", "seconds_per_step", "memory_mb"),
    *("protocol", "scored", "tiles", "of_tiles", "paired_tiles"),
    *(f"{metric}{part}" for metric in METRICS for part in _PARTS),
    *(f"{metric}_difference{part}" for metric in METRICS for part in _PARTS),
)


def to_csv(summary: Mapping[str, Any]) -> str:
    """One line a row and protocol, numbers in full; a row without scores has one line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in summary["rows"]:
        for result in row.get("results") or [{}]:
            cells = {**row, **row.get("parameters", {}), **result, "row": row["name"], "set": " ".join(row["set"])}
            for metric in METRICS if result else ():
                mean = [result["mean"][metric], *(result["interval"][metric] or (None, None))]
                cells |= {f"{metric}{part}": value for part, value in zip(_PARTS, mean, strict=True)}
                difference = result["difference"].get(metric, [None] * 3)
                cells |= {f"{metric}_difference{part}": value for part, value in zip(_PARTS, difference, strict=True)}
            writer.writerow(cells)
    return text.getvalue()


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table for a page: one line a row and protocol."""
    titles = ["Row", "What changes", "Trained", "s/step", "Memory", "Prompts", "Tiles", *METRICS.values()]
    lines = [_markdown_line(titles), _markdown_line(["---"] * 2 + ["---:"] * 3 + ["---"] + ["---:"] * 4)]
    for row in summary["rows"]:
        change = row["why"] + (f": `{' '.join(row['set'])}`" if row["set"] else "")
        trained, seconds, memory = _costs(row)
        start = [row["name"], change, trained, seconds, memory]
        for result in row.get("results") or [None]:
            if result is None:
                lines.append(_markdown_line([*start, row["state"], *[""] * 4]))
                continue
            scores = ["<br>".join(filter(None, _numbers(result, metric))) for metric in METRICS]
            lines.append(_markdown_line([*start, result["protocol"], "<br>".join(_tiles(result)), *scores]))
            # What holds for all protocols of a row is said once.
            start = [""] * 5
    return "\n".join([*lines, "", _legend(summary), ""])


def print_ablation(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the table; the console must be `WIDTH` columns wide at least."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=escape(f"{summary['recipe']} on {summary['base']}, {_folds(summary)}: the list {summary['list']}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    table.add_column("row", width=_NAME_WIDTH, overflow="fold")
    table.add_column("prompts", width=13, no_wrap=True)
    for title in METRICS.values():
        table.add_column(title, width=20, no_wrap=True)
    for row in summary["rows"]:
        if table.row_count:
            table.add_row()
        results = [_result_lines(result) for result in row.get("results", ())]
        columns = zip(*results, strict=True) if results else [[[Text(row["state"])]]]
        prompts, *scores = (Text("\n").join(itertools.chain(*column)) for column in columns)
        if row["state"] != "done":
            prompts.stylize("yellow")
        table.add_row(_name_cell(row), prompts, *scores)
    console.print(table)
    console.print()
    console.print(_legend(summary), style="dim", highlight=False, markup=False)


def _result_lines(result: Entry) -> list[list[Text]]:
    """The lines that a protocol adds to each of the cells after the first."""
    from rich.text import Text

    prompts = [Text(line) for line in (result["protocol"], *_tiles(result))]
    columns = [prompts]
    for metric in METRICS:
        mean, difference = _numbers(result, metric)
        lines = [Text(mean), Text(difference, style=_difference_style(result["difference"].get(metric)))]
        columns.append(lines + [Text()] * (len(prompts) - len(lines)))
    return columns


def _numbers(result: Entry, metric: str) -> tuple[str, str]:
    """Mean and difference, each with its interval, or a dash where there is none; no difference where there is none."""
    ends = result["interval"][metric]
    mean = f"{result['mean'][metric]:.3f} " + (f"[{_short(ends[0])}, {_short(ends[1])}]" if ends else "–")
    if metric not in result["difference"]:
        return mean, ""
    middle, low, high = result["difference"][metric]
    interval = "–" if low is None else f"[{_short(low, '+')}, {_short(high, '+')}]"
    return mean, f"{_short(middle, '+')} {interval}"


def _short(value: float, sign: str = "") -> str:
    """At most four characters and a sign, as a line has room for no more: .123, -.045, 1.00."""
    if abs(value) >= 0.9995:
        return f"{value:{sign}.2f}"
    # The sign of what rounds to 0 stays: it tells on which side of 0 an interval ends.
    return f"{value:{sign if value else ''}.3f}".replace("0.", ".", 1)


def _tiles(result: Entry) -> list[str]:
    """How many tiles the numbers are from, and of how many the difference is, where that is another number."""
    tiles, paired = result["tiles"], result["paired_tiles"]
    kind = "inner" if result["scored"] == "inner" else "tiles"
    told = [f"{tiles} {kind}" if tiles == result["of_tiles"] else f"{tiles}/{result['of_tiles']} {kind}"]
    return [*told, f"{paired} paired"] if result["difference"] and paired != tiles else told


def _costs(row: Entry) -> tuple[str, str, str]:
    """Trained parameters, seconds a step and memory; empty where nobody knows."""
    if row["state"] == "lacking":
        return "", "", ""
    seconds, memory = row["seconds_per_step"], row["memory_mb"]
    return (
        f"{row['parameters']['trainable']:,}" if row["parameters"] else "",
        f"{seconds:.3g} s" if seconds is not None else "",
        f"{memory / 1000:.1f} GB" if memory is not None else "",
    )


def _name_cell(row: Entry) -> Text:
    from rich.text import Text

    trained, seconds, memory = _costs(row)
    lines = [line for change in row["set"] for line in _fold_change(change)]
    lines += [f"{trained} trained"] * bool(trained)
    lines += [f"{seconds}/step, {memory}"] * bool(seconds)
    return Text.assemble((row["name"], "bold"), *(f"\n{line}" for line in lines))


def _fold_change(change: str) -> list[str]:
    """``field=[a,b,c]`` on lines that fit, broken after = and commas."""
    if len(change) <= _NAME_WIDTH:
        return [change]
    field, _, value = change.partition("=")
    lines = [f"{field}="]
    for part in re.findall(r"[^,]+,?", value):
        if len(lines) > 1 and len(lines[-1] + part) <= _NAME_WIDTH:
            lines[-1] += part
        else:
            lines.append(f"  {part}")
    return lines


def _difference_style(difference: tuple[float, float | None, float | None] | None) -> str:
    """Colour only where there is an interval and it leaves out 0."""
    _, low, high = difference or (0, None, None)
    if low is None or high is None or low <= 0 <= high:
        return "dim"
    return "green" if low > 0 else "red"


def _folds(summary: Mapping[str, Any]) -> str:
    folds = summary["folds"]
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"


def _legend(summary: Mapping[str, Any]) -> str:
    results = [result for row in summary["rows"] for result in row.get("results", ())]
    inner = any(result["scored"] == "inner" for result in results)
    oracles = sorted({result["protocol"] for result in results if result["protocol"].startswith("oracle")})
    sentences = [
        f"Mean of {_folds(summary)} with its 95 % interval; under it the difference to the reference, paired by tile, "
        "with its own.",
        "s/step: the median. GB: the most after any step.",
        *(["inner: tiles of the inner validation; no test tile was read."] if inner else []),
        *([f"{', '.join(oracles)}: {UPPER_BOUND}."] if oracles else []),
    ]
    if not summary["rows"][0].get("results"):
        sentences.append("The reference is not scored yet, so there are no differences.")
    return " ".join(sentences)


def _markdown_line(cells: Sequence[str]) -> str:
    # YAML's folded texts end in a line break.
    return " | ".join(["", *(" ".join(cell.split()).replace("|", r"\|") for cell in cells), ""]).strip()
