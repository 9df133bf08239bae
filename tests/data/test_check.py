from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from nuclora.cli.data import app
from nuclora.data.check import check_data, count_components
from nuclora.errors import NucloraError


def test_a_sound_data_set_is_measured(nuinsseg_tree: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = check_data(nuinsseg_tree, progress=lambda done, total: calls.append((done, total)))
    assert (report.format, report.faults, report.notes) == ("nuinsseg", (), ())
    assert [(row.group, row.tiles, row.nuclei) for row in report.groups] == [
        ("human salivory gland", 3, 6),
        ("mouse fat (white)", 3, 6),
    ]
    assert (report.total.tiles, report.total.nuclei) == (6, 12)
    assert report.total.sizes == ((48, 64, 6),)
    assert report.total.area == (36.0, 36.0, 36.0)  # all nuclei are squares of 6 x 6
    assert report.total.diameter == pytest.approx([np.sqrt(4 * 36 / np.pi)] * 3)
    assert calls == [(number, 6) for number in range(1, 7)]


def test_percentiles_are_over_all_nuclei_of_all_tiles(plain_folder: Path) -> None:
    areas = []
    for seed, name in enumerate(("a", "b")):
        labels = np.zeros((48, 64), np.uint8)
        for identity in range(1, 9):
            side = identity % 5 + 1 + seed
            labels[:side, 8 * identity - 8 : 8 * identity - 8 + side] = identity
            areas.append(side * side)
        Image.fromarray(labels).save(plain_folder / "labels" / f"{name}.png")
    row = next(row for row in check_data(plain_folder).groups if row.group == "all")
    assert row.area == pytest.approx(np.percentile(areas, (5, 50, 95)))
    assert row.nuclei == 16


@pytest.fixture
def faulty(plain_folder: Path) -> Path:
    """The plain folder with a fault of every kind, one a tile."""
    image, labels = plain_folder / "images" / "a.png", plain_folder / "labels" / "a.png"
    for name in ("copy", "float", "rgb", "shape", "short", "alone", "binary"):
        pixels = np.asarray(Image.open(image)).copy()
        if name != "copy":
            pixels[0, 0] = len(name), ord(name[0]), ord(name[1])
        target = plain_folder / "images" / f"{name}.png"
        Image.fromarray(pixels).save(target)
        if name not in ("float", "alone"):
            shutil.copy(labels, plain_folder / "labels" / f"{name}.png")
    shutil.copy(image, plain_folder / "images" / "liver" / "again.png")
    shutil.copy(labels, plain_folder / "labels" / "liver" / "again.png")
    tifffile.imwrite(plain_folder / "labels" / "float.tif", np.zeros((48, 64), np.float32))
    Image.new("RGB", (64, 48)).save(plain_folder / "labels" / "rgb.png")
    Image.new("L", (48, 64)).save(plain_folder / "labels" / "shape.png")
    short = plain_folder / "images" / "short.png"
    short.write_bytes(short.read_bytes()[:3000])
    dots = np.zeros((48, 64), np.uint8)
    dots[::8, ::8] = 255
    Image.fromarray(dots).save(plain_folder / "labels" / "binary.png")
    return plain_folder


def test_every_fault_is_named_with_file_reason_and_mend(faulty: Path) -> None:
    report = check_data(faulty)
    found = {Path(fault.path).relative_to(faulty).as_posix(): fault for fault in report.faults}
    expected = {
        "images/alone.png": "no label map for this image",
        "images/copy.png": "the same pixels as a:",
        "images/liver/again.png": "the same pixels as a, of another group (all)",
        "labels/float.tif": "labels are float32",
        "labels/rgb.png": "an RGB image",
        "labels/shape.png": "64x48 pixels (height x width) where its image has 48x64",
        "images/short.png": "cannot be read",
        "labels/binary.png": "all 48 nuclei have one id: a binary mask",
    }
    assert found.keys() == expected.keys()
    for path, reason in expected.items():
        assert found[path].reason.startswith(reason)
        assert found[path].mend
    assert report.total.tiles == 4 + 3  # the sound ones, the two copies, the binary one


def test_what_is_harmless_is_noted(plain_folder: Path) -> None:
    labels = np.zeros((48, 64), np.int32)
    Image.fromarray(labels.astype(np.uint8)).save(plain_folder / "labels" / "a.png")
    labels[1:4, 1:4] = labels[10:14, 1:4] = 2
    labels[20:30, 20:30] = 2_000_000_000
    (plain_folder / "labels" / "b.png").unlink()
    np.save(plain_folder / "labels" / "b.npy", labels)
    Image.new("L", (64, 48), 1).save(plain_folder / "labels" / "liver" / "c.png")
    (plain_folder / "ignore").mkdir()
    Image.new("L", (64, 48), 1).save(plain_folder / "ignore" / "b.png")
    report = check_data(plain_folder)
    (fault,) = report.faults
    assert (Path(fault.path).name, fault.reason, fault.spoils) == ("a.png", "all-zero labels: no nucleus", False)
    assert {note.tiles: note.text for note in report.notes if note.tiles != ("b",)} == {
        ("liver/c",): "1 tile where one id covers over half the tile: is the background 0?",
    }
    assert [note.text for note in report.notes if note.tiles == ("b",)] == [
        "1 tile with ids of several components (1 id)",
        "1 tile with gaps in the ids",
        "1 tile with an ignore mask (3,072 pixels in all)",
    ]
    assert report.total.nuclei == 0 + 2 + 1 + 4


def test_components_are_counted_with_diagonal_neighbours() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (40, 40))
    labels[labels == 3] = 0
    labels[0, 0] = 7
    counts = count_components(labels)
    expected = [ndimage.label(labels == i, np.ones((3, 3)))[1] for i in range(1, 8)]
    assert counts.tolist() == expected
    assert counts[[2, 4, 5, 6]].tolist() == [0, 0, 0, 1]
    assert count_components(np.eye(5, dtype=int)).tolist() == [1]


