from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Text
from scipy import stats

from nuclora.data.tiles import Sample
from nuclora.metrics import classify_errors
from nuclora.report import breakdowns, figures, overlays
from nuclora.report.style import render, shortened
from nuclora.report.summary import summarise_run
from nuclora.run import Run


def test_outlines_enclose_their_instances() -> None:
    labels = np.zeros((40, 50), np.int32)
    labels[2:12, 3:20] = 4
    labels[5:9, 8:12] = 0
    labels[30:38, 44:50] = 4
    labels[20:30, 10:30] = 9
    shapes = overlays.outlines(labels)
    assert set(shapes) == {4, 9}
    points = np.stack(np.meshgrid(np.arange(50), np.arange(40)), axis=-1).reshape(-1, 2)
    for number, shape in shapes.items():
        # Even-odd over the rings: a hole's ring takes its inside out again.
        inside = np.zeros(len(points), bool)
        for ring in shape.to_polygons(closed_only=False):
            inside ^= Path(ring).contains_points(points)
        assert np.array_equal(inside.reshape(40, 50), labels == number)


def test_bars_have_the_folds_values(run: Run) -> None:
    tuned = [entry for entry in summarise_run(run)["results"] if entry["stage"] == "fine-tuned"]
    figure = figures.final_by_fold(tuned)
    assert len(figure.axes) == 9
    for axes, (entry, metric) in zip(
        figure.axes, [(entry, metric) for entry in tuned for metric in ("dice", "aji", "pq")], strict=True
    ):
        assert [bar.get_height() for bar in axes.patches] == [fold[metric] for fold in entry["folds"]]
        assert axes.lines[0].get_ydata()[0] == entry["mean"][metric]


def test_running_mean() -> None:
    values = np.random.default_rng(0).random(50)
    means = figures.running_mean(values, 7)
    reach = [min(3, place) for place in range(50)]
    expected = [values[place - around : place + around + 1].mean() for place, around in enumerate(reach)]
    assert means == pytest.approx(expected)


def test_labels_are_spread_and_keep_their_order() -> None:
    places = [0.1, 0.5, 0.51, 0.52, 0.9, 0.9]
    spread = figures.spread(places, 0.05)
    assert np.diff(spread).min() >= 0.05 - 1e-12
    assert spread[0] == 0.1
    assert np.mean(spread[1:4]) == pytest.approx(0.51)


def test_wilson_interval_against_its_equation() -> None:
    for successes, trials in ((0, 9), (3, 10), (50, 100), (7, 7)):
        share, low, high = breakdowns.wilson(successes, trials)
        for bound in (low, high):
            if 0 < bound < 1:
                variance = bound * (1 - bound) / trials
                assert abs(share - bound) == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)
    assert breakdowns.wilson(0, 9)[:2] == (0, 0)


def test_recall_by_size_counts_every_nucleus() -> None:
    rng = np.random.default_rng(1)
    areas = rng.integers(20, 900, 500).astype(float)
    found = rng.random(500) < areas / 900
    upper, lower = breakdowns.recall_against_size(areas, found).axes
    shares = upper.containers[0].lines[0].get_ydata()
    assert len(shares) == 10
    assert np.mean(shares) == pytest.approx(found.mean(), abs=0.01)
    assert shares[0] < 0.3 < 0.8 < shares[-1]
    assert 490 <= sum(bar.get_height() for bar in lower.patches) <= 500


@pytest.mark.parametrize("count", [1, 2, 40])
def test_few_tiles_and_nuclei_draw(count: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.random(count)
    for figure in (
        breakdowns.aji_against_density(100 * values, values),
        breakdowns.recall_against_size(100 * values + 1, values > 0.5),
        figures.before_and_after({"automatic": (values, values)}),
        figures.training_loss({1: [(step + 1, value) for step, value in enumerate(values)]}),
    ):
        assert render(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("losses", [(1.0, 0.5, 0.0), (0.0, 0.5, 0.2), (0.0, 0.0)])
def test_batches_without_nuclei_leave_the_curve_whole(losses: tuple[float, ...]) -> None:
    points = {fold: list(enumerate(losses, 1)) for fold in (1, 2)}
    figure = figures.training_loss(points)
    assert render(figure, "png").startswith(b"\x89PNG")
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[0].lines] or [[0.5]])
    assert drawn.min() > 0
    ends = {"fold 1", "fold 2"} if max(losses) else set()
    assert {text.get_text() for text in figure.axes[0].texts} == ends


