"""Images to files of their nuclei, with a model that finds dark pixels."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from scipy import ndimage

from nuclora.data.images import read_image
from nuclora.errors import NucloraError
from nuclora.files import AppendLog
from nuclora.inference import hashes, provenance, scale
from nuclora.inference import image_worker as module
from nuclora.inference.canvas import SlideOptions
from nuclora.inference.engine import LocalEngine, Progress
from nuclora.inference.hashes import read_hash
from nuclora.inference.image_files import find_images
from nuclora.inference.images import Outcome, predict_images
from nuclora.inference.jobs import How
from nuclora.inference.outputs import FORMATS, OutputFolder, open_outputs, stamp_of
from nuclora.inference.predictor import Nuclei
from nuclora.io.labels import read_labels
from nuclora.io.tables import measure_nuclei
from nuclora.recipe import EvaluateSettings


class FakePredictor:
    """Dark spots are nuclei; remembers the shapes of the images that it saw, and the settings."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.settings: list[EvaluateSettings] = []

    def nuclei(self, image: np.ndarray, settings: EvaluateSettings, *, mpp: float | None = None) -> Nuclei:
        self.seen.append(image.shape)
        self.settings.append(settings)
        labels, count = ndimage.label(image.mean(axis=2) < 128)
        return Nuclei(labels.astype(np.int32), np.linspace(0.5, 1, count, dtype=np.float32))


class Prediction:
    """Predicts a folder of images again and again, with one fake."""

    def __init__(self, inputs: Path, out: Path) -> None:
        self.inputs, self.out = inputs, out
        self.predictor = FakePredictor()
        self.loaded = 0
        self.engine = LocalEngine()

    def load(self) -> Any:
        self.loaded += 1
        return self.predictor

    def __call__(
        self,
        formats: tuple[str, ...] = tuple(FORMATS),
        made_by: dict[str, Any] | None = None,
        progress: Progress | None = None,
        **more: Any,
    ) -> Outcome:
        made_by = made_by or {"adapter": {"sha": "a"}, "precision": "no"}
        how = How(made_by, self.load, formats, EvaluateSettings(), **more)
        with open_outputs(self.out, overwrite=how.overwrite) as folder:
            return predict_images(find_images([self.inputs]), folder, how, engine=self.engine, progress=progress)


def spots(count: int, height: int = 40, width: int = 60) -> np.ndarray:
    image = np.full((height, width, 3), 220, np.uint8)
    for index in range(count):
        image[5:15, 3 + index * 12 : 11 + index * 12] = (70, 40, 110)
    return image


@pytest.fixture
def prediction(tmp_path: Path) -> Prediction:
    (tmp_path / "in").mkdir()
    for index, suffix in enumerate(["png", "tif", "webp"]):
        Image.fromarray(spots(index + 1)).save(tmp_path / "in" / f"im {index}.{suffix}", lossless=True)
    return Prediction(tmp_path / "in", tmp_path / "out")


def summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_output_of_every_image(prediction: Prediction) -> None:
    outcome = prediction(microns_per_pixel=0.5)
    assert [row.nuclei for row in outcome.rows] == [1, 2, 3]
    assert not outcome.kept
    assert not outcome.failures
    assert prediction.loaded == 1
    out = prediction.out
    assert {path.name for path in out.iterdir()} == {
        *(f"im {index}{ending}" for index in range(3) for ending in FORMATS.values()),
        "summary.csv", "predict.jsonl", ".lock",
    }  # fmt: skip
    labels = read_labels(out / "im 2.labels.tif")
    assert labels.max() == 3
    assert read_image(out / "im 2.overlay.png").shape == (40, 60, 3)
    features = json.loads((out / "im 2.geojson").read_text("utf-8"))["features"]
    assert [feature["properties"]["measurements"]["Score"] for feature in features] == [0.5, 0.75, 1]
    with (out / "im 2.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["area_px"] for row in table] == ["80"] * 3
    assert [row["area_um2"] for row in table] == ["20.0"] * 3
    assert [row["nuclei"] for row in summary(out)] == ["1", "2", "3"]
    assert summary(out)[1]["image"] == str(prediction.inputs / "im 1.tif")
    assert (summary(out)[1]["width"], summary(out)[1]["height"]) == ("60", "40")


def test_what_is_done_is_kept_and_loads_no_model(prediction: Prediction) -> None:
    first = prediction()
    before = {path: path.stat().st_mtime_ns for path in prediction.out.glob("im*")}
    again = prediction()
    assert again.rows == first.rows
    assert again.kept == {row.image for row in first.rows}
    assert prediction.loaded == 1
    assert len(prediction.predictor.seen) == 3
    assert {path: path.stat().st_mtime_ns for path in prediction.out.glob("im*")} == before


def test_fewer_formats_are_done_too_and_more_are_made(prediction: Prediction) -> None:
    prediction(formats=("labels", "table"))
    assert len(prediction(formats=("table",)).kept) == 3
    assert not prediction(formats=("overlay",)).kept
    assert len(prediction(formats=("labels", "overlay", "table")).kept) == 3


def test_a_missing_output_is_made_again(prediction: Prediction) -> None:
    prediction()
    (prediction.out / "im 1.csv").unlink()
    assert len(prediction().kept) == 2
    assert (prediction.out / "im 1.csv").exists()


def test_a_store_is_kept_and_made_anew_like_a_file(prediction: Prediction) -> None:
    prediction(formats=("labels", "zarr"), microns_per_pixel=0.5)
    store = prediction.out / "im 2.zarr"
    root = zarr.open_group(store, mode="r")
    np.testing.assert_array_equal(root["labels/nuclei/0"][...], read_labels(prediction.out / "im 2.labels.tif"))
    np.testing.assert_array_equal(np.moveaxis(root["0"][...], 0, 2), spots(3))
    (multiscale,) = root["labels/nuclei"].attrs["ome"]["multiscales"]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.5, 0.5]
    assert len(prediction(formats=("zarr",), microns_per_pixel=0.5).kept) == 3
    shutil.rmtree(store)
    assert len(prediction(formats=("zarr",), microns_per_pixel=0.5).kept) == 2
    (store / "mine").touch()
    other = {"adapter": {"sha": "b"}, "precision": "no"}
    prediction(formats=("table",), made_by=other, overwrite=True)
    assert not (store / "mine").exists()
    assert (store / "zarr.json").exists()


def test_a_store_that_somebody_has_changed_is_not_replaced(prediction: Prediction) -> None:
    prediction(formats=("zarr",))
    labels = zarr.open_group(prediction.out / "im 2.zarr")["labels/nuclei/0"]
    labels[:3, :3] = 99
    with pytest.raises(NucloraError, match=r"im 2\.zarr: changed since `nuclora predict` wrote it"):
        prediction(formats=("table",))
    assert (labels[:3, :3] == 99).all()


def test_a_folder_of_somebodys_own_that_is_called_like_parts_stays(prediction: Prediction) -> None:
    mine = prediction.out / "im 1.parts"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    for _ in range(2):
        prediction(formats=("labels",))
    assert (mine / "notes.txt").read_text() == "mine"


def test_what_others_are_writing_below_is_left_alone(prediction: Prediction) -> None:
    for holder in (".lock", "run.json"):
        below = prediction.out / f"with {holder}"
        below.mkdir(parents=True)
        (below / holder).touch()
        (below / ".checkpoint.safetensors.0123abcd.tmp").touch()
    prediction(formats=("labels",))
    assert len(list(prediction.out.glob("*/.checkpoint*"))) == 2


def test_what_a_kill_left_of_a_store_goes(prediction: Prediction) -> None:
    """Also where this command writes no store."""
    (prediction.out / ".im 0.zarr.scratch" / "new").mkdir(parents=True)
    prediction(formats=("labels",))
    assert not list(prediction.out.glob("*.scratch"))
    assert not list(prediction.out.glob(".*.scratch"))


def test_a_folder_that_nuclora_did_not_make_is_not_replaced(prediction: Prediction) -> None:
    (prediction.out / "im 1.zarr").mkdir(parents=True)
    with pytest.raises(NucloraError, match=r"im 1\.zarr: there already, and not from `nuclora predict`"):
        prediction(formats=("labels",))


