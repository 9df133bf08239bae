"""Nuclei that adapters find in images from elsewhere, which nobody labelled: counts, and a picture to judge them by.

python docs/results/foreign.py ADAPTER ... [--slide SLIDE X,Y,WIDTH,HEIGHT] [--picture PNG] > docs/results/foreign.json

The images are scikit-image's immunohistochemistry sample, enlarged to the scale of NuInsSeg, as it is, with its brown
made white and with two specks, and parts of slides at .25 microns a pixel. The adapter in the box comes first. All
decode with their own thresholds and four views.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from colours import Image, specked
from PIL import Image as Picture
from skimage import data
from skimage.segmentation import find_boundaries

from common import told
from nuclora.inference.canvas import SlideOptions, open_canvas, parse_region
from nuclora.inference.loading import load_model
from nuclora.machine import environment
from nuclora.models.adapter import read_card, shipped_adapter

VIEWS = 4
MICRONS = 0.25
WHITE = (235, 235, 240)


def sample() -> Image:
    picture = Picture.fromarray(data.immunohistochemistry()).crop((200, 200, 512, 512))
    return np.asarray(picture.resize((936, 936), Picture.Resampling.BICUBIC))


def without_brown(image: Image) -> Image:
    changed = image.copy()
    changed[image[..., 0] > image[..., 2].astype(int) + 15] = WHITE
    return changed


def part_of(slide: str, place: str) -> Image:
    with open_canvas(Path(slide), SlideOptions(adapters_microns=MICRONS, region=parse_region(place))) as canvas:
        return canvas.read(range(canvas.shape[0]), range(canvas.shape[1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("adapters", type=Path, nargs="*")
    parser.add_argument("--slide", nargs=2, action="append", default=[], metavar=("SLIDE", "REGION"))
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    ihc = sample()
    images = {"ihc": ihc, "ihc, brown made white": without_brown(ihc), "ihc, two specks": specked(ihc)}
    images |= {f"{Path(slide).name} {place}": part_of(slide, place) for slide, place in asked.slide}
    counts: dict[str, dict[str, int]] = {}
    rows = []
    for folder in asked.adapters:
        read_card(folder)  # A wrong one is told before the work begins.
    for folder in (shipped_adapter(), *asked.adapters):
        predictor = load_model(folder)
        settings = predictor.settings.with_views(VIEWS)
        drawn = []
        for name, image in images.items():
            labels = predictor.nuclei(image, settings).labels
            counts.setdefault(str(folder), {})[name] = int(labels.max())
            print(folder, name, labels.max(), file=sys.stderr)
            outlined = image.copy()
            outlined[find_boundaries(labels)] = (0, 255, 0)
            drawn.append(Picture.fromarray(outlined).resize((600, 600), Picture.Resampling.LANCZOS))
        rows.append(np.concatenate([np.asarray(picture) for picture in drawn], axis=1))
    if asked.picture:
        Picture.fromarray(np.concatenate(rows)).save(asked.picture)
    session = environment()
    json.dump({"command": session["command"], "commit": session["commit"], "nuclei": counts}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    told(main)
