"""Measurements of nuclei as Parquet, for tables too long for a spreadsheet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nuclora.extras import require
from nuclora.files import atomic_file


def write_parquet(path: Path, parts: Iterable[Mapping[str, NDArray[Any]]]) -> None:
    """Write columns as Parquet, a row group a part, one after the other and atomically.

    Args:
        path: The file.
        parts: The columns by name, (n,) each, as :func:`nuclora.io.tables.measure_nuclei` gives them; one part at
            least, and the same names and types in all.

    Raises:
        NucloraError: pyarrow is not installed, the disk is full or the path cannot be written.
    """
    pyarrow = require("pyarrow", "Parquet")
    from pyarrow import parquet

    # A writer that is left open after a failure would still write, to a file that is gone.
    with atomic_file(path) as file, contextlib.ExitStack() as stack:
        writer = None
        for part in parts:
            table = pyarrow.table(dict(part), schema=writer.schema if writer else None)
            writer = writer or stack.enter_context(parquet.ParquetWriter(file, table.schema))
            writer.write_table(table)
