"""Label maps that we wrote, read again after damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nuclora.errors import NucloraError
from nuclora.io.labels import read_labels, write_labels


def test_a_damaged_label_map_is_told_by_name_whatever_its_decoder_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.labels.tif"
    labels = np.kron(np.arange(64).reshape(8, 8), np.ones((8, 8), int)).astype(np.int32)
    write_labels(path, labels)
    whole = path.read_bytes()
    step = 7
    told = []
    for place in range(0, len(whole), step):
        for damaged in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :],
            whole[:place] + bytes(len(whole) - place),
        ):
            path.write_bytes(damaged)
            try:
                read_labels(path)
            except NucloraError as error:
                told.append(str(error))
    assert len(told) > len(whole) / step
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in told)
