from __future__ import annotations

import numpy as np
import pytest

from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.data.targets import MAPS, contact_zone, dense_targets, pixel_weights
from nuclora.errors import NucloraError


def full_resolution_by_brute_force(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The maps straight from their definitions, pixel by pixel; every id must be one component."""
    height, width = labels.shape
    maps = {name: np.zeros((height, width)) for name in MAPS}
    depth = np.zeros((height, width))
    padded = np.pad(labels, 1)
    for y in range(height):
        for x in range(width):
            near = labels[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            maps["contact"][y, x] = len(set(near[near > 0].tolist())) > 1
            if not labels[y, x]:
                continue
            ys, xs = np.nonzero(labels == labels[y, x])
            maps["foreground"][y, x] = 1
            maps["offset_y"][y, x], maps["offset_x"][y, x] = ys.mean() - y, xs.mean() - x
            outside = np.argwhere(padded != labels[y, x]) - 1
            depth[y, x] = np.sqrt(((outside - (y, x)) ** 2).sum(1).min())
    for identity in set(labels[labels > 0].tolist()):
        maps["distance"][labels == identity] = depth[labels == identity] / depth[labels == identity].max()
    return maps


def pooled_by_brute_force(labels: np.ndarray, stride: int) -> np.ndarray:
    full = full_resolution_by_brute_force(labels)
    rows, columns = -(-labels.shape[0] // stride), -(-labels.shape[1] // stride)
    pooled = np.zeros((5, rows, columns))
    for row in range(rows):
        for column in range(columns):
            # At the bottom and the right the last pixel is repeated to fill the cell.
            ys = np.minimum(np.arange(row * stride, (row + 1) * stride), labels.shape[0] - 1)
            xs = np.minimum(np.arange(column * stride, (column + 1) * stride), labels.shape[1] - 1)
            cell = {name: plane[np.ix_(ys, xs)] for name, plane in full.items()}
            nucleus = cell["foreground"] > 0
            pooled[0, row, column] = cell["foreground"].mean()
            pooled[1, row, column] = cell["contact"].max()
            pooled[2, row, column] = cell["distance"].mean()
            if nucleus.any():
                pooled[3, row, column] = cell["offset_y"][nucleus].mean()
                pooled[4, row, column] = cell["offset_x"][nucleus].mean()
    return pooled


@pytest.mark.parametrize("organ", ORGANS[:2])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_maps_equal_their_definitions(organ: str, stride: int) -> None:
    labels = synthesize_tile(64, 5, organ).labels[:41, :50]
    maps = dense_targets(labels, stride)
    assert maps.dtype == np.float32
    assert maps.shape == (5, -(-41 // stride), -(-50 // stride))
    np.testing.assert_allclose(maps, pooled_by_brute_force(labels, stride), atol=1e-5)


def test_parts_of_one_id_are_nuclei_of_their_own() -> None:
    labels = np.zeros((20, 60), np.int32)
    labels[4:12, 4:12] = labels[4:12, 40:48] = 3
    apart = labels.copy()
    apart[:, 30:][labels[:, 30:] > 0] = 7
    assert np.array_equal(dense_targets(labels), dense_targets(apart))
    assert np.abs(dense_targets(labels)[3:]).max() < 4


def test_diagonal_neighbours_are_one_nucleus() -> None:
    labels = np.eye(12, dtype=np.int32)
    offset_y = dense_targets(labels, stride=1)[3]
    np.testing.assert_allclose(np.diagonal(offset_y), 5.5 - np.arange(12))


def test_contact_bridges_the_gap_between_two_nuclei_but_not_one_nucleus() -> None:
    labels = np.zeros((9, 30), np.int32)
    labels[:, 2:8], labels[:, 11:16], labels[:, 20:26] = 1, 2, 3
    assert np.flatnonzero(contact_zone(labels)[4]).tolist() == [9]
    labels[labels == 2] = 1
    assert not contact_zone(labels).any()


def test_touching_nuclei_meet_over_four_pixels_and_their_cells() -> None:
    labels = np.zeros((8, 16), np.int32)
    labels[:, :8], labels[:, 8:] = 4, 2
    assert np.flatnonzero(contact_zone(labels)[3]).tolist() == [6, 7, 8, 9]
    assert dense_targets(labels)[1].max(0).tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_contact_grows_to_every_cell_that_it_reaches() -> None:
    labels = np.zeros((8, 16), np.int32)
    labels[:, :7], labels[:, 7:] = 4, 2
    assert dense_targets(labels)[1].max(0).tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_no_nuclei_make_empty_maps_and_even_weights() -> None:
    labels = np.zeros((7, 10), np.int32)
    assert not dense_targets(labels).any()
    assert np.array_equal(pixel_weights(labels, 2.0, 1.0), np.ones((4, 5)))


def test_a_tile_that_is_all_nucleus() -> None:
    maps = dense_targets(np.ones((8, 8), np.int32))
    assert maps[0].min() == 1
    assert not maps[1].any()
    assert maps[2].argmax() == 5


def test_one_pixel_nucleus() -> None:
    labels = np.zeros((6, 6), np.int32)
    labels[2, 3] = 9
    maps = dense_targets(labels)
    assert maps[:, 1, 1].tolist() == [0.25, 0, 0.25, 0, 0]
    assert np.count_nonzero(maps) == 2


def test_weights_of_contact_and_small_nuclei() -> None:
    labels = np.zeros((20, 40), np.int32)
    labels[2:14, 2:14], labels[2:14, 14:26], labels[16:18, 30:34] = 5, 6, 8
    weights = pixel_weights(labels, contact_weight=2.0, small_weight=0.5)
    assert (weights.dtype, weights.shape) == (np.float32, (10, 20))
    expected = np.ones((10, 20))
    expected[:8, 6:8] += 2
    expected[8, 15:17] += 0.5
    np.testing.assert_allclose(weights, expected)


def test_weights_off_are_one() -> None:
    labels = synthesize_tile(64, 5, ORGANS[0]).labels
    assert np.array_equal(pixel_weights(labels, 0.0, 0.0), np.ones((32, 32)))


def test_gaps_in_ids_change_nothing() -> None:
    labels = synthesize_tile(64, 5, ORGANS[0]).labels
    assert np.array_equal(dense_targets(labels), dense_targets(labels * 37))
    assert np.array_equal(pixel_weights(labels, 1.0, 1.0), pixel_weights(labels * 37, 1.0, 1.0))


def test_large_ids_take_neither_time_nor_memory() -> None:
    labels = synthesize_tile(64, 5, ORGANS[0]).labels
    # A table by id would need 16 GB.
    far = np.where(labels > 0, labels + 2_000_000_000, 0).astype(np.int32)
    assert np.array_equal(dense_targets(labels), dense_targets(far))
    assert np.array_equal(pixel_weights(labels, 1.0, 1.0), pixel_weights(far, 1.0, 1.0))


@pytest.mark.parametrize(
    ("labels", "stride", "reason"),
    [
        (np.zeros((4, 4)), 2, "integers"),
        (np.zeros((4, 4, 1), np.int32), 2, "integers"),
        (np.zeros((0, 4), np.int32), 2, "integers"),
        (np.full((4, 4), -1, np.int32), 2, "negative"),
        (np.zeros((4, 4), np.int32), 0, "stride"),
    ],
)
def test_refuses_what_it_cannot_pool(labels: np.ndarray, stride: int, reason: str) -> None:
    with pytest.raises(NucloraError, match=reason):
        dense_targets(labels, stride)
    with pytest.raises(NucloraError, match=reason):
        pixel_weights(labels, 1.0, 1.0, stride)
