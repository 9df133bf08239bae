"""An adapter's network in 8-bit integers, for CPUs."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import MAX_PIXELS, read_image
from nuclora.errors import NucloraError
from nuclora.extras import require
from nuclora.files import atomic_folder, unreadable
from nuclora.inference.canvas import SlideOptions, find_tissue, open_canvas
from nuclora.inference.image_files import find_images
from nuclora.inference.loading import load_model
from nuclora.inference.openvino import convert
from nuclora.inference.predictor import Predictor
from nuclora.inference.provenance import hash_file
from nuclora.inference.windows import predict_windows
from nuclora.io.slides import is_slide
from nuclora.metrics import score
from nuclora.models.adapter import INT8, read_card, write_card

CALIBRATED = 32
"""Windows that the ranges of activations are taken from."""
CHECKED = 8
_SEED = 0
# NNCF looks at every window once to smooth activations, and once for their ranges.
_LOOKS = 2

Window = NDArray[np.uint8]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quantized:
    """How an adapter in 8 bits compares with itself in float32.

    Attributes:
        calibrated: Windows that the ranges were taken from.
        checked: Windows whose nuclei were compared.
        apart: Whether those are of other images.
        pq: Panoptic quality of its nuclei against those of float32, mean over windows where either finds any.
        nuclei: How many it finds in them.
        nuclei_float: How many float32 finds.
    """

    calibrated: int
    checked: int
    apart: bool
    pq: float
    nuclei: int
    nuclei_float: int


def quantize_adapter(
    adapter: Path,
    inputs: Sequence[str | Path],
    out: Path,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Copy an adapter, and add its network with weights and activations in 8 bits.

    Ranges of activations are those of windows of the images, by NNCF's quantisation after training with smoothed
    activations (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).

    Args:
        adapter: Folder of an adapter with a dense decoder.
        inputs: Images that look like those to be predicted, at the scale of the adapter, and slides, which are
            rescaled to it: files, folders and globs. Some forty are looked at.
        out: The copy; must not exist.
        weights: The base's weights; by default they are looked for.
        progress: Called with the number of windows looked at and of all, which are looked at more than once.

    Returns:
        What it finds in windows that had no say in it, against float32.

    Raises:
        NucloraError: OpenVINO or NNCF is not installed, an image cannot be read, there are no nuclei in them, the
            adapter is not a valid one or has no dense decoder, or `out` exists or cannot be written.
    """
    nncf, openvino = require("nncf", "int8"), require("openvino", "int8")
    if out.exists():
        raise NucloraError("exists already", path=out, mend="name a new folder")
    paths = [image.path for image in find_images(inputs, unique=False)]
    card = read_card(adapter)
    predictor = load_model(adapter, weights=weights, prompts=False, device="cpu")
    files = {file.name: _read(file) for file in adapter.iterdir() if file.is_file() and not file.name.startswith(INT8)}
    with atomic_folder(out) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        calibrating, checking, apart = _draw_windows(paths, predictor, card.microns_per_pixel)
        looked = 0

        def look(window: Window) -> list[NDArray[np.float32]]:
            nonlocal looked
            if progress:
                progress(looked, max(looked + 1, _LOOKS * len(calibrating)))
            looked += 1
            return [part.numpy() for part in predictor.window_inputs(window)]

        # It draws its progress on the terminal, whatever its log level.
        with contextlib.redirect_stdout(io.StringIO()):
            network = nncf.quantize(
                convert(predictor.model, predictor.input_size, predictor.lattice[0]),
                nncf.Dataset(calibrating, look),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(calibrating),
            )
        try:
            openvino.save_model(network, fresh / f"{INT8}.xml", compress_to_fp16=False)
        except RuntimeError as error:
            # Its stream's error has lost the reason, of which there is one that is not ours.
            raise OSError(ENOSPC, os.strerror(ENOSPC)) from error
        made = sorted(fresh.glob(f"{INT8}.*")) + sorted(fresh.glob("*.safetensors"))
        write_card(fresh, card.model_copy(update={"int8": {file.name: hash_file(file) for file in made}}))
        quantized = load_model(
            fresh, weights=weights, device="cpu", backend="openvino", precision="int8", prompts=False
        )
        return _compare(predictor, quantized, checking, len(calibrating), apart)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error


