from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nuclora.data import open_tiles
from nuclora.data.targets import dense_targets, pixel_weights, pool_any
from nuclora.data.tiles import Sample
from nuclora.models.preprocess import prepare
from nuclora.recipe import LossSettings, PromptSettings, Recipe
from nuclora.training.samples import TrainingSamples, jitter_boxes, make_sample, nucleus_weights
from nuclora.training.trainer import scale_of


def _sample(size: int = 64) -> Sample:
    labels = np.zeros((size, size), np.int32)
    labels[4:20, 4:20] = 3
    labels[20:30, 4:20] = 5  # touches 3
    labels[40:44, 40:44] = 9  # small and alone
    ignore = np.zeros((size, size), bool)
    ignore[50:, 50:] = True
    image = np.random.default_rng(1).integers(0, 255, (size, size, 3)).astype(np.uint8)
    return Sample(image=image, labels=labels, ignore=ignore)


def _make(recipe, sample, size=64, seed=0):
    return make_sample(sample, recipe, size=size, normalise="unit", generator=np.random.default_rng(seed))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_prompts_lie_where_their_nucleus_is(tiny_recipe, size):
    recipe = tiny_recipe.model_copy(update={"prompts": PromptSettings(box_jitter=0)})
    made = _make(recipe, _sample(), size)
    assert made.ids.tolist() == [3, 5, 9]
    assert made.pixel_values.shape == (3, size, size)
    for nucleus, box, point in zip(made.ids, made.boxes, made.points, strict=True):
        rows, columns = np.nonzero(made.labels.numpy() == nucleus.item())
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
        x, y = point.round().int().tolist()
        assert made.labels[y, x] == nucleus
    assert made.weights.sum() == pytest.approx(1)


def test_vague_areas_are_neither_prompted_nor_in_the_loss(tiny_recipe):
    sample = _sample()
    sample.labels[52:60, 52:60] = 11
    made = _make(tiny_recipe, sample)
    assert 11 not in made.ids
    assert not made.valid[55, 55]
    assert made.valid[0, 0]


def test_no_more_nuclei_than_asked_for_and_other_ones_each_time(tiny_recipe):
    recipe = tiny_recipe.model_copy(update={"prompts": PromptSettings(per_tile=1)})
    drawn = {tuple(_make(recipe, _sample(), seed=seed).ids.tolist()) for seed in range(20)}
    assert drawn == {(3,), (5,), (9,)}


def test_a_tile_without_nuclei_gives_no_prompts(tiny_recipe):
    sample = _sample()
    sample.labels[:] = 0
    made = _make(tiny_recipe, sample)
    assert len(made.ids) == len(made.boxes) == len(made.points) == len(made.weights) == 0


def test_mask_stride_only_coarsens_the_masks(tiny_recipe):
    recipe = tiny_recipe.model_copy(update={"loss": LossSettings(stride=4)})
    coarse, fine = _make(recipe, _sample()), _make(tiny_recipe, _sample())
    assert coarse.labels.shape == coarse.valid.shape == (16, 16)
    assert torch.equal(coarse.boxes, fine.boxes)
    assert torch.equal(coarse.labels, fine.labels[2::4, 2::4])


def test_what_has_no_pixel_in_the_masks_is_not_prompted(tiny_recipe):
    sample = _sample()
    sample.labels[:] = 0
    sample.labels[8:24, 8:24] = 1
    # Between the pixels that stay of each 4 x 4.
    sample.labels[40:56, 41] = 2
    recipe = tiny_recipe.model_copy(update={"loss": LossSettings(stride=4)})
    assert _make(tiny_recipe, sample).ids.tolist() == [1, 2]
    assert _make(recipe, sample).ids.tolist() == [1]


