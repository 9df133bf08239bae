from __future__ import annotations

import sys

import numpy as np
import pytest
from pyarrow import parquet

from nuclora.errors import NucloraError
from nuclora.io.parquet import write_parquet


def test_parts_become_row_groups_of_one_table(tmp_path):
    parts = [
        {"label": np.array([1, 2]), "score": np.array([0.5, 0.25], np.float32)},
        {"label": np.array([3]), "score": np.array([0.125], np.float32)},
    ]
    write_parquet(tmp_path / "a.parquet", parts)
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 2
    assert file.read().to_pydict() == {"label": [1, 2, 3], "score": [0.5, 0.25, 0.125]}


def test_a_part_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"label": np.array([1])}])
    before = path.read_bytes()

    def parts():
        yield {"label": np.array([7])}
        raise NucloraError("damaged")

    with pytest.raises(NucloraError, match="damaged"):
        write_parquet(path, parts())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NucloraError, match=r"pyarrow.*nuclora\[parquet\]"):
        write_parquet(tmp_path / "a.parquet", [{"label": np.array([1])}])
