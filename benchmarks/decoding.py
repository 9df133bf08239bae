"""Decoding maps to labels: against the plain scikit-image form, how the time grows, and what threads give."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import gaussian
from skimage.measure import label, regionprops
from skimage.segmentation import watershed

from common import Results, best_of
from label_maps import Floats, Labels, discs, noisy_maps, tile_parser, tiles
from nuclora.inference.decode import decode, upsample
from nuclora.recipe import DecodeSettings

Mask = NDArray[np.bool_]

SETTINGS = DecodeSettings()
MIN_SIZE = 10


def plain_decode(
    maps: Floats, shape: tuple[int, int], settings: DecodeSettings, min_size: int, *, in_boxes: bool
) -> Labels:
    """`nuclora.inference.decode.decode` step by step with scikit-image, a nucleus at a time.

    In the plainest form each nucleus is a mask of the whole image; `in_boxes` looks at its bounding box alone. The
    enlargement of the maps is the product's own: it is one call of torch, and rounding must not part the two sides.
    """
    foreground, distance, offset_y, offset_x = upsample(maps[[0, 2, 3, 4]], shape)
    rows, columns = np.nonzero(foreground > settings.foreground)
    to_rows = np.clip(np.rint(rows + offset_y[rows, columns]), 0, shape[0] - 1).astype(int)
    to_columns = np.clip(np.rint(columns + offset_x[rows, columns]), 0, shape[1] - 1).astype(int)
    ballots = np.zeros(shape)
    np.add.at(ballots, (to_rows, to_columns), foreground[rows, columns])
    votes = gaussian(ballots.astype(np.float32), settings.smooth, mode="constant", preserve_range=True)

    ground = votes > 0.03 / settings.smooth**2
    least = min_size / (2 * np.pi * settings.smooth**2)
    peaks = (ndimage.maximum_filter(votes, 5) == votes) & ground & (votes >= least)
    hills = watershed(-votes, label(peaks, connectivity=1), mask=ground)
    hills = _without_shallow_valleys(hills, votes, settings.valley)

    labels = np.zeros(shape, np.int32)
    labels[rows, columns] = hills[to_rows, to_columns]
    for box, nucleus in _regions(labels, in_boxes):
        if distance[box][nucleus].max() <= settings.core:
            labels[box][nucleus] = 0
            continue
        parts = label(nucleus, connectivity=1)
        largest = 1 + np.argmax(np.bincount(parts.ravel())[1:])
        labels[box][(parts > 0) & (parts != largest)] = 0
    _fill_holes(labels, in_boxes)
    for box, nucleus in _regions(labels, in_boxes):
        if np.count_nonzero(nucleus) < min_size:
            labels[box][nucleus] = 0
    ids, first = np.unique(labels, return_index=True)
    numbers = np.zeros(labels.max() + 1, np.int32)
    in_order = [identity for identity in ids[np.argsort(first)] if identity]
    numbers[in_order] = np.arange(1, len(in_order) + 1)
    return numbers[labels]


def _without_shallow_valleys(hills: Labels, votes: Floats, valley: float) -> Labels:
    peak = {region.label: region.intensity_max for region in regionprops(hills, intensity_image=votes)}
    passes: dict[tuple[int, int], float] = {}
    for down, right in ((1, 0), (0, 1)):
        here, there = hills[: len(hills) - down, : hills.shape[1] - right], hills[down:, right:]
        for y, x in np.argwhere((here != there) & (here > 0) & (there > 0)):
            pair = min(here[y, x], there[y, x]), max(here[y, x], there[y, x])
            passes[pair] = max(passes.get(pair, 0), min(votes[y, x], votes[y + down, x + right]))
    joined = hills.copy()
    for (first, second), height in sorted(passes.items(), key=lambda found: (-found[1], found[0])):
        first, second = (int(joined[hills == hill][0]) for hill in (first, second))
        if peak[first] < peak[second]:
            first, second = second, first
        if first != second and height > valley * peak[second]:
            joined[joined == second] = first
    return joined


def _fill_holes(labels: Labels, in_boxes: bool) -> None:
    """Give background inside one nucleus alone to it."""
    for box, hole in _regions(label(labels == 0, connectivity=1), in_boxes):
        where = np.zeros(labels.shape, bool)
        where[box] = hole
        if where[[0, -1]].any() or where[:, [0, -1]].any():
            continue
        around = np.unique(labels[ndimage.binary_dilation(where) & ~where])
        if len(around) == 1:
            labels[where] = around[0]


def _regions(labels: Labels, in_boxes: bool) -> Iterator[tuple[tuple[slice, ...], Mask]]:
    """Each label's place and its mask there."""
    if in_boxes:
        yield from ((region.slice, region.image) for region in regionprops(labels))
    else:
        yield from (((slice(None),), labels == identity) for identity in np.unique(labels) if identity)


def main() -> None:
    given = tile_parser(__doc__ or "", __file__).parse_args()
    results = Results()
    for name, truth in tiles(given.data, count=5):
        maps = noisy_maps(truth)
        for reference, in_boxes in (("whole masks", False), ("boxes", True)):
            results.compare(
                f"decoding, 512 x 512, {name}, {truth.max()} nuclei, against {reference}",
                functools.partial(decode, maps, truth.shape, SETTINGS, MIN_SIZE),
                functools.partial(plain_decode, maps, truth.shape, SETTINGS, MIN_SIZE, in_boxes=in_boxes),
                np.array_equal,
                given.repeats,
            )
    for side, count in ((512, 200), (1024, 800), (2048, 3_200), (4096, 12_800), (2048, 100), (2048, 1_000)):
        maps = noisy_maps(discs(side, count, seed=1))
        (ours_s,) = best_of([functools.partial(decode, maps, (side, side), SETTINGS, MIN_SIZE)], given.repeats)
        results.add(f"decoding, {side} x {side}, {count:,} nuclei", ours_s)
    _compare_threads(results, given.repeats)
    results.finish(given.out)


def _compare_threads(results: Results, repeats: int) -> None:
    """Eight tiles by two threads against one after the other: 2 if the GIL were free and both cores ours."""
    maps = noisy_maps(discs(512, 200, seed=1))

    def one(_: int) -> Labels:
        return decode(maps, (512, 512), SETTINGS, MIN_SIZE)

    with ThreadPoolExecutor(2) as pool:
        results.compare(
            "decoding, 8 tiles in 2 threads against 1, wall time",
            lambda: list(pool.map(one, range(8))),
            lambda: [one(index) for index in range(8)],
            lambda ours, reference: all(map(np.array_equal, ours, reference)),
            repeats,
            wall=True,
        )


if __name__ == "__main__":
    main()
