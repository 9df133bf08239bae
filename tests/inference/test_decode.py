from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import watershed

from nuclora.data import open_tiles
from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.data.targets import dense_targets
from nuclora.errors import NucloraError
from nuclora.inference.decode import _hills, _join, _whole, decode, fill_holes, upsample
from nuclora.metrics import aji, classify_errors
from nuclora.recipe import DecodeSettings

SETTINGS = DecodeSettings()


def two_discs(apart: float, radius: float = 10, size: int = 64) -> np.ndarray:
    """Two discs side by side; where they overlap, each has its half."""
    y, x = np.mgrid[:size, :size]
    middle = (size - 1) / 2
    left = np.hypot(y - middle, x - middle + apart / 2)
    right = np.hypot(y - middle, x - middle - apart / 2)
    labels = np.where(left <= right, 1, 2)
    labels[np.minimum(left, right) > radius] = 0
    return labels.astype(np.int32)


def components(labels: np.ndarray) -> list[int]:
    return [int(ndimage.label(labels == label)[1]) for label in range(1, labels.max() + 1)]


@pytest.mark.parametrize("organ", ORGANS)
def test_true_maps_give_the_nuclei_back(organ: str) -> None:
    truth = synthesize_tile(256, 2, organ).labels
    found = decode(dense_targets(truth), truth.shape, SETTINGS, min_size=10)
    assert found.dtype == np.int32
    assert aji(truth, found) > 0.97
    assert found.max() == truth.max()


def test_true_maps_of_real_tiles(shared_data: Path, tmp_path: Path) -> None:
    unpack = shared_data / "nuinsseg" / "unpack.py"
    if not unpack.is_file():
        pytest.skip(f"no NuInsSeg tiles: {unpack} is missing")
    organs = "human spleen,human kidney,human cerebellum,mouse thymus"
    command = [sys.executable, unpack, tmp_path / "tiles", "--organs", organs, "--per-organ", "2"]
    subprocess.run(command, check=True, capture_output=True)
    scores = []
    for tile in open_tiles(tmp_path / "tiles"):
        sample = tile.read()
        height, width = sample.labels.shape
        found = decode(dense_targets(sample.labels), (height, width), SETTINGS, min_size=10)
        scores.append(aji(sample.labels, found, sample.ignore))
    assert len(scores) == 8
    assert np.mean(scores) > 0.97


def test_touching_nuclei_part_along_their_border() -> None:
    truth = two_discs(apart=16)
    found = decode(dense_targets(truth), truth.shape, SETTINGS, min_size=10)
    assert found.max() == 2
    assert np.mean((found == 1) == (truth == 1)) > 0.99


