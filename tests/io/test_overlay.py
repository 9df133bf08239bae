"""The overlay: thin lines, inside the nuclei, for the smallest nucleus too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nuclora.io.overlay import OUTLINE_COLOURS, draw_outlines, write_overlay


def purple(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), (140, 80, 150), np.uint8)


def changed(image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.abs(image.astype(int) - drawn).max(axis=2)


def disc(size: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:size, :size]
    return np.hypot(rows - y, columns - x) <= radius


def test_the_line_is_at_the_edge_and_neither_inside_nor_far_outside() -> None:
    labels = disc(60, 30, 30, 15).astype(np.int32)
    image = purple(60, 60)
    drawn = draw_outlines(image, labels)
    difference = changed(image, drawn)
    assert (difference[disc(60, 30, 30, 11.5)] == 0).all()
    assert (difference[~disc(60, 30, 30, 18)] == 0).all()
    # Along every ray from the centre the line is met.
    for angle in np.linspace(0, 2 * np.pi, 90):
        along = [(round(30 + r * np.sin(angle)), round(30 + r * np.cos(angle))) for r in np.arange(11, 18, 0.5)]
        assert max(difference[place] for place in along) > 60
    assert (image == purple(60, 60)).all()


def test_lines_are_anti_aliased() -> None:
    labels = disc(60, 30, 30, 15.3).astype(np.int32)
    difference = changed(purple(60, 60), draw_outlines(purple(60, 60), labels))
    assert len(np.unique(difference)) > 15


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 3), (12, 1)])
def test_the_smallest_nuclei_are_seen(shape: tuple[int, int]) -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[8 : 8 + shape[0], 8 : 8 + shape[1]] = 1
    difference = changed(purple(30, 30), draw_outlines(purple(30, 30), labels))
    assert (difference[labels > 0].max(axis=0) > 80).all()


def test_touching_nuclei_keep_lines_of_their_own_colours() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[5:35, 5:30], labels[5:35, 30:55] = 1, 2
    drawn = draw_outlines(purple(40, 60), labels)
    left, right = drawn[20, 28:30].astype(int), drawn[20, 30:32].astype(int)
    distances = [
        [np.abs(side - np.array(colour)).sum(axis=1).min() for colour in OUTLINE_COLOURS] for side in (left, right)
    ]
    assert np.argmin(distances[0]) != np.argmin(distances[1])
    assert max(min(row) for row in distances) < 250


def test_a_nucleus_at_the_border_is_closed_there() -> None:
    labels = np.ones((20, 20), np.int32)
    difference = changed(purple(20, 20), draw_outlines(purple(20, 20), labels))
    border = np.ones((20, 20), bool)
    border[1:-1, 1:-1] = False
    border[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    assert difference[border].min() > 60
    assert difference[5:15, 5:15].max() == 0


def test_gaps_in_ids_and_no_nuclei(tmp_path: Path) -> None:
    labels = np.zeros((20, 20), np.int32)
    assert (draw_outlines(purple(20, 20), labels) == purple(20, 20)).all()
    labels[5:15, 5:15] = 7
    write_overlay(tmp_path / "a.png", purple(20, 20), labels)
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(image) == draw_outlines(purple(20, 20), labels)).all()
