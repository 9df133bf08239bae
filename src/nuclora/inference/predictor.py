"""A model that is ready to be prompted: an image is encoded once, prompts are decoded in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuclora.data.prompts import to_input_frame
from nuclora.data.targets import MAPS, STRIDE
from nuclora.errors import NucloraError
from nuclora.inference.merge import MASK_THRESHOLD, Mask, crop_masks
from nuclora.inference.protocols import segment
from nuclora.inference.scale import labels_back, rescale, scale_to
from nuclora.inference.scores import Calibration, expected_ious, find_nuclei
from nuclora.inference.views import average, show, undo, views
from nuclora.inference.windows import Known, Part, predict_windows
from nuclora.io.microns import require_plausible
from nuclora.models.dense_decoder import activate
from nuclora.models.dense_sam import DenseSam
from nuclora.models.precision import AUTOCAST, Precision
from nuclora.models.preprocess import Normalise, prepare, require_rgb
from nuclora.recipe import DenseSettings, EvaluateSettings

if TYPE_CHECKING:
    from peft import PeftModel

    from nuclora.models.sam import NucleiSam

DenseNetwork = Callable[[Tensor, Tensor], Tensor]
"""As :meth:`nuclora.models.dense_sam.DenseSam.forward`."""
PROMPTS_AT_ONCE = 64
# Neighbouring windows share a quarter of their side.
_MARGINS = 4


@dataclass(frozen=True)
class EncodedImage:
    """What the encoder made of one image.

    Attributes:
        embeddings: (1, 256, h, w), on the predictor's device.
        image: The image itself, uint8 (H, W, 3).
        side: Of the square that it was shown as, in pixels.
    """

    embeddings: torch.Tensor
    image: NDArray[np.uint8]
    side: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.shape[0], self.image.shape[1]


class Maps(NamedTuple):
    """What the dense decoder says of an image.

    Attributes:
        values: float32 (5, ceil(H / 2), ceil(W / 2)), see :data:`nuclora.data.targets.MAPS`.
        disagreement: float32 (ceil(H / 2), ceil(W / 2)), mean distance in pixels of the views' votes from their mean.
    """

    values: NDArray[np.float32]
    disagreement: NDArray[np.float32]


class Nuclei(NamedTuple):
    """Nuclei of an image.

    Attributes:
        labels: int32 (H, W), 1..n, 0 background.
        scores: float32 (n,), of each label in their order the IoU that is to be expected, 0..1.
    """

    labels: NDArray[np.int32]
    scores: NDArray[np.float32]


class Predictor:
    """Encodes images and decodes prompts.

    Prompts are in pixels of the image, which may have any shape: it is stretched to a square, and prompts are mapped
    with it (see :func:`nuclora.data.prompts.to_input_frame`). The square is the input as in training, where whole tiles
    were shown; a model with a dense decoder, which trained on crops, sees images that are smaller than its window
    enlarged as much as those were.

    Args:
        model: The network, or the PEFT model around it; a network without what prompts need only finds nuclei by its
            dense decoder. It is moved to the device, and each :meth:`encode` puts it
            in evaluation mode.
        input_size: Side of the square input in pixels; with a dense decoder that of what a window is shown as.
        normalise: How pixel values are scaled: `unit`, `imagenet` or `minmax`.
        device: Where to compute.
        precision: `bf16` or `fp16` computes in it where that is safe; `no` stays with float32.
        chunk: Prompts decoded at once; bounds memory, not results.
        multimask_points: A point gives the one of three masks with the highest predicted IoU, which is how SAM treats
            points as it came. False takes the single mask, the one that fine-tuning trains. Boxes always give the
            single mask.
        iou_trained: Whether the predicted IoU means anything; else `automatic` ranks masks by their stability.
        dense: The recipe's settings of the dense decoder, where the model has one: `automatic` then goes by it.
        settings: How to segment unless told otherwise.
        calibration: See :func:`nuclora.inference.scores.calibrate`.
        network: What runs the network of the dense decoder in place of the model; prompts are always the model's.
        microns_per_pixel: Of the tiles that it was trained on, where known.
    """

    def __init__(
        self,
        model: DenseSam | PeftModel,
        *,
        input_size: int,
        normalise: Normalise,
        device: str | torch.device = "cpu",
        precision: Precision = "no",
        chunk: int = PROMPTS_AT_ONCE,
        multimask_points: bool = False,
        iou_trained: bool = True,
        dense: DenseSettings | None = None,
        settings: EvaluateSettings | None = None,
        calibration: Calibration = (),
        network: DenseNetwork | None = None,
        microns_per_pixel: float | None = None,
    ) -> None:
        sam = base_of(model)
        self.model = sam.to(device)
        self.input_size = input_size
        self.normalise = normalise
        self.device = torch.device(device)
        self.precision = precision
        self.chunk = chunk
        self.multimask_points = multimask_points
        self.iou_trained = iou_trained
        self.dense = dense
        self.settings = settings or EvaluateSettings()
        self.calibration = calibration
        self.microns_per_pixel = microns_per_pixel
        self._network: DenseNetwork = network or sam

    def encode(self, image: NDArray[np.uint8]) -> EncodedImage:
        """Encode an image, uint8 (H, W, 3), of any height and width.

        Raises:
            NucloraError: It is no such image.
        """
        require_rgb(image)
        self.model.eval()
        side = self._side(image.shape[0] * image.shape[1])
        pixels = prepare(image, side, self.normalise, antialias=self.dense is not None)
        with torch.inference_mode(), self._autocast():
            embeddings = self.model.encode(pixels[None].to(self.device))
        return EncodedImage(embeddings, image, side)

    def _side(self, area: int) -> int:
        """Side of the square that an image of so many pixels is shown as to be prompted."""
        if self.dense is None:
            return self.input_size
        side = round(math.sqrt(area) * self.input_size / self.dense.window / self.model.stride) * self.model.stride
        # Larger inputs than in training are decoded worse than smaller nuclei, see docs/results/nuinsseg-recipe.md.
        return min(max(side, self.model.stride), self.input_size)

    def decode(
        self,
        encoded: EncodedImage,
        *,
        boxes: NDArray[np.float32] | None = None,
        points: NDArray[np.float32] | None = None,
        multimask: bool = False,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Decode prompts, one mask or three each, a chunk at a time.

        Args:
            encoded: The image.
            boxes: (N, 4), x0, y0, x1, y1 of the first and last pixels, in pixels of the image.
            points: (N, 2), x, y of one point inside each nucleus; instead of boxes.
            multimask: Three masks each instead of one.

        Yields:
            Low-resolution logits (n, M, h, w) over the whole image, and predicted IoU (n, M), both float32.

        Raises:
            NucloraError: Boxes or points of another shape, or with values that are not finite.
        """
        prompts = boxes if boxes is not None else points
        if prompts is None or (boxes is not None and points is not None):
            raise ValueError("give either boxes or points")
        prompts = _prompt_array(prompts, *(("boxes", 4) if boxes is not None else ("points", 2)))
        if not hasattr(self.model, "decode"):
            raise ValueError("this model was loaded without what prompts need")
        model = cast("NucleiSam", self.model)
        mapped = torch.from_numpy(to_input_frame(prompts, encoded.shape, encoded.side)).to(self.device)
        for start in range(0, len(mapped), self.chunk):
            part = mapped[start : start + self.chunk]
            # Left before the yield: these modes must not leak into the caller's loop.
            with torch.inference_mode(), self._autocast():
                prediction = model.decode(
                    encoded.embeddings,
                    boxes=part if boxes is not None else None,
                    points=part[:, None] if boxes is None else None,
                    point_labels=torch.ones_like(part[:, :1], dtype=torch.int64) if boxes is None else None,
                    multimask=multimask,
                )
            yield prediction.logits.float(), prediction.iou.float()

    def masks(
        self,
        encoded: EncodedImage,
        *,
        boxes: NDArray[np.float32] | None = None,
        points: NDArray[np.float32] | None = None,
        largest_share: float = 1.0,
    ) -> list[Mask]:
        """One mask a prompt, in their order; a prompt that gives an empty mask is left out.

        Args:
            encoded: The image.
            boxes: As in :meth:`decode`.
            points: As in :meth:`decode`.
            largest_share: Where a point gives three masks, those over this share of the image's area are passed over
                unless all three are: a point alone may as well mean the whole tissue as the nucleus.

        Returns:
            The masks with their predicted IoU as score.

        Raises:
            NucloraError: As :meth:`decode`.
        """
        masks: list[Mask] = []
        multimask = self.multimask_points and boxes is None
        for logits, iou in self.decode(encoded, boxes=boxes, points=points, multimask=multimask):
            best = torch.zeros(len(iou), dtype=torch.int64, device=iou.device)
            if multimask:
                too_large = (logits > MASK_THRESHOLD).float().mean(dim=(2, 3)) > largest_share
                passed_over = too_large & ~too_large.all(dim=1, keepdim=True)
                best = iou.masked_fill(passed_over, -torch.inf).argmax(dim=1)
            prompt = torch.arange(len(best), device=best.device)
            masks += crop_masks(logits[prompt, best].numpy(force=True), iou[prompt, best].numpy(force=True))
        return masks

    @property
    def lattice(self) -> tuple[int, int]:
        """Side of the dense decoder's windows and their overlap, in pixels.

        Raises:
            NucloraError: The model has no dense decoder.
        """
        if self.dense is None:
            raise NucloraError("this model has no dense decoder", mend="train it with the recipe nuclora")
        # Cells of two pixels are blended, so the overlap is even.
        return self.dense.window, self.dense.window // _MARGINS // STRIDE * STRIDE

    def maps(
        self, image: NDArray[np.uint8], views: int, *, part: Part | None = None, known: Known | None = None
    ) -> Maps:
        """The dense decoder's maps of an image of any size, averaged over views.

        Args:
            image: uint8 (H, W, 3), RGB.
            views: How many of the eight flips and quarter turns, see :func:`nuclora.inference.views.views`.
            part: Compute only these cells, see :func:`nuclora.inference.windows.predict_windows`.
            known: Windows that were predicted before, see there; for the same number of views.

        Raises:
            NucloraError: The model has no dense decoder, or the image is none.
        """
        require_rgb(image)
        window, margin = self.lattice
        planes = predict_windows(
            image, window, margin, lambda pixels: self.window_planes(pixels, views), part=part, known=known
        )
        return Maps(planes[: len(MAPS)], planes[len(MAPS)])

    def window_planes(self, window: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """Mean maps of a window, and how far the views' votes are from their mean: (6, side / 2, side / 2).

        Args:
            window: uint8 (side, side, 3), RGB.
            count: How many views.
        """
        return average(self.window_views(window, count))

    def window_views(self, window: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """The maps that each view of a window gives, as they lie on the window: (count, 5, side / 2, side / 2).

        Args:
            window: uint8 (side, side, 3), RGB.
            count: How many views.
        """
        self.model.eval()
        asked = views(count)
        shown = [show(window, view) for view in asked]
        # A CPU is no faster with several views at once, and needs more memory.
        batches = [[one] for one in shown] if self.device.type == "cpu" else [shown]
        found = [maps for batch in batches for maps in self._maps(batch)]
        return np.stack([undo(maps, view) for maps, view in zip(found, asked, strict=True)])

    def window_inputs(self, *windows: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """What the network sees of B windows, uint8 (side, side, 3): at the input's size, and at its own.

        Returns:
            (B, 3, S, S) and (B, 3, side, side), normalised, on the predictor's device.
        """
        pixels = [prepare(window, self.input_size, self.normalise, antialias=True) for window in windows]
        own = [prepare(window, window.shape[0], self.normalise) for window in windows]
        return torch.stack(pixels).to(self.device), torch.stack(own).to(self.device)

    def _maps(self, windows: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Maps of square windows, (B, 5, side / 2, side / 2)."""
        with torch.inference_mode(), self._autocast():
            raw = self._network(*self.window_inputs(*windows))
        maps: NDArray[np.float32] = activate(raw).numpy(force=True)
        return maps

    def nuclei(
        self, image: NDArray[np.uint8], settings: EvaluateSettings | None = None, *, mpp: float | None = None
    ) -> Nuclei:
        """Find the nuclei of an image by the dense decoder, and say how sure each is.

        Args:
            image: uint8 (H, W, 3), RGB, of any size.
            settings: How to decode; by default as the adapter's card says.
            mpp: Microns per pixel of the image. Where they are not those that the adapter was trained at, it is
                rescaled for the model, and the labels back; by default it is taken as it is.

        Raises:
            NucloraError: The model has no dense decoder, the image is none, no pixel is so large or small as `mpp`
                says, or the image would be too large at its scale.
        """
        require_rgb(image)
        require_plausible(mpp, "mpp")
        settings = settings or self.settings
        scale = scale_to(self.microns_per_pixel, mpp)
        shown = image if scale == 1 else rescale(image, scale)
        found = self.decode_maps(self.maps(shown, settings.decode.views), (shown.shape[0], shown.shape[1]), settings)
        return found if scale == 1 else Nuclei(*labels_back(*found, (image.shape[0], image.shape[1]), scale))

    def decode_maps(self, maps: Maps, shape: tuple[int, int], settings: EvaluateSettings) -> Nuclei:
        """Find the nuclei in the maps of an image.

        Args:
            maps: The maps.
            shape: Height and width of the image, in pixels.
            settings: How to decode.
        """
        labels, scores = find_nuclei(*maps, shape, settings.decode, settings.min_size)
        return Nuclei(labels, expected_ious(scores, self.calibration))

    def segment(
        self,
        image: NDArray[np.uint8],
        protocol: str = "automatic",
        settings: EvaluateSettings | None = None,
        labels: NDArray[np.int32] | None = None,
        *,
        mpp: float | None = None,
    ) -> NDArray[np.int32]:
        """Segment the nuclei of an image.

        Args:
            image: uint8 (H, W, 3), RGB.
            protocol: One of :data:`nuclora.recipe.PROTOCOLS`.
            settings: How to find and filter; by default as the adapter's card says.
            labels: The truth, int32 (H, W), which the oracle protocols take their prompts from.
            mpp: As in :meth:`nuclei`; for `automatic` with a dense decoder.

        Returns:
            Labels, int32 (H, W), 1..n, 0 background.

        Raises:
            NucloraError: An unknown protocol, an oracle without the truth or with one that is not of the image, or
                `mpp` for what is not rescaled.
        """
        if mpp is not None:
            if protocol != "automatic":
                raise NucloraError(f"{protocol} rescales no image", mend="leave mpp out, or use automatic")
            return self.nuclei(image, settings, mpp=mpp).labels
        return segment(self, image, labels, protocol, settings or self.settings)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)


def base_of(model: DenseSam | PeftModel) -> DenseSam:
    """The network itself, of one that PEFT may have wrapped."""
    # By what it has: to know PEFT's class, PEFT would have to be imported.
    unwrap = getattr(model, "get_base_model", None)
    sam: DenseSam = model if unwrap is None else unwrap()
    return sam


def _prompt_array(prompts: object, what: str, numbers: int) -> NDArray[np.float32]:
    try:
        found = np.asarray(prompts, np.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise NucloraError(f"{what} are no array of numbers ({error})", mend=f"give them as (N, {numbers})") from error
    if found.shape == (0,):
        # A list of none has no second axis.
        found = found.reshape(0, numbers)
    if found.ndim != 2 or found.shape[1] != numbers:
        raise NucloraError(f"{what} of shape {found.shape}", mend=f"give them as (N, {numbers})")
    if not np.isfinite(found).all():
        raise NucloraError(f"{what} with values that are not finite", mend="leave these prompts out")
    return found