@pytest.mark.parametrize("shape", [(63, 64), (64, 61), (33, 47), (5, 7), (1, 1), (1, 9)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    truth = synthesize_tile(64, 4, ORGANS[0]).labels[: shape[0], : shape[1]]
    found = decode(dense_targets(truth), shape, SETTINGS, min_size=10)
    assert found.shape == shape
    if shape[0] > 40:
        assert aji(truth, found) > 0.9


def test_upsampling_keeps_places() -> None:
    y, x = np.mgrid[:30, :41].astype(np.float32)
    for plane in (y, x):
        padded = np.pad(plane, ((0, 0), (0, 1)), mode="edge")
        pooled = padded.reshape(15, 2, 21, 2).mean(axis=(1, 3))
        large = upsample(pooled[None], (30, 41))[0]
        # The outermost half cell has no neighbour to slope to.
        np.testing.assert_allclose(large[1:-1, 1:-2], plane[1:-1, 1:-2], atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_hills_are_those_of_a_watershed_of_all_ground(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
    voted = rng.integers(0, shape[0] * shape[1], int(rng.integers(1, 400)))
    # Every third time whole ballots, whose votes are often equal.
    weights = np.ones(len(voted)) if seed % 3 == 0 else rng.uniform(0.5, 1, len(voted))
    ballots = np.bincount(voted, weights, shape[0] * shape[1]).astype(np.float32).reshape(shape)
    smooth = (1.0, 2.0, 3.5)[seed % 3]
    votes = ndimage.gaussian_filter(ballots, smooth, mode="constant")
    floor = 0.03 / smooth**2
    for min_size, valley in itertools.product((0, 1, 4), (0.0, 0.3, 0.75)):
        least = min_size / (2 * np.pi * smooth**2)
        ground = votes > floor
        peaks = (ndimage.maximum_filter(votes, 5) == votes) & ground & (votes >= least)
        whole = watershed(-votes, ndimage.label(peaks)[0], mask=ground).astype(np.int32)
        hills = _hills(votes, voted, floor, least, valley)
        assert np.array_equal(hills.ravel()[voted], _join(whole, votes, valley).ravel()[voted])


def test_empty_maps_have_no_nuclei() -> None:
    found = decode(np.zeros((5, 16, 16), np.float32), (32, 32), SETTINGS, min_size=0)
    assert (found.dtype, found.max()) == (np.int32, 0)


def test_all_foreground_without_offsets_or_core_is_no_nucleus() -> None:
    maps = np.zeros((5, 16, 16), np.float32)
    maps[0] = 1
    assert decode(maps, (32, 32), SETTINGS, min_size=0).max() == 0


def test_nuclei_of_few_pixels() -> None:
    # At half resolution a single cell, the smallest that maps can show.
    truth = np.zeros((20, 20), np.int32)
    truth[4:6, 4:6], truth[10:12, 14:16] = 1, 2
    maps = dense_targets(truth)
    low = SETTINGS.model_copy(update={"core": 0.1})
    found = decode(maps, truth.shape, low, min_size=1)
    assert found.max() == 2
    assert found[4, 4] == 1
    assert found[11, 15] == 2
    assert decode(maps, truth.shape, low, min_size=30).max() == 0
    # One pixel is a quarter of a cell: less foreground than half.
    lone = np.zeros((20, 20), np.int32)
    lone[5, 5] = 1
    assert decode(dense_targets(lone), lone.shape, SETTINGS, min_size=0).max() == 0


def test_labels_are_numbered_whole_and_large_enough_whatever_the_maps() -> None:
    rng = np.random.default_rng(3)
    maps = rng.random((5, 48, 40), dtype=np.float32)
    maps[:3] = ndimage.gaussian_filter(maps[:3], (0, 1.2, 1.2))
    maps[3:] = 12 * (maps[3:] - 0.5)
    found = decode(maps, (96, 80), SETTINGS.model_copy(update={"core": 0.0}), min_size=12)
    areas = np.bincount(found.ravel())[1:]
    assert len(areas) > 5
    assert areas.min() >= 12
    assert set(components(found)) == {1}
    firsts = [int(np.flatnonzero(found == label)[0]) for label in range(1, len(areas) + 1)]
    assert firsts == sorted(firsts)


def test_a_label_keeps_its_largest_part() -> None:
    # Both discs vote for one middle, as parts of one nucleus would.
    truth = two_discs(apart=30, radius=8)
    truth[:, :32][np.hypot(*(np.mgrid[:64, :32] - np.array([31.5, 16.5])[:, None, None])) > 5] = 0
    maps = dense_targets(truth)
    y, x = np.mgrid[:32, :32] * 2 + 0.5
    maps[3:] = np.stack([31.5 - y, 31.5 - x]) * (maps[0] > 0)
    found = decode(maps, truth.shape, SETTINGS, min_size=10)
    assert found.max() == 1
    assert np.array_equal(np.unique(truth[found > 0]), [0, 2]) or np.array_equal(np.unique(truth[found > 0]), [2])


def test_holes_are_filled_but_not_what_lies_between_nuclei() -> None:
    truth = two_discs(apart=0, radius=20)
    maps = dense_targets(truth)
    maps[0, 14:18, 14:18] = 0
    found = decode(maps, truth.shape, SETTINGS, min_size=10)
    assert found.max() == 1
    assert found[28:36, 28:36].all()
    # Four quarters around a hole: it belongs to none of them.
    y, x = np.mgrid[:64, :64]
    quarters = (1 + (y > 31) + 2 * (x > 31)).astype(np.int32)
    ring = np.hypot(y - 31.5, x - 31.5)
    quarters[(ring > 28) | (ring < 6)] = 0
    found = decode(dense_targets(quarters), quarters.shape, SETTINGS, min_size=10)
    assert found.max() == 4
    assert not found[29:35, 29:35].any()


def test_a_hole_at_the_edge_of_the_image_stays() -> None:
    truth = np.zeros((64, 64), np.int32)
    truth[:30, 10:50] = 1
    maps = dense_targets(truth)
    maps[0, :5, 12:16] = 0
    found = decode(maps, truth.shape, SETTINGS, min_size=10)
    assert not found[:8, 26:30].any()


def test_foreground_moves_the_outline() -> None:
    truth = two_discs(apart=16)
    maps = dense_targets(truth)
    areas = [
        np.count_nonzero(decode(maps, truth.shape, SETTINGS.model_copy(update={"foreground": value}), 10))
        for value in (0.2, 0.5, 0.8)
    ]
    assert areas[0] > areas[1] > areas[2]


def test_smoothing_and_valley_decide_whether_neighbours_are_one() -> None:
    truth = two_discs(apart=14)
    maps = dense_targets(truth)
    # Votes as scattered as a real decoder's.
    maps[3:] += np.random.default_rng(0).normal(0, 4, maps[3:].shape)

    def count(**changes: float) -> int:
        return int(decode(maps, truth.shape, SETTINGS.model_copy(update=changes), 10).max())

    assert count() == 2
    assert count(valley=0.05) == 1
    assert count(smooth=9.0) == 1


def test_core_leaves_out_what_nothing_is_sure_of() -> None:
    truth = two_discs(apart=24)
    maps = dense_targets(truth)
    maps[2, :, :16] *= 0.3
    assert decode(maps, truth.shape, SETTINGS, 10).max() == 1
    assert decode(maps, truth.shape, SETTINGS.model_copy(update={"core": 0.1}), 10).max() == 2


def test_equal_maps_give_equal_labels_and_stay_as_they_were() -> None:
    truth = synthesize_tile(128, 1, ORGANS[1]).labels
    maps = dense_targets(truth)
    before = maps.copy()
    assert np.array_equal(decode(maps, (128, 128), SETTINGS, 10), decode(maps, (128, 128), SETTINGS, 10))
    assert np.array_equal(maps, before)


def test_a_view_of_maps_decodes_as_a_copy() -> None:
    maps = dense_targets(synthesize_tile(128, 1, ORGANS[1]).labels)
    view = maps[:, ::-1]
    assert np.array_equal(decode(view, (128, 128), SETTINGS, 10), decode(view.copy(), (128, 128), SETTINGS, 10))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("plane", range(5))
def test_refuses_values_that_are_not_finite(bad: float, plane: int) -> None:
    maps = np.zeros((5, 8, 8), np.float32)
    maps[plane, 3, 3] = bad
    with pytest.raises(NucloraError, match="not finite"):
        decode(maps, (16, 16), SETTINGS, 10)


@pytest.mark.parametrize(("maps_shape", "shape"), [((5, 8, 8), (17, 16)), ((4, 8, 8), (16, 16)), ((5, 8), (16, 16))])
def test_refuses_maps_of_another_shape(maps_shape: tuple[int, ...], shape: tuple[int, int]) -> None:
    with pytest.raises(NucloraError, match="must be"):
        decode(np.zeros(maps_shape, np.float32), shape, SETTINGS, 10)


def test_few_nuclei_of_a_dense_tile_are_merged() -> None:
    truth = synthesize_tile(512, 1, ORGANS[0]).labels
    maps = dense_targets(truth)
    found = decode(maps, truth.shape, SETTINGS, 10)
    assert classify_errors(truth, found).counts["merged"] <= 0.02 * truth.max()


def test_a_peak_needs_the_votes_of_the_smallest_nucleus():
    y, x = np.mgrid[:16, :16] * 2 + 0.5
    for sure, count in ((0.6, 0), (0.95, 1)):
        maps = np.stack([np.full((16, 16), sure), 0 * y, np.ones_like(y), 15.5 - y, 15.5 - x]).astype(np.float32)
        assert decode(maps, (32, 32), DecodeSettings(), min_size=800).max() == count


def test_the_valley_is_measured_at_the_lower_peak_and_high_passes_go_first():
    hills, votes = np.array([[1, 1, 2, 2]], np.int32), np.array([[10, 4, 4, 5]], np.float32)
    assert len(np.unique(_join(hills, votes, 0.75))) == 1
    assert len(np.unique(_join(hills, votes, 0.85))) == 2
    hills = np.array([[1, 1, 2, 2, 2, 3, 3]], np.int32)
    votes = np.array([[10, 4.9, 4.9, 5, 4.5, 4.5, 6]], np.float32)
    assert _join(hills, votes, 0.8).tolist() == [[1, 1, 1, 1, 1, 3, 3]]


def test_a_hole_counts_for_the_size_of_its_nucleus() -> None:
    ring = np.pad(np.ones((3, 5), np.int32), 2)
    ring[3, 3:6] = 0
    assert np.count_nonzero(_whole(ring, min_size=15)) == 15
    assert np.count_nonzero(_whole(ring, min_size=16)) == 0


@pytest.mark.parametrize("turns", range(4))
def test_a_hole_at_any_edge_of_the_image_stays(turns: int) -> None:
    labels = np.ones((7, 7), np.int32)
    labels[0, 3] = 0
    turned = np.rot90(labels, turns).copy()
    np.testing.assert_array_equal(fill_holes(turned), turned)


def test_of_two_parts_of_one_size_the_first_stays() -> None:
    labels = np.zeros((5, 9), np.int32)
    labels[1:3, 1:3] = labels[2:4, 6:8] = 1
    whole = _whole(labels, 1)
    assert whole[1, 1] == 1
    assert whole[2, 6] == 0
