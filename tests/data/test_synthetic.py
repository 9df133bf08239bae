from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2hed

from nuclora.data import open_tiles, synthetic
from nuclora.data.synthetic import ORGANS, synthesize_tile, write_dataset
from nuclora.data.tiles import Sample
from nuclora.errors import NucloraError


@pytest.fixture(scope="module")
def tiles() -> dict[str, list[Sample]]:
    return {organ: [synthesize_tile(256, seed, organ) for seed in range(3)] for organ in ORGANS}


def each(tiles: dict[str, list[Sample]]) -> list[Sample]:
    return [sample for samples in tiles.values() for sample in samples]


def touching_pairs(labels: np.ndarray) -> set[tuple[int, int]]:
    pairs: set[tuple[int, int]] = set()
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        meet = (a != b) & (a > 0) & (b > 0)
        pairs |= {(min(p), max(p)) for p in zip(a[meet].tolist(), b[meet].tolist(), strict=True)}
    return pairs


@pytest.mark.parametrize("organ", ORGANS)
def test_equal_seeds_make_equal_tiles(organ: str, tiles: dict[str, list[Sample]]) -> None:
    again = synthesize_tile(256, 1, ORGANS.index(organ))
    for part in ("image", "labels", "ignore"):
        assert np.array_equal(getattr(again, part), getattr(tiles[organ][1], part))
    assert not np.array_equal(again.image, tiles[organ][0].image)


def test_global_random_state_is_untouched() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    synthesize_tile(64, 0, 0)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_labels_are_whole_and_without_gaps(tiles: dict[str, list[Sample]]) -> None:
    for sample in each(tiles):
        assert (sample.image.dtype, sample.image.shape) == (np.uint8, (256, 256, 3))
        assert (sample.labels.dtype, sample.ignore.dtype) == (np.int32, np.bool_)
        ids = np.unique(sample.labels)
        assert ids.tolist() == list(range(len(ids)))
        assert len(ids) > 5
        areas = np.bincount(sample.labels.ravel())[1:]
        assert areas.min() >= 40
        for label, window in enumerate(ndimage.find_objects(sample.labels), start=1):
            assert ndimage.label(sample.labels[window] == label)[1] == 1


def test_nuclei_are_bluer_than_their_surroundings(tiles: dict[str, list[Sample]]) -> None:
    for sample in each(tiles):
        haematoxylin = rgb2hed(sample.image)[..., 0]
        nuclei = sample.labels > 0
        near = ndimage.binary_dilation(nuclei, iterations=8) & ~ndimage.binary_dilation(nuclei, iterations=2)
        assert haematoxylin[nuclei].mean() > 1.2 * haematoxylin[near & ~sample.ignore].mean()
        # Pink to purple: green is what haematoxylin and eosin both take out most.
        red, green, blue = (sample.image[..., channel].mean() for channel in range(3))
        assert green < min(red, blue)
        assert 60 < sample.image.mean() < 215


def test_no_nucleus_lies_in_white_space(tiles: dict[str, list[Sample]]) -> None:
    whites = 0
    for sample in each(tiles):
        darkest = sample.image.min(-1).astype(float)
        white = darkest > 0.9 * np.percentile(darkest, 99.5)
        whites += int(white.sum())
        cores = ndimage.binary_erosion(sample.labels > 0, iterations=2)
        assert (white & cores).sum() <= 0.002 * cores.sum()
    assert whites > 5000


def test_nuclei_touch_and_are_elongated_where_they_should(tiles: dict[str, list[Sample]]) -> None:
    def elongation(sample: Sample) -> float:
        ratios = []
        for label in range(1, sample.labels.max() + 1):
            small, large = np.linalg.eigvalsh(np.cov(np.argwhere(sample.labels == label).T))
            ratios.append(np.sqrt(large / small))
        return float(np.median(ratios))

    spleen, muscle = tiles["synthetic spleen"], tiles["synthetic muscle"]
    assert all(len(touching_pairs(sample.labels)) >= 10 for sample in spleen)
    assert min(map(elongation, muscle)) > 2 > max(map(elongation, spleen))
    assert min(s.labels.max() for s in spleen) > 2 * max(s.labels.max() for s in muscle)


def test_ghosts_are_ignored_and_have_no_label() -> None:
    vague = [s for seed in range(24) if (s := synthesize_tile(96, seed, "synthetic muscle")).ignore.any()]
    assert 1 <= len(vague) < 24
    assert not any((sample.labels[sample.ignore] > 0).any() for sample in vague)


@pytest.mark.parametrize("organ", ORGANS)
def test_even_the_smallest_tile_has_a_nucleus(organ: str) -> None:
    assert all(synthesize_tile(64, seed, organ).labels.max() >= 1 for seed in range(8))


@pytest.mark.parametrize(("size", "organ"), [(63, 0), (5000, 0), (128, len(ORGANS)), (128, -1), (128, "human liver")])
def test_impossible_tiles_are_refused(size: int, organ: int | str) -> None:
    with pytest.raises(NucloraError, match="synthetic"):
        synthesize_tile(size, 0, organ)


