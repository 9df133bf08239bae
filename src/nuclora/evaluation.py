"""What a model made of tiles, on disk: scores, label maps, and the numbers of each nucleus."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.errors import NucloraError
from nuclora.files import AppendLog, damaged, write_atomic
from nuclora.io.labels import read_labels, write_labels
from nuclora.metrics.score import METRICS

Row = dict[str, Any]
"""One line of a table or a log, by column."""

_COLUMNS = frozenset(
    ("tile", "group", "fold", "nuclei_true", "nuclei_predicted", *METRICS, "missed", "false", "merged", "split")
)
_SCORES_MEND = "delete it and run the same command again: its tiles are scored anew"
_TILE_MEND = "delete the scores.csv of this folder and run the same command again"


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
        with damaged(self._log.path, _SCORES_MEND):
            lines = self._log.lines()
            reader = csv.DictReader(lines, strict=True)
            if lines:
                _require(_COLUMNS, reader.fieldnames)
            rows = [{key: _parse_cell(key, value) for key, value in row.items()} for row in reader]
            twice = [tile for tile, count in Counter(row["tile"] for row in rows).items() if count > 1]
            if twice:
                raise ValueError(f"tile {twice[0]} is there twice")
            return rows

    def rows_of(self, folds: Container[int]) -> list[Row]:
        """The rows, where all are of some folds.

        Raises:
            NucloraError: The file is damaged, or has a row of another fold.
        """
        rows = self.rows
        with damaged(self._log.path, _SCORES_MEND):
            for row in rows:
                if row["fold"] not in folds:
                    raise ValueError(f"tile {row['tile']} is of fold {row['fold']}")
        return rows

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
        if self._header.keys() != row.keys():
            raise NucloraError("has other columns than this nuclora writes", path=self._log.path, mend=_SCORES_MEND)
        self._log.append(_csv_line([row[column] for column in self._header]))

    @cached_property
    def _header(self) -> dict[str, None]:
        return dict.fromkeys(next(csv.reader(self._log.lines()[:1])))

    def labels(self, tile: str, shape: tuple[int, ...] | None = None) -> NDArray[np.int32]:
        """Predicted labels of a tile, int32 (H, W).

        Args:
            tile: Its name.
            shape: Its height and width, where they are to be compared.

        Raises:
            NucloraError: The file is missing, no label map, or of another shape.
        """
        path = self._labels_path(tile)
        labels = read_labels(path)
        if shape not in (None, labels.shape):
            raise NucloraError(f"has shape {labels.shape}, and its tile {shape}", path=path, mend=_TILE_MEND)
        return labels

    def nuclei(self, tile: str) -> list[dict[str, float]]:
        """Numbers of each nucleus predicted in a tile; none where the model does not score nuclei.

        Raises:
            NucloraError: The file is damaged.
        """
        path = self._nuclei_path(tile)
        if not path.exists():
            return []
        with damaged(path, _TILE_MEND):
            reader = csv.DictReader(path.read_text("utf-8").splitlines(), strict=True)
            # Of a tile without nuclei the file is empty.
            if reader.fieldnames:
                _require({"score", "iou"}, reader.fieldnames)
            return [{key: _finite(key, value) for key, value in row.items()} for row in reader]

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
    return int(value) if column == "fold" else _finite(column, value)


def _finite(column: str, value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{column} is {value}")
    return number


def _require(columns: Set[str], there: Sequence[str] | None) -> None:
    missing = sorted(columns - set(there or ()))
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
