"""Reader of CoNSeP, CPM-15, CPM-17 and Lizard: images with ``inst_map`` in MATLAB files of the same stem.

What the files hold beside ``inst_map`` tells the data sets apart: CoNSeP has classes by pixel (``type_map``) and is at
40x, .25 microns per pixel; Lizard has ``class`` and ``bbox`` and is at 20x, .5 microns per pixel; CPM and Kumar in
HoVer-Net's packing have neither, and CPM mixes 20x and 40x, so nothing is declared there. Lizard's groups are the
sources that its file names begin with (``crag_12``: crag), and its three folds are those of ``info.csv``.

References:
    Graham et al., HoVer-Net, Medical Image Analysis 58 (2019): CoNSeP, 41 tiles "at 40x".
    Graham et al., Lizard, ICCV Workshops (2021), arXiv:2108.11195: "20x objective magnification (~.5 microns/pixel)".
    Vu et al., Methods for segmentation and classification of digital microscopy tissue images, Front. Bioeng.
    Biotechnol. 7 (2019): CPM-15 and CPM-17.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import IMAGE_SUFFIXES, as_labels, guard, read_head
from nuclora.data.pairs import find_images, group_of, pair, tile_name
from nuclora.data.tiles import Files, Listing, Tile, Truth
from nuclora.data.walk import walk
from nuclora.errors import NucloraError

NAME = "matlab"

KEY = "inst_map"
_CONSEP = {"type_map", "inst_type"}
_LIZARD = {"class", "bbox"}
_SPLITS = "info.csv"


def looks_like(root: Path) -> bool:
    """Whether there is a MATLAB file with `KEY`, or one that is too new to be looked into."""
    return any(KEY in _keys(path) or _is_hdf5(path) for path in walk(root, {".mat"}))


def looks_damaged(root: Path) -> bool:
    """Whether an image has a MATLAB file that cannot be opened: only reading it tells that it is one of these."""
    stems = {path.stem for path in find_images(root, IMAGE_SUFFIXES)}
    return any(path.stem in stems and not _keys(path) for path in walk(root, {".mat"}))


def list_tiles(root: Path) -> Listing:
    """Find the images and their MATLAB files, whatever folders they are in."""
    labels = list(walk(root, {".mat"}))
    pairs, faults = pair(find_images(root, IMAGE_SUFFIXES), labels, "MATLAB file")
    try:
        splits = _splits(root)
    except NucloraError as error:
        splits = {}
        faults.append(error)
    tiles = []
    for image, path in pairs:
        keys = _keys(path)
        lizard = keys >= _LIZARD
        tiles.append(
            Tile(
                name=tile_name(image, root),
                group=image.stem.split("_")[0] if lizard else group_of(image.relative_to(root)),
                image=image,
                labels=path,
                source=InstanceMap(),
                microns_per_pixel=0.5 if lizard else 0.25 if keys & _CONSEP else None,
                fold=splits.get(image.stem) if lizard else None,
            )
        )
    return Listing(root, NAME, tuple(tiles), tuple(faults))


@dataclass(frozen=True)
class InstanceMap(Files):
    """Labels from a MATLAB file."""

    def truth(self, tile: Tile) -> Truth:
        """Read the ids; HoVer-Net's packing has them as floats."""
        values = guard(_load, tile.labels)
        if values.dtype.kind == "f" and np.isfinite(values).all() and np.array_equal(values, np.rint(values)):
            values = values.astype(np.int64)
        return Truth(as_labels(values, tile.labels))


def _load(path: Path) -> NDArray[Any]:
    from scipy.io import loadmat

    if _is_hdf5(path):
        raise NucloraError(
            "a file of MATLAB 7.3 (HDF5), which is not read",
            path=path,
            mend=f"save it in MATLAB with save(file, '{KEY}', '-v7')",
        )
    found = loadmat(path, variable_names=[KEY]).get(KEY)
    if found is None:
        raise NucloraError(f"no variable {KEY}", path=path, mend=f"save the label map as {KEY}")
    return np.asarray(found)


def _is_hdf5(path: Path) -> bool:
    head = read_head(path, 520)
    return b"MATLAB 7.3" in head[:128] or b"\x89HDF\r\n\x1a\n" in (head[:8], head[512:])


def _keys(path: Path) -> set[str]:
    """Names of the variables; none of a file that cannot be read, which `InstanceMap` will say."""
    from scipy.io import whosmat

    try:
        return {name for name, _, _ in guard(whosmat, path)}
    except Exception:
        return set()


def _splits(root: Path) -> dict[str, int]:
    """Folds by the images' stems, of Lizard's table if it is there."""
    path = next((path for path in walk(root, {".csv"}) if path.name == _SPLITS), None)
    return guard(_read_splits, path) if path else {}


def _read_splits(path: Path) -> dict[str, int]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return {
            str(row["Filename"]).removesuffix(".png"): int(row["Split"])
            for row in csv.DictReader(file)
            if row.get("Filename") and str(row.get("Split")).isdigit()
        }
