"""`nuclora predict` as its users meet it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from nuclora.data.images import read_image
from nuclora.data.synthetic import write_dataset
from nuclora.inference import images
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Nuclei
from nuclora.io.labels import read_labels
from nuclora.models.adapter import CARD, CONFIG, AdapterCard, save_adapter
from nuclora.models.checkpoints import load_base
from nuclora.models.lora import adapt
from nuclora.recipe import EvaluateSettings, Recipe, change_evaluation
from one_line import assert_one_line
from slide_makers import write_slide
from spots import SpotPredictor, spots

Cli = Callable[..., tuple[int, str, str]]


class FakePredictor:
    """Dark spots are nuclei."""

    settings: EvaluateSettings

    def nuclei(self, image: np.ndarray, settings: EvaluateSettings, *, mpp: float | None = None) -> Nuclei:
        self.settings = settings
        labels, count = ndimage.label(image.mean(axis=2) < 128)
        return Nuclei(labels.astype(np.int32), np.full(count, 0.75, np.float32))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePredictor:
    predictor = FakePredictor()
    monkeypatch.setattr(images, "load_model", lambda *args, **options: predictor)
    return predictor


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs `nuclora predict` and gives exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "80")
    return functools.partial(cli, "predict")


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    """The tiny recipe with a dense decoder."""
    fields = tiny_recipe.model_dump()
    fields["augment"] |= {"crop": 32}
    fields["dense"] = {"window": 64, "channels": 8, "fine_channels": 8}
    return Recipe.model_validate(fields)


def write_card(
    folder: Path, recipe: Recipe, thresholds: dict[str, float], microns_per_pixel: float | None = None
) -> None:
    """The card of an adapter, for a model that is not loaded."""
    card = AdapterCard(
        base="custom", base_sha256="0" * 64, input_size=64, normalise="unit", thresholds=thresholds,
        microns_per_pixel=microns_per_pixel, recipe=recipe.model_dump(mode="json"),
    )  # fmt: skip
    folder.mkdir()
    (folder / CARD).write_text(card.model_dump_json())
    (folder / CONFIG).write_text("{}")


@pytest.fixture
def adapter(tmp_path: Path, recipe: Recipe) -> Path:
    write_card(tmp_path / "adapter", recipe, {"core": 0.35, "min_size": 12})
    return tmp_path / "adapter"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        image = np.full((40, 60, 3), 220, np.uint8)
        for spot in range(index + 1):
            image[5:15, 3 + spot * 12 : 11 + spot * 12] = (70, 40, 110)
        Image.fromarray(image).save(folder / f"tile_{index}.png")
    return folder


def test_a_folder_of_images(cli: Cli, adapter: Path, pictures: Path, tmp_path: Path, fake: FakePredictor) -> None:
    code, out, err = cli(pictures, "-a", adapter, "-o", tmp_path / "out")
    assert code == 0, err
    for part in ("tile_0.png", "60 x 40", "80 px", "nuclei", "all", " 6 ", f"summary.csv: {tmp_path / 'out'}"):
        assert part in out
    assert "kept" not in out
    assert read_labels(tmp_path / "out" / "tile_2.labels.tif").max() == 3
    assert "predict: 3/3  images" in err
    code, out, _ = cli(pictures / "tile_1.png", pictures, "-a", adapter, "-o", tmp_path / "out")
    assert code == 0
    assert out.count("kept") == 4


def test_settings_come_from_the_adapter_unless_given(
    cli: Cli, adapter: Path, pictures: Path, tmp_path: Path, fake: FakePredictor
) -> None:
    wanted = ["-a", adapter, "--format", "labels, table"]
    assert cli(pictures, *wanted, "-o", tmp_path / "a")[0] == 0
    assert (fake.settings.decode.core, fake.settings.decode.views, fake.settings.min_size) == (0.35, 8, 12)
    assert cli(pictures, *wanted, "-o", tmp_path / "b", "--views", 2, "--min-size", 5)[0] == 0
    assert (fake.settings.decode.core, fake.settings.decode.views, fake.settings.min_size) == (0.35, 2, 5)
    assert sorted(path.name for path in (tmp_path / "b").glob("tile_0*")) == ["tile_0.csv", "tile_0.labels.tif"]
    assert_one_line(cli(pictures, *wanted, "-o", tmp_path / "b"), "made differently: other settings", "--overwrite")
    assert cli(pictures, *wanted, "-o", tmp_path / "b", "--overwrite")[0] == 0


def test_json_is_only_json(cli: Cli, adapter: Path, pictures: Path, tmp_path: Path, fake: FakePredictor) -> None:
    (pictures / "tile_1.png").write_text("a letter")
    code, out, err = cli(pictures, "-a", adapter, "-o", tmp_path / "out", "--json", "--mpp", 0.5)
    assert code == 2
    told = json.loads(out)
    assert [(Path(row["image"]).name, row["nuclei"], row["kept"]) for row in told["images"]] == [
        ("tile_0.png", 1, False),
        ("tile_2.png", 3, False),
    ]
    assert told["images"][0]["mean_area_px"] == 80
    (failure,) = told["failures"]
    assert failure["image"] == str(pictures / "tile_1.png")
    assert "tile_1.png: cannot be read" in err


def test_a_bad_image_among_many_is_named_and_the_others_are_done(
    cli: Cli, adapter: Path, pictures: Path, tmp_path: Path, fake: FakePredictor
) -> None:
    whole = (pictures / "tile_0.png").read_bytes()
    (pictures / "tile_0.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(pictures / "deep.tif")
    code, out, err = cli(pictures, "-a", adapter, "-o", tmp_path / "out")
    assert code == 2
    assert "tile_1.png" in out
    assert "tile_2.png" in out
    assert f"nuclora: {pictures / 'tile_0.png'}: cannot be read" in err
    assert f"nuclora: {pictures / 'deep.tif'}: uint16 image where 8 bits" in err
    assert (tmp_path / "out" / "tile_2.geojson").exists()
    assert not (tmp_path / "out" / "tile_0.geojson").exists()


@pytest.mark.parametrize("content", [b"a letter", b"", None])
def test_one_bad_image_is_one_line(
    content: bytes | None, cli: Cli, adapter: Path, pictures: Path, tmp_path: Path, fake: FakePredictor
) -> None:
    image = pictures / "tile_0.png"
    image.write_bytes(image.read_bytes()[:60] if content is None else content)
    code, out, err = cli(image, "-a", adapter, "-o", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("predict:")] == [err.splitlines()[-1]]
    assert f"nuclora: {image}: cannot be read" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("PICTURES/none.png",), "none.png: no such file or folder"),
        (("EMPTY",), "no image in this folder"),
        (("PICTURES/*.webp",), "0 files match, none an image"),
        (("PICTURES", "-o", "PICTURES/tile_0.png"), "a file, not a folder; name a folder with -o"),
        (("PICTURES", "-o", "PICTURES/tile_0.png/out"), "cannot write"),
        (("PICTURES", "--format", "labels,shapes"), "no such format: shapes"),
        (("PICTURES", "--format", ","), "no such format"),
        (("PICTURES", "--views", "3"), "give --views 1, 2, 4 or 8"),
        (("PICTURES", "--precision", "fp8"), "no such choice: fp8"),
        (("PICTURES", "--precision", "int8"), "int8 is OpenVINO's alone; add --backend openvino"),
        (("PICTURES", "--precision", "fp16"), "fp16 is for GPUs"),
        (("PICTURES", "--mpp", "nan"), "--mpp nan: not a plausible size of a pixel; give 0.05 to 10 microns"),
        (("PICTURES", "--mpp", "0.04"), "--mpp 0.04: not a plausible size of a pixel"),
        (("PICTURES", "--mpp", "11"), "--mpp 11: not a plausible size of a pixel"),
        (("PICTURES", "-a", "EMPTY"), "not an adapter"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...],
    told: str,
    cli: Cli,
    adapter: Path,
    pictures: Path,
    tmp_path: Path,
    fake: FakePredictor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    given = [part.replace("PICTURES", str(pictures)).replace("EMPTY", str(tmp_path / "empty")) for part in arguments]
    before = sorted(tmp_path.rglob("*"))
    defaults = [
        part for option in (("-a", adapter), ("-o", tmp_path / "out")) if option[0] not in given for part in option
    ]
    assert_one_line(cli(*given, *defaults), told)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_adapter_without_a_dense_decoder_is_refused(
    cli: Cli, tiny_recipe: Recipe, pictures: Path, tmp_path: Path
) -> None:
    write_card(tmp_path / "paper", tiny_recipe, {})
    told = f"{tmp_path / 'paper'}: its recipe, tiny, trains no decoder that finds nuclei by itself"
    assert_one_line(
        cli(pictures, "-a", tmp_path / "paper", "-o", tmp_path / "out"), told, "of the recipe nuclora with -a"
    )
    assert not (tmp_path / "out").exists()


def test_many_images_are_told_in_short(cli: Cli, adapter: Path, tmp_path: Path, fake: FakePredictor) -> None:
    (tmp_path / "many").mkdir()
    for index in range(25):
        Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "many" / f"{index:02}.png")
    code, out, _ = cli(tmp_path / "many", "-a", adapter, "-o", tmp_path / "out", "--format", "table")
    assert code == 0
    assert "and 5 more in the summary" in out
    assert len(out.splitlines()) < 32


def test_an_adapter_end_to_end(
    cli: Cli, recipe: Recipe, tiny_sam_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base("custom", tiny_sam_folder)
    base.model.add_dense_decoder(recipe.dense, seed=0)
    # So low that something is found in the maps of random weights.
    low = ["evaluate.min_size=1", "evaluate.decode.core=0.01", "evaluate.decode.foreground=0.4"]
    recipe = recipe.model_copy(update={"evaluate": change_evaluation(recipe.evaluate, low)})
    card = AdapterCard(
        base="custom", base_sha256=base.sha256, input_size=64, normalise="unit", recipe=recipe.model_dump(mode="json")
    )
    save_adapter(adapt(base.model, recipe.adapter, seed=0), tmp_path / "adapter", card)
    write_dataset(tmp_path / "tiles", tiles=1, size=64, organs=1, seed=0)
    (image,) = (tmp_path / "tiles").rglob("tissue images/*.png")
    given = (image, "--weights", tiny_sam_folder, "-o", tmp_path / "out", "--views", 2)
    code, _, err = cli(*given, "-a", tmp_path / "adapter")
    assert code == 0, err
    assert len(list((tmp_path / "out").glob(f"{image.stem}.*"))) == 4
    predictor = load_model(tmp_path / "adapter", weights=tiny_sam_folder)
    settings = change_evaluation(predictor.settings, ["evaluate.decode.views=2"])
    expected = predictor.nuclei(read_image(image), settings)
    assert len(expected.scores) > 0
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / f"{image.stem}.labels.tif"), expected.labels)
    table = (tmp_path / "out" / f"{image.stem}.csv").read_text().splitlines()
    assert len(table) == len(expected.scores) + 1
    # Without -a it is the adapter that nuclora carries, wherever that is.
    monkeypatch.setattr("nuclora.inference.images.shipped_adapter", lambda: tmp_path / "adapter")
    assert "kept" in cli(*given)[1]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slide.tif", spots(170, 200), 0.5)


@pytest.fixture
def spot_predictor(monkeypatch: pytest.MonkeyPatch) -> SpotPredictor:
    predictor = SpotPredictor()
    monkeypatch.setattr(images, "load_model", lambda *args, **options: predictor)
    return predictor


def test_a_slide(cli: Cli, adapter: Path, slide: Path, tmp_path: Path, spot_predictor: SpotPredictor) -> None:
    given = (slide, "-a", adapter, "-o", tmp_path / "out", "--views", 1, "--region", "10,20,120,100")
    code, out, err = cli(*given)
    assert code == 0, err
    assert "120 x 100" in out
    assert "slide.tif: " in out
    for part in (" nuclei/mm2", " mm2/s", " MB of memory", "not rescaled: the adapter does not say"):
        assert part in out
    assert "predict slide: 1/1  blocks" in err
    labels = read_labels(tmp_path / "out" / "slide.labels.tif")
    assert labels.shape == (100, 120)
    assert labels.max() > 5
    assert "kept" in cli(*given)[1]
    assert_one_line(cli(*given[:-1], "0,0,100,100"), "made differently: other region")
    told = json.loads(cli(*given, "--json")[1])
    assert told["images"][0]["tissue_mm2"] == pytest.approx(120 * 100 * 0.25e-6, rel=1e-3)


def test_a_slide_is_resampled_to_what_the_adapter_knows(
    cli: Cli, recipe: Recipe, slide: Path, tmp_path: Path, spot_predictor: SpotPredictor
) -> None:
    write_card(tmp_path / "adapter", recipe, {}, microns_per_pixel=1.0)
    code, out, err = cli(slide, "-a", tmp_path / "adapter", "-o", tmp_path / "out", "--format", "labels")
    assert code == 0, err
    assert "rescaled" not in out
    assert read_labels(tmp_path / "out" / "slide.labels.tif").shape == (85, 100)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("SLIDE", "--region", "0,0,500,10"), "slide.tif: the region 0,0,500,10 reaches beyond the slide's 200 x 170"),
        (("SLIDE", "--region", "0,0,5"), "no region: 0,0,5; give four whole numbers"),
        (("UNSCALED",), "unscaled.tif: the file does not say how large its pixels are; give --mpp"),
        (("PICTURES", "--region", "0,0,5,5"), "tile_0.png: --region and --no-tissue-mask are for slides"),
        (("PICTURES", "--no-tissue-mask"), "tile_0.png: --region and --no-tissue-mask are for slides"),
        (("DEEP",), "deep.tif: uint16 slide where 8 bits a channel are expected"),
        (("LETTER",), "letter.svs: OpenSlide cannot read it"),
    ],
)
def test_slides_that_cannot_be_are_one_line(
    arguments: tuple[str, ...], told: str, cli: Cli, adapter: Path, slide: Path, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openslide")
    (tmp_path / "letter.svs").write_text("a letter")
    files = {
        "SLIDE": slide,
        "UNSCALED": write_slide(tmp_path / "unscaled.tif", spots(90, 90)),
        "DEEP": write_slide(tmp_path / "deep.tif", np.zeros((90, 90, 3), np.uint16), 0.5),
        "PICTURES": pictures,
        "LETTER": tmp_path / "letter.svs",
    }
    result = cli(*(files.get(part, part) for part in arguments), "-a", adapter, "-o", tmp_path / "out")
    assert_one_line(result, told)
    assert not list((tmp_path / "out").glob("*.parts"))
