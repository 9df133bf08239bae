"""The table of nuclei: known shapes have known measures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2hed

from nuclora.io import tables
from nuclora.io.tables import measure_nuclei, write_columns, write_rows


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ellipse(angle: float, size: int = 101) -> np.ndarray:
    """Half axes 30 and 10, the long one turned anticlockwise on the screen by an angle in degrees."""
    y, x = np.ogrid[:size, :size]
    right, up = x - 50, 50 - y
    along = right * np.cos(np.radians(angle)) + up * np.sin(np.radians(angle))
    across = -right * np.sin(np.radians(angle)) + up * np.cos(np.radians(angle))
    return ((along / 30) ** 2 + (across / 10) ** 2 <= 1).astype(np.int32)


@pytest.mark.parametrize("angle", [0, 20, 45, 90, 135, 170])
def test_orientation_is_anticlockwise_from_the_x_axis(angle: int) -> None:
    table = measure_nuclei(random_image(101, 101), ellipse(angle), np.ones(1, np.float32))
    turned = abs(table["orientation_deg"][0] - angle) % 180
    assert min(turned, 180 - turned) < 1
    assert 0 <= table["orientation_deg"][0] < 180
    assert table["eccentricity"][0] == pytest.approx(np.sqrt(1 - 1 / 9), abs=0.01)
    assert table["solidity"][0] > 0.94


def test_a_rectangle_with_gaps_in_ids() -> None:
    labels = np.zeros((50, 60), np.int32)
    labels[10:20, 30:50], labels[40:45, 0:5] = 2, 5
    scores = np.array([0, 0.25, 0, 0, 0.75], np.float32)
    table = measure_nuclei(random_image(50, 60), labels, scores, 0.5)
    assert table["label"].tolist() == [2, 5]
    assert table["centroid_x"].tolist() == [39.5, 2.0]
    assert table["centroid_y"].tolist() == [14.5, 42.0]
    assert table["area_px"].tolist() == [200, 25]
    assert table["area_um2"].tolist() == [50, 6.25]
    np.testing.assert_allclose(table["perimeter_um"], table["perimeter_px"] / 2)
    assert table["score"].tolist() == [0.25, 0.75]


@pytest.mark.parametrize("rows", [7, 256])
def test_haematoxylin_is_the_mean_over_the_nucleus(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ROWS", rows)
    image = random_image(50, 60)
    labels = np.random.default_rng(2).integers(0, 5, (50, 60)).astype(np.int32)
    table = measure_nuclei(image, labels, np.ones(4, np.float32))
    wanted = [rgb2hed(image)[..., 0][labels == label].mean() for label in range(1, 5)]
    np.testing.assert_allclose(table["haematoxylin"], wanted)


def test_a_stained_nucleus_has_more_of_it_than_an_eosin_one() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20], image[:, 20:] = (70, 50, 130), (230, 130, 180)
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 5:15], labels[5:15, 25:35] = 1, 2
    blue, pink = measure_nuclei(image, labels, np.ones(2, np.float32))["haematoxylin"]
    assert blue > 3 * pink


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_nuclei_have_measures(shape: tuple[int, int]) -> None:
    labels = np.zeros((20, 20), np.int32)
    labels[3 : 3 + shape[0], 3 : 3 + shape[1]] = 1
    table = measure_nuclei(random_image(20, 20), labels, np.ones(1, np.float32))
    assert all(np.isfinite(column).all() for column in table.values())


def test_no_nuclei_give_a_table_without_rows(tmp_path: Path) -> None:
    full = measure_nuclei(random_image(9, 9), np.ones((9, 9), np.int32), np.ones(1, np.float32), 0.25)
    empty = measure_nuclei(random_image(9, 9), np.zeros((9, 9), np.int32), np.zeros(0, np.float32), 0.25)
    assert list(empty) == list(full)
    write_columns(tmp_path / "a.csv", empty)
    assert (tmp_path / "a.csv").read_text() == ",".join(full) + "\n"


def test_rows_are_written_with_four_decimals_and_names_with_commas_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", ["name", "value", "none"], [["a, b\u00e9", 1 / 3, None], ["c", 2, ""]])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "value", "none"], ["a, b\u00e9", "0.3333", ""], ["c", "2", ""]]


def test_a_name_that_is_not_utf_8_is_written_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", ["image"], [["bad\udcff.png"], ["\u00e9.png"]])
    assert (tmp_path / "a.csv").read_text("utf-8").splitlines() == ["image", r"bad\udcff.png", "\u00e9.png"]


def test_haematoxylin_goes_by_id_where_ids_have_gaps() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20], image[:, 20:] = (230, 130, 180), (70, 50, 130)
    labels = np.zeros((20, 40), np.int32)
    labels[5:15, 5:15], labels[5:15, 25:35] = 2, 5
    pink, blue = measure_nuclei(image, labels, np.ones(5, np.float32))["haematoxylin"]
    assert blue > 3 * pink
    assert blue > 0.05
