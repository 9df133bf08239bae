"""Evaluation protocols: where the prompts come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nuclora.data.prompts import inner_points, label_boxes
from nuclora.errors import NucloraError, require_choice
from nuclora.inference.everything import segment_everything
from nuclora.inference.merge import masks_to_labels
from nuclora.recipe import PROTOCOLS, EvaluateSettings

if TYPE_CHECKING:
    from nuclora.inference.predictor import EncodedImage, Predictor

Labels = NDArray[np.int32]

DESCRIPTIONS: Mapping[str, str] = {
    "oracle-box": "Every nucleus is prompted with its tight box taken from the truth: "
    "an upper bound, not what the model finds by itself.",
    "oracle-point": "Every nucleus is prompted with its innermost point taken from the truth: "
    "an upper bound, not what the model finds by itself.",
    "automatic": "The model finds the nuclei by itself: by its dense decoder, or, where it has none, prompted with a "
    "regular grid of points. No truth is used.",
}


def segment(
    predictor: Predictor,
    image: NDArray[np.uint8] | EncodedImage,
    labels: Labels | None,
    protocol: str,
    settings: EvaluateSettings,
) -> Labels:
    """Segment an image under a protocol.

    Args:
        predictor: The model.
        image: The image, uint8 (H, W, 3), or its encoding where several protocols share it.
        labels: The truth, int32 (H, W), that the oracles take their prompts from; `automatic` is never given it.
        protocol: One of :data:`nuclora.recipe.PROTOCOLS`.
        settings: Grid, filters and the smallest nucleus.

    Returns:
        Labels, int32 (H, W), 1..n, 0 background.

    Raises:
        NucloraError: An unknown protocol, or an oracle without the truth, or with one that is not of the image.
    """
    require_choice("protocol", protocol, PROTOCOLS)
    if protocol == "automatic" and predictor.dense is not None:
        return predictor.nuclei(image if isinstance(image, np.ndarray) else image.image, settings).labels
    encoded = predictor.encode(image) if isinstance(image, np.ndarray) else image
    if protocol == "automatic":
        return segment_everything(predictor, encoded, settings)
    if labels is None:
        raise NucloraError(f"{protocol} takes its prompts from the truth, and there is none", mend="use automatic")
    _require_labels(labels, encoded.shape)
    return _ORACLES[protocol](predictor, encoded, labels, settings)


def _require_labels(labels: Labels, shape: tuple[int, int]) -> None:
    """See that the truth is a label map of the image: else the prompts would lie beside its nuclei."""
    if not isinstance(labels, np.ndarray):
        what = type(labels).__name__
    elif labels.dtype.kind not in "iu" or labels.shape != shape:
        what = f"{labels.dtype} of shape {labels.shape}"
    elif labels.min() < 0:
        what = f"an id of {labels.min()}"
    else:
        return
    raise NucloraError(f"no label map of the image: {what}", mend=f"give whole numbers from 0, of shape {shape}")


def _oracle_box(predictor: Predictor, encoded: EncodedImage, labels: Labels, settings: EvaluateSettings) -> Labels:
    _, boxes = label_boxes(labels)
    masks = predictor.masks(encoded, boxes=boxes)
    return masks_to_labels(masks, encoded.shape, overlaps="logit", min_size=settings.min_size)


def _oracle_point(predictor: Predictor, encoded: EncodedImage, labels: Labels, settings: EvaluateSettings) -> Labels:
    share = settings.grid.largest_share
    masks = predictor.masks(encoded, points=inner_points(labels), largest_share=share)
    return masks_to_labels(masks, encoded.shape, overlaps="logit", min_size=settings.min_size)


_ORACLES: Mapping[str, Callable[[Predictor, EncodedImage, Labels, EvaluateSettings], Labels]] = {
    "oracle-box": _oracle_box,
    "oracle-point": _oracle_point,
}
