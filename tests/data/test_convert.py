from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from layouts import WRITERS, known, png

from nuclora.cli.data import app
from nuclora.data import open_tiles
from nuclora.data.check import check_data
from nuclora.data.convert import MARKER, convert_data
from nuclora.data.folds import FoldTable, make_folds
from nuclora.errors import NucloraError
from nuclora.files import write_atomic

TILES = [known(seed) for seed in range(4)]
Layout = Literal["nuinsseg", "folder"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Cellpose's folder: two tiles of the group liver, two of none."""
    WRITERS["cellpose"](tmp_path / "data", TILES)
    return tmp_path / "data"


@pytest.mark.parametrize("to", ["nuinsseg", "folder"])
@pytest.mark.parametrize("layout", list(WRITERS))
def test_every_pixel_and_id_is_kept(layout: str, to: Layout, tmp_path: Path) -> None:
    source, dest = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    WRITERS[layout](source, TILES)
    tiles = open_tiles(source)
    assert convert_data(tiles, dest, to) == len(tiles)
    again = open_tiles(dest)
    assert again.format == to
    assert sorted(tile.group for tile in again) == sorted(tile.group for tile in tiles)
    before = {tile.read().image.tobytes(): tile.read() for tile in tiles}
    for tile in again:
        sample = tile.read()
        expected = before.pop(sample.image.tobytes())
        np.testing.assert_array_equal(sample.labels, expected.labels)
        np.testing.assert_array_equal(sample.ignore, expected.ignore)
    assert not before
    assert check_data(dest).faults == ()


@pytest.mark.parametrize("to", ["nuinsseg", "folder"])
def test_large_ids_and_ignore_masks_are_kept(to: Layout, tmp_path: Path) -> None:
    labels = np.zeros((48, 64), np.int32)
    labels[3:9, 3:9], labels[20:30, 20:30] = 2_000_000_000, 7
    ignore = np.zeros((48, 64), np.uint8)
    ignore[40:] = 9
    png(tmp_path / "a" / "images" / "x.png", TILES[0].image)
    png(tmp_path / "a" / "ignore" / "x.png", ignore)
    (tmp_path / "a" / "labels").mkdir()
    np.save(tmp_path / "a" / "labels" / "x.npy", labels)
    convert_data(open_tiles(tmp_path / "a"), tmp_path / "b", to)
    sample = open_tiles(tmp_path / "b")[0].read()
    np.testing.assert_array_equal(sample.labels, labels)
    np.testing.assert_array_equal(sample.ignore, ignore > 0)


def test_it_goes_on_where_it_was_cut_off(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, dest = open_tiles(data), tmp_path / "out"
    calls = []

    def dying(path: Path, content: bytes | str) -> None:
        calls.append(path)
        if len(calls) == 5:  # the marker, two tiles of two files: the third tile's image
            raise KeyboardInterrupt
        write_atomic(path, content)

    monkeypatch.setattr("nuclora.data.convert.write_atomic", dying)
    with pytest.raises(KeyboardInterrupt):
        convert_data(tiles, dest)
    monkeypatch.undo()
    torn = next(dest.rglob("*.png")).with_name(".x.png.0123abcd.tmp")
    torn.touch()
    done = {path: path.stat().st_mtime_ns for path in dest.rglob("*.png")}
    ticks: list[tuple[int, int]] = []
    assert convert_data(tiles, dest, progress=lambda done, total: ticks.append((done, total))) == 3
    assert ticks == [(number, 4) for number in range(1, 5)]
    assert not torn.exists()
    kept = [path for path, stamp in done.items() if path.stat().st_mtime_ns == stamp]
    assert len(kept) == 1
    assert convert_data(tiles, dest) == 0
    assert len(open_tiles(dest)) == 4


def test_a_folder_with_something_else_in_it_is_refused(data: Path, tmp_path: Path) -> None:
    tiles = open_tiles(data)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(NucloraError, match="other: exists and is not an empty folder; name a new folder"):
        convert_data(tiles, other)
    assert [path.name for path in other.iterdir() if path.name != ".lock"] == ["notes.txt"]
    convert_data(tiles, tmp_path / "out", "folder")
    with pytest.raises(NucloraError, match="holds a conversion of other data"):
        convert_data(tiles, tmp_path / "out", "nuinsseg")
    tile = tiles["liver/2"]
    png(tile.image, 255 - tile.read().image)
    with pytest.raises(NucloraError, match=r"holds a conversion of other data, or of these before they were changed"):
        convert_data(open_tiles(data), tmp_path / "out", "folder")


def test_nesting_files_in_the_way_and_equal_names_are_refused(data: Path, tmp_path: Path) -> None:
    tiles = open_tiles(data)
    for dest in (data, data / "inside", tmp_path):
        with pytest.raises(NucloraError, match="lies in the data set, or the data set in it"):
            convert_data(tiles, dest)
    (tmp_path / "file").touch()
    with pytest.raises(NucloraError, match=r"file: cannot write"):
        convert_data(tiles, tmp_path / "file")
    for name in ("train/val_b", "train/val/b"):
        png(data / f"{name}.png", TILES[0].image)
        png(data / f"{name}_masks.png", TILES[0].labels.astype(np.uint8))
    with pytest.raises(NucloraError, match=r"the tiles train/val.b and train/val.b would both be all/train_val_b"):
        convert_data(open_tiles(data), tmp_path / "out", "nuinsseg")


def test_a_damaged_tile_is_named_and_can_be_mended(data: Path, tmp_path: Path) -> None:
    path = open_tiles(data)["liver/2"].labels
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with pytest.raises(NucloraError, match=r"2_cp_masks\.tif"):
        convert_data(open_tiles(data), tmp_path / "out")
    assert not list((tmp_path / "out" / "labels").rglob("2_*"))


def test_published_folds_go_along(tmp_path: Path) -> None:
    WRITERS["pannuke"](tmp_path / "a", TILES)
    tiles = open_tiles(tmp_path / "a")
    for to in ("folder", "nuinsseg"):
        dest = tmp_path / to
        convert_data(tiles, dest, to)
        table = FoldTable.read(dest / "folds.csv")
        table.check_against(open_tiles(dest))
        assert [row.tile for row in table.rows] == open_tiles(dest).names
        for fold in (1, 2):
            theirs = {tiles[name].read().image.tobytes() for name in make_folds(tiles, by="published").test(fold)}
            assert {open_tiles(dest)[name].read().image.tobytes() for name in table.test(fold)} == theirs


def test_of_a_part_of_the_published_folds_no_table_is_made(tmp_path: Path) -> None:
    WRITERS["pannuke"](tmp_path / "a", TILES)
    shutil.rmtree(tmp_path / "a" / "Fold 1")
    assert convert_data(open_tiles(tmp_path / "a"), tmp_path / "b", "folder") > 0
    assert not (tmp_path / "b" / "folds.csv").exists()


def test_the_command_tells_what_it_did(
    tmp_path: Path, invoke: Callable[..., tuple[int, str, BaseException | None]]
) -> None:
    WRITERS["pannuke"](tmp_path / "a", TILES)
    for told in ("4 tiles of pannuke in", "(4 were there already)"):
        code, text, error = invoke(app, "convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "nuinsseg")
        assert (code, error) == (0, None)
        assert told in text
        assert "microns per pixel: 0.25" in text
    assert (tmp_path / "b" / MARKER).is_file()
