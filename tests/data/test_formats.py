from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import FORMAT_OF, WRITERS, known, png, same_nuclei

from nuclora.cli.data import app
from nuclora.cli.folds import folds as folds_command
from nuclora.data import FORMATS, TileSet, open_tiles
from nuclora.data.check import check_data
from nuclora.data.folds import make_folds
from nuclora.data.tiles import Sample
from nuclora.errors import NucloraError

TILES = [known(seed) for seed in range(4)]


@pytest.fixture(params=list(WRITERS))
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(layout: str, tmp_path: Path) -> Path:
    """The known tiles in one of the published layouts."""
    root = tmp_path / layout
    root.mkdir()
    WRITERS[layout](root, TILES)
    return root


def truth_of(sample: Sample) -> Sample:
    """The known tile of these pixels."""
    return next(tile for tile in TILES if np.array_equal(tile.image, sample.image))


def require_known(tiles: TileSet) -> None:
    assert len(tiles) == len(TILES)
    for tile in tiles:
        sample = tile.read()
        assert (sample.image.dtype, sample.labels.dtype, sample.ignore.dtype) == (np.uint8, np.int32, np.bool_)
        assert same_nuclei(sample.labels, truth_of(sample).labels)
        assert not sample.ignore.any()
        sample.image[0, 0] = 0  # training writes into what it reads


def test_every_layout_is_recognised_and_read_back(layout: str, data: Path) -> None:
    tiles = open_tiles(data)
    assert tiles.format == FORMAT_OF[layout]
    require_known(tiles)
    assert open_tiles(data, FORMAT_OF[layout]).names == tiles.names


def test_ids_are_kept_where_the_format_has_any(tmp_path: Path) -> None:
    gappy = known(9)
    gappy.labels[gappy.labels == 3] = 4000
    gappy.labels[gappy.labels == 5] = 0
    for layout in ("matlab", "lizard", "cellpose", "stardist"):
        (tmp_path / layout).mkdir()
        WRITERS[layout](tmp_path / layout, [gappy])
        np.testing.assert_array_equal(open_tiles(tmp_path / layout)[0].read().labels, gappy.labels)
        assert any("gaps in the ids" in note.text for note in check_data(tmp_path / layout).notes)


def test_check_finds_no_fault(data: Path) -> None:
    report = check_data(data)
    assert report.faults == ()
    assert report.total.tiles == len(TILES)
    assert report.total.nuclei == sum(len(np.unique(tile.labels)) - 1 for tile in TILES)


@pytest.mark.parametrize(
    ("layout", "scale"), [("monuseg", 0.252), ("pannuke", 0.25), ("matlab", 0.25), ("lizard", 0.5), ("coco", None)]
)
def test_the_size_of_a_pixel_is_declared_where_it_is_known(layout: str, data: Path, scale: float | None) -> None:
    assert {tile.microns_per_pixel for tile in open_tiles(data)} == {scale}
    notes = [note for note in check_data(data).notes if "microns" in note.text]
    assert [f"({scale:g} microns)" in note.text for note in notes] == ([True] if scale else [])


def test_tiles_travel_to_loader_processes_and_are_small(data: Path) -> None:
    for tile in open_tiles(data):
        content = pickle.dumps(tile)
        assert len(content) < 3000
        again = pickle.loads(content)
        assert again == tile
        np.testing.assert_array_equal(again.read().labels, tile.read().labels)
        assert hash(again) == hash(tile)


def test_whatever_lies_in_a_folder_of_masks_is_in_the_digest(tmp_path: Path) -> None:
    WRITERS["dsb2018"](tmp_path, TILES)
    mask = sorted(tmp_path.rglob("masks/*.png"))[0]
    (mask.parent / "more").mkdir()
    mask = mask.rename(mask.parent / "more" / mask.name)
    before = open_tiles(tmp_path).digest()
    assert open_tiles(tmp_path).digest() == before
    (mask.parent / ".hidden").mkdir()
    (mask.parent / ".hidden" / "junk.png").write_bytes(b"0")
    (mask.parent / "loop").symlink_to("..", target_is_directory=True)
    assert open_tiles(tmp_path).digest() == before
    mask.write_bytes(mask.read_bytes() + b"0")
    assert open_tiles(tmp_path).digest() != before


def test_labels_are_read_without_the_image(data: Path) -> None:
    for tile in open_tiles(data):
        truth = tile.read_truth()
        np.testing.assert_array_equal(truth.labels, tile.read().labels)
        assert truth.ignore is None


def test_a_loader_with_workers_reads_every_layout(data: Path) -> None:
    from torch.utils.data import DataLoader, Dataset

    class Counts(Dataset[int]):
        def __init__(self, tiles: TileSet) -> None:
            self.tiles = tiles

        def __len__(self) -> int:
            return len(self.tiles)

        def __getitem__(self, index: int) -> int:
            return len(np.unique(self.tiles[index].read().labels)) - 1

    tiles = open_tiles(data)
    found = [int(count) for count in DataLoader(Counts(tiles), batch_size=None, num_workers=1)]
    assert found == [len(np.unique(truth_of(tile.read()).labels)) - 1 for tile in tiles]


