"""Start-up: `nuclora --help`, `import nuclora`, and what of `nuclora predict` on one tile is start-up and what is work.

Each measurement is a process of its own, in seconds that it computed unless the row says wall time. Predicting is
compared with the way that loads what prompts need too, by PEFT and transformers, which all predictions took up to
commit c2135ef.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from common import Results, parser
from nuclora.data.synthetic import ORGANS, synthesize_tile

# What `nuclora predict` imports and loads; then what it does with one tile, without writing files.
_PREDICT = """
import hashlib, json, sys, time
import psutil
from nuclora.data.images import read_image
from nuclora.inference.images import load_model
from nuclora.models.adapter import shipped_adapter
from pathlib import Path
path, prompts, views = json.loads(sys.argv[1])
predictor = load_model(shipped_adapter(), device="cpu", prompts=prompts)
process = psutil.Process()
ready = {"cpu": time.process_time(), "wall": time.time() - process.create_time(), "rss": process.memory_info().rss}
settings = predictor.settings
if views:
    settings = settings.with_views(views)
start = time.process_time()
labels = predictor.nuclei(read_image(Path(path)), settings).labels
work = time.process_time() - start
print(json.dumps({**ready, "work": work, "labels": hashlib.sha256(labels.tobytes()).hexdigest()}))
"""
_HELP = "import sys; sys.argv = ['nuclora', '--help']; from nuclora.cli.main import run; run()"


def main() -> None:
    given = parser(__doc__ or "", __file__).parse_args()
    results = Results()
    for name, code in (("python -c pass", "pass"), ("import nuclora", "import nuclora"), ("nuclora --help", _HELP)):
        results.add(f"start-up, {name}", min(_cpu_seconds(code) for _ in range(given.repeats)))
    with tempfile.TemporaryDirectory() as folder:
        tile = str(Path(folder) / "tile.png")
        Image.fromarray(synthesize_tile(512, 0, ORGANS[0]).image).save(tile)
        light, full = [], []
        for _ in range(given.repeats):
            light.append(_predict(tile, prompts=False, views=1))
            full.append(_predict(tile, prompts=True, views=1))
        if len({run["labels"] for run in light + full}) > 1:
            sys.exit("the two ways to load an adapter find different nuclei, so their times say nothing")
        for key, clock in (("cpu", ""), ("wall", ", wall time")):
            ours_s, reference_s = (min(run[key] for run in runs) for runs in (light, full))
            results.add(f"start-up, predict until the model is ready{clock}", ours_s, reference_s)
        results.add("work, predict one 512 x 512 tile, 1 view", min(run["work"] for run in light))
        results.add("work, predict one 512 x 512 tile, the adapter's views", _predict(tile, prompts=False)["work"])
    results.finish(given.out)
    idle = [min(run["rss"] for run in runs) / 2**20 for runs in (light, full)]
    print(f"idle memory with the model ready: {idle[0]:.0f} MiB, with what prompts need {idle[1]:.0f} MiB")


def _predict(tile: str, *, prompts: bool, views: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run(_PREDICT, json.dumps([tile, prompts, views])))
    return found


def _cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(code: str, *words: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
