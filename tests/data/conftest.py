from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image


def pixels(seed: int, shape: tuple[int, ...] = (48, 64, 3)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def squares(count: int, shape: tuple[int, int] = (48, 64), side: int = 6) -> NDArray[np.uint16]:
    """Label map of `count` apart squares, ids 1..count."""
    labels = np.zeros(shape, np.uint16)
    columns = shape[1] // (side + 2)
    for index in range(count):
        row, column = divmod(index, columns)
        y, x = row * (side + 2) + 1, column * (side + 2) + 1
        labels[y : y + side, x : x + side] = index + 1
    assert labels.max() == count
    return labels


@pytest.fixture
def nuinsseg_tree(tmp_path: Path) -> Path:
    """Six tiles of two organs in the official layout, with its litter."""
    root = tmp_path / "nuinsseg"
    for organ, stems in {"human salivory gland": ("1", "2", "10"), "mouse fat (white)": ("a", "b", "c")}.items():
        for folder in ("tissue images", "label masks modify", "label masks"):
            (root / organ / folder).mkdir(parents=True)
        for seed, stem in enumerate(stems):
            Image.fromarray(pixels(seed + 10 * len(organ))).save(root / organ / "tissue images" / f"{stem}.png")
            tifffile.imwrite(root / organ / "label masks modify" / f"{stem}.tif", squares(seed + 1))
            tifffile.imwrite(root / organ / "label masks" / f"{stem}.tif", squares(9))
        (root / organ / "tissue images" / "Thumbs.db").write_bytes(b"litter")
        (root / organ / "tissue images" / "._1.png").write_bytes(b"litter")
    (root / "__MACOSX" / "tissue images").mkdir(parents=True)
    return root


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    """Four tiles in the plain layout, two of them in an organ's folder."""
    root = tmp_path / "plain"
    for seed, name in enumerate(("a", "b", "liver/c", "liver/deep/d")):
        for folder in ("images", "labels"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(root / "images" / f"{name}.png")
        Image.fromarray(squares(seed + 1)).save(root / "labels" / f"{name}.png")
    return root


@pytest.fixture
def invoke() -> Callable[..., tuple[int, str, BaseException | None]]:
    """Runs a typer app in-process; gives exit code, standard output and the error."""
    from typer.testing import CliRunner

    def run(app: object, *arguments: str) -> tuple[int, str, BaseException | None]:
        result = CliRunner(env={"COLUMNS": "100"}).invoke(app, list(arguments))  # type: ignore[arg-type]
        return result.exit_code, result.stdout, result.exception

    return run
