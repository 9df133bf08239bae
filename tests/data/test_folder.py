from __future__ import annotations

import errno
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nuclora.data import list_tiles, open_tiles
from nuclora.data.images import read_image
from nuclora.errors import NucloraError


def test_names_and_groups_come_from_subfolders(plain_folder: Path) -> None:
    tiles = open_tiles(plain_folder)
    assert tiles.format == "folder"
    assert {tile.name: tile.group for tile in tiles} == {
        "a": "all",
        "b": "all",
        "liver/c": "liver",
        "liver/deep/d": "liver",
    }
    assert [tile.read().labels.max() for tile in tiles] == [1, 2, 3, 4]


def test_linked_folders_are_followed_and_end(plain_folder: Path, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (plain_folder / folder / "liver").rename(tmp_path / f"{folder}-elsewhere")
        try:
            (plain_folder / folder / "liver").symlink_to(tmp_path / f"{folder}-elsewhere", target_is_directory=True)
        except OSError:
            pytest.skip("no links here")
        # To the folder that it lies in, to one above, and two to each other.
        (tmp_path / f"{folder}-elsewhere" / "round").symlink_to(tmp_path / f"{folder}-elsewhere")
        (plain_folder / folder / "up").symlink_to(plain_folder)
        for one, other in (("x", "y"), ("y", "x")):
            (tmp_path / f"{folder}-{one}").mkdir()
            (tmp_path / f"{folder}-{one}" / other).symlink_to(tmp_path / f"{folder}-{other}")
        (plain_folder / folder / "x").symlink_to(tmp_path / f"{folder}-x")
    assert open_tiles(plain_folder).names == ["a", "b", "liver/c", "liver/deep/d"]


def test_a_folder_may_have_all_its_labels_behind_links(plain_folder: Path, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (plain_folder / folder / "a.png").unlink()
        (plain_folder / folder / "b.png").unlink()
        (plain_folder / folder / "liver").rename(tmp_path / f"{folder}-elsewhere")
        try:
            (plain_folder / folder / "liver").symlink_to(tmp_path / f"{folder}-elsewhere", target_is_directory=True)
        except OSError:
            pytest.skip("no links here")
    assert open_tiles(plain_folder).names == ["liver/c", "liver/deep/d"]


def test_order_is_that_of_the_image_paths(plain_folder: Path) -> None:
    for folder in ("images", "labels"):
        shutil.copy(plain_folder / folder / "a.png", plain_folder / folder / "a-2.png")
    assert open_tiles(plain_folder).names[:2] == ["a-2", "a"]  # "-" sorts before "."


def test_label_formats_and_ignore_masks(plain_folder: Path) -> None:
    labels = np.asarray(Image.open(plain_folder / "labels" / "a.png"))
    (plain_folder / "labels" / "a.png").unlink()
    np.save(plain_folder / "labels" / "a.npy", labels)
    Image.open(plain_folder / "images" / "b.png").save(plain_folder / "images" / "b.jpeg")
    (plain_folder / "images" / "b.png").unlink()
    (plain_folder / "ignore" / "liver").mkdir(parents=True)
    mask = np.zeros((48, 64), np.uint8)
    mask[0] = 1
    Image.fromarray(mask).save(plain_folder / "ignore" / "liver" / "c.png")
    (plain_folder / "images" / ".a.png").write_bytes(b"litter")
    (plain_folder / "images" / "readme.txt").write_text("ours")
    tiles = open_tiles(plain_folder)
    assert len(tiles) == 4
    np.testing.assert_array_equal(tiles["a"].read().labels, labels)
    assert tiles["liver/c"].read().ignore.sum() == 64
    assert tiles["b"].ignore is None


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("labels/a.png", r"images/a\.png: no label map for this image; add labels/a"),
        ("images/a.png", r"labels/a\.png: no image for this label map; add images/a"),
    ],
)
def test_missing_partners_are_named(plain_folder: Path, broken: str, message: str) -> None:
    (plain_folder / broken).unlink()
    with pytest.raises(NucloraError, match=message):
        open_tiles(plain_folder)


def test_labels_in_a_lossy_format_are_told_apart_from_missing_ones(plain_folder: Path) -> None:
    (plain_folder / "labels" / "a.png").rename(plain_folder / "labels" / "a.jpg")
    with pytest.raises(NucloraError, match=r"labels/a\.jpg is none of npy, png, tif, tiff; convert it"):
        open_tiles(plain_folder)


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_doubled_stems_are_named(plain_folder: Path, folder: str) -> None:
    Image.open(plain_folder / folder / "a.png").save(plain_folder / folder / "a.tif")
    with pytest.raises(NucloraError, match=r"one of 2 files of this stem \(a\.png, a\.tif\); keep one"):
        open_tiles(plain_folder)


def test_ignore_mask_without_image_is_named(plain_folder: Path) -> None:
    (plain_folder / "ignore").mkdir()
    shutil.copy(plain_folder / "labels" / "a.png", plain_folder / "ignore" / "z.png")
    with pytest.raises(NucloraError, match=r"ignore/z\.png: no image for this ignore mask"):
        open_tiles(plain_folder)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "liver/c.mat", "z.bmp"])