def test_a_changed_image_is_predicted_again(prediction: Prediction) -> None:
    prediction()
    Image.fromarray(spots(4)).save(prediction.inputs / "im 0.png")
    outcome = prediction()
    assert len(outcome.kept) == 2
    assert [row.nuclei for row in outcome.rows] == [4, 2, 3]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read for their hash, of which those just written are trusted too."""
    names = []

    def hash_file(path: Path) -> str:
        names.append(path.name)
        return provenance.hash_file(path)

    monkeypatch.setattr(hashes, "hash_file", hash_file)
    monkeypatch.setattr(hashes, "_GRAIN_NS", -(10**18))
    return names


def test_a_stop_is_heeded_while_files_are_hashed(prediction: Prediction, hashed: list[str]) -> None:
    def stop() -> None:
        if hashed:
            raise KeyboardInterrupt

    prediction.engine = LocalEngine(stop)
    with pytest.raises(KeyboardInterrupt):
        prediction()
    assert hashed == ["im 0.png"]


def test_an_unchanged_file_is_not_hashed_again(prediction: Prediction, hashed: list[str]) -> None:
    prediction()
    assert hashed == ["im 0.png", "im 1.tif", "im 2.webp"]
    hashed.clear()
    assert len(prediction().kept) == 3
    assert not hashed
    prediction(overwrite=True)
    assert len(hashed) == 3


def test_a_changed_file_is_hashed_again_whatever_its_time_and_size(prediction: Prediction, hashed: list[str]) -> None:
    image = prediction.inputs / "im 1.tif"
    Image.fromarray(spots(1)).save(image)
    prediction()
    hashed.clear()
    times, size = image.stat(), image.stat().st_size
    Image.fromarray(255 - spots(1)).save(image)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (image.stat().st_size, image.stat().st_mtime_ns) == (size, times.st_mtime_ns)
    assert len(prediction().kept) == 2
    assert hashed == ["im 1.tif"]


def test_a_file_that_changed_just_now_is_hashed_again(
    prediction: Prediction, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems may give a second change the time of the first."""
    monkeypatch.setattr(hashes, "_GRAIN_NS", 10**18)
    prediction()
    hashed.clear()
    assert len(prediction().kept) == 3
    assert len(hashed) == 3


def test_hashes_outlive_a_stop_before_the_first_output(prediction: Prediction, hashed: list[str]) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prediction(progress=stop)
    hashed.clear()
    prediction()
    assert not hashed


