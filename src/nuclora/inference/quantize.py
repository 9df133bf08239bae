"""An adapter's network in 8-bit integers, for CPUs."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import read_image
from nuclora.errors import NucloraError
from nuclora.files import atomic_folder
from nuclora.inference.image_files import find_images
from nuclora.inference.loading import load_model
from nuclora.inference.openvino import convert, require_openvino
from nuclora.inference.predictor import Predictor
from nuclora.inference.windows import predict_windows
from nuclora.metrics import score
from nuclora.models.adapter import INT8

CALIBRATED = 32
"""Windows that the ranges of activations are taken from."""
CHECKED = 8
_SEED = 0

Window = NDArray[np.uint8]


@dataclass(frozen=True)
class Quantized:
    """How an adapter in 8 bits compares with itself in float32.

    Attributes:
        calibrated: Windows that the ranges were taken from.
        checked: Windows whose nuclei were compared.
        pq: Panoptic quality of its nuclei against those of float32, mean over windows.
        nuclei: How many it finds in them.
        nuclei_float: How many float32 finds.
    """

    calibrated: int
    checked: int
    pq: float
    nuclei: int
    nuclei_float: int


def quantize_adapter(adapter: Path, inputs: Sequence[str | Path], out: Path, weights: Path | None = None) -> Quantized:
    """Copy an adapter, and add its network with weights and activations in 8 bits.

    Ranges of activations are those of windows of the images, by NNCF's quantisation after training with smoothed
    activations (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438).

    Args:
        adapter: Folder of an adapter with a dense decoder.
        inputs: Images that look like those to be predicted, at the scale of the adapter: files, folders and globs.
        out: The copy; must not exist.
        weights: The base's weights; by default they are looked for.

    Returns:
        What it finds in windows that had no say in it, against float32; in the same ones where there is only one.

    Raises:
        NucloraError: OpenVINO or NNCF is not installed, an image cannot be read, the adapter is not a valid one or has
            no dense decoder, or `out` exists or cannot be written.
    """
    require_openvino()
    nncf = _require_nncf()
    if out.exists():
        raise NucloraError("exists already", path=out, mend="name a new folder")
    predictor = load_model(adapter, weights=weights, prompts=False, device="cpu")
    side, margin = predictor.lattice
    windows = _draw_windows((image.path for image in find_images(inputs)), side, margin)
    checked = windows[: min(CHECKED, len(windows) // 2)] or windows
    calibrating = windows[len(checked) :][:CALIBRATED] or windows
    data = nncf.Dataset(calibrating, lambda window: [part.numpy() for part in predictor.window_inputs(window)])
    # It draws its progress on the terminal, whatever its log level.
    with contextlib.redirect_stdout(io.StringIO()):
        network = nncf.quantize(
            convert(predictor.model, predictor.input_size, side),
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibrating),
        )
    with atomic_folder(out) as fresh:
        for file in adapter.iterdir():
            if file.is_file():
                shutil.copyfile(file, fresh / file.name)
        require_openvino().save_model(network, fresh / f"{INT8}.xml", compress_to_fp16=False)
    quantized = load_model(out, weights=weights, device="cpu", backend="openvino", precision="int8", prompts=False)
    return _compare(predictor, quantized, checked, len(calibrating))


def _draw_windows(paths: Iterable[Path], side: int, margin: int) -> list[Window]:
    """Windows as a prediction cuts them, from all images, in an order drawn at random."""
    wanted = CALIBRATED + CHECKED
    seen: list[list[Window]] = []
    generator = np.random.default_rng(_SEED)
    files = list(paths)
    for path in [files[place] for place in generator.permutation(len(files))[:wanted]]:
        cut: list[Window] = []

        def keep(window: Window, cut: list[Window] = cut) -> NDArray[np.float32]:
            cut.append(window.copy())
            return np.zeros((1, side // 2, side // 2), dtype=np.float32)

        predict_windows(read_image(path), side, margin, keep)
        seen.append([cut[place] for place in generator.permutation(len(cut))[:wanted]])
    # One of each image, then a second of each, until there are enough.
    in_turn = [group[turn] for turn in range(wanted) for group in seen if turn < len(group)]
    return in_turn[:wanted]


def _compare(expected: Predictor, found: Predictor, windows: Sequence[Window], calibrated: int) -> Quantized:
    pairs = [(expected.nuclei(window).labels, found.nuclei(window).labels) for window in windows]
    return Quantized(
        calibrated,
        len(windows),
        float(np.mean([score(there, here)["pq"] for there, here in pairs])),
        sum(int(here.max()) for _, here in pairs),
        sum(int(there.max()) for there, _ in pairs),
    )


def _require_nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise NucloraError("int8 needs NNCF", mend="pip install 'nuclora[int8]'") from error
    return nncf