def test_nothing_to_check_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(NucloraError, match="no tiles"):
        check_data(tmp_path)


Invoke = Callable[..., tuple[int, str, BaseException | None]]


def test_command_prints_the_table(nuinsseg_tree: Path, invoke: Invoke) -> None:
    code, output, _ = invoke(app, "check", str(nuinsseg_tree))
    assert code == 0
    assert "human salivory gland" in output
    assert "no faults: fit for training" in output
    assert max(map(len, output.splitlines())) <= 100
    code, output, _ = invoke(app, "check", str(nuinsseg_tree), "--json")
    document = json.loads(output)
    assert code == 0
    assert document["total"]["nuclei"] == 12
    assert document["faults"] == []


def test_command_exits_with_2_on_faults(faulty: Path, invoke: Invoke) -> None:
    code, output, _ = invoke(app, "check", str(faulty), "--max-faults", "3")
    assert code == 2
    assert output.count("fault  ") == 4
    assert "and 5 more" in output
    assert "8 faults would spoil training" in output
    code, output, _ = invoke(app, "check", str(faulty), "--json")
    assert code == 2
    assert len(json.loads(output)["faults"]) == 8


def test_command_names_what_spoils_before_what_may_be_meant(plain_folder: Path, invoke: Invoke) -> None:
    *others, last = sorted((plain_folder / "labels").rglob("*.png"))
    for path in others:
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    code, output, _ = invoke(app, "check", str(plain_folder), "--max-faults", "1")
    assert code == 0
    assert f"meant? and {len(others) - 1} more" in output
    last.write_bytes(last.read_bytes()[:40])
    code, output, _ = invoke(app, "check", str(plain_folder), "--max-faults", "1")
    assert code == 2
    assert [line.split(":")[0] for line in output.splitlines() if line.startswith(("fault", "meant"))] == [
        f"fault  {last}",
        f"meant? and {len(others)} more",
    ]


def test_command_names_the_organs_on_a_narrow_terminal(
    nuinsseg_tree: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    _, output, _ = invoke(app, "check", str(nuinsseg_tree))
    assert "human" in output


def test_command_keeps_to_a_line_whatever_a_file_is_called(plain_folder: Path, invoke: Invoke) -> None:
    try:
        (plain_folder / "images" / "a\nb.png").write_bytes(b"")
    except OSError:
        pytest.skip("no such names here")
    _, output, _ = invoke(app, "check", str(plain_folder))
    assert "images/a b.png: no label map" in output


def test_command_raises_for_the_main_program_to_print(tmp_path: Path, invoke: Invoke) -> None:
    _, _, error = invoke(app, "check", str(tmp_path))
    assert isinstance(error, NucloraError)


def test_the_official_sample_is_sound(shared_data: Path) -> None:
    report = check_data(shared_data / "nuinsseg" / "official-sample")
    assert report.faults == ()
    counts = {row.group: (row.tiles, row.nuclei) for row in report.groups}
    assert counts == {"human bladder": (2, 27), "human liver": (2, 69), "human spleen": (4, 372)}


def test_empty_glass_is_no_duplicate(plain_folder: Path) -> None:
    for name in ("one", "two"):
        Image.fromarray(np.full((48, 64, 3), 255, np.uint8)).save(plain_folder / "images" / f"{name}.png")
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(plain_folder / "labels" / f"{name}.png")
    assert not any("same pixels" in fault.reason for fault in check_data(plain_folder).faults)
