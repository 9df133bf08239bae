"""Colours that read without colour vision: a fixed palette, line styles, and the colouring of neighbours.

The palette is Okabe and Ito's (2008), "Color Universal Design"; nothing is told by colour alone: lines also differ in
dash and marker, errors in outline and hatch.
"""

from __future__ import annotations

import colorsys
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Dashes = Literal["solid"] | tuple[float, tuple[float, ...]]

BLACK: Final = "#000000"
ORANGE: Final = "#E69F00"
SKY_BLUE: Final = "#56B4E9"
BLUISH_GREEN: Final = "#009E73"
YELLOW: Final = "#F0E442"
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
REDDISH_PURPLE: Final = "#CC79A7"
INK: Final = "#1f2933"
MUTED: Final = "#7b8794"

METRIC_COLOURS: Final = {"dice": BLUE, "aji": ORANGE, "pq": BLUISH_GREEN}

# The purple of the palette is left out: it is the colour of stained nuclei.
LABEL_COLOURS: Final = (SKY_BLUE, YELLOW, BLUISH_GREEN, ORANGE, BLUE, VERMILION)


@dataclass(frozen=True)
class LineStyle:
    """How one of several lines in a chart looks."""

    colour: str
    dashes: Dashes
    marker: str


_COLOURS: Final = (BLUE, VERMILION, BLUISH_GREEN, BLACK, ORANGE, REDDISH_PURPLE, SKY_BLUE)
_DASHES: Final[tuple[Dashes, ...]] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (6, 1.2, 1.2, 1.2, 1.2, 1.2)),
)
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p")


def line_style(index: int) -> LineStyle:
    """Style of the line of a number from 0; the first 385 differ in colour, dash or marker."""
    return LineStyle(_COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)])


@dataclass(frozen=True)
class ErrorStyle:
    """How one kind of instance is drawn over the tissue: outline, its casing, fill and hatch."""

    colour: str
    casing: str
    dashes: Dashes
    hatch: str
    fill: float
    width: float
    label: str


ERROR_STYLES: Final = {
    "matched": ErrorStyle("#ffffff", INK, "solid", "", 0.0, 0.8, "found (IoU > 0.5)"),
    "missed": ErrorStyle(BLUE, "#ffffff", (0, (2.2, 1.3)), "", 0.25, 1.6, "missed: true nucleus not found"),
    "false": ErrorStyle(YELLOW, INK, (0, (0.9, 0.9)), "....", 0.12, 1.6, "false: no nucleus there"),
    "merged": ErrorStyle(VERMILION, "#ffffff", "solid", "////", 0.12, 1.6, "merged: one for several"),
    "split": ErrorStyle(BLUISH_GREEN, "#ffffff", (0, (5, 1.2, 1, 1.2)), "xxxx", 0.12, 1.6, "split: several for one"),
}


def palette(count: int) -> list[str]:
    """At least `count` different label colours; past the fixed ones, evenly spread hues."""
    from matplotlib.colors import to_hex

    extra = max(0, count - len(LABEL_COLOURS))
    return [
        *LABEL_COLOURS,
        *(to_hex(colorsys.hsv_to_rgb(index / extra, 0.55, 0.75)) for index in range(extra)),
    ]


def neighbour_pairs(labels: NDArray[np.integer], distance: int = 3) -> NDArray[np.int64]:
    """Pairs of instances that come within some pixels of each other.

    Args:
        labels: Integer labels (H, W), 0 background.
        distance: Largest Euclidean distance between two of their pixel centres.

    Returns:
        Pairs of ids (N, 2), the smaller id first, in ascending order.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    furthest = min(distance, labels.shape[1] - 1)
    for down in range(min(distance, labels.shape[0] - 1) + 1):
        for right in range(-furthest, furthest + 1):
            if (down, right) <= (0, 0) or down**2 + right**2 > distance**2:
                continue
            upper = labels[: labels.shape[0] - down, max(0, -right) : labels.shape[1] - max(0, right)]
            lower = labels[down:, max(0, right) : labels.shape[1] - max(0, -right)]
            touching = (upper != lower) & (upper > 0) & (lower > 0)
            found = np.stack((upper[touching], lower[touching]), axis=1).astype(np.int64)
            pairs.append(np.unique(np.sort(found, axis=1), axis=0))
    return np.unique(np.concatenate(pairs), axis=0)


def neighbour_colours(labels: NDArray[np.integer], distance: int = 3) -> dict[int, int]:
    """Number a colour for each instance so that no two neighbours share one.

    Greedy colouring in smallest-last order (Matula & Beck, J. ACM 30 (1983) 417-427), which takes at most six
    colours where the neighbourhood is planar; among the colours that are free it takes the one used least.

    Args:
        labels: Integer labels (H, W), 0 background.
        distance: See :func:`neighbour_pairs`.

    Returns:
        Colour number from 0 for each id.
    """
    neighbours: defaultdict[int, set[int]] = defaultdict(set)
    for first, second in neighbour_pairs(labels, distance).tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    ids = [int(label) for label in np.unique(labels) if label > 0]
    colours: dict[int, int] = {}
    used: Counter[int] = Counter()
    for label in reversed(_smallest_last(ids, neighbours)):
        taken = {colours[other] for other in neighbours[label] if other in colours}
        free = [colour for colour in range(len(LABEL_COLOURS)) if colour not in taken]
        if free:
            colour = min(free, key=lambda number: (used[number], number))
        else:
            colour = next(number for number in range(len(ids)) if number not in taken)
        colours[label] = colour
        used[colour] += 1
    return colours


def _smallest_last(ids: list[int], neighbours: dict[int, set[int]]) -> list[int]:
    """Ids in the order in which they have the fewest neighbours among those that are left."""
    degrees = {label: len(neighbours[label]) for label in ids}
    order: list[int] = []
    while degrees:
        label = min(degrees, key=lambda one: (degrees[one], one))
        order.append(label)
        del degrees[label]
        for other in neighbours[label]:
            if other in degrees:
                degrees[other] -= 1
    return order