def test_intervals_of_few_tiles_are_students() -> None:
    aji = np.array([0.5, 0.6, 0.9])
    (bars,) = breakdowns.aji_against_density(np.array([1.0, 2.0, 3.0]), aji).axes[0].containers
    (segment,) = bars.lines[2][0].get_segments()
    expected = stats.ttest_1samp(aji, 0).confidence_interval(0.95)
    np.testing.assert_allclose(segment[:, 1], expected)
    (one,) = breakdowns.aji_against_density(np.array([1.0]), np.array([0.5])).axes[0].containers
    assert not any(segment.size for segment in one.lines[2][0].get_segments())


def test_very_many_folds_draw() -> None:
    folds = range(1, 32)
    entry = {
        "protocol": "automatic", "tiles": 31, "of_tiles": 31,
        "folds": [{"fold": fold, "dice": 0.8, "aji": 0.6, "pq": 0.5} for fold in folds],
        "mean": {"dice": 0.8, "aji": 0.6, "pq": 0.5},
    }  # fmt: skip
    curves = {metric: {fold: [(10, 0.5), (20, 0.5 + fold / 100)] for fold in folds} for metric in ("dice", "aji", "pq")}
    bars = figures.final_by_fold([entry])
    assert render(bars, "svg").lstrip().startswith(b"<?xml")
    places = [label.get_window_extent() for label in bars.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(places))
    drawn = figures.validation_curves(curves, "validation, automatic")
    assert [text.get_text() for text in drawn.axes[0].texts] == ["fold 1", "fold 31"]


def test_figures_do_not_change_the_users_style() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    render(breakdowns.aji_against_density(np.array([1.0, 2.0]), np.array([0.5, 0.6])), "svg")
    assert dict(mpl.rcParams) == before


def test_svg_is_the_same_each_time() -> None:
    first, second = (
        render(breakdowns.aji_against_density(np.array([1.0, 2.0]), np.array([0.5, 0.6])), "svg") for _ in range(2)
    )
    assert first == second


def _inside(figure: Figure) -> None:
    """Require that no text leaves the figure."""
    figure.canvas.draw()
    whole = figure.bbox
    for axes in figure.axes:
        for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
            box = text.get_window_extent()
            assert whole.x0 <= box.x0 <= box.x1 <= whole.x1, text
            assert whole.y0 <= box.y0 <= box.y1 <= whole.y1, text


def test_three_protocols_before_and_after_fit_their_figure() -> None:
    values = np.array([0.0, 0.4, 1.0])
    names = ("oracle-box", "oracle-point", "automatic")
    figure = figures.before_and_after(dict.fromkeys(names, (values, values)))
    _inside(figure)
    for axes in figure.axes:
        # The diagonal alone ends at the frame; marks at 0 and 1 are whole.
        assert [line.get_clip_on() for line in axes.lines] == [True, False, False]


def test_marks_at_a_score_of_zero_are_whole() -> None:
    bins = [{"score": 0.0, "iou": 0.0, "nuclei": 3, "quartiles": [0.0, 0.1]}]
    cuts = [{"score": 0.0, "precision": 1.0, "recall": 0.0, "kept": 1.0}]
    left, right = breakdowns.score_reliability(bins, cuts).axes
    marked = [*left.lines[1:], *left.collections, *right.lines]
    assert len(marked) == 5
    assert not any(artist.get_clip_on() for artist in marked)


@pytest.mark.parametrize("low", [0.0, 0.05, 0.2])
def test_numbers_of_low_bars_stay_in_their_axes_and_off_the_line_of_the_mean(low: float) -> None:
    for mean in (0.1, 0.3, 0.97):
        folds = [{"fold": 1, "dice": low, "aji": low, "pq": low}]
        entry = {
            "protocol": "automatic", "tiles": 1, "of_tiles": 1,
            "folds": folds, "mean": dict.fromkeys(("dice", "aji", "pq"), mean),
        }  # fmt: skip
        figure = figures.final_by_fold([entry])
        figure.canvas.draw()
        for axes in figure.axes:
            box = axes.texts[0].get_window_extent().transformed(axes.transData.inverted())
            assert 0 <= box.y0 <= box.y1 <= 1
            assert not box.y0 <= mean <= box.y1


def test_predictions_in_vague_areas_are_not_drawn_as_found() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[2:12, 2:12], labels[20:35, 20:35] = 1, 2
    ignore = labels == 2
    errors = classify_errors(labels, labels, ignore)
    axes = Figure().subplots()
    overlays.draw_errors(axes, labels, labels, errors)
    # A casing and an outline of the one that is scored.
    assert [len(drawn.get_paths()) for drawn in axes.collections] == [1, 1]
    assert axes.collections[0].get_paths()[0].get_extents().x1 < 20


