from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.data.prompts import inner_points, label_boxes, random_inner_points, to_input_frame


def _ring_and_friends() -> NDArray[np.int32]:
    """A ring (its centroid lies outside it), a bar at the border, a nucleus of two components, ids with gaps."""
    labels = np.zeros((40, 60), dtype=np.int32)
    y, x = np.ogrid[:40, :60]
    distance = np.hypot(y - 20, x - 20)
    labels[(distance < 12) & (distance > 6)] = 3
    labels[0:4, 50:60] = 9
    labels[30:33, 45:48] = 70000
    labels[35:39, 52:59] = 70000
    return labels


def test_boxes_are_those_of_a_plain_search() -> None:
    labels = _ring_and_friends()
    ids, boxes = label_boxes(labels)
    assert ids.tolist() == [3, 9, 70000]
    assert boxes.dtype == np.float32
    for identity, box in zip(ids, boxes, strict=True):
        rows, columns = np.nonzero(labels == identity)
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_innermost_pixel_is_the_deepest_of_the_whole_image() -> None:
    labels = _ring_and_friends()
    for identity, (x, y) in zip((3, 9, 70000), inner_points(labels), strict=True):
        depth = ndimage.distance_transform_edt(np.pad(labels == identity, 1))[1:-1, 1:-1]
        assert depth[int(y), int(x)] == depth.max()
        assert (int(y), int(x)) == np.unravel_index(depth.argmax(), depth.shape)


def test_points_come_in_the_order_of_the_ids() -> None:
    labels = _ring_and_friends()
    assert inner_points(labels, [9, 3]).tolist() == inner_points(labels)[[1, 0]].tolist()


def test_neighbours_that_touch_do_not_deepen_each_other() -> None:
    labels = np.zeros((9, 18), dtype=np.int32)
    labels[:, :9], labels[:, 9:] = 1, 2
    assert inner_points(labels).tolist() == [[4, 4], [13, 4]]


def test_random_points_lie_inside_reach_every_pixel_and_repeat_with_the_seed() -> None:
    labels = np.zeros((5, 5), dtype=np.int64)
    labels[1, 1:4] = labels[3, 2] = 4
    generator = np.random.default_rng(0)
    points = np.concatenate([random_inner_points(labels, [4], generator) for _ in range(200)])
    assert {(y, x) for x, y in points.astype(int)} == {(1, 1), (1, 2), (1, 3), (3, 2)}
    again = random_inner_points(labels, [4], np.random.default_rng(0))
    assert again.tolist() == points[:1].tolist()


def test_nothing_to_prompt() -> None:
    empty = np.zeros((4, 4), dtype=np.int32)
    ids, boxes = label_boxes(empty)
    assert ids.shape == (0,)
    assert boxes.shape == (0, 4)
    assert inner_points(empty).shape == (0, 2)


def test_an_absent_id_is_an_error() -> None:
    with pytest.raises(ValueError, match="no nucleus 5"):
        inner_points(_ring_and_friends(), [5])


def test_frame_mapping_follows_the_resizing_of_pixels() -> None:
    """A bright pixel's centre of mass moves, under bilinear resizing, to where its coordinates are mapped."""
    torch = pytest.importorskip("torch")
    image = torch.zeros(1, 1, 20, 30)
    image[0, 0, 7, 11] = 1
    resized = torch.nn.functional.interpolate(image, (120, 120), mode="bilinear", align_corners=False)[0, 0].numpy()
    y, x = ndimage.center_of_mass(resized)
    mapped = to_input_frame(np.array([[11.0, 7.0]]), (20, 30), 120)
    np.testing.assert_allclose(mapped, [[x, y]], atol=1e-4)
    box = to_input_frame(np.array([[11.0, 7.0, 11.0, 7.0]]), (20, 30), 120)
    np.testing.assert_allclose(box, [[x, y, x, y]], atol=1e-4)


def test_frame_of_the_same_size_changes_nothing() -> None:
    points = np.array([[0.0, 63.0], [12.5, 3.0]], dtype=np.float32)
    assert to_input_frame(points, (64, 64), 64).tolist() == points.tolist()
