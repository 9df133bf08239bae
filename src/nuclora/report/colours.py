"""Colours that read without colour vision: a fixed palette, and line styles.

The palette is Okabe and Ito's (2008), "Color Universal Design"; nothing is told by colour alone: lines also differ in
dash and marker, errors in outline and hatch.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Final, Literal

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
    "missed": ErrorStyle(BLUE, "#ffffff", (0, (2.2, 1.3)), "", 0.25, 1.6, "missed: matches none (IoU ≤ 0.5)"),
    "false": ErrorStyle(YELLOW, INK, (0, (0.9, 0.9)), "....", 0.12, 1.6, "false: matches none (IoU ≤ 0.5)"),
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
