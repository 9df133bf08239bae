"""Put the ratios of parts that the benchmarks wrote into docs/results/performance.json.

A ratio takes the place of the one of its name and device; the others stay, so that parts of a CPU and of a GPU can come
one after the other: `python benchmarks/merge.py [PART.json...]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import PARTS, ROOT
from nuclora.files import write_atomic

PERFORMANCE = ROOT / "docs" / "results" / "performance.json"


def main(parts: list[Path]) -> None:
    stored = json.loads(PERFORMANCE.read_text()) if PERFORMANCE.is_file() else []
    fresh = [row for part in parts for row in json.loads(part.read_text()) if row["ratio"] is not None]
    rows = {(row["name"], row["device"]): row for row in [*stored, *fresh]}
    write_atomic(PERFORMANCE, json.dumps([rows[key] for key in sorted(rows)], indent=2) + "\n")
    print(f"{len(fresh)} ratios into {PERFORMANCE.relative_to(ROOT)}, which holds {len(rows)}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(PARTS.glob("*.json")))
