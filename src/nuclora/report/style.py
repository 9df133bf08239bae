"""The one style of all figures, and their file formats."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from nuclora.report.colours import INK, MUTED

Arguments = ParamSpec("Arguments")

WIDTH: Final = 9.0
"""Width of every figure in inches, so that equal letters are equally large on the page."""

# Fonts with the letters of China, Japan and Korea, which organs and tiles may be named in, as systems have them.
_EASTERN: Final = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
)


def _installed(fonts: Iterable[str]) -> list[str]:
    there = {font.name for font in fontManager.ttflist}
    return [font for font in fonts if font in there]


# Typed loosely: matplotlib types its settings by an exhaustive literal.
STYLE: Final[Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", *_installed(_EASTERN)],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.facecolor": "white",
    # A dollar in the name of a tile or organ is a dollar.
    "text.parse_math": False,
    # Outlines instead of font names, and ids that do not change from one writing to the next.
    "svg.fonttype": "path",
    "svg.hashsalt": "nuclora",
}


def styled(function: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Make a function that draws a figure do so in the style of the report."""

    @functools.wraps(function)
    def draw(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return function(*args, **kwargs)

    return draw


def new_figure(height: float) -> Figure:
    """An empty figure of the report's width with a canvas of its own, height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters, without those of its middle: it must leave room for what is beside it."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"


def render(figure: Figure, kind: str) -> bytes:
    """The file content of a figure.

    Args:
        figure: A styled figure.
        kind: ``png`` or ``svg``; pictures at 150 dots per inch.
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
    if kind == "png":
        # Pictures of tissue hardly get smaller at the default of 6, which takes thrice as long.
        options["pil_kwargs"] = {"compress_level": 2}
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A letter that no font has is an empty box; names stand in captions and tables as well.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, dpi=150, **options)
    return buffer.getvalue()
