"""From a labelled tile to what one training step needs of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor
from torch.utils.data import Dataset

from nuclora.data.augment import augment
from nuclora.data.prompts import label_boxes, random_inner_points
from nuclora.data.targets import dense_targets, pixel_weights, pool_any
from nuclora.data.tiles import Sample, TileSet
from nuclora.models.preprocess import Normalise, prepare
from nuclora.recipe import DenseSettings, LossSettings, PromptSettings, Recipe
from nuclora.training.seeds import derive_seed


@dataclass(frozen=True)
class DenseTruth:
    """What the dense decoder reads and is to say of a square of side C in the tile's own pixels.

    Attributes:
        pixel_values: float32 (3, C, C).
        maps: float32 (5, C / 2, C / 2), see :func:`nuclora.data.targets.dense_targets`.
        weights: float32 (C / 2, C / 2), 0 where no truth is known.
    """

    pixel_values: Tensor
    maps: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> DenseTruth:
        """The same on a device."""
        return DenseTruth(*(tensor.to(device, non_blocking=True) for tensor in self._tensors()))

    def pin_memory(self) -> DenseTruth:
        """The same in page-locked memory."""
        return DenseTruth(*(tensor.pin_memory() for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.pixel_values, self.maps, self.weights


@dataclass(frozen=True)
class TrainingSample:
    """One tile in the input frame of side S, with N prompted nuclei.

    Attributes:
        pixel_values: float32 (3, S, S).
        labels: int32 (S / stride, S / stride), the masks that the prompts ask for, by id.
        valid: bool, as `labels`; False where no truth is known.
        ids: int32 (N,), the prompted nuclei.
        is_box: bool (N,), prompted by a box; the others by a point.
        boxes: float32 (N, 4), xyxy in input pixels.
        points: float32 (N, 2), xy in input pixels.
        weights: float32 (N,), share of each nucleus in the tile's loss.
        dense: What the dense decoder learns from, where the recipe has one.
    """

    pixel_values: Tensor
    labels: Tensor
    valid: Tensor
    ids: Tensor
    is_box: Tensor
    boxes: Tensor
    points: Tensor
    weights: Tensor
    dense: DenseTruth | None = None

    def to(self, device: torch.device) -> TrainingSample:
        """The same on a device."""
        tensors = {name: value.to(device, non_blocking=True) for name, value in self._tensors().items()}
        return TrainingSample(**tensors, dense=self.dense and self.dense.to(device))

    def pin_memory(self) -> TrainingSample:
        """The same in page-locked memory; the loader calls this."""
        tensors = {name: value.pin_memory() for name, value in self._tensors().items()}
        return TrainingSample(**tensors, dense=self.dense and self.dense.pin_memory())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "dense"}


class TrainingSamples(Dataset[TrainingSample]):
    """The samples of one epoch: tile i, augmented and prompted by (seed, epoch, tile name).

    What an epoch shows a second time is i + the number of tiles, and augmented and prompted anew; see
    :meth:`nuclora.training.plan.Plan.batches`.
    """

    def __init__(self, tiles: TileSet, recipe: Recipe, *, size: int, normalise: Normalise, epoch: int) -> None:
        self.tiles = tiles
        self.recipe = recipe
        self.size = size
        self.normalise = normalise
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> TrainingSample:
        again, index = divmod(index, len(self.tiles))
        tile = self.tiles[index]
        seed = derive_seed(self.recipe.seed, self.epoch, tile.name, *[again] * bool(again))
        sample = augment(tile.read(), self.recipe.augment, seed)
        return make_sample(
            sample, self.recipe, size=self.size, normalise=self.normalise, generator=np.random.default_rng(seed)
        )


def make_sample(
    sample: Sample, recipe: Recipe, *, size: int, normalise: Normalise, generator: np.random.Generator
) -> TrainingSample:
    """Resize a tile to the input frame and draw its prompts.

    Args:
        sample: The tile; its vague areas are left out of labels and loss.
        recipe: `prompts` and `loss` are read.
        size: Side S of the input frame in pixels.
        normalise: How pixel values are scaled.
        generator: Draws which nuclei are prompted, how, and the jitter.
    """
    known = np.where(sample.ignore, 0, sample.labels).astype(np.int32)
    frame_labels = _resize_nearest(known, size)
    mask_labels = _resize_nearest(known, size // recipe.loss.stride)
    ids, boxes = label_boxes(frame_labels)
    # A sliver may have no pixel at the masks' size: nothing could be learnt of it but that it is not there.
    there = np.isin(ids, mask_labels)
    ids, boxes = ids[there], boxes[there]
    weights = nucleus_weights(frame_labels, ids, recipe.loss)
    keep = _draw_nuclei(len(ids), recipe.prompts, generator)
    ids, boxes, weights = ids[keep], boxes[keep], weights[keep]
    dense = None if recipe.dense is None else _dense_truth(sample, known, recipe.dense, normalise)
    return TrainingSample(
        pixel_values=prepare(sample.image, size, normalise, antialias=dense is not None),
        labels=torch.from_numpy(mask_labels),
        valid=torch.from_numpy(~_resize_nearest(sample.ignore, mask_labels.shape[0])),
        ids=torch.from_numpy(ids),
        is_box=torch.from_numpy(generator.random(len(ids)) < recipe.prompts.box_share),
        boxes=torch.from_numpy(jitter_boxes(boxes, recipe.prompts.box_jitter, size, generator)),
        points=torch.from_numpy(random_inner_points(frame_labels, ids, generator)),
        weights=torch.from_numpy(weights / max(float(weights.sum()), 1e-12)),
        dense=dense,
    )


def _dense_truth(sample: Sample, known: NDArray[np.int32], settings: DenseSettings, normalise: Normalise) -> DenseTruth:
    """What the dense decoder learns from a square sample whose known nuclei are `known`."""
    # A cell of the maps counts where all of its pixels are known.
    valid = ~pool_any(sample.ignore)
    weights = pixel_weights(known, settings.contact_weight, settings.small_weight)
    return DenseTruth(
        pixel_values=prepare(sample.image, sample.image.shape[0], normalise),
        maps=torch.from_numpy(dense_targets(known)),
        weights=torch.from_numpy(weights * valid),
    )


def jitter_boxes(
    boxes: NDArray[np.float32], jitter: float, size: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Move each edge of each box by up to `jitter` of the box's side, staying inside the frame and in order.

    Args:
        boxes: (N, 4), xyxy in pixels.
        jitter: Largest shift as a share of the side, below one half so that edges cannot cross.
        size: Side of the frame in pixels.
        generator: Draws the shifts, uniformly.
    """
    sides = np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)
    shifts = generator.uniform(-jitter, jitter, boxes.shape) * sides
    moved = np.clip(boxes + shifts, 0, size - 1)
    # A one-pixel box could still turn over by less than a pixel.
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
    return moved.astype(np.float32)


