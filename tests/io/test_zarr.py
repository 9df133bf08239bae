"""OME-Zarr stores: pixels, levels, places and metadata, read back with zarr and held against the specification."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from nuclora.errors import NucloraError
from nuclora.io import zarr as module
from nuclora.io.zarr import Grid, Read, write_zarr


def reader(pixels: np.ndarray) -> Read:
    return lambda rows, columns: pixels[rows.start : rows.stop, columns.start : columns.stop]


def write(path: Path, image: np.ndarray, labels: np.ndarray, **grid: Any) -> zarr.Group:
    grid = {"microns_per_pixel": 0.5} | grid
    write_zarr(path, "a.png", Grid(*labels.shape, **grid), reader(image), reader(labels))
    return zarr.open_group(path, mode="r")


def picture(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(height * width)
    labels = np.kron(generator.integers(0, 9, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8), np.int32))
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, labels[:height, :width].astype(np.int32)


def levels(group: zarr.Group) -> list[np.ndarray]:
    (multiscale,) = group.attrs["ome"]["multiscales"]
    return [group[dataset["path"]][...] for dataset in multiscale["datasets"]]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 32)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (33, 70), (1, 130), (150, 97)])
def test_pixels_and_levels(shape: tuple[int, int], tmp_path: Path) -> None:
    image, labels = picture(*shape)
    root = write(tmp_path / "a.zarr", image, labels)
    of_image, of_labels = levels(root), levels(root["labels/nuclei"])
    np.testing.assert_array_equal(np.moveaxis(of_image[0], 0, 2), image)
    np.testing.assert_array_equal(of_labels[0], labels)
    assert of_labels[0].dtype == np.int32
    assert max(of_labels[-1].shape) <= 32
    assert len(of_image) == len(of_labels)
    for fine, coarse in itertools.pairwise(of_labels):
        np.testing.assert_array_equal(coarse, fine[::2, ::2])
    for fine, coarse in itertools.pairwise(of_image):
        assert coarse.shape[1:] == tuple(-(-side // 2) for side in fine.shape[1:])
        for (row, column), value in np.ndenumerate(coarse[1]):
            mean = fine[1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
            assert abs(value - mean) <= 0.5


@pytest.mark.usefixtures("small_chunks")
def test_every_level_lies_where_it_belongs(tmp_path: Path) -> None:
    root = write(tmp_path / "a.zarr", *picture(70, 90), microns_per_pixel=0.5, origin=(100.0, 20.0))
    for group, more in ((root, 1), (root["labels/nuclei"], 0)):
        (multiscale,) = group.attrs["ome"]["multiscales"]
        space = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
        assert multiscale["axes"] == [{"name": "c", "type": "channel"}] * more + space
        for level, dataset in enumerate(multiscale["datasets"]):
            scale, translation = dataset["coordinateTransformations"]
            assert scale == {"type": "scale", "scale": [1.0] * more + [0.5 * 2**level] * 2}
            edge = np.array(translation["translation"]) - np.array(scale["scale"]) / 2
            # The outer edge of the first pixel is that of the finest level's.
            np.testing.assert_allclose(edge[more:], [99.75, 19.75])
            assert group[dataset["path"]].metadata.dimension_names == ("c", "y", "x")[1 - more :]


def test_without_microns_there_is_no_unit(tmp_path: Path) -> None:
    root = write(tmp_path / "a.zarr", *picture(9, 8), microns_per_pixel=None)
    (multiscale,) = root["labels/nuclei"].attrs["ome"]["multiscales"]
    assert multiscale["axes"] == [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [1, 1]


def test_metadata_by_the_rules_of_version_0_5(tmp_path: Path) -> None:
    # Of the published JSON schemas what they require: image.schema, label.schema and ome_zarr.schema.
    root = write(tmp_path / "a.zarr", *picture(40, 50))
    assert root.metadata.zarr_format == 3
    for group in (root, root["labels"], root["labels/nuclei"]):
        assert set(group.attrs) == {"ome"}
        assert group.attrs["ome"]["version"] == "0.5"
    assert root["labels"].attrs["ome"]["labels"] == ["nuclei"]
    label = root["labels/nuclei"].attrs["ome"]["image-label"]
    assert label == {"source": {"image": "../../"}}
    assert (tmp_path / "a.zarr" / "labels" / "nuclei" / label["source"]["image"] / "zarr.json").samefile(
        tmp_path / "a.zarr" / "zarr.json"
    )
    for channel in root.attrs["ome"]["omero"]["channels"]:
        assert {"min", "max", "start", "end"} == set(channel["window"])
        assert len(channel["color"]) == 6


def test_what_is_empty_takes_no_chunk(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", np.full((40, 50, 3), 255, np.uint8), np.zeros((40, 50), np.int32))
    assert {path.name for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()} == {"zarr.json"}


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    def fails(rows: range, columns: range) -> np.ndarray:
        raise NucloraError("damaged")

    image, labels = picture(40, 50)
    for _ in range(2):
        with pytest.raises(NucloraError, match="damaged"):
            write_zarr(tmp_path / "a.zarr", "a", Grid(40, 50, None), reader(image), fails)
        assert not list(tmp_path.iterdir()) or [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
        write(tmp_path / "a.zarr", image, labels)
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "a.zarr", mode="r")["labels/nuclei/0"][...], labels)


def test_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(NucloraError, match=r"zarr.*nuclora\[zarr\]"):
        write_zarr(tmp_path / "a.zarr", "a", Grid(1, 1, None), reader(np.zeros(())), reader(np.zeros(())))


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    image, labels = picture(40, 50)
    monkeypatch.setattr("zarr.storage._local._put", full)
    with pytest.raises(NucloraError, match=r"a\.zarr: cannot write \(No space left on device\); free some space"):
        write(tmp_path / "a.zarr", image, labels)
    assert not list(tmp_path.iterdir())
