"""What an adapter for all tiles finds in another precision, by another backend or from other views, on a CPU.

python docs/results/precisions.py TILES [-a ADAPTER] [--tiles N] [--int8 ADAPTER] [--sides torch:no openvino:no:2 ...]

A side is BACKEND:PRECISION, and after another colon how many views are averaged (else as many as the adapter says).

TILES is the set that the adapter was trained on; the inner validation tiles of all tiles are looked at, which chose its
thresholds and trained nothing. To an adapter of a fold they are training tiles, and an adapter does not tell: give none
of these. Differences to the first side are paired by tile, with 95 % intervals. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

from common import against, inner_tiles_of_all, told
from nuclora.data.folds import ALL_TILES
from nuclora.inference.evaluate import score_tile
from nuclora.inference.loading import BACKENDS, Backend, load_model
from nuclora.machine import environment
from nuclora.metrics import score
from nuclora.models.adapter import shipped_adapter
from nuclora.models.precision import PRECISIONS, Precision


class Side(NamedTuple):
    """What computes, in what precision, and with how many views where not the adapter's own."""

    backend: Backend
    precision: Precision
    views: int | None = None


def parse_side(text: str) -> Side:
    backend, _, more = text.partition(":")
    precision, *views = more.split(":")
    if backend not in BACKENDS or precision not in PRECISIONS or views not in ([], ["1"], ["2"], ["4"], ["8"]):
        raise argparse.ArgumentTypeError(f"{text!r} is no BACKEND:PRECISION[:VIEWS] with 1, 2, 4 or 8 views")
    return Side(cast(Backend, backend), cast(Precision, precision), *map(int, views))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-a", "--adapter", type=Path)
    parser.add_argument("--int8", type=Path, help="What `nuclora quantize` made of it.")
    parser.add_argument("--tiles", type=int)
    sides = [Side("torch", "no"), Side("torch", "bf16"), Side("openvino", "no")]
    parser.add_argument("--sides", nargs="+", type=parse_side, default=sides, metavar="BACKEND:PRECISION[:VIEWS]")
    asked = parser.parse_args()
    if not asked.int8 and any(side.precision == "int8" for side in asked.sides):
        parser.error("a side in int8 needs --int8 ADAPTER, what `nuclora quantize` made")
    adapter = asked.adapter or shipped_adapter()
    tiles = inner_tiles_of_all(asked.data, adapter, asked.tiles)
    entries: list[dict[str, Any]] = []
    reference: list[dict[str, Any]] = []
    found_first: dict[str, Any] = {}
    for backend, precision, views in asked.sides:
        source = asked.int8 if precision == "int8" else adapter
        predictor = load_model(source, device="cpu", backend=backend, precision=precision, prompts=False)
        settings = predictor.settings.with_views(views) if views else predictor.settings
        rows, same = [], []
        began = time.process_time()
        for tile in tiles:
            sample = tile.read()
            labels = predictor.nuclei(sample.image, settings).labels
            rows.append({"tile": tile.name, "group": tile.group, "fold": ALL_TILES} | score_tile(sample, labels))
            same.append(score(found_first.setdefault(tile.name, labels), labels)["pq"])
        seconds = time.process_time() - began
        reference = reference or rows
        entries.append({
            "backend": backend, "precision": precision, "views": settings.decode.views, "tiles": len(rows),
            "cpu_s_per_tile": seconds / len(rows),
            **against(rows, reference),
            "pq_with_first": sum(same) / len(same),
        })  # fmt: skip
    print(json.dumps({"session": environment(), "sides": entries}, indent=1))


if __name__ == "__main__":
    told(main)