def nucleus_weights(labels: NDArray[np.int32], ids: NDArray[np.int32], loss: LossSettings) -> NDArray[np.float32]:
    """Weight of each nucleus in the loss: 1, more where it touches another one or is smaller than the median.

    Args:
        labels: (H, W).
        ids: (N,), which nuclei.
        loss: `touching_weight` and `small_weight` are read.

    Returns:
        float32 (N,).
    """
    weights = np.ones(len(ids), np.float32)
    if loss.touching_weight and len(ids):
        touching = np.unique(labels[_touches_another(labels)])
        weights += loss.touching_weight * np.isin(ids, touching)
    if loss.small_weight and len(ids):
        present, counts = np.unique(labels, return_counts=True)
        areas = counts[np.searchsorted(present, ids)]
        weights += loss.small_weight * (areas < np.median(areas))
    return weights


def _touches_another(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels of a nucleus that have another nucleus among their eight neighbours."""
    largest = maximum_filter(labels, 3)
    smallest = minimum_filter(np.where(labels == 0, np.iinfo(labels.dtype).max, labels), 3)
    touches: NDArray[np.bool_] = (labels != 0) & (largest != smallest)
    return touches


def _draw_nuclei(count: int, prompts: PromptSettings, generator: np.random.Generator) -> NDArray[np.int64]:
    if prompts.per_tile is None or count <= prompts.per_tile:
        return np.arange(count)
    return np.sort(generator.choice(count, prompts.per_tile, replace=False))


def _resize_nearest(values: NDArray[Any], size: int) -> NDArray[Any]:
    rows = ((np.arange(size) + 0.5) * values.shape[0] / size).astype(np.intp)
    columns = ((np.arange(size) + 0.5) * values.shape[1] / size).astype(np.intp)
    return np.ascontiguousarray(values[np.ix_(rows, columns)])