def label_files(tiles: TileSet) -> list[Path]:
    return sorted(
        {path for tile in tiles for path in ([tile.labels] if tile.labels.is_file() else tile.labels.iterdir())}
    )


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_files_that_are_cut_short_are_named_in_one_line(data: Path, share: float) -> None:
    tiles = open_tiles(data)
    for path in (label_files(tiles)[0], tiles[0].image):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        kind = tiles.format
        faults = [fault for fault in check_data(data, kind).faults if fault.spoils]
        assert faults
        assert all(len(f"{fault.reason}{fault.mend}".splitlines()) == 1 and fault.mend for fault in faults)
        assert any(path.name in f"{fault.path} {fault.reason}" or path.stem in fault.path for fault in faults)
        with pytest.raises(NucloraError, match=re.escape(path.stem)):
            [tile.read() for tile in open_tiles(data, kind)]
        path.write_bytes(content)


@pytest.mark.parametrize("layout", [name for name in WRITERS if name != "pannuke"])
def test_images_of_another_size_than_their_labels_are_named(layout: str, data: Path) -> None:
    tile = open_tiles(data)[0]
    if tile.image.suffix == ".tif":
        import tifffile

        tifffile.imwrite(tile.image, tile.read().image[:-3])
    else:
        png(tile.image, tile.read().image[:-3])
    if layout in ("monuseg", "qupath"):
        # Polygons have no size; what leaves the tile is cut off.
        assert tile.read().labels.shape == (45, 64)
        return
    with pytest.raises(NucloraError, match=r"45x64 pixels.*48x64|48x64 pixels.*45x64"):
        tile.read()


@pytest.mark.parametrize("layout", [name for name in WRITERS if name not in ("pannuke", "coco", "dsb2018")])
def test_what_has_no_partner_is_named(layout: str, data: Path) -> None:
    tiles = open_tiles(data)
    kept = tiles[0].labels.read_bytes()
    tiles[0].labels.unlink()
    if layout == "cellpose":
        shutil.rmtree(data / "nowhere", ignore_errors=True)
        for path in data.rglob("*_seg.npy"):
            path.unlink()
    with pytest.raises(NucloraError, match=r"for this image; add the .*, or remove this") as caught:
        open_tiles(data, tiles.format)
    assert caught.value.path == tiles[0].image
    tiles[0].labels.write_bytes(kept)
    tiles[0].image.unlink()
    with pytest.raises(NucloraError, match="no image for this") as caught:
        open_tiles(data, tiles.format)
    assert caught.value.path == tiles[0].labels


def test_tiles_without_nuclei_are_told_and_harmless(layout: str, tmp_path: Path) -> None:
    empty = Sample(TILES[0].image, np.zeros_like(TILES[0].labels), TILES[0].ignore)
    tmp_path = tmp_path / layout
    tmp_path.mkdir()
    WRITERS[layout](tmp_path, [empty, TILES[1], TILES[2], TILES[3]])
    if layout == "dsb2018":
        (tmp_path / "stage1_train" / "00ab" / "masks").mkdir()
    report = check_data(tmp_path)
    assert [fault.spoils for fault in report.faults] == [False]
    assert "all-zero labels" in report.faults[0].reason
    if layout in ("pannuke", "coco"):
        assert "tile " in report.faults[0].reason  # the file alone would not tell which one


def test_copies_are_found_within_one_file(tmp_path: Path) -> None:
    WRITERS["pannuke"](tmp_path, [TILES[0], TILES[1], TILES[0], TILES[2]])
    (fault,) = check_data(tmp_path).faults
    assert "tile fold1/0001: the same pixels as fold1/0000" in fault.reason


def test_pannuke_keeps_its_folds_and_tissues(tmp_path: Path, invoke: Callable[..., tuple[int, str, object]]) -> None:
    WRITERS["pannuke"](tmp_path / "data", TILES)
    tiles = open_tiles(tmp_path / "data")
    assert {tile.name: (tile.group, tile.fold) for tile in tiles} == {
        "fold1/0000": ("Breast", 1),
        "fold1/0001": ("Bile-duct", 1),
        "fold2/0000": ("Breast", 2),
        "fold2/0001": ("Bile-duct", 2),
    }
    table = make_folds(tiles, by="published")
    assert table.test(2) == ["fold2/0000", "fold2/0001"]
    import typer

    command = typer.Typer()
    command.command()(folds_command)
    out = tmp_path / "folds.csv"
    code, _, error = invoke(command, str(tmp_path / "data"), "--by", "published", "-o", str(out))
    assert (code, error) == (0, None)
    assert out.read_text() == table.to_csv()


def test_published_folds_must_be_there_and_whole(tmp_path: Path) -> None:
    for layout in ("pannuke", "stardist"):
        WRITERS[layout](tmp_path / layout, TILES)
    with pytest.raises(NucloraError, match=r"no published fold of test/0; deal the tiles out"):
        make_folds(open_tiles(tmp_path / "stardist"), by="published")
    shutil.rmtree(tmp_path / "pannuke" / "Fold 1")
    with pytest.raises(NucloraError, match=r"folds are \[2\], not 1 to k.*add the data set's missing folds"):
        make_folds(open_tiles(tmp_path / "pannuke"), by="published")


def test_the_formats_are_named_in_the_help(invoke: Callable[..., tuple[int, str, object]]) -> None:
    from typing import get_args

    from nuclora.cli.options import DataFormat

    text = get_args(DataFormat)[1].help
    assert all(name in text for name in FORMATS)
    assert "convert" in invoke(app, "--help")[1]