def test_measured_once_for_all_tables(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(*arguments: Any) -> Any:
        measured.append(1)
        return measure_nuclei(*arguments)

    monkeypatch.setattr(module, "measure_nuclei", measure)
    prediction(formats=("table", "parquet"))
    assert len(measured) == 3


def test_the_summary_is_in_the_order_of_the_inputs(prediction: Prediction) -> None:
    """Also where a cluster has ended another image first, and after commands on other images."""
    prediction(formats=("table",))
    lines = AppendLog(prediction.out / "predict.jsonl")
    # Each image has two lines.
    lines.rewrite([*lines.lines()[-2:], *lines.lines()[:-2]])
    first = prediction.inputs.rename(prediction.inputs.with_name("first"))
    prediction.inputs.mkdir()
    Image.fromarray(spots(4)).save(prediction.inputs / "another.png")
    prediction(formats=("table",))
    assert [row["nuclei"] for row in summary(prediction.out)] == ["3", "1", "2", "4"]
    prediction.inputs = first
    for _ in range(2):
        assert len(prediction(formats=("table",)).kept) == 3
        assert [row["nuclei"] for row in summary(prediction.out)] == ["1", "2", "3", "4"]


def test_a_moved_image_is_known_by_its_content(prediction: Prediction, tmp_path: Path) -> None:
    prediction()
    prediction.inputs = prediction.inputs.rename(tmp_path / "elsewhere")
    assert len(prediction().kept) == 3


def test_other_settings_do_not_replace_what_is_there_unless_told(prediction: Prediction) -> None:
    prediction(formats=("labels", "table"))
    other = {"adapter": {"sha": "b"}, "precision": "no"}
    with pytest.raises(NucloraError, match=r"made differently: other adapter; name another folder with -o, or"):
        prediction(made_by=other)
    assert len(prediction.predictor.seen) == 3
    # What an earlier run left is made anew with the rest: one image's outputs are never of two makes.
    times = {path: path.stat().st_mtime_ns for path in prediction.out.glob("im*")}
    outcome = prediction(formats=("labels",), made_by=other, overwrite=True)
    assert not outcome.kept
    assert all(path.stat().st_mtime_ns > time for path, time in times.items())
    assert len(prediction(made_by=other, formats=("labels", "table")).kept) == 3


def test_overwriting_replaces_no_file_of_others_that_nobody_asked_for(prediction: Prediction) -> None:
    prediction(formats=("labels",))
    mine = prediction.out / "im 0.csv"
    mine.write_text("mine")
    prediction(formats=("labels",), overwrite=True)
    assert mine.read_text() == "mine"
    prediction(formats=("table",), overwrite=True)
    assert mine.read_text() != "mine"


def test_another_image_of_the_same_name_does_not_replace_the_first(prediction: Prediction, tmp_path: Path) -> None:
    prediction()
    (tmp_path / "other").mkdir()
    Image.fromarray(spots(4)).save(tmp_path / "other" / "im 0.png")
    prediction.inputs = tmp_path / "other"
    with pytest.raises(NucloraError, match=r"nuclei of another image of this name, .*im 0\.png"):
        prediction()


def test_files_that_nuclora_did_not_make_are_not_replaced(prediction: Prediction) -> None:
    prediction.out.mkdir()
    (prediction.out / "im 1.csv").write_text("mine")
    with pytest.raises(NucloraError, match="not from `nuclora predict`"):
        prediction(formats=("labels",))
    assert (prediction.out / "im 1.csv").read_text() == "mine"


def test_what_somebody_has_changed_or_added_is_not_replaced(prediction: Prediction) -> None:
    prediction(formats=("labels", "table"))
    for name, told in (
        ("im 1.csv", "changed since `nuclora predict` wrote it"),
        ("im 1.geojson", "there already, and"),
    ):
        before = (prediction.out / name).read_bytes() if (prediction.out / name).exists() else None
        (prediction.out / name).write_text("corrected by hand")
        with pytest.raises(NucloraError, match=rf"{name}: {told}.*--overwrite"):
            prediction(formats=("labels", "coco"))
        assert (prediction.out / name).read_text() == "corrected by hand"
        # What is asked for is there.
        assert len(prediction(formats=("labels",)).kept) == 3
        (prediction.out / name).unlink()
        if before is not None:
            assert len(prediction(formats=("table",)).kept) == 2
    assert len(prediction(formats=("labels", "geojson")).rows) == 3


def test_killed_it_does_not_replace_what_it_was_not_writing(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_output", die)
    with pytest.raises(KeyboardInterrupt):
        prediction(formats=("labels",))
    monkeypatch.undo()
    (prediction.out / "im 0.csv").write_text("mine")
    with pytest.raises(NucloraError, match=r"im 0\.csv: there already, and not from `nuclora predict`"):
        prediction(formats=("labels",))
    assert (prediction.out / "im 0.csv").read_text() == "mine"


def test_a_summary_that_nuclora_did_not_make_is_not_replaced(prediction: Prediction) -> None:
    prediction.out.mkdir()
    (prediction.out / "summary.csv").write_text("mine")
    with pytest.raises(NucloraError, match=r"summary\.csv: there already, and not from `nuclora predict`"):
        prediction()
    assert (prediction.out / "summary.csv").read_text() == "mine"
    # Where nothing came out there is nothing to sum up.
    (prediction.out / "summary.csv").unlink()
    for path in prediction.inputs.iterdir():
        path.write_bytes(b"no image at all")
    assert len(prediction().failures) == len(prediction().failures) == 3
    assert not (prediction.out / "summary.csv").exists()


@pytest.mark.parametrize("what", ["read_image", "nuclei"])
def test_an_image_too_large_for_the_memory_stops_no_other(
    what: str, prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(module if what == "read_image" else prediction.predictor, what)
    calls = 0

    def fail(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        return whole(*arguments, **more)

    monkeypatch.setattr(module if what == "read_image" else prediction.predictor, what, fail)
    outcome = prediction()
    assert [row.nuclei for row in outcome.rows] == [1, 3]
    (failure,) = outcome.failures
    assert "im 1.tif: needs more memory than there is; save it as a tiled TIFF" in str(failure)


def test_what_is_kept_is_told_by_its_path_of_now(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction()
    monkeypatch.chdir(prediction.inputs)
    prediction.inputs = Path()
    outcome = prediction()
    assert (
        {row.image for row in outcome.rows}
        == outcome.kept
        == {f"im {i}.{s}" for i, s in enumerate(["png", "tif", "webp"])}
    )


def test_what_a_kill_left_in_folders_below_goes(prediction: Prediction) -> None:
    below = prediction.out / "sub"
    (below / "b.zarr" / "0").mkdir(parents=True)
    (below / ".c.zarr.scratch" / "new").mkdir(parents=True)
    torn = [below / ".b.labels.tif.0123abcd.tmp", below / "b.zarr" / "0" / ".x.0123abcd.tmp"]
    for path in torn:
        path.touch()
    prediction()
    assert [path.exists() for path in torn] == [False, True]
    assert not (below / ".c.zarr.scratch").exists()


def test_an_image_named_summary_is_left_out(prediction: Prediction) -> None:
    Image.fromarray(spots(1)).save(prediction.inputs / "Summary.png")
    for overwrite in (False, True):
        outcome = prediction(overwrite=overwrite)
        assert len(outcome.rows) == 3
        assert ["would replace summary.csv" in str(failure) for failure in outcome.failures] == [True]
        assert len(summary(prediction.out)) == 3


@pytest.mark.parametrize("name", ["a" * 250, "a" * 240, "細胞核" * 26])
def test_a_name_too_long_for_its_outputs_stops_no_other(name: str, prediction: Prediction) -> None:
    """Some are too long at once, some only for the file that is written first under a longer name."""
    Image.fromarray(spots(1)).save(prediction.inputs / f"{name}.png")
    for overwrite in (False, True):
        outcome = prediction(overwrite=overwrite)
        assert [row.nuclei for row in outcome.rows] == [1, 2, 3]
        (failure,) = outcome.failures
        assert str(failure).endswith(f"{name}.png: the name is too long for its outputs; rename the image")


def test_the_longest_name_has_all_outputs(prediction: Prediction) -> None:
    shutil.copy(prediction.inputs / "im 0.png", prediction.inputs / f"{'b' * 229}.png")
    assert len(prediction().rows) == 4


def test_a_bad_image_does_not_stop_the_others(prediction: Prediction) -> None:
    (prediction.inputs / "im 1.tif").write_bytes(b"no image at all")
    outcome = prediction()
    assert [row.nuclei for row in outcome.rows] == [1, 3]
    (failure,) = outcome.failures
    assert failure.path == prediction.inputs / "im 1.tif"
    assert len(summary(prediction.out)) == 2
    # Mended, it alone is done.
    Image.fromarray(spots(2)).save(prediction.inputs / "im 1.tif")
    outcome = prediction()
    assert [row.nuclei for row in outcome.rows] == [1, 2, 3]
    assert len(outcome.kept) == 2


def test_an_image_that_became_bad_has_no_row_of_its_better_days(prediction: Prediction) -> None:
    prediction()
    (prediction.inputs / "im 1.tif").write_bytes(b"no image at all")
    outcome = prediction()
    assert [row.nuclei for row in outcome.rows] == [1, 3]


def test_an_interruption_keeps_what_is_done(prediction: Prediction) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prediction(progress=stop)
    assert [row["nuclei"] for row in summary(prediction.out)] == ["1", "2"]
    told: list[tuple[int, int]] = []
    outcome = prediction(progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 1), (1, 1)]
    assert len(outcome.kept) == 2
    assert len(summary(prediction.out)) == 3


def test_killed_between_two_outputs_it_goes_on(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[..., None] = module.write_output
    calls = 0

    def die(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        # After the first image, and one output of the second.
        if calls == len(FORMATS) + 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "write_output", die)
    with pytest.raises(KeyboardInterrupt):
        prediction()
    assert len(list(prediction.out.glob("im 1*"))) == 1
    monkeypatch.undo()
    assert len(prediction().kept) == 1
    assert len(list(prediction.out.glob("im 1*"))) == len(FORMATS)


def killed(prediction: Prediction, monkeypatch: pytest.MonkeyPatch, after: int, **options: Any) -> None:
    """Predict, and die instead of writing the output after so many."""
    write: Callable[..., None] = module.write_output
    calls = 0

    def die(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_output", die)
        with pytest.raises(KeyboardInterrupt):
            prediction(**options)


def test_killed_it_still_knows_what_a_user_has_changed(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction(formats=("geojson",))
    killed(prediction, monkeypatch, 0, formats=("labels",))
    outlines = prediction.out / "im 0.geojson"
    original = outlines.read_bytes()
    outlines.write_text("corrected")
    with pytest.raises(NucloraError, match=r"im 0\.geojson: changed since"):
        prediction(formats=("labels",))
    assert outlines.read_text() == "corrected"
    assert prediction(formats=("labels",), overwrite=True).rows
    assert outlines.read_bytes() == original


def test_killed_over_earlier_outputs_it_goes_on(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction(formats=("labels", "geojson"))
    # The labels are replaced, for the table to be of the same make; the outlines are not.
    killed(prediction, monkeypatch, 1, formats=("table",))
    assert len(prediction(formats=("table",)).rows) == 3
    assert (prediction.out / "im 0.csv").exists()


def test_killed_it_still_knows_what_was_made_differently(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"adapter": {"sha": "a"}, "precision": "bf16"}
    prediction(formats=("table",))
    killed(prediction, monkeypatch, 0, formats=("labels",))
    with pytest.raises(NucloraError, match="made differently: other precision"):
        prediction(formats=("table",), made_by=other)
    killed(prediction, monkeypatch, 0, formats=("table",), made_by=other, overwrite=True)
    assert len(prediction(formats=("table",), made_by=other, overwrite=True).rows) == 3


def test_a_torn_line_of_the_notes_is_not_a_line(prediction: Prediction) -> None:
    prediction()
    notes = prediction.out / "predict.jsonl"
    notes.write_bytes(notes.read_bytes()[:-20])
    assert len(prediction().kept) == 2


def test_damaged_notes_are_named(prediction: Prediction) -> None:
    prediction()
    mistyped = '{"name": "a", "path": 3, "sha256": "", "made_by": {}, "formats": [], "row": null}'
    unhashed = '{"file": "a", "sha256": "", "stamp": [1, "2", 3]}'
    notes = AppendLog(prediction.out / "predict.jsonl")
    before = notes.lines()
    for garbage in (unhashed, '{"name": 1}', "[]", "3", "not JSON", mistyped):
        notes.rewrite([before[0], garbage, *before[1:]])
        with pytest.raises(NucloraError, match=r"predict\.jsonl: line 2 is damaged; delete this line and .* anew with"):
            OutputFolder(prediction.out)


def test_damaged_notes_go_where_all_is_made_anew(prediction: Prediction) -> None:
    first = prediction()
    notes = prediction.out / "predict.jsonl"
    *others, last = notes.read_bytes().splitlines(keepends=True)
    notes.write_bytes(b"".join([*others, b"\xff" + last, b"not JSON\n"]))
    assert [row.nuclei for row in prediction(overwrite=True).rows] == [row.nuclei for row in first.rows]
    assert len(prediction().kept) == 3


def test_a_damaged_note_that_is_deleted_with_its_outputs_costs_its_image_alone(prediction: Prediction) -> None:
    prediction()
    notes = AppendLog(prediction.out / "predict.jsonl")
    notes.rewrite([line for line in notes.lines() if '"im 1"' not in line])
    for output in prediction.out.glob("im 1.*"):
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    assert len(prediction().kept) == 2


def test_an_image_that_the_model_fails_on_is_named(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    def nuclei(image: np.ndarray, settings: EvaluateSettings, *, mpp: float | None = None) -> Nuclei:
        raise NucloraError("the maps have values that are not finite")

    monkeypatch.setattr(prediction.predictor, "nuclei", nuclei)
    with pytest.raises(NucloraError, match=r"im 0\.png: the maps have values"):
        prediction()


def test_images_are_rescaled_by_their_microns(prediction: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def nuclei(image: np.ndarray, settings: EvaluateSettings, *, mpp: float | None = None) -> Nuclei:
        seen.append(mpp)
        return FakePredictor.nuclei(prediction.predictor, image, settings)

    monkeypatch.setattr(prediction.predictor, "nuclei", nuclei)
    prediction(microns_per_pixel=0.5, slides=SlideOptions(0.5, 0.25))
    assert seen == [0.5] * 3
    # Made otherwise, were it only that the adapter's scale is known now.
    with pytest.raises(NucloraError, match="scale"):
        prediction(microns_per_pixel=0.5)


def test_an_image_too_large_to_be_rescaled_stops_no_other(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "MAX_PIXELS", 100_000)
    Image.fromarray(np.full((200, 200, 3), 200, np.uint8)).save(prediction.inputs / "large.png")
    outcome = prediction(microns_per_pixel=0.5, slides=SlideOptions(0.5, 0.25))
    assert len(outcome.rows) == 3
    (failure,) = outcome.failures
    assert "enlarged 2 times" in str(failure)
    assert failure.path == prediction.inputs / "large.png"


def test_an_image_without_nuclei(prediction: Prediction) -> None:
    for index in range(3):
        next(prediction.inputs.glob(f"im {index}.*")).unlink()
    Image.fromarray(spots(0, 1, 1)).save(prediction.inputs / "empty.png")
    (row,) = prediction().rows
    assert (row.nuclei, row.mean_area_px, row.width) == (0, None, 1)
    assert summary(prediction.out)[0]["mean_area_px"] == ""


def test_the_output_folder_is_held(prediction: Prediction) -> None:
    with open_outputs(prediction.out), pytest.raises(NucloraError, match="another nuclora works on this folder"):
        prediction()


def test_an_output_folder_that_is_a_file_is_refused(prediction: Prediction) -> None:
    prediction.out.write_text("here")
    with pytest.raises(NucloraError, match="a file, not a folder"):
        prediction()
    prediction.out = prediction.out / "below"
    with pytest.raises(NucloraError, match="cannot write"):
        prediction()


def test_killed_after_two_attempts_it_goes_on(prediction: Prediction) -> None:
    """A first attempt that ends without a kill, as when a worker of a cluster dies, leaves no stamps."""
    with open_outputs(prediction.out) as folder:
        (image, *_) = find_images([prediction.inputs])
        made_by: dict[str, Any] = {"adapter": {"sha": "a"}, "precision": "no"}
        for content in ("first", "second"):
            folder.begin(image, "0" * 64, made_by, ["table"])
            folder.path(image.name, "table").write_text(content)
            if content == "first":
                folder.wrote(image.name, "table", stamp_of(folder.path(image.name, "table")))
    with open_outputs(prediction.out) as folder:
        folder.refuse_conflict(image, "0" * 64, made_by)
        assert folder.begin(image, "0" * 64, made_by, ["table"]) == ["table"]


def test_a_file_that_changes_while_it_is_hashed_is_hashed_again(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    path.write_bytes(b"before")

    def hash_file(path):
        path.write_bytes(b"after it was read")
        return "0" * 64

    monkeypatch.setattr(hashes, "_GRAIN_NS", -(10**18))
    assert read_hash(path).stamp is not None
    monkeypatch.setattr(hashes, "hash_file", hash_file)
    assert read_hash(path).stamp is None
