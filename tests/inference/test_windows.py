"""Windows over an image of any size: where they stand, what they weigh, and that nobody sees them afterwards."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from nuclora.inference import windows
from nuclora.inference.windows import Part, predict_windows, seen_pixels, spans

SIZES = [(1, 1), (1, 37), (2, 3), (63, 65), (64, 64), (65, 64), (163, 88), (129, 300), (128, 65)]


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pool(image: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels, the last row or column mirrored where it is alone: a function of each cell's pixels only."""
    even = np.pad(image, [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)], mode="symmetric")
    height, width = even.shape[:2]
    return even.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize("margin", [0, 6, 16, 32])
@pytest.mark.parametrize("size", SIZES)
def test_a_local_function_gives_the_maps_of_the_whole_image(size, margin):
    image = random_image(*size)
    maps = predict_windows(image, 64, margin, pool)
    assert maps.dtype == np.float32
    assert maps.shape == (3, -(-size[0] // 2), -(-size[1] // 2))
    np.testing.assert_allclose(maps, pool(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (511, 513), (512, 512), (1300, 700)])
def test_windows_of_the_size_in_use(size):
    image = random_image(*size)
    np.testing.assert_allclose(predict_windows(image, 512, 64, pool), pool(image), rtol=0, atol=1e-4)


def test_an_image_of_one_window_is_predicted_once_and_taken_as_it_is():
    image = random_image(64, 64)
    parts = []

    def predict(part: np.ndarray) -> np.ndarray:
        parts.append(part.copy())
        return np.random.default_rng(0).random((5, 32, 32), dtype=np.float32)

    maps = predict_windows(image, 64, 16, predict)
    assert len(parts) == 1
    np.testing.assert_array_equal(parts[0], image)
    np.testing.assert_array_equal(maps, np.random.default_rng(0).random((5, 32, 32), dtype=np.float32))


def test_a_smaller_image_is_mirrored_as_often_as_it_takes():
    image = random_image(3, 5)
    seen = []
    predict_windows(image, 16, 4, lambda part: seen.append(part) or np.zeros((1, 8, 8), np.float32))
    (part,) = seen
    rows, columns = [0, 1, 2, 2, 1, 0] * 3, [0, 1, 2, 3, 4, 4, 3, 2, 1, 0] * 2
    np.testing.assert_array_equal(part, image[rows[:16]][:, columns[:16]])


@pytest.mark.parametrize("margin", [0, 2, 10, 32])
def test_weights_sum_to_one_and_windows_overlap_by_the_margin(margin):
    for length in [*range(1, 400, 7), 64, 65, 66, 126, 128, 2000]:
        total = np.zeros(-(-length // 2) + 64)
        placed = spans(length, 64, margin)
        for span in placed:
            assert span.start % 2 == 0
            assert span.weights.shape == (32,)
            assert span.weights.min() >= 0
            total[span.start // 2 :][:32] += span.weights
        np.testing.assert_allclose(total[: -(-length // 2)], 1, atol=1e-6)
        assert [span.start for span in placed] == [index * (64 - margin) for index in range(len(placed))]
        assert placed[-1].start + 64 >= length
        assert len(placed) == 1 or placed[-2].start + 64 < length


def test_no_seam_where_windows_disagree():
    """Windows whose maps differ by a constant: the blend must slide from one to the other, not jump."""
    count = iter(range(100))
    image = np.zeros((64, 400, 3), np.uint8)
    maps = predict_windows(image, 64, 20, lambda part: np.full((1, 32, 32), next(count), np.float32))
    steps = np.abs(np.diff(maps[0], axis=1))
    # A jump would be 1; a raised cosine over 10 cells is nowhere steeper than pi / 2 / 10.
    assert steps.max() < 0.17
    assert maps[0, 0, 0] == 0
    assert np.ptp(maps, axis=1).max() == 0


def by_window(window: np.ndarray) -> np.ndarray:
    """Maps that depend on all that a window shows, so that only the same window gives the same maps."""
    return pool(window) * np.float32(1 + np.abs(np.sin(window.astype(np.float64).sum())))


@pytest.mark.parametrize("size", SIZES)
def test_the_maps_of_a_part_are_a_slice_of_the_whole_images(size):
    image = random_image(*size)
    whole = predict_windows(image, 32, 8, by_window)
    generator = np.random.default_rng(1)
    for _ in range(12):
        rows, columns = (range(*np.sort(generator.choice(length + 1, 2, replace=False))) for length in whole.shape[1:])
        seen = [seen_pixels(length, 32, 8, cells) for length, cells in zip(size, (rows, columns), strict=True)]
        at_hand = image[seen[0].start : seen[0].stop, seen[1].start : seen[1].stop]
        part = Part(size, (seen[0].start, seen[1].start), rows, columns)
        maps = predict_windows(at_hand, 32, 8, by_window, part=part)
        np.testing.assert_array_equal(maps, whole[:, rows.start : rows.stop, columns.start : columns.stop])


def test_only_the_windows_that_touch_the_part_are_predicted_and_known_ones_are_not():
    image, seen = random_image(200, 200), []

    def predict(window: np.ndarray) -> np.ndarray:
        seen.append(window)
        return by_window(window)

    known: dict[tuple[int, int], np.ndarray] = {}
    # Windows begin at 0, 24, 48, ...; cells 14..20 are pixels 28..41, which those at 0 and 24 show.
    first = Part((200, 200), (0, 0), range(14, 20), range(4))
    predict_windows(image, 32, 8, predict, part=first, known=known)
    assert sorted(known) == [(0, 0), (24, 0)]
    assert len(seen) == 2
    second = Part((200, 200), (0, 0), range(14, 20), range(14, 20))
    maps = predict_windows(image, 32, 8, predict, part=second, known=known)
    assert len(seen) == 4
    np.testing.assert_array_equal(maps, predict_windows(image, 32, 8, by_window)[:, 14:20, 14:20])


def test_progress_counts_the_windows():
    told = []
    predict_windows(np.zeros((100, 100, 3), np.uint8), 64, 16, pool, lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("window", "margin"), [(63, 8), (0, 0), (64, 34), (64, 7), (64, -2)])
def test_windows_that_cannot_be_are_refused(window, margin):
    with pytest.raises(ValueError, match=r"window|margin"):
        predict_windows(np.zeros((9, 9, 3), np.uint8), window, margin, pool)


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match="0x5 pixels"):
        predict_windows(np.zeros((0, 5, 3), np.uint8), 64, 16, pool)


def test_the_example_holds():
    assert doctest.testmod(windows).failed == 0
