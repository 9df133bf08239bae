from __future__ import annotations

import numpy as np
import pytest

from nuclora.data import open_tiles
from nuclora.data.synthetic import write_dataset
from nuclora.data.targets import dense_targets
from nuclora.errors import NucloraError
from nuclora.inference.views import show, undo, views


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views") / "tiles"
    write_dataset(folder, tiles=1, size=64, organs=1, seed=5)
    return next(iter(open_tiles(folder))).read().labels


@pytest.mark.parametrize("view", views(8))
def test_targets_of_a_view_undone_are_the_targets_of_the_image(labels, view):
    seen = dense_targets(show(labels, view))
    np.testing.assert_allclose(undo(seen, view), dense_targets(labels), atol=1e-5)


def test_views_are_eight_and_the_first_is_the_image(labels):
    shown = {show(labels, view).tobytes() for view in views(8)}
    assert len(shown) == 8
    np.testing.assert_array_equal(show(labels, views(1)[0]), labels)


def test_undo_leaves_its_input_alone():
    maps = np.random.default_rng(0).random((5, 4, 4)).astype(np.float32)
    before = maps.copy()
    undo(maps, views(8)[7])
    np.testing.assert_array_equal(maps, before)


def test_the_first_two_and_four_views_keep_the_axes():
    image = np.arange(9).reshape(3, 3)
    shown = [show(image, view).tolist() for view in views(4)]
    assert shown == [one.tolist() for one in (image, image[::-1, ::-1], image[:, ::-1], image[::-1])]


@pytest.mark.parametrize("count", [-1, 0, 9])
def test_there_are_one_to_eight_views(count):
    with pytest.raises(NucloraError, match="choose 1 to 8"):
        views(count)
