from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nuclora.data import list_tiles, open_tiles
from nuclora.errors import NucloraError


def test_tree_is_recognised_and_sorted(nuinsseg_tree: Path) -> None:
    tiles = open_tiles(nuinsseg_tree)
    assert tiles.format == "nuinsseg"
    assert tiles.names == [f"human salivory gland/{stem}" for stem in ("1", "10", "2")] + [
        f"mouse fat (white)/{stem}" for stem in "abc"
    ]
    assert tiles.groups == ["human salivory gland", "mouse fat (white)"]


def test_the_modified_masks_are_the_truth(nuinsseg_tree: Path) -> None:
    tiles = open_tiles(nuinsseg_tree)
    assert tiles["human salivory gland/2"].read().labels.max() == 2  # "label masks" has 9


@pytest.mark.parametrize("folder", ["vague areas/mask binary", "mask binary_vague", "vague areas/mask binary_vague"])
def test_vague_areas_are_found_under_each_name(nuinsseg_tree: Path, folder: str) -> None:
    vague = np.zeros((48, 64), np.uint8)
    vague[:5] = 255
    target = nuinsseg_tree / "mouse fat (white)" / folder / "b.png"
    target.parent.mkdir(parents=True)
    Image.fromarray(vague).save(target)
    tiles = open_tiles(nuinsseg_tree)
    np.testing.assert_array_equal(tiles["mouse fat (white)/b"].read().ignore, vague > 0)
    assert [tile.name for tile in tiles if tile.ignore] == ["mouse fat (white)/b"]


def test_two_masks_of_vague_areas_are_named(nuinsseg_tree: Path) -> None:
    for folder in ("vague areas/mask binary", "mask binary_vague"):
        target = nuinsseg_tree / "mouse fat (white)" / folder / "b.png"
        target.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(target)
    told = (
        r"mask binary/b\.png: one of 2 ignore masks of b\.png; keep one of them; another is .*mask binary_vague/b\.png"
    )
    with pytest.raises(NucloraError, match=told):
        open_tiles(nuinsseg_tree)


@pytest.mark.parametrize("folder", ["vague areas/mask binary", "mask binary_vague", "vague areas/mask binary_vague"])
def test_vague_areas_that_would_be_lost_are_named(nuinsseg_tree: Path, folder: str) -> None:
    vague = nuinsseg_tree / "mouse fat (white)" / folder
    vague.mkdir(parents=True)
    for name in ("Thumbs.db", "readme.txt", "b.png"):
        (vague / name).touch()
    assert len(open_tiles(nuinsseg_tree)) == 6
    for name, fault in {
        "z.png": r"no image for this ignore mask; add .*tissue images/z\.png, or remove this file",
        "a.jpg": "an ignore mask of a type that is not read; convert it to PNG",
        "a.npy": "an ignore mask of a type that is not read; convert it to PNG",
    }.items():
        (vague / name).touch()
        with pytest.raises(NucloraError, match=f"{folder}/{name}: {fault}"):
            open_tiles(nuinsseg_tree)
        (vague / name).unlink()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_zipped_on_a_mac_belong_to_their_images(nuinsseg_tree: Path, forms: tuple[str, str]) -> None:
    organ = nuinsseg_tree / "mouse fat (white)"
    stem, other = (unicodedata.normalize(form, "ü") for form in forms)
    (organ / "tissue images" / "a.png").rename(organ / "tissue images" / f"{stem}.png")
    (organ / "label masks modify" / "a.tif").rename(organ / "label masks modify" / f"{other}.tif")
    (organ / "mask binary_vague").mkdir()
    (organ / "mask binary_vague" / f"{other}.png").touch()
    tile = open_tiles(nuinsseg_tree)[f"mouse fat (white)/{stem}"]
    assert tile.ignore is not None


def test_files_of_one_stem_are_named(nuinsseg_tree: Path) -> None:
    images = nuinsseg_tree / "mouse fat (white)" / "tissue images"
    shutil.copy(images / "a.png", images / "a.PNG")
    if len(list(images.glob("a.*"))) == 1:
        pytest.skip("names differ in case only")
    with pytest.raises(NucloraError, match=r"one of 2 files of this stem \(a\.PNG, a\.png\); keep one"):
        open_tiles(nuinsseg_tree)


def test_the_folder_above_serves_if_it_holds_one_tree(nuinsseg_tree: Path) -> None:
    inside = open_tiles(nuinsseg_tree)
    assert open_tiles(nuinsseg_tree.parent) == inside
    shutil.copytree(nuinsseg_tree, nuinsseg_tree.with_name("second"))
    with pytest.raises(NucloraError, match=r"2 NuInsSeg trees \(nuinsseg, second\)"):
        open_tiles(nuinsseg_tree.parent)


def test_one_organ_is_not_a_tree(nuinsseg_tree: Path) -> None:
    with pytest.raises(NucloraError, match=r"one organ's folder.*name the folder above"):
        open_tiles(nuinsseg_tree / "mouse fat (white)")


def test_missing_files_are_named(nuinsseg_tree: Path) -> None:
    organ = nuinsseg_tree / "mouse fat (white)"
    (organ / "label masks modify" / "a.tif").unlink()
    with pytest.raises(NucloraError, match=r"a\.png: no label map for this image; add .*label masks modify/a\.tif"):
        open_tiles(nuinsseg_tree)
    (organ / "tissue images" / "c.png").unlink()
    with pytest.raises(NucloraError, match=r"\(and 1 more fault: see `nuclora data check`\)"):
        open_tiles(nuinsseg_tree)
    shutil.rmtree(organ / "label masks modify")
    with pytest.raises(NucloraError, match="no folder 'label masks modify'"):
        open_tiles(nuinsseg_tree)


def test_official_sample(shared_data: Path) -> None:
    root = shared_data / "nuinsseg" / "official-sample"
    tiles = open_tiles(root)
    assert len(tiles) == 8
    assert tiles.groups == ["human bladder", "human liver", "human spleen"]
    rgba = tiles["human liver/human_liver_31"]
    stored = np.asarray(Image.open(rgba.image))
    assert stored.shape == (512, 512, 4)
    for tile in tiles:
        sample = tile.read()
        stem = tile.name.split("/")[1]
        truth = tifffile.imread(root / tile.group / "label masks modify" / f"{stem}.tif")
        np.testing.assert_array_equal(sample.labels, truth)
        np.testing.assert_array_equal(sample.image, np.asarray(Image.open(tile.image))[..., :3])
    # Bladder has "mask binary_vague", spleen "vague areas/mask binary", liver neither.
    assert [tile.read().ignore.any() for tile in tiles] == [True] * 2 + [False] * 2 + [True] * 4


def test_what_seems_to_be_an_organ_and_is_none_is_named(nuinsseg_tree: Path) -> None:
    (nuinsseg_tree / "human liver" / "Tissue images").mkdir(parents=True)
    (nuinsseg_tree / "more").mkdir()
    shutil.move(nuinsseg_tree / "mouse fat (white)", nuinsseg_tree / "more")
    (nuinsseg_tree / "notes").mkdir()
    found = {fault.path: fault.reason for fault in list_tiles(nuinsseg_tree).faults}
    assert found == {
        nuinsseg_tree / "human liver" / "Tissue images": "not named 'tissue images'",
        nuinsseg_tree / "more": "organs of its own (mouse fat (white)) beside those around it",
    }
