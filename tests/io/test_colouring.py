from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from nuclora.io.colouring import neighbour_colours, neighbour_pairs


def crowd(seed: int, count: int = 60, size: int = 90) -> np.ndarray:
    """Overlapping discs of random ids with gaps: crowded, ragged, some in several components."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:size, :size]
    labels = np.zeros((size, size), np.int32)
    for label in rng.choice(np.arange(1, 5 * count), count, replace=False):
        y, x = rng.integers(0, size, 2)
        labels[(rows - y) ** 2 + (columns - x) ** 2 < rng.integers(2, 9) ** 2] = label
    return labels


def pairs_by_distance(labels: np.ndarray, distance: int) -> set[tuple[int, int]]:
    """The same pairs by the distance transform of each instance."""
    found = set()
    for label in np.unique(labels[labels > 0]):
        near = labels[ndimage.distance_transform_edt(labels != label) <= distance]
        found |= {(int(label), int(other)) for other in np.unique(near) if other > label}
    return found


@pytest.mark.parametrize("distance", [1, 2, 3, 5])
def test_neighbours_are_those_within_the_distance(distance: int) -> None:
    labels = crowd(distance)
    pairs = [tuple(pair) for pair in neighbour_pairs(labels, distance).tolist()]
    assert len(pairs) == len(set(pairs)) > 30
    assert set(pairs) == pairs_by_distance(labels, distance)


@pytest.mark.parametrize("seed", range(8))
def test_neighbours_never_share_a_colour(seed: int) -> None:
    labels = crowd(seed, count=120)
    colours = neighbour_colours(labels)
    assert set(colours) == set(np.unique(labels[labels > 0]).tolist())
    for first, second in pairs_by_distance(labels, 3):
        assert colours[first] != colours[second]


def test_a_clique_beyond_the_palette_gets_colours_of_its_own() -> None:
    labels = np.arange(1, 13, dtype=np.int32).reshape(3, 4)
    colours = neighbour_colours(labels, distance=5)
    assert len(set(colours.values())) == 12


def test_all_colours_are_used_evenly_where_nothing_touches() -> None:
    labels = np.zeros((60, 60), np.int32)
    labels[::10, ::10] = np.arange(1, 37).reshape(6, 6)
    assert np.bincount(list(neighbour_colours(labels, 6).values())).tolist() == [6] * 6


def test_no_labels_need_no_colours() -> None:
    assert neighbour_colours(np.zeros((5, 5), np.int32)) == {}
    assert neighbour_pairs(np.zeros((5, 5), np.int32)).shape == (0, 2)
