"""What a model made of tiles, on disk: scores, label maps, and the numbers of each nucleus."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.files import AppendLog, damaged, write_atomic
from nuclora.io.labels import read_labels, write_labels

Row = dict[str, Any]
"""One line of a table or a log, by column."""


class Evaluation:
    """The scores and predicted labels of one model under one protocol, a tile at a time.

    Args:
        folder: Where ``scores.csv`` and ``labels/`` are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = AppendLog(folder / "scores.csv")

    @property
    def rows(self) -> list[Row]:
        """One mapping a tile: `tile`, `group`, `fold`, then numbers.

        Raises:
            NucloraError: The file is damaged.
        """
        with damaged(self._log.path, "delete it and run the same command again: its tiles are scored anew"):
            lines = self._log.lines()
            reader = csv.DictReader(lines, strict=True)
            if lines and not {"tile", "group", "fold"} <= set(reader.fieldnames or ()):
                raise ValueError("no columns tile, group, fold")
            return [{key: _parse_cell(key, value) for key, value in row.items()} for row in reader]

    def add(
        self, row: Mapping[str, Any], labels: NDArray[np.int32], nuclei: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Keep one tile's labels and then its scores, so that a score never lacks its labels.

        Args:
            row: `tile`, `group`, `fold`, then numbers.
            labels: The prediction, int32 (H, W).
            nuclei: Numbers of each predicted nucleus, where the model scores them.
        """
        write_labels(self._labels_path(str(row["tile"])), labels)
        if nuclei is not None:
            header = [list(nuclei[0])] if nuclei else []
            lines = [_csv_line(cells) for cells in [*header, *(list(nucleus.values()) for nucleus in nuclei)]]
            write_atomic(self._nuclei_path(str(row["tile"])), "".join(line + "\n" for line in lines))
        if self._log.is_empty:
            self._log.append(_csv_line(list(row)))
        self._log.append(_csv_line(list(row.values())))

    def labels(self, tile: str) -> NDArray[np.int32]:
        """Predicted labels of a tile, int32 (H, W)."""
        return read_labels(self._labels_path(tile))

    def nuclei(self, tile: str) -> list[dict[str, float]]:
        """Numbers of each nucleus predicted in a tile; none where the model does not score nuclei.

        Raises:
            NucloraError: The file is damaged.
        """
        path = self._nuclei_path(tile)
        if not path.exists():
            return []
        with damaged(path, "delete the scores.csv of this folder and run the same command again"):
            reader = csv.DictReader(path.read_text("utf-8").splitlines(), strict=True)
            return [{key: float(value) for key, value in row.items()} for row in reader]

    def _nuclei_path(self, tile: str) -> Path:
        return self.folder / "nuclei" / f"{tile}.csv"

    def _labels_path(self, tile: str) -> Path:
        return self.folder / "labels" / f"{tile}.tif"


def _csv_line(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(
        [repr(float(cell)) if isinstance(cell, float) else cell for cell in cells]
    )
    return buffer.getvalue()


def _parse_cell(column: str, value: str) -> Any:
    if column in ("tile", "group"):
        return value
    return int(value) if column == "fold" else float(value)
