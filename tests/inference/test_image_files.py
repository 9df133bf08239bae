"""Which images a command line means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nuclora.errors import NucloraError
from nuclora.inference.image_files import find_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.png", "a.JPG", "c.webp", "notes.txt", ".hidden.png", "._b.png", "b.overlay.png", "b.labels.tif",
        "deep/d.tif", "deep/er/e.jpeg", ".cache/f.png", "two words/a.png",
    ):  # fmt: skip
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def names(*inputs: object, recursive: bool = False) -> list[str]:
    return [image.name for image in find_images([str(one) for one in inputs], recursive=recursive)]


def test_a_folder_means_the_images_in_it_and_none_of_ours(folder: Path) -> None:
    assert names(folder) == ["a", "b", "c"]


def test_recursive_means_those_of_its_folders_too_by_their_path(folder: Path) -> None:
    assert names(folder, recursive=True) == ["a", "b", "c", "deep/d", "deep/er/e", "two words/a"]


def test_recursive_follows_linked_folders_and_ends(folder: Path, tmp_path: Path) -> None:
    (folder / "deep").rename(tmp_path / "elsewhere")
    try:
        (folder / "deep").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    (tmp_path / "elsewhere" / "round").symlink_to(folder)
    assert names(folder, recursive=True) == ["a", "b", "c", "deep/d", "deep/er/e", "two words/a"]


def test_links_to_no_file_are_not_passed_over(folder: Path) -> None:
    try:
        (folder / "gone.png").symlink_to(folder / "nowhere.png")
    except OSError:
        pytest.skip("no links here")
    assert names(folder) == names(folder / "*.*") == ["a", "b", "c", "gone"]


def test_files_keep_their_order_and_are_taken_once(folder: Path) -> None:
    assert names(folder / "c.webp", folder, folder / "a.JPG") == ["c", "a", "b"]


def test_globs(folder: Path) -> None:
    assert names(folder / "*.[pw]*") == ["b", "c"]
    assert names(folder / "**" / "e.*") == ["e"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder: Path) -> None:
    (folder / "x[1].png").touch()
    assert names(folder / "x[1].png") == ["x[1]"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nothing.png", "no such file or folder"),
        ("notes.txt", "not an image by its suffix '.txt'"),
        ("*.tiff", "0 files match, none an image"),
        ("*.txt", "1 files match, none an image"),
    ],
)
def test_inputs_that_mean_no_image_are_named(folder: Path, given: str, told: str) -> None:
    with pytest.raises(NucloraError, match=told.replace("(", r"\(")) as error:
        names(folder / "a.JPG", folder / given)
    assert Path(str(error.value.path)) == folder / given


def test_an_empty_input_is_not_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert names(".") == ["a", "b", "c"]
    with pytest.raises(NucloraError, match="an input is empty; name a file, a folder or a glob"):
        names("", "a.JPG")


def test_of_dicom_one_file_is_named_for_each_slide(folder: Path) -> None:
    for name in ("level-0.dcm", "level-1.dcm"):
        (folder / name).touch()
        (folder / "dicom" / name).parent.mkdir(exist_ok=True)
        (folder / "dicom" / name).touch()
    assert names(folder / "dicom" / "level-0.dcm") == ["level-0"]
    assert names(folder) == ["a", "b", "c"]
    for given in (folder / "dicom", folder / "*.dcm"):
        with pytest.raises(NucloraError, match="name one file of each DICOM slide"):
            names(given)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(NucloraError, match=r"pipe\.png: neither a file nor a folder"):
        names(folder / "pipe.png")
    assert "pipe" not in names(folder)


def test_an_empty_folder_is_named_and_one_with_folders_gets_a_hint(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(NucloraError, match="no image in this folder; put PNG"):
        names(folder / "empty")
    for image in folder.glob("*.*"):
        if image.is_file():
            image.unlink()
    with pytest.raises(NucloraError, match="give --recursive"):
        names(folder)


@pytest.mark.parametrize("other", ["a.png", "A.tif"])
def test_two_images_of_one_name_are_refused(folder: Path, other: str) -> None:
    (folder / "deep" / other).touch()
    with pytest.raises(NucloraError, match="names of those of") as error:
        names(folder, folder / "deep" / other)
    assert error.value.path == folder / "deep" / other
    assert "a.JPG" in str(error.value)


def test_links_of_several_names_to_one_file_are_several_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    for name in ("x.png", "y.png"):
        (folder / "deep" / name).symlink_to(tmp_path / "store")
    assert names(folder / "deep", folder / "deep" / "y.png") == ["d", "x", "y"]
