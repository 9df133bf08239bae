"""Slides: is a slide in blocks what it is as a whole, and does memory grow with it?

python docs/results/slides.py seam TILES [-a ADAPTER] [--views N] [--side 4]
python docs/results/slides.py memory [-a ADAPTER] [--megapixels 2 20 200] [--backend openvino] [--precision bf16]
python docs/results/slides.py region SLIDE X,Y,WIDTH,HEIGHT [--mpp M] [-a ADAPTER] [--views N]

`seam` lays SIDE x SIDE tiles of a labelled set, all of one size, side by side and compares blocks of several sizes and
places with the nuclei of the picture as a whole; `region` does so with a part of a slide. `memory` predicts synthetic
pyramids of one texture, each in a process of its own. All print JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from common import told
from nuclora.data import open_tiles
from nuclora.data.synthetic import synthesize_tile
from nuclora.inference.blocks import find_nuclei, plan_blocks
from nuclora.inference.canvas import Canvas, Region, parse_region
from nuclora.inference.loading import load_model
from nuclora.io.slides import open_slide
from nuclora.metrics import score
from nuclora.models.adapter import shipped_adapter

STEPS = ((1, 1), (2, 2), (4, 2), (4, 4))
CUTS = ((0, 0), (70, 130))
TEXTURE = 512


def seam(asked: argparse.Namespace) -> dict:
    found = list(open_tiles(asked.tiles))
    tiles = [found[place].read().image for place in np.linspace(0, len(found) - 1, asked.side**2).astype(int)]
    rows = [np.concatenate(tiles[row * asked.side : (row + 1) * asked.side], axis=1) for row in range(asked.side)]
    mosaic = np.concatenate(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mosaic.tif"
        write_pyramid(path, mosaic.shape[:2], lambda top, left: mosaic[top : top + TEXTURE, left : left + TEXTURE])
        return compare(path, Region(0, 0, mosaic.shape[1], mosaic.shape[0]), 0.25, asked)


def of_region(asked: argparse.Namespace) -> dict:
    return compare(asked.slide, parse_region(asked.region), asked.mpp, asked)


def compare(path: Path, region: Region, microns: float | None, asked: argparse.Namespace) -> dict:
    """Labels by blocks against those of the picture as a whole: PQ with the whole as the truth, and counts."""
    predictor = load_model(asked.adapter or shipped_adapter(), weights=asked.weights)
    settings = predictor.settings.with_views(asked.views)
    results = []
    with open_slide(path, microns) as slide:
        for left, top in CUTS:
            part = Region(region.left + left, region.top + top, region.width - left, region.height - top)
            canvas = Canvas(slide, part, 1.0, slide.microns_per_pixel or 0.25)
            pixels = canvas.read(range(canvas.shape[0]), range(canvas.shape[1]))
            known: dict = {}
            maps = predictor.maps(pixels, asked.views, known=known)
            whole = predictor.decode_maps(maps, canvas.shape, settings)
            for steps in STEPS:
                blocks = list(plan_blocks(canvas.shape, predictor.lattice, steps))
                labels, count = np.zeros(canvas.shape, dtype=np.int32), 0
                for block in blocks:
                    seen = canvas.read(*block.seen)
                    # The same windows, so their maps need not be computed again; the tests show that they are equal.
                    block_maps = predictor.maps(seen, asked.views, part=block.part, known=known)
                    found = find_nuclei(block, block_maps, seen, predictor, settings, canvas)
                    row, column = found.origin
                    there = labels[row : row + found.labels.shape[0], column : column + found.labels.shape[1]]
                    there[found.labels > 0] = found.labels[found.labels > 0] + count
                    count += len(found.outlines)
                results.append({
                    "offset": [left, top], "steps": list(steps), "blocks": len(blocks), "nuclei": count,
                    "nuclei_whole": len(whole.scores), "pq": score(whole.labels, labels)["pq"],
                    "equal": bool(((labels > 0) == (whole.labels > 0)).all() and count == len(whole.scores)),
                })  # fmt: skip
    return {
        "pq": min(result["pq"] for result in results),
        "count_difference": max(
            abs(result["nuclei"] - result["nuclei_whole"]) / max(result["nuclei_whole"], 1) for result in results
        ),
        "cases": results,
    }


def memory(asked: argparse.Namespace) -> list[dict]:
    texture = synthesize_tile(TEXTURE, 0, "synthetic liver").image
    results = []
    for megapixels in asked.megapixels:
        with tempfile.TemporaryDirectory() as folder:
            side = round((megapixels * 1e6) ** 0.5)
            path = Path(folder) / "slide.tif"
            write_pyramid(path, (side, side), lambda top, left: texture)
            command = [sys.executable, "-c", "from nuclora.cli.main import run; run()", "predict", str(path)]
            command += ["--views", str(asked.views), "--json", "-o", f"{folder}/out"]
            command += ["--backend", asked.backend, "--precision", asked.precision]
            command += ["-a", str(asked.adapter)] if asked.adapter else []
            command += ["--weights", str(asked.weights)] if asked.weights else []
            began = time.monotonic()
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            (row,) = told["images"]
            results.append({
                "megapixels": megapixels, "peak_mb": row["peak_mb"], "nuclei": row["nuclei"],
                "seconds": time.monotonic() - began, "mm2_per_s": row["tissue_mm2"] / row["seconds"],
            })  # fmt: skip
    return results


def write_pyramid(path: Path, shape: tuple[int, int], texture) -> None:
    """A tiled TIFF of three levels at 0.25 microns per pixel, written tile by tile."""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(3):
            factor = 2**level
            height, width = (max(1, size // factor) for size in shape)

            def tiles(height=height, width=width, factor=factor):
                for top in range(0, height, TEXTURE):
                    for left in range(0, width, TEXTURE):
                        tile = np.full((TEXTURE, TEXTURE, 3), 255, dtype=np.uint8)
                        for row in range(factor):
                            for column in range(factor):
                                part = texture(top * factor + row * TEXTURE, left * factor + column * TEXTURE)
                                if not part.size:
                                    continue
                                size = part.shape[1] // factor, part.shape[0] // factor
                                small = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX))
                                corner = row * TEXTURE // factor, column * TEXTURE // factor
                                there = np.s_[
                                    corner[0] : corner[0] + len(small), corner[1] : corner[1] + small.shape[1]
                                ]
                                tile[there] = small
                        yield tile

            tiff.write(
                tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(TEXTURE, TEXTURE), photometric="rgb",
                compression="zlib", subfiletype=int(level > 0), metadata=None, maxworkers=1,
                resolution=(4e4 / factor, 4e4 / factor), resolutionunit="CENTIMETER",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("-a", "--adapter", type=Path)
    shared.add_argument("--weights", type=Path)
    shared.add_argument("--views", type=int, default=1)
    one = commands.add_parser("seam", parents=[shared])
    one.add_argument("tiles", type=Path)
    one.add_argument("--side", type=int, default=4)
    one.set_defaults(run=seam)
    one = commands.add_parser("region", parents=[shared])
    one.add_argument("slide", type=Path)
    one.add_argument("region")
    one.add_argument("--mpp", type=float)
    one.set_defaults(run=of_region)
    one = commands.add_parser("memory", parents=[shared])
    one.add_argument("--megapixels", type=float, nargs="+", default=[2, 20, 200])
    one.add_argument("--backend", default="torch")
    one.add_argument("--precision", default="no")
    one.set_defaults(run=memory)
    asked = parser.parse_args()
    print(json.dumps(asked.run(asked), indent=1))


if __name__ == "__main__":
    told(main)
