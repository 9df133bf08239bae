"""An adapter in 8 bits against itself in float32."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adapters import write_adapter
from nuclora.cli.main import app
from nuclora.data.synthetic import synthesize_tile
from nuclora.errors import NucloraError
from nuclora.inference import quantize as module
from nuclora.inference.images import predict_files
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Predictor
from nuclora.inference.quantize import _draw_windows, quantize_adapter
from nuclora.models.adapter import read_card, write_card
from nuclora.models.checkpoints import load_base
from nuclora.models.lora import adapt
from nuclora.recipe import DenseSettings, EvaluateSettings, load_recipe
from slide_makers import write_slide
from spots import SpotPredictor

Load = Callable[..., Predictor]
# In the maps of random weights.
FINDS_SOMETHING = (
    "evaluate.min_size=1",
    "evaluate.decode.agreement=0",
    "evaluate.decode.core=0.01",
    "evaluate.decode.foreground=0.4",
)
INSTALL = "not installed: pip install 'nuclora[int8]'"


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    for seed in range(3):
        Image.fromarray(synthesize_tile(96, seed, "synthetic liver").image).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def load(tiny_sam_folder: Path) -> Load:
    return functools.partial(load_model, weights=tiny_sam_folder)


@pytest.fixture(scope="module")
def dense_adapter(tiny_sam_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = load_recipe("nuclora", ["base=custom", "input.size=64", "adapter.targets=[qkv]", *FINDS_SOMETHING])
    recipe = recipe.model_copy(update={"dense": DenseSettings(window=64, channels=8, fine_channels=8)})
    base = load_base("custom", tiny_sam_folder)
    base.model.add_dense_decoder(recipe.dense, seed=0)
    folder = tmp_path_factory.mktemp("dense") / "adapter"
    write_adapter(folder, adapt(base.model, recipe.adapter, seed=0), base, recipe, "imagenet")
    return folder


@pytest.fixture(scope="module")
def quantized(
    dense_adapter: Path, tiny_sam_folder: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    pytest.importorskip("nncf", reason=INSTALL)
    out = tmp_path_factory.mktemp("quantized") / "adapter"
    made = quantize_adapter(dense_adapter, [tiles], out, tiny_sam_folder)
    assert (made.calibrated, made.checked, made.apart) == (8, 4, True)
    return out


def test_maps_are_close_to_those_of_float32(load: Load, dense_adapter: Path, quantized: Path, tiles: Path) -> None:
    image = np.asarray(Image.open(tiles / "0.png"))
    expected = load(dense_adapter).maps(image, 1).values
    found = load(quantized, backend="openvino", precision="int8").maps(image, 1).values
    reach = np.ptp(expected, axis=(1, 2))
    apart = np.abs(found - expected).mean(axis=(1, 2))
    assert (apart < 0.1 * reach).all()
    # Else nothing was quantised.
    assert np.abs(found - expected).max() > 1e-4 * reach.max()
    np.testing.assert_array_equal(load(quantized).maps(image, 1).values, expected)


def test_predict_uses_it_and_notes_it(quantized: Path, tiny_sam_folder: Path, tiles: Path, tmp_path: Path) -> None:
    predict = functools.partial(
        predict_files, [tiles / "0.png"], tmp_path, quantized, formats=["labels"], weights=tiny_sam_folder
    )
    predict(precision="int8", backend="openvino")
    with pytest.raises(NucloraError, match="precision"):
        predict(precision="no", backend="openvino")


def test_the_command_says_what_it_costs(
    dense_adapter: Path, tiny_sam_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nncf", reason=INSTALL)
    Image.open(tiles / "0.png").crop((0, 0, 64, 64)).save(tmp_path / "one.png")
    out = tmp_path / "out"
    given = [tmp_path / "one.png", "-a", dense_adapter, "-o", out, "--weights", tiny_sam_folder]
    result = CliRunner().invoke(app, ["quantize", *map(str, given)])
    assert result.exit_code == 0, result.output
    assert "its network in 8 bits by 1 window, few" in result.stdout
    assert "of the same image it finds" in result.stdout
    assert "PQ of the one against the other" in result.stdout
    assert f"-a {out} --backend openvino --precision int8" in result.stdout


def test_windows_come_from_all_images_in_turn_and_are_checked_on_others(tmp_path: Path) -> None:
    for value, side in ((10, 64), (20, 200), (30, 64), (40, 200)):
        Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(tmp_path / f"{value}.png")
    calibrating, checking, apart = _draw_windows(sorted(tmp_path.iterdir()), SpotPredictor(64), None)
    assert apart
    firsts, others = ({int(window[0, 0, 0]) for window in windows} for windows in (calibrating, checking))
    assert len(firsts) == len(others) == 2
    assert firsts | others == {10, 20, 30, 40}
    assert {int(window[0, 0, 0]) for window in calibrating[:2]} == firsts
    assert all(window.shape == (64, 64, 3) for window in calibrating + checking)


def test_windows_of_a_slide_are_of_its_tissue_at_the_adapters_scale(tmp_path: Path) -> None:
    image = np.full((2400, 2400, 3), 245, np.uint8)
    image[400:2000, 400:1200] = (150, 60, 140)
    write_slide(tmp_path / "slide.tif", image, 0.5)
    calibrating, checking, apart = _draw_windows([tmp_path / "slide.tif"], SpotPredictor(64), 1.0)
    assert not apart
    assert len(calibrating) == 24
    assert len(checking) == 8
    # Four fifths of the area are glass, but what is looked at is tissue and its margin.
    assert np.mean([window[..., 1].mean() < 200 for window in calibrating + checking]) > 0.6


def test_slides_without_tissue_are_told(tmp_path: Path) -> None:
    glass = write_slide(tmp_path / "slide.tif", np.full((600, 600, 3), 245, np.uint8), 1.0)
    with pytest.raises(NucloraError, match="no tissue in these slides"):
        _draw_windows([glass], SpotPredictor(64), 1.0)


def test_all_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(NucloraError, match=r"nor can .*[ab]\.png"):
        _draw_windows(sorted(tmp_path.iterdir()), SpotPredictor(64), None)


def test_images_of_equal_names_are_welcome(
    dense_adapter: Path, tiny_sam_folder: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf", reason=INSTALL)
    shutil.copytree(tiles, tmp_path / "more")

    def drawn(paths: list[Path], *_: object) -> None:
        raise KeyError(len(paths))

    monkeypatch.setattr(module, "_draw_windows", drawn)
    with pytest.raises(KeyError, match="6"):
        quantize_adapter(dense_adapter, [tiles, tmp_path / "more"], tmp_path / "out", tiny_sam_folder)


def test_where_nothing_is_found_nothing_is_said(dense_adapter: Path, tiny_sam_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason=INSTALL)
    Image.fromarray(np.full((64, 64, 3), 240, np.uint8)).save(tmp_path / "glass.png")
    none = EvaluateSettings(min_size=10**6).model_dump(mode="json")
    adapter = Path(shutil.copytree(dense_adapter, tmp_path / "adapter"))
    card = read_card(adapter)
    write_card(adapter, card.model_copy(update={"recipe": card.recipe | {"evaluate": none}}))
    with pytest.raises(NucloraError, match="no nuclei in the images"):
        quantize_adapter(adapter, [tmp_path / "glass.png"], tmp_path / "out", tiny_sam_folder)
    assert not (tmp_path / "out").exists()


def test_export_leaves_it_behind_and_says_so(quantized: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(quantized), "-o", str(tmp_path / "copy")])
    assert "without its network in 8 bits" in result.stdout
    assert read_card(tmp_path / "copy").int8 == {}
    assert not list((tmp_path / "copy").glob("dense_int8.*"))


def test_what_tells_of_an_adapter_goes_with_its_copies(quantized: Path, tmp_path: Path) -> None:
    (quantized / "README.md").write_text("labels: CC BY 4.0")
    result = CliRunner().invoke(app, ["export", str(quantized), "-o", str(tmp_path / "copy")])
    assert result.exit_code == 0
    assert (tmp_path / "copy" / "README.md").read_text() == "labels: CC BY 4.0"


def test_a_full_disk_is_told(
    dense_adapter: Path, tiny_sam_folder: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf", reason=INSTALL)
    import openvino

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(NucloraError, match="No space left") as caught:
        quantize_adapter(dense_adapter, [tiles / "0.png"], tmp_path / "out", tiny_sam_folder)
    assert caught.value.path == tmp_path / "out"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "int8 is OpenVINO's alone"),
        ({"backend": "openvino"}, "no network in int8"),
        ({"backend": "openvino", "input_size": 128}, "one input size"),
    ],
)
def test_int8_without_what_it_needs_is_refused(load: Load, dense_adapter: Path, options: dict, told: str) -> None:
    pytest.importorskip("openvino", reason="not installed: pip install 'nuclora[openvino]'")
    with pytest.raises(NucloraError, match=told):
        load(dense_adapter, precision="int8", **options)


@pytest.mark.parametrize("name", ["dense_int8.xml", "dense_int8.bin", "adapter_model.safetensors"])
def test_another_file_is_named(load: Load, quantized: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(quantized, tmp_path / "copy"))
    content = bytearray((quantized / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(NucloraError, match="another file") as caught:
        load(copy, backend="openvino", precision="int8")
    assert caught.value.path == copy / name
    (copy / name).unlink()
    with pytest.raises(NucloraError, match="missing"):
        load(copy, backend="openvino", precision="int8")


@pytest.mark.parametrize("fast", [True, False])
def test_openvino_computes_in_bf16_only_where_the_processor_does(
    load: Load, dense_adapter: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    pytest.importorskip("openvino", reason="not installed: pip install 'nuclora[openvino]'")
    monkeypatch.setattr("nuclora.inference.loading.is_fast_in_bfloat16", lambda device: fast)
    refused = contextlib.nullcontext() if fast else pytest.raises(NucloraError, match="ten times slower in bf16")
    with refused:
        load(dense_adapter, precision="bf16", backend="openvino", device="cpu")


def test_fp16_is_refused_on_a_processor(load: Load, dense_adapter: Path) -> None:
    with pytest.raises(NucloraError, match="for GPUs"):
        load(dense_adapter, precision="fp16", device="cpu")


def test_what_is_there_is_not_written_over(dense_adapter: Path, tiles: Path) -> None:
    pytest.importorskip("nncf", reason=INSTALL)
    with pytest.raises(NucloraError, match="exists already"):
        quantize_adapter(dense_adapter, [tiles], tiles)


def test_images_are_looked_for_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "require", lambda *names: None)
    with pytest.raises(NucloraError, match=r"none\.png: no such file or folder"):
        quantize_adapter(tmp_path / "no adapter", [tmp_path / "none.png"], tmp_path / "out")


def test_without_nncf_the_way_to_get_it_is_told(
    dense_adapter: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="not installed: pip install 'nuclora[openvino]'")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(NucloraError, match="int8 needs the package nncf") as caught:
        quantize_adapter(dense_adapter, [tiles], tmp_path / "out")
    assert caught.value.mend == "pip install 'nuclora[int8]'"
