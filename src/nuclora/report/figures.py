"""Charts of a run's results and training: functions from numbers to matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nuclora.data.folds import fold_name
from nuclora.report.colours import BLUE, BLUISH_GREEN, INK, METRIC_COLOURS, MUTED, SKY_BLUE, VERMILION, line_style
from nuclora.report.published import METRICS, PublishedResult
from nuclora.report.style import new_figure, styled

Floats = NDArray[np.float64]
Points = Mapping[int, Sequence[tuple[float, float]]]


@styled
def final_by_fold(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars of the final Dice, AJI and PQ of each fold with their mean: a row a protocol.

    Args:
        results: Entries of `summarise_run`, one a protocol; each with `protocol`, `folds`, `mean`,
            `tiles` and `of_tiles`.
    """
    figure = new_figure(0.5 + 1.9 * len(results))
    grid = figure.subplots(len(results), len(METRICS), sharey=True, squeeze=False)
    for row, (axes_row, result) in enumerate(zip(grid, results, strict=True)):
        folds = [fold["fold"] for fold in result["folds"]]
        for axes, (metric, title) in zip(axes_row, METRICS.items(), strict=True):
            values = [fold[metric] for fold in result["folds"]]
            mean = result["mean"][metric]
            size, flat = min(8, 155 / len(folds)), len(folds) <= 7
            axes.bar(range(len(folds)), values, width=0.68, color=METRIC_COLOURS[metric], alpha=0.85)
            for place, value in enumerate(values):
                high = value > 0.2
                # Over a low bar, and over the line of the mean where that would run through the number.
                free = (mean if value <= mean < value + (0.12 if flat else 0.25) else value) + 0.03
                axes.text(
                    place, 0.03 if high else free, f"{value:.3f}".lstrip("0"), ha="center",
                    fontsize=size, fontweight="bold", rotation=0 if flat else 90,
                    color="white" if high and metric != "aji" else INK,
                )  # fmt: skip
            axes.axhline(mean, color=INK, linewidth=1.1, linestyle=(0, (5, 2)))
            axes.annotate(
                f"mean\n{mean:.3f}", (1.01, mean), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
            turned = 90 if len(folds) > 15 else 0
            axes.set_xticks(range(len(folds)), [str(fold) for fold in folds], fontsize=size, rotation=turned)
            axes.tick_params(axis="x", length=0)
            axes.set_ylim(0, 1)
            axes.set_xlim(-0.6, max(len(folds), 3) - 0.4)
            if row == 0:
                axes.set_title(title)
            if row == len(results) - 1:
                axes.set_xlabel("fold")
        part = f"\n{result['tiles']} of {result['of_tiles']} tiles" if result["tiles"] < result["of_tiles"] else ""
        axes_row[0].set_ylabel(result["protocol"] + part)
    return figure


@styled
def validation_curves(curves: Mapping[str, Points], protocol: str) -> Figure:
    """Dice, AJI and PQ against the training step, one line a fold.

    Args:
        curves: For each measure and fold, pairs of step and value.
        protocol: What was validated, as the axis says it.
    """
    figure = new_figure(3.1)
    grid = figure.subplots(1, len(METRICS))
    grid[0].set_ylabel(protocol)
    for axes, metric in zip(grid, METRICS, strict=True):
        ends = {}
        for index, (fold, points) in enumerate(sorted(curves[metric].items())):
            style = line_style(index)
            steps, values = np.asarray(points, dtype=float).T
            axes.plot(steps, values, color=style.colour, linestyle=style.dashes, marker=style.marker)
            if (known := np.flatnonzero(np.isfinite(values))).size:
                ends[fold_name(fold)] = (steps[known[-1]], values[known[-1]], style.colour)
        axes.set_title(METRICS[metric])
        axes.set_xlabel("training step")
        axes.grid(True, axis="x")
        axes.margins(x=0.04, y=0.1)
        _label_ends(axes, ends)
    return figure


@styled
def training_loss(losses: Points) -> Figure:
    """Training loss against the step, one line a fold: every step in a light line, its running mean in a strong one.

    Args:
        losses: For each fold, pairs of step and loss.
    """
    figure = new_figure(3.4)
    axes = figure.subplots()
    if any(loss > 0 for points in losses.values() for _, loss in points):
        # The first steps of a decoder that meets nuclei for the first time are hundreds of times worse than the last.
        axes.set_yscale("log")
    ends = {}
    # The same for all: a fold in training has fewer steps than those that are done.
    window = max(1, max(map(len, losses.values())) // 25)
    for index, (fold, points) in enumerate(sorted(losses.items())):
        style = line_style(index)
        steps, values = np.asarray(points, dtype=float).T
        # A batch without a nucleus has a loss of 0, which has no place on this axis.
        shown = np.isfinite(values) & (values > 0)
        steps, values = steps[shown], values[shown]
        if not len(values):
            continue
        smooth = running_mean(values, window)
        axes.plot(steps, values, color=style.colour, alpha=0.18, linewidth=0.7)
        axes.plot(
            steps, smooth, color=style.colour, linestyle=style.dashes, marker=style.marker,
            markevery=(index * max(1, len(values) // 60), max(1, len(values) // 10)),
        )  # fmt: skip
        ends[fold_name(fold)] = (steps[-1], smooth[-1], style.colour)
    # The logarithmic formatter writes powers in mathematical markup, which is off.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.margins(x=0.02)
    axes.set_xlabel("training step")
    axes.set_ylabel("training loss (logarithmic)")
    _label_ends(axes, ends)
    return figure


def running_mean(values: Floats, window: int) -> Floats:
    """Mean of each value and `window // 2` on either side; same length.

    At the start, where a loss falls steeply, as many on the right as there are on the left; at the end, where a single
    value would be noise, what there is on the right.
    """
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    reach = np.minimum(window // 2, places)
    first, last = places - reach, np.minimum(places + reach + 1, len(values))
    means: Floats = (sums[last] - sums[first]) / (last - first)
    return means


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write the names of the lines in a column on the right, each as high as its line's end where there is room."""
    # Until then the transforms are those of empty axes.
    axes.autoscale_view()
    # The limits follow the data only when they are asked for, and the transform does not ask.
    axes.autoscale_view()
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    pixels = {name: tuple(to_pixels.transform((x, y))) for name, (x, y, _) in ends.items()}
    dpi = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    order = sorted(ends, key=lambda name: pixels[name][1])
    if len(order) > 12:
        # There is no room for all: the lowest and the highest are left.
        order = [order[0], order[-1]]
    column = max((x for x, _ in pixels.values()), default=0.0)
    for name, height in zip(order, spread([pixels[name][1] for name in order], 0.155 * dpi), strict=True):
        x, y, colour = ends[name]
        beside = tuple(to_data.transform((column + 7 / 72 * dpi, height)).tolist())
        # A line that ends early is led to its name.
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "linestyle": (0, (1, 2)), "shrinkA": 0}
        axes.annotate(
            name, (x, y), xytext=beside, textcoords="data", va="center",
            fontsize=8, color=colour, annotation_clip=False, arrowprops=leader if pixels[name][0] < column else None,
        )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move ascending places apart to at least `gap`, each run of crowded ones around its own mean."""
    runs: list[list[float]] = []
    for place in places:
        runs.append([place])
        while len(runs) > 1 and _start(runs[-1], gap) - _end(runs[-2], gap) < gap:
            runs[-2:] = [runs[-2] + runs[-1]]
    return [_start(run, gap) + index * gap for run in runs for index in range(len(run))]


def _start(run: Sequence[float], gap: float) -> float:
    return sum(run) / len(run) - gap * (len(run) - 1) / 2


def _end(run: Sequence[float], gap: float) -> float:
    return sum(run) / len(run) + gap * (len(run) - 1) / 2


@styled
def before_and_after(pairs: Mapping[str, tuple[Floats, Floats]]) -> Figure:
    """AJI of each tile before and after fine-tuning, a panel a protocol; over the diagonal is better.

    Args:
        pairs: For each protocol, the AJI of the same tiles zero-shot and fine-tuned.
    """
    # As many panels as there are protocols at most, so that one alone is not blown up.
    figure = new_figure(3.5)
    for axes, (protocol, (before, after)) in zip(figure.subplots(1, 3), pairs.items(), strict=False):
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.9, linestyle=(0, (5, 2)))
        axes.plot(before, after, "o", color=SKY_BLUE, alpha=0.5, markersize=3.5, markeredgewidth=0, clip_on=False)
        axes.plot(
            before.mean(), after.mean(), "D", color=VERMILION, markersize=7, markeredgecolor="white", clip_on=False
        )
        better = int((after > before).sum())
        axes.set_title(f"{protocol}\n", fontsize=9.5)
        told = f"better on {better} of {len(after)}, mean {before.mean():.3f} → {after.mean():.3f}"
        axes.annotate(told, (0, 1.02), xycoords="axes fraction", fontsize=8)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="AJI zero-shot", ylabel="AJI fine-tuned")
        axes.grid(True, axis="x")
    for axes in figure.axes[len(pairs) :]:
        axes.remove()
    return figure


@styled
def beside_published(ours: Sequence[PublishedResult], published: Sequence[PublishedResult]) -> Figure:
    """Dice, AJI and PQ of this run beside the published ones, each with its protocol.

    Args:
        ours: This run's rows.
        published: The rows of others.
    """
    rows = [*ours, *published]
    places = np.arange(len(rows))[::-1]
    figure = new_figure(0.9 + 0.3 * len(rows))
    grid = figure.subplots(1, len(METRICS), sharey=True)
    for axes, (metric, title) in zip(grid, METRICS.items(), strict=True):
        for row, place in zip(rows, places, strict=True):
            value = getattr(row, metric)
            mine = row in ours
            colour = BLUE if mine else BLUISH_GREEN if row.protocol == "automatic" else MUTED
            axes.plot((0, value), (place, place), color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(
                value, place, "D" if mine else "o", color=colour, markersize=6.5,
                markerfacecolor=colour if row.protocol == "automatic" else "white", markeredgewidth=1.6,
            )  # fmt: skip
            axes.annotate(f"{value:.3f}", (value, place), xytext=(8, 0), textcoords="offset points", va="center")
        axes.set_title(title)
        axes.set_xlim(0, 1.2)
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", ".25", ".5", ".75", "1"))
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        if published:
            axes.axhline(len(published) - 0.5, color=MUTED, linewidth=0.7)
    grid[0].set_yticks(places, [f"{row.name}  [{row.protocol}]" for row in rows])
    return figure
