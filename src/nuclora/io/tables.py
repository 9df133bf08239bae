"""Nuclei as a table: where each is, how large and of what shape, and how strongly it is stained."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.files import atomic_file

_DIGITS = 4
# Rows whose optical densities are computed at once; bounds memory, not results.
_ROWS = 256


def measure_nuclei(
    image: NDArray[np.uint8],
    labels: NDArray[np.int32],
    scores: NDArray[np.float32],
    microns_per_pixel: float | None = None,
) -> dict[str, NDArray[Any]]:
    """Measure each nucleus.

    Args:
        image: RGB, (H, W, 3).
        labels: Label map, (H, W), 1..n and 0 background.
        scores: Score of each nucleus, (n,), that of id i at i - 1.
        microns_per_pixel: Of the image; where known, areas and perimeters are given in microns too.

    Returns:
        Columns of the table, (n,) each, ids ascending:

        - ``label``: id in the label map.
        - ``centroid_x``, ``centroid_y``: in pixels; the centre of the first pixel is (0, 0).
        - ``area_px``, ``perimeter_px``; with `microns_per_pixel` also ``area_um2``, ``perimeter_um``.
        - ``eccentricity``: 0 circle .. 1 line, of the ellipse with the same second moments.
        - ``solidity``: area over that of the convex hull.
        - ``orientation_deg``: of the long axis, 0..180, anticlockwise from the x axis as seen on the screen.
        - ``haematoxylin``: mean amount by colour deconvolution (Ruifrok & Johnston 2001, skimage's `rgb2hed`).
        - ``score``: expected IoU, 0..1.
    """
    from skimage.measure import regionprops_table

    names = ("label", "centroid", "area", "perimeter", "eccentricity", "solidity", "orientation")
    measured = regionprops_table(labels, properties=names)
    ids = measured["label"]
    columns: dict[str, NDArray[Any]] = {
        "label": ids,
        "centroid_x": measured["centroid-1"],
        "centroid_y": measured["centroid-0"],
        "area_px": measured["area"].astype(np.int64),
        "perimeter_px": measured["perimeter"],
    }
    if microns_per_pixel is not None:
        columns["area_um2"] = measured["area"] * microns_per_pixel**2
        columns["perimeter_um"] = measured["perimeter"] * microns_per_pixel
    return columns | {
        "eccentricity": measured["eccentricity"],
        "solidity": measured["solidity"],
        # skimage counts from the rows' axis, which points down.
        "orientation_deg": (np.degrees(measured["orientation"]) + 90) % 180,
        "haematoxylin": _mean_haematoxylin(image, labels)[ids - 1],
        "score": scores[ids - 1],
    }


def write_columns(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of equal length as CSV, atomically.

    Args:
        path: The file.
        columns: The columns by name, as :func:`measure_nuclei` gives them.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    write_rows(path, list(columns), zip(*(column.tolist() for column in columns.values()), strict=True))


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV, one after the other and atomically; fractions are rounded to four decimals.

    Args:
        path: The file.
        header: Names of the columns.
        rows: The cells of each row.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    with atomic_file(path) as file:
        # Of a file's name that is not UTF-8 the stray bytes are written out, as in \\udcff.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([round(cell, _DIGITS) if isinstance(cell, float) else cell for cell in row] for row in rows)
        # Written out, and not closed with it: the file is not finished.
        text.detach()


def _mean_haematoxylin(image: NDArray[np.uint8], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Mean amount of haematoxylin of each id from 1; of pixels of nuclei only, since glass has none to speak of."""
    from skimage.color import rgb2hed

    count = int(labels.max(initial=0)) + 1
    total, pixels = np.zeros(count), np.zeros(count)
    for top in range(0, len(labels), _ROWS):
        ids = labels[top : top + _ROWS]
        inside = ids > 0
        if inside.any():
            amounts = rgb2hed(image[top : top + _ROWS][inside])[:, 0]
            total += np.bincount(ids[inside], weights=amounts, minlength=count)
            pixels += np.bincount(ids[inside], minlength=count)
    mean: NDArray[np.float64] = total[1:] / np.maximum(pixels[1:], 1)
    return mean