def test_long_names_of_tiles_stay_over_their_picture() -> None:
    labels = np.zeros((40, 40), np.int32)
    sample = Sample(np.zeros((40, 40, 3), np.uint8), labels, labels > 0)
    errors = classify_errors(labels, labels)
    name = "images/" + 4 * "0a7d30b252359a10"
    one = overlays.Example(
        "median", name, sample, labels, errors, {"dice": 1.0, "aji": 1.0, "pq": 1.0, "nuclei_true": 1}
    )
    for figure in (overlays.examples([one]), overlays.sample_with_labels(name, sample)):
        first, second = figure.axes[:2]
        figure.canvas.draw()
        title = first._left_title
        assert "…" in title.get_text()
        assert title.get_window_extent().x1 <= second.get_window_extent().x0
    assert shortened("human_liver_01", 27) == "human_liver_01"


def test_titles_of_parts_stay_over_their_picture() -> None:
    labels = np.zeros((20000, 1000), np.int32)
    sample = Sample(np.zeros((20000, 1000, 3), np.uint8), labels, labels > 0)
    scores = {"dice": 1.0, "aji": 1.0, "pq": 1.0, "nuclei_true": 12345}
    figure = overlays.examples(
        [overlays.Example("median", "t", sample, labels, classify_errors(labels, labels), scores)]
    )
    figure.canvas.draw()
    second, third = figure.axes[1:3]
    assert "12,345 nuclei; part of 1000 × 20000" in second._left_title.get_text()
    assert second._left_title.get_window_extent().x1 <= third.get_window_extent().x0


def test_one_endless_loss_leaves_the_others_and_folds_share_a_window() -> None:
    rng = np.random.default_rng(0)
    whole = [(step, 1 + rng.random()) for step in range(1, 401)]
    losses = {1: whole, 2: [(step, np.inf if step == 50 else loss) for step, loss in whole[:100]]}
    axes = figures.training_loss(losses).axes[0]
    (first, second) = (line.get_ydata() for line in axes.lines[1::2])
    assert len(second) == 99
    assert np.isfinite(second).all()
    # Where neither the odd loss nor an end is in the window.
    assert second[:40] == pytest.approx(first[:40])
    assert {text.get_text() for text in axes.texts} == {"fold 1", "fold 2"}


def test_names_of_lines_do_not_touch_whatever_step_they_end_at() -> None:
    curves = {metric: {fold: [(1, 0.5), (10 * fold, 0.8)] for fold in range(1, 6)} for metric in ("dice", "aji", "pq")}
    curves["pq"][2].append((30, float("nan")))
    figure = figures.validation_curves(curves, "validation")
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
        assert len(boxes) == 5
        assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))


def test_of_a_large_tile_the_part_with_most_errors_is_shown() -> None:
    labels = np.zeros((900, 2000), np.int32)
    for number, left in enumerate(range(20, 1900, 60), start=1):
        labels[700:720, left : left + 20] = number
    prediction = np.where(labels > 25, 0, labels)
    sample = Sample(np.zeros((900, 2000, 3), np.uint8), labels, np.zeros(labels.shape, bool))
    scores = {"dice": 0.9, "aji": 0.9, "pq": 0.9, "nuclei_true": labels.max()}
    row = overlays.Example("worst", "t", sample, prediction, classify_errors(labels, prediction), scores)
    figure = overlays.examples([row])
    image, truth, predicted = figure.axes[:3]
    assert image.images[0].get_size() == (512, 512)
    assert truth._left_title.get_text() == "truth: 32 nuclei; part of 2000 × 900"
    # All that were missed, each with its casing; of those found only the ones beside them.
    assert [len(drawn.get_paths()) for drawn in predicted.collections] == [7, 7, 2, 2]
    assert overlays.part_with_most(labels[:512, :512] > 0) == (slice(None), slice(None))


def test_bars_of_groups_and_diameters_of_nuclei():
    groups = {
        "a": {"tiles": 2, "dice": 0.9, "aji": 0.5, "pq": 0.4},
        "b": {"tiles": 1, "dice": 0.8, "aji": 0.6, "pq": 0.3},
    }
    (axes,) = breakdowns.by_group(groups, {"b": groups["a"]}).axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.6]
    areas = np.full(100, np.pi * 25.0)
    upper, _ = breakdowns.recall_against_size(areas, np.arange(100) < 30).axes
    (x,), (y,) = upper.containers[0].lines[0].get_data()
    assert (x, y) == pytest.approx((10, 0.3))
