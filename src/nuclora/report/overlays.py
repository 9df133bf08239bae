"""Pictures of tiles: labels and errors as thin outlines and translucent fills over the tissue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from skimage.measure import find_contours

from nuclora.data.prompts import label_regions
from nuclora.data.tiles import Sample
from nuclora.io.colouring import neighbour_colours
from nuclora.metrics.errors import ErrorTypes
from nuclora.report.colours import ERROR_STYLES, INK, LABEL_COLOURS, palette
from nuclora.report.published import METRICS
from nuclora.report.style import WIDTH, new_figure, shortened, styled

Labels = NDArray[np.int32]

_IGNORED = "#52606d"
_LONGEST = 768
"""Side in pixels over which a part of a tile is shown: outlines are drawn in points, and would cover it."""
_PART = 512
_STEP = 32


@dataclass(frozen=True)
class Example:
    """One tile to show.

    Attributes:
        rank: Why it is shown: ``best``, ``median`` or ``worst``.
        tile: Its name.
        sample: Image, truth and ignore mask.
        prediction: Predicted labels (H, W).
        errors: What went wrong, by ids.
        scores: Its measures by name.
    """

    rank: str
    tile: str
    sample: Sample
    prediction: Labels
    errors: ErrorTypes
    scores: Mapping[str, float]


def outlines(labels: Labels) -> dict[int, Path]:
    """The outline of each instance, all its components and holes, in pixels (x right, y down).

    Args:
        labels: Integer labels (H, W), 0 background.
    """
    paths = {}
    for label, box in label_regions(labels):
        mask = np.pad(labels[box] == label, 1)
        origin = (box[1].start - 1, box[0].start - 1)
        rings = [Path(ring[:, ::-1] + origin, closed=True) for ring in find_contours(mask, 0.5)]
        paths[label] = Path.make_compound_path(*rings)
    return paths


def draw_labels(axes: Axes, labels: Labels) -> None:
    """Draw instances so that neighbours differ in colour; the colours mean nothing else."""
    numbers = neighbour_colours(labels, len(LABEL_COLOURS))
    colours = palette(max(numbers.values(), default=0) + 1)
    shapes = outlines(labels)
    edges = [to_rgba(colours[numbers[label]]) for label in shapes]
    axes.add_collection(
        PathCollection(
            list(shapes.values()), facecolors=[(*edge[:3], 0.38) for edge in edges], edgecolors=edges, linewidths=1.0
        )
    )


def draw_errors(axes: Axes, truth: Labels, prediction: Labels, errors: ErrorTypes) -> None:
    """Draw the predictions by what they are, and the true nuclei that were missed; predictions that are not scored not.

    Args:
        axes: Where the tissue is shown.
        truth: True labels (H, W).
        prediction: Predicted labels (H, W).
        errors: Ids by what happened; those of others than are in these labels are left out.
    """
    predicted, true = outlines(prediction), outlines(truth)
    # Missed ones first: where an outline is only too poor, the false prediction lies over it.
    _draw(axes, "missed", true, errors.missed)
    _draw(axes, "matched", predicted, errors.partners)
    _draw(axes, "false", predicted, errors.false)
    _draw(axes, "merged", predicted, errors.merging)
    _draw(axes, "split", predicted, errors.pieces)


def _draw(axes: Axes, kind: str, shapes: Mapping[int, Path], labels: Iterable[int]) -> None:
    style = ERROR_STYLES[kind]
    # Of a part of a tile some lie outside.
    paths = [shapes[label] for label in labels if label in shapes]
    if not paths:
        return
    # The casing keeps the outline visible whatever the tissue's colour.
    casing = PathCollection(paths, facecolors="none", edgecolors=style.casing, linewidths=style.width + 1.2)
    axes.add_collection(casing)
    axes.add_collection(
        PathCollection(
            paths, facecolors=[to_rgba(style.colour, style.fill)], edgecolors=[style.colour],
            linewidths=style.width, linestyles=[style.dashes], hatch=style.hatch or None,
        )
    )  # fmt: skip


def _draw_ignored(axes: Axes, ignore: NDArray[np.bool_]) -> None:
    shapes = outlines(ignore.astype(np.int32))
    axes.add_collection(
        PathCollection(
            list(shapes.values()), facecolors=[(1, 1, 1, 0.35)], edgecolors=[_IGNORED], linewidths=0.8, hatch="||"
        )
    )


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    # Collections would widen the view by half a pixel.
    axes.autoscale(False)


@styled
def sample_with_labels(tile: str, sample: Sample) -> Figure:
    """One tile beside its labels.

    Args:
        tile: Name of the tile.
        sample: Its pixels.
    """
    count = np.unique(sample.labels[sample.labels > 0]).size
    part = part_with_most(sample.labels > 0)
    told = f"{_plural(count, 'labelled nucleus', 'labelled nuclei')}{_part_of(part, sample)}"
    sample = _cut(sample, part)
    figure, ((left, right),) = _picture_grid([sample], 2, below=0)
    for axes, title in ((left, shortened(tile, 46)), (right, told)):
        _show(axes, sample.image)
        axes.set_title(title)
    draw_labels(right, sample.labels)
    return figure


@styled
def examples(rows: Sequence[Example]) -> Figure:
    """Image, truth and prediction of some tiles, a row each, with the errors drawn over the prediction.

    Args:
        rows: The tiles, at least one.
    """
    parts = [part_with_most(_wrong(row)) for row in rows]
    samples = [_cut(row.sample, part) for row, part in zip(rows, parts, strict=True)]
    figure, grid = _picture_grid(samples, 3, below=0.6)
    for axes_row, row, part, sample in zip(grid, rows, parts, samples, strict=True):
        for axes in axes_row:
            _show(axes, sample.image)
        draw_labels(axes_row[1], sample.labels)
        draw_errors(axes_row[2], sample.labels, row.prediction[part], row.errors)
        if sample.ignore.any():
            for axes in axes_row[1:]:
                _draw_ignored(axes, sample.ignore)
        scores = "  ".join(f"{name} {row.scores[key]:.3f}" for key, name in METRICS.items())
        truth = f"truth: {_plural(int(row.scores['nuclei_true']), 'nucleus', 'nuclei')}{_part_of(part, row.sample)}"
        titles = (f"{row.rank}: {shortened(row.tile.rpartition('/')[2], 27)}", truth, scores)
        for axes, title in zip(axes_row, titles, strict=True):
            axes.set_title(title, fontsize=8.5, fontweight="bold" if axes is axes_row[0] else "normal")
    handles = [
        Patch(
            facecolor=to_rgba(style.colour, style.fill), edgecolor=style.colour, linestyle=style.dashes,
            linewidth=style.width, hatch=style.hatch, label=style.label,
            path_effects=[withStroke(linewidth=style.width + 1.2, foreground=style.casing)],
        )
        for style in ERROR_STYLES.values()
    ]  # fmt: skip
    if any(row.sample.ignore.any() for row in rows):
        handles.append(
            Patch(facecolor="white", edgecolor=_IGNORED, hatch="||", label="vague: not scored, predictions not drawn")
        )
    figure.legend(handles=handles, loc="lower center", ncols=3, handlelength=3, handleheight=1.5, labelcolor=INK)
    return figure


def part_with_most(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The part of a large tile with most of the pixels of a mask, to the nearest 32; all of a tile that can be shown.

    Args:
        mask: What is to be seen (H, W).
    """
    if max(mask.shape) <= _LONGEST:
        return slice(None), slice(None)
    height, width = (min(side, _PART) for side in mask.shape)
    sums = np.pad(mask, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    seen = inside[::_STEP, ::_STEP]
    top, left = (int(place) * _STEP for place in np.unravel_index(np.argmax(seen), seen.shape))
    return slice(top, top + height), slice(left, left + width)


def _wrong(row: Example) -> NDArray[np.bool_]:
    """Pixels of what went wrong; of all true nuclei where nothing did."""
    errors = row.errors
    wrong = np.isin(row.sample.labels, list(errors.missed)) | np.isin(
        row.prediction, [*errors.false, *errors.merging, *errors.pieces]
    )
    return wrong if wrong.any() else row.sample.labels > 0


def _cut(sample: Sample, part: tuple[slice, slice]) -> Sample:
    return Sample(sample.image[part], sample.labels[part], sample.ignore[part])


def _part_of(part: tuple[slice, slice], sample: Sample) -> str:
    """What to say of a part: nothing of the whole."""
    height, width = sample.labels.shape
    return "" if sample.labels[part].shape == (height, width) else f"; part of {width} × {height}"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _picture_grid(samples: Sequence[Sample], columns: int, below: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a row of equal axes for each sample, as high as its tiles are, and `below` inches under them.

    Placed by hand: the layout engine would draw all pictures once more only to find their places.
    """
    gap, title = 0.08, 0.24
    width = (WIDTH - gap * (columns - 1)) / columns
    # Of a tile that is high and narrow no page has room for more.
    heights = [width * min(1.5, sample.labels.shape[0] / sample.labels.shape[1]) for sample in samples]
    total = sum(heights) + len(samples) * (title + gap) + below
    figure = new_figure(total)
    figure.set_layout_engine(None)
    grid, top = [], total
    for height in heights:
        top -= title + height
        places = [
            (column * (width + gap) / WIDTH, top / total, width / WIDTH, height / total) for column in range(columns)
        ]
        grid.append([figure.add_axes(place) for place in places])
        top -= gap
    return figure, grid
