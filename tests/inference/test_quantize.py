"""An adapter in 8 bits against itself in float32."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nuclora.cli.main import app
from nuclora.data.synthetic import synthesize_tile
from nuclora.errors import NucloraError
from nuclora.inference.images import predict_files
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Predictor
from nuclora.inference.quantize import _draw_windows, quantize_adapter
from nuclora.models.adapter import AdapterCard, save_adapter
from nuclora.models.checkpoints import load_base
from nuclora.models.lora import adapt
from nuclora.recipe import DenseSettings, load_recipe

Load = Callable[..., Predictor]
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
    recipe = load_recipe("nuclora", ["base=custom", "input.size=64", "adapter.targets=[qkv]"])
    recipe = recipe.model_copy(update={"dense": DenseSettings(window=64, channels=8, fine_channels=8)})
    base = load_base("custom", tiny_sam_folder)
    base.model.add_dense_decoder(recipe.dense, seed=0)
    card = AdapterCard(
        base="custom",
        base_sha256=base.sha256,
        input_size=64,
        normalise="imagenet",
        recipe=recipe.model_dump(mode="json"),
    )
    folder = tmp_path_factory.mktemp("dense") / "adapter"
    save_adapter(adapt(base.model, recipe.adapter, seed=0), folder, card)
    return folder


@pytest.fixture(scope="module")
def quantized(
    dense_adapter: Path, tiny_sam_folder: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    pytest.importorskip("nncf", reason=INSTALL)
    out = tmp_path_factory.mktemp("quantized") / "adapter"
    made = quantize_adapter(dense_adapter, [tiles], out, tiny_sam_folder)
    assert (made.calibrated, made.checked) == (6, 6)
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
    assert "its network in 8 bits by 1 window of the images" in result.stdout
    assert "PQ of the one against the other" in result.stdout
    assert f"-a {out} --backend openvino --precision int8" in result.stdout


def test_windows_come_from_all_images_in_turn(tmp_path: Path) -> None:
    for value, side in ((10, 64), (20, 200), (30, 64)):
        Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(tmp_path / f"{value}.png")
    windows = _draw_windows(sorted(tmp_path.iterdir()), 64, 16)
    values = [int(window[0, 0, 0]) for window in windows]
    assert sorted(values[:3]) == [10, 20, 30]
    assert set(values[3:]) == {20}
    assert all(window.shape == (64, 64, 3) for window in windows)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "int8 is for OpenVINO"),
        ({"backend": "openvino"}, "no network in int8"),
        ({"backend": "openvino", "input_size": 128}, "int8 is for OpenVINO"),
    ],
)
def test_int8_without_what_it_needs_is_refused(load: Load, dense_adapter: Path, options: dict, told: str) -> None:
    pytest.importorskip("openvino", reason="not installed: pip install 'nuclora[openvino]'")
    with pytest.raises(NucloraError, match=told):
        load(dense_adapter, precision="int8", **options)


@pytest.mark.parametrize(("name", "kept"), [("dense_int8.xml", 100), ("dense_int8.bin", 100), ("dense_int8.bin", 0)])
def test_a_damaged_network_is_named(load: Load, quantized: Path, tmp_path: Path, name: str, kept: int) -> None:
    copy = Path(shutil.copytree(quantized, tmp_path / "copy"))
    (copy / name).write_bytes((quantized / name).read_bytes()[:kept])
    with pytest.raises(NucloraError, match="not a network that OpenVINO reads") as caught:
        load(copy, backend="openvino", precision="int8")
    assert caught.value.path == copy / "dense_int8.xml"


def test_what_is_there_is_not_written_over(dense_adapter: Path, tiles: Path) -> None:
    pytest.importorskip("nncf", reason=INSTALL)
    with pytest.raises(NucloraError, match="exists already"):
        quantize_adapter(dense_adapter, [tiles], tiles)


def test_without_nncf_the_way_to_get_it_is_told(
    dense_adapter: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="not installed: pip install 'nuclora[openvino]'")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(NucloraError, match="needs NNCF") as caught:
        quantize_adapter(dense_adapter, [tiles], tmp_path / "out")
    assert caught.value.mend == "pip install 'nuclora[int8]'"
