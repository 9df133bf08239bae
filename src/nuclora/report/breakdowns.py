"""Charts of where a model does well and what it gets wrong: organs, density, size, kinds of error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import sem, t

from nuclora.report.colours import (
    BLUE,
    BLUISH_GREEN,
    ERROR_STYLES,
    INK,
    METRIC_COLOURS,
    MUTED,
    ORANGE,
    SKY_BLUE,
    VERMILION,
)
from nuclora.report.published import METRICS
from nuclora.report.style import new_figure, shortened, styled

Floats = NDArray[np.float64]


@styled
def by_group(groups: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> Figure:
    """AJI of each organ as sorted bars, with Dice and PQ as marks and the AJI before fine-tuning.

    Args:
        groups: For each organ, `tiles`, `dice`, `aji` and `pq` after fine-tuning.
        before: The same of the base as it came; organs may be missing.
    """
    order = sorted(groups, key=lambda name: groups[name]["aji"])
    places = np.arange(len(order))
    figure = new_figure(1.3 + 0.21 * len(order))
    axes = figure.subplots()
    axes.barh(places, [groups[name]["aji"] for name in order], height=0.66, color=ORANGE, alpha=0.8, label="AJI")
    for metric, marker in (("dice", "o"), ("pq", "D")):
        axes.plot(
            [groups[name][metric] for name in order], places, marker, color=METRIC_COLOURS[metric],
            markersize=5, markeredgecolor="white", markeredgewidth=0.5, label=METRICS[metric],
        )  # fmt: skip
    known = [(before[name]["aji"], place) for name, place in zip(order, places, strict=True) if name in before]
    if known:
        axes.plot(*np.array(known).T, "|", color=INK, markersize=9, markeredgewidth=1.6, label="AJI, zero-shot")
    axes.set_yticks(places, [f"{shortened(name, 45)}  (n = {groups[name]['tiles']:.0f})" for name in order])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlim(0, 1)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, handletextpad=0.5)
    return figure


@styled
def aji_against_density(density: Floats, aji: Floats) -> Figure:
    """AJI of each tile against its nucleus density, and the mean of equally full bins.

    Args:
        density: Nuclei per 512 x 512 pixels, (N,).
        aji: AJI of the same tiles, (N,).
    """
    figure = new_figure(3.3)
    axes = figure.subplots()
    axes.plot(density, aji, "o", color=SKY_BLUE, alpha=0.45, markersize=3.5, markeredgewidth=0, label="tile")
    count = int(np.clip(len(density) // 15, 1, 8))
    bins = np.array_split(np.argsort(density, kind="stable"), count)
    means = np.array([aji[part].mean() for part in bins])
    # One tile tells no interval.
    errors = [t.ppf(0.975, len(part) - 1) * sem(aji[part]) if len(part) > 1 else np.nan for part in bins]
    axes.errorbar(
        [density[part].mean() for part in bins], means, yerr=errors, color=BLUE, marker="s", markersize=5,
        capsize=2.5, elinewidth=1.1, zorder=3, label="mean of equally many tiles, 95 % interval",
    )  # fmt: skip
    axes.set_ylim(0, 1.01)
    axes.set_xlim(left=0)
    axes.set_xlabel("nuclei per 512 × 512 pixels")
    axes.set_ylabel("AJI of the tile")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return figure


@styled
def recall_against_size(areas: Floats, found: NDArray[np.bool_]) -> Figure:
    """Share of the true nuclei that are found, against their size, by equal shares of them: tenths at most.

    Args:
        areas: Area of each true nucleus in pixels, (N,).
        found: Whether a prediction matches it (IoU > 0.5), (N,).
    """
    diameters = 2 * np.sqrt(areas / np.pi)
    edges = np.unique(np.quantile(diameters, np.linspace(0, 1, min(10, max(2, len(areas) // 20)) + 1)))
    which = np.clip(np.searchsorted(edges, diameters, side="right") - 1, 0, max(0, len(edges) - 2))
    figure = new_figure(3.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    rows = []
    for part in range(max(1, len(edges) - 1)):
        inside = which == part
        if inside.any():
            share, low, high = wilson(int(found[inside].sum()), int(inside.sum()))
            rows.append((float(np.median(diameters[inside])), share, share - low, high - share))
    centre, shares, below, above = np.array(rows).T
    upper.errorbar(
        centre, shares, yerr=(below, above), color=BLUE, marker="s", markersize=5, capsize=2.5, elinewidth=1.1
    )
    upper.axhline(found.mean(), color=INK, linewidth=1, linestyle=(0, (5, 2)))
    upper.annotate(
        f"all nuclei\n{found.mean():.3f}", (1.01, found.mean()), xycoords=("axes fraction", "data"),
        va="center", fontsize=8,
    )  # fmt: skip
    upper.set_ylim(0, 1)
    upper.set_ylabel("share found (IoU > 0.5)")
    end = float(np.quantile(diameters, 0.995))
    lower.hist(diameters, bins=60, range=(0, end), color=MUTED, alpha=0.7)
    lower.set_ylabel("nuclei")
    lower.set_xlabel("diameter of the nucleus in pixels (of a disc of its area)")
    lower.set_xlim(0, end)
    return figure


def wilson(successes: int, trials: int) -> tuple[float, float, float]:
    """Share of successes and the bounds of its 95 % interval (Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212)."""
    z = 1.959964
    share = successes / trials
    scale = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding must not put a bound on the wrong side of the share.
    return share, min(share, max(0.0, centre - reach)), max(share, min(1.0, centre + reach))


@styled
def score_reliability(bins: Sequence[Mapping[str, Any]], cuts: Sequence[Mapping[str, float]]) -> Figure:
    """Mean IoU of nuclei against their score, and beside it what is left where low scores are dropped.

    Args:
        bins: See :func:`nuclora.report.reliability.bins_of`.
        cuts: See :func:`nuclora.report.reliability.cuts_of`.
    """
    figure = new_figure(3.7)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    scores, ious = (np.array([part[key] for part in bins]) for key in ("score", "iou"))
    low, high = np.array([part["quartiles"] for part in bins]).T
    left.plot((0, 1), (0, 1), color=MUTED, linewidth=0.9, linestyle=(0, (5, 2)))
    counts = [part["nuclei"] for part in bins]
    each = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    # At scores of 0 and 1 half of a mark lies outside the axes.
    left.plot(scores, ious, color=BLUE, marker="s", markersize=5, label=f"mean of {each} nuclei", clip_on=False)
    left.vlines(
        scores, low, high, color=SKY_BLUE, linewidth=5, alpha=0.45, zorder=1, label="the middle half of them",
        clip_on=False,
    )  # fmt: skip
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="score of the nucleus", ylabel="IoU with the truth")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    lines = (
        ("precision", "precision: right of those kept", BLUE, "solid", "s"),
        ("recall", "recall: true nuclei found", BLUISH_GREEN, (0, (5, 1.5)), "^"),
        ("kept", "predictions kept", VERMILION, (0, (1.2, 1.2)), "o"),
    )
    for key, label, colour, dashes, marker in lines:
        right.plot(
            [cut["score"] for cut in cuts], [cut[key] for cut in cuts], color=colour, linestyle=dashes, marker=marker,
            markevery=2, label=label, clip_on=False,
        )  # fmt: skip
    right.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="keep nuclei with a score of at least")
    right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    for axes in (left, right):
        axes.grid(True, axis="x")
    return figure


@styled
def error_shares(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """What became of the true nuclei, as shares, and the false predictions beside them; a bar a protocol.

    Args:
        shares: For each row, `matched`, `missed`, `merged`, `split` as shares of the true nuclei, and `false` as
            the number of false predictions per true nucleus.
    """
    figure = new_figure(1.0 + 0.42 * len(shares))
    axes, beside = figure.subplots(1, 2, width_ratios=[3.2, 1])
    names = list(shares)[::-1]
    left = np.zeros(len(names))
    for kind in ("matched", "merged", "split", "missed"):
        style = ERROR_STYLES[kind]
        values = np.array([shares[name][kind] for name in names])
        colour = "#d5dbe1" if kind == "matched" else style.colour
        bars = axes.barh(
            names, values, left=left, height=0.62, facecolor=colour, hatch=style.hatch, edgecolor="white",
            linewidth=0.8, label=kind if kind != "matched" else "found",
        )  # fmt: skip
        left += values
        texts = [f"{100 * value:.0f} %" if value > 0.045 else "" for value in values]
        boxed = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.85, "linewidth": 0}
        axes.bar_label(bars, texts, label_type="center", fontsize=8, bbox=boxed)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
    axes.set_xlabel("share of the true nuclei")
    false = [shares[name]["false"] for name in names]
    style = ERROR_STYLES["false"]
    bars = beside.barh(
        names, false, height=0.62, facecolor=style.colour, hatch=style.hatch, edgecolor=MUTED, linewidth=0.8
    )
    beside.bar_label(bars, [f"{100 * value:.0f}" for value in false], padding=3, fontsize=8)
    beside.set_title("false predictions\nper 100 true nuclei", fontsize=8.5, fontweight="normal")
    beside.set_xlim(0, 1.25 * max(*false, 0.1))
    beside.xaxis.set_visible(False)
    beside.set_yticklabels([])
    for each in (axes, beside):
        each.grid(False)
        each.tick_params(axis="y", length=0)
    return figure