def test_dataset_has_the_official_layout(tmp_path: Path) -> None:
    dest = tmp_path / "deep" / "set"
    write_dataset(dest, tiles=16, size=96, organs=3, seed=5)
    assert sorted(p.name for p in dest.iterdir()) == sorted(ORGANS[:3])
    images = sorted(dest.glob("*/tissue images/*.png"))
    assert [len(list((dest / organ / "tissue images").iterdir())) for organ in ORGANS[:3]] == [6, 5, 5]
    vague = 0
    for path in images:
        organ = path.parts[-3]
        assert path.stem.startswith(organ.replace(" ", "_") + "_")
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("RGB", (96, 96))
        labels = tifffile.imread(dest / organ / "label masks modify" / f"{path.stem}.tif")
        assert (labels.dtype, labels.shape) == (np.uint16, (96, 96))
        mask = dest / organ / "vague areas" / "mask binary" / path.name
        if mask.exists():
            vague += 1
            with Image.open(mask) as picture:
                assert set(np.unique(picture)) == {0, 255}
    assert 1 <= vague < 16
    assert len({path.read_bytes() for path in images}) == 16


def test_our_reader_reads_back_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, Sample]] = []

    def remember(size: int, seed: int, organ: int | str) -> Sample:
        made.append((str(organ), synthesize_tile(size, seed, organ)))
        return made[-1][1]

    monkeypatch.setattr(synthetic, "synthesize_tile", remember)
    write_dataset(tmp_path / "set", tiles=6, size=96, organs=2, seed=1)
    read = open_tiles(tmp_path / "set")
    assert read.format == "nuinsseg"
    expected = [sample for organ in sorted(ORGANS[:2]) for name, sample in made if name == organ]
    assert len(read) == len(expected) == 6
    for tile, sample in zip(read, expected, strict=True):
        again = tile.read()
        assert np.array_equal(again.image, sample.image)
        assert np.array_equal(again.labels, sample.labels)
        assert np.array_equal(again.ignore, sample.ignore)


def test_equal_seeds_make_equal_files(tmp_path: Path) -> None:
    def files(seed: int, name: str) -> dict[str, bytes]:
        root = tmp_path / name
        write_dataset(root, tiles=4, size=64, organs=2, seed=seed)
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    first = files(0, "a")
    assert first == files(0, "b")
    assert not {*first.values()} & {*files(1, "c").values()}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "keep.txt").write_text("mine")
    with pytest.raises(NucloraError, match=r"used: exists and is not an empty folder"):
        write_dataset(used, tiles=2, size=64, organs=1, seed=0)
    with pytest.raises(NucloraError, match="not an empty folder"):
        write_dataset(used / "keep.txt", tiles=2, size=64, organs=1, seed=0)
    assert [p.name for p in used.rglob("*")] == ["keep.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    write_dataset(empty, tiles=1, size=64, organs=1, seed=0)
    assert len(open_tiles(empty)) == 1


def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (Path(), tmp_path):
        with pytest.raises(NucloraError, match=r"the current folder, whose place .*; name a folder in it"):
            write_dataset(given, tiles=1, size=64, organs=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    try:
        (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    write_dataset(tmp_path / "link", tiles=1, size=64, organs=1, seed=0)
    assert (tmp_path / "link").is_symlink()
    assert len(open_tiles(tmp_path / "disk")) == 1


@pytest.mark.parametrize(("tiles_wanted", "organs"), [(4, 0), (40, 40), (2, 3)])
def test_impossible_datasets_are_refused(tmp_path: Path, tiles_wanted: int, organs: int) -> None:
    with pytest.raises(NucloraError, match="organs"):
        write_dataset(tmp_path / "set", tiles=tiles_wanted, size=64, organs=organs, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail_later(size: int, seed: int, organ: int | str) -> Sample:
        calls.append(organ)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "disk full")
        return synthesize_tile(size, seed, organ)

    # As a killed process leaves it.
    (tmp_path / ".set.scratch" / "new" / "human liver").mkdir(parents=True)
    monkeypatch.setattr(synthetic, "synthesize_tile", fail_later)
    with pytest.raises(NucloraError, match=r"set: cannot write \(disk full\); free some space"):
        write_dataset(tmp_path / "set", tiles=4, size=64, organs=2, seed=0)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_users_own_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(size: int, seed: int, organ: int | str) -> Sample:
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / "thesis.txt").write_text("mine")
        return synthesize_tile(size, seed, organ)

    (tmp_path / "set.lock").write_text("mine")
    monkeypatch.setattr(synthetic, "synthesize_tile", slow)
    with pytest.raises(NucloraError, match="exists and is not an empty folder"):
        write_dataset(tmp_path / "set", tiles=1, size=64, organs=1, seed=0)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"set.lock", "thesis.txt"}


def test_importing_needs_no_torch() -> None:
    code = "import sys, nuclora.data.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
