"""Compare two tables of scores by tile (`paired.py --tiles`), where the runs themselves may be gone.

python docs/results/tables.py REFERENCE.csv TABLE.csv [--without ORGAN ...] > COMPARISON.json

Of the tiles that both have: means with their 95 % intervals over the folds of TABLE, all together, fold by fold and
organ by organ, and their differences to REFERENCE, paired by tile. `--without` says the first once more, less organs.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import MEASURES, told
from nuclora.errors import NucloraError
from nuclora.machine import environment
from nuclora.metrics.aggregate import paired_difference, summarise

Rows = list[dict[str, Any]]


def read_table(path: Path) -> dict[str, Rows]:
    """The rows of each protocol."""
    protocols: defaultdict[str, Rows] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                scores = {name: float(row[name]) for name in MEASURES}
                found = {"tile": row["tile"], "group": Path(row["tile"]).parent.name, "fold": int(row["fold"])}
                protocols[row["protocol"]].append(found | scores)
            except (KeyError, TypeError, ValueError) as error:
                mend = "give one that paired.py --tiles wrote"
                raise NucloraError(f"no table of scores by tile ({error!r})", path=path, mend=mend) from error
    return dict(protocols)


def compared(rows: Rows, reference: Rows) -> dict[str, Any]:
    """Means of rows, of the reference on the same tiles, and the difference."""
    folds = {row["tile"]: row["fold"] for row in rows}
    beside = [{**row, "fold": folds[row["tile"]]} for row in reference if row["tile"] in folds]
    own, other = (summarise(side, metrics=MEASURES) for side in (rows, beside))
    return {
        "tiles": len(rows),
        "mean": own.mean,
        "interval": own.interval,
        "reference": other.mean,
        "difference": {name: list(paired_difference(rows, beside, name)) for name in MEASURES},
    }


def by(key: str, rows: Rows, reference: Rows) -> dict[str, Any]:
    values = sorted({row[key] for row in rows})
    return {str(value): compared([row for row in rows if row[key] == value], reference) for value in values}


def of_protocol(rows: Rows, reference: Rows, without: list[str]) -> dict[str, Any]:
    common = {row["tile"] for row in reference}
    rows = [row for row in rows if row["tile"] in common]
    left = [row for row in rows if row["group"] not in without]
    return {
        **compared(rows, reference),
        **({"without": {"organs": without, **compared(left, reference)}} if without else {}),
        "folds": by("fold", rows, reference),
        # Of an organ the mean is over its tiles, whatever their folds.
        "groups": by("group", [{**row, "fold": 0} for row in rows], reference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--without", nargs="+", default=[], metavar="ORGAN")
    args = parser.parse_args()
    reference, table = read_table(args.reference), read_table(args.table)
    session = environment()
    protocols = {
        name: of_protocol(rows, reference[name], args.without) for name, rows in table.items() if name in reference
    }
    for protocol, found in protocols.items():
        print(protocol, found["tiles"], found["mean"], found["difference"], file=sys.stderr)
    json.dump({"command": session["command"], "commit": session["commit"], **protocols}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    told(main)