def test_ignore_mask_of_a_type_that_is_not_read_is_named(plain_folder: Path, name: str) -> None:
    mask = plain_folder / "ignore" / name
    mask.parent.mkdir(parents=True)
    mask.touch()
    (plain_folder / "ignore" / "readme.txt").touch()
    with pytest.raises(NucloraError, match=f"ignore/{name}: an ignore mask of a type that is not read; convert it to"):
        open_tiles(plain_folder)
    for image in ("a", "liver/c", "z"):
        (plain_folder / "ignore" / image).parent.mkdir(exist_ok=True)
        shutil.copy(plain_folder / "labels" / "a.png", plain_folder / "ignore" / f"{image}.png")
    shutil.copy(plain_folder / "images" / "a.png", plain_folder / "images" / "z.png")
    shutil.copy(plain_folder / "labels" / "a.png", plain_folder / "labels" / "z.png")
    assert len(open_tiles(plain_folder)) == 5  # it lies beside a mask that is read


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_zipped_on_a_mac_belong_to_their_images(plain_folder: Path, forms: tuple[str, str]) -> None:
    shutil.rmtree(plain_folder / "images" / "liver")
    shutil.rmtree(plain_folder / "labels" / "liver")
    name, other = (unicodedata.normalize(form, "köln/ü") for form in forms)
    for folder, written in (("images", name), ("labels", other), ("ignore", other)):
        (plain_folder / folder / written).parent.mkdir(parents=True)
        shutil.copy(
            plain_folder / folder.replace("ignore", "labels") / "a.png", plain_folder / folder / f"{written}.png"
        )
    tiles = open_tiles(plain_folder)
    assert tiles.names == ["a", "b", name]
    assert tiles[2].ignore is not None
    assert tiles.groups == sorted(["all", name.split("/")[0]])
    # A label map of another type is told as such.
    shutil.copy(plain_folder / "images" / "a.png", plain_folder / "images" / f"{unicodedata.normalize('NFC', 'é')}.png")
    shutil.copy(plain_folder / "labels" / "a.png", plain_folder / "labels" / f"{unicodedata.normalize('NFD', 'é')}.jpg")
    with pytest.raises(NucloraError, match=r"labels/.*\.jpg is none of"):
        open_tiles(plain_folder)


def test_unknown_folders_are_refused_in_a_short_line(tmp_path: Path) -> None:
    with pytest.raises(
        NucloraError, match=r"no labelled tiles found in any of \d+ layouts; name .* say --format \(docs/data\.md"
    ) as caught:
        open_tiles(tmp_path)
    assert len(str(caught.value)) - len(str(tmp_path)) < 200
    with pytest.raises(NucloraError, match="no such folder"):
        open_tiles(tmp_path / "absent")
    (tmp_path / "data.zip").touch()
    with pytest.raises(NucloraError, match="not a folder; unpack it"):
        open_tiles(tmp_path / "data.zip")
    (tmp_path / "images").mkdir()
    with pytest.raises(NucloraError, match="no folder 'labels'"):
        open_tiles(tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(NucloraError, match="no tiles in this folder of format folder"):
        open_tiles(tmp_path)


def test_the_format_can_be_forced(plain_folder: Path, nuinsseg_tree: Path) -> None:
    with pytest.raises(NucloraError, match="no NuInsSeg tree"):
        open_tiles(plain_folder, "nuinsseg")
    with pytest.raises(NucloraError, match="no data format named 'csv'; use one of nuinsseg, folder"):
        open_tiles(plain_folder, "csv")
    for name in ("images", "labels"):
        shutil.copytree(plain_folder / name, nuinsseg_tree / name)
    with pytest.raises(NucloraError, match="looks like nuinsseg and folder; choose one with --format"):
        open_tiles(nuinsseg_tree)
    assert {name: len(open_tiles(nuinsseg_tree, name)) for name in ("nuinsseg", "folder")} == {
        "nuinsseg": 6,
        "folder": 4,
    }


def test_what_links_to_nothing_is_named_on_both_sides(plain_folder: Path) -> None:
    for place in ("images", "labels", "ignore"):
        (plain_folder / place).mkdir(exist_ok=True)
        (plain_folder / place / "gone.png").symlink_to(plain_folder / "unmounted" / "gone.png")
    faults = list_tiles(plain_folder).faults
    assert [fault.path for fault in faults] == [
        plain_folder / place / "gone.png" for place in ("images", "labels", "ignore")
    ]
    assert {fault.reason for fault in faults} == {"no file, or a link to none"}


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    plain_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = plain_folder / "images" / "liver"
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(NucloraError, match=r"liver: cannot be listed \(Permission denied\); check its permissions"):
        open_tiles(plain_folder)


def test_a_pipe_is_no_image(plain_folder: Path) -> None:
    os.mkfifo(plain_folder / "pipe.png")
    with pytest.raises(NucloraError, match=r"pipe\.png: a pipe, not a file"):
        read_image(plain_folder / "pipe.png")