def _draw_windows(
    paths: Sequence[Path], predictor: Predictor, adapters_microns: float | None
) -> tuple[list[Window], list[Window], bool]:
    """Windows as a prediction cuts them, at random: to calibrate with, to check with, and whether of other images."""
    generator = np.random.default_rng(_SEED)
    groups, failures = [], []
    for place in generator.permutation(len(paths))[: CALIBRATED + CHECKED]:
        try:
            windows = _windows_of(paths[place], predictor, adapters_microns, generator)
            # No more than can be wanted: a large image has hundreds.
            chosen = generator.permutation(len(windows))[: CALIBRATED + CHECKED]
            groups.append([windows[index] for index in chosen])
        except NucloraError as error:
            failures.append(error)
    if failures:
        first, *others = failures
        reason = first.reason + (f"; nor can {', '.join(str(other.path) for other in others)}" if others else "")
        raise NucloraError(reason, path=first.path, mend=first.mend)
    groups = [windows for windows in groups if windows]
    if not groups:
        raise NucloraError("no tissue in these slides", mend="name slides or images with tissue")
    if len(groups) > 1:
        checked = min(CHECKED, len(groups) // 2)
        return _in_turn(groups[checked:], CALIBRATED), _in_turn(groups[:checked], CHECKED), True
    (windows,) = groups
    checked = min(CHECKED, len(windows) // 2)
    return (windows[checked:] or windows)[:CALIBRATED], windows[:checked] or windows, False


def _windows_of(
    path: Path, predictor: Predictor, adapters_microns: float | None, generator: np.random.Generator
) -> list[Window]:
    side, margin = predictor.lattice
    if is_slide(path, MAX_PIXELS):
        with open_canvas(path, SlideOptions(adapters_microns=adapters_microns)) as canvas:
            tissue = find_tissue(canvas)
            tries = 50 * CALIBRATED
            starts = [generator.integers(0, max(1, size - side + 1), tries).tolist() for size in canvas.shape]
            shown = [
                (rows, columns)
                for top, left in zip(*starts, strict=True)
                if tissue.meets(rows := range(top, top + side), columns := range(left, left + side))
            ]
            return [canvas.read(*window) for window in shown[:CALIBRATED]]
    seen: list[Window] = []

    def keep(window: Window) -> NDArray[np.float32]:
        seen.append(window.copy())
        return np.zeros((1, side // 2, side // 2), dtype=np.float32)

    predict_windows(read_image(path), side, margin, keep)
    return seen


def _in_turn(groups: Sequence[Sequence[Window]], wanted: int) -> list[Window]:
    """One window of each image, then a second of each, until there are enough."""
    return [group[turn] for turn in range(wanted) for group in groups if turn < len(group)][:wanted]


def _compare(
    expected: Predictor, found: Predictor, windows: Sequence[Window], calibrated: int, apart: bool
) -> Quantized:
    pairs = [(expected.nuclei(window).labels, found.nuclei(window).labels) for window in windows]
    nuclei_float = sum(int(there.max()) for there, _ in pairs)
    if not nuclei_float:
        raise NucloraError(
            "no nuclei in the images that were looked at, so nothing can be said of 8 bits",
            mend="name images of tissue, at the adapter's scale",
        )
    return Quantized(
        calibrated,
        len(windows),
        apart,
        float(np.mean([score(there, here)["pq"] for there, here in pairs if there.any() or here.any()])),
        sum(int(here.max()) for _, here in pairs),
        nuclei_float,
    )