def test_jittered_boxes_stay_inside_in_order_and_within_the_jitter():
    generator = np.random.default_rng(0)
    boxes = np.array([[0, 0, 63, 63], [10, 20, 10, 20], [5, 6, 25, 16]], np.float32)
    for _ in range(200):
        moved = jitter_boxes(boxes, 0.3, 64, generator)
        assert (moved >= 0).all()
        assert (moved <= 63).all()
        assert (moved[:, 2:] >= moved[:, :2]).all()
        assert np.abs(moved[2] - boxes[2])[[0, 2]].max() <= 0.3 * 21
        assert np.abs(moved[2] - boxes[2])[[1, 3]].max() <= 0.3 * 11


def test_weights_rise_for_touching_and_small_nuclei():
    labels = _sample().labels
    ids = np.array([3, 5, 9], np.int32)
    assert nucleus_weights(labels, ids, LossSettings()).tolist() == [1, 1, 1]
    assert nucleus_weights(labels, ids, LossSettings(touching_weight=2)).tolist() == [3, 3, 1]
    assert nucleus_weights(labels, ids, LossSettings(small_weight=0.5)).tolist() == [1, 1, 1.5]


def test_an_adapter_knows_the_scale_of_its_tiles_where_they_agree_on_it(tiny_data):
    tiles = open_tiles(tiny_data)
    assert scale_of(tiles) is None
    scaled = [replace(tile, microns_per_pixel=0.25) for tile in tiles]
    assert scale_of(scaled) == 0.25
    assert scale_of([*scaled[1:], replace(scaled[0], microns_per_pixel=0.5)]) is None


def test_what_an_epoch_shows_again_is_the_same_tile_augmented_anew(tiny_data, tiny_recipe):
    tiles = open_tiles(tiny_data)
    recipe = tiny_recipe.model_copy(update={"augment": tiny_recipe.augment.model_copy(update={"rotation": 0.3})})
    samples = TrainingSamples(tiles, recipe, size=64, normalise="unit", epoch=0)
    first, again, third = (samples[1 + time * len(tiles)] for time in range(3))
    assert not torch.equal(first.pixel_values, again.pixel_values)
    assert not torch.equal(again.pixel_values, third.pixel_values)
    assert torch.equal(again.pixel_values, samples[1 + len(tiles)].pixel_values)
    assert (first.pixel_values.mean() - again.pixel_values.mean()).abs() < 0.05
    assert set(again.ids.tolist()) <= set(np.unique(tiles[1].read().labels).tolist())


def test_the_dense_truth_is_that_of_what_is_known(tiny_recipe):
    fields = tiny_recipe.model_dump()
    fields["augment"] |= {"crop": 64}
    fields["dense"] = {"window": 64, "channels": 8, "fine_channels": 8, "contact_weight": 2.0, "small_weight": 1.0}
    sample = _sample()
    sample.labels[52:60, 52:60] = 11
    made = _make(Recipe.model_validate(fields), sample, size=32)
    known = np.where(sample.ignore, 0, sample.labels)
    assert np.array_equal(made.dense.maps, dense_targets(known))
    assert np.array_equal(made.dense.weights, pixel_weights(known, 2.0, 1.0) * ~pool_any(sample.ignore))
    assert made.dense.weights.max() > 1
    assert not made.dense.weights[25:, 25:].any()
    assert torch.equal(made.pixel_values, prepare(sample.image, 32, "unit", antialias=True))
    assert torch.equal(made.dense.pixel_values, prepare(sample.image, 64, "unit"))


def test_weights_of_the_recipe_reach_the_sample(tiny_recipe):
    recipe = tiny_recipe.model_copy(update={"loss": LossSettings(touching_weight=2)})
    assert _make(recipe, _sample()).weights.tolist() == pytest.approx([3 / 7, 3 / 7, 1 / 7])


def test_another_epoch_is_another_augmentation(tiny_data, tiny_recipe):
    recipe = tiny_recipe.model_copy(update={"augment": tiny_recipe.augment.model_copy(update={"rotation": 0.3})})
    first, same, second = (
        TrainingSamples(open_tiles(tiny_data), recipe, size=64, normalise="unit", epoch=epoch)[1] for epoch in (0, 0, 1)
    )
    assert torch.equal(first.pixel_values, same.pixel_values)
    assert not torch.equal(first.pixel_values, second.pixel_values)
