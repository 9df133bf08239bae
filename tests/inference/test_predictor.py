from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adapters import write_adapter
from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.data.targets import dense_targets
from nuclora.errors import NucloraError
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Maps, Predictor
from nuclora.models.adapter import read_card, write_card
from nuclora.models.checkpoints import load_base
from nuclora.models.lora import adapt
from nuclora.models.preprocess import prepare
from nuclora.models.sam import MaskPrediction
from nuclora.recipe import AdapterSettings, DenseSettings, EvaluateSettings, load_recipe

BOXES = np.array([[3, 4, 20, 30], [40, 10, 55, 22], [0, 0, 79, 47], [70, 40, 78, 46], [9, 9, 9, 9]], np.float32)


def _image(height: int = 48, width: int = 80) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def _decoded(predictor: Predictor, **prompts: object) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(predictor.decode(predictor.encode(_image()), **prompts))  # type: ignore[arg-type]
    return torch.cat([logits for logits, _ in parts]), torch.cat([iou for _, iou in parts])


@pytest.mark.parametrize("multimask", [False, True])
def test_prompts_of_a_wide_image_reach_the_model_in_its_frame(tiny_sam_folder: Path, multimask: bool) -> None:
    predictor = load_model("custom", weights=tiny_sam_folder, input_size=96)
    logits, iou = _decoded(predictor, boxes=BOXES, multimask=multimask)

    sam = load_base("custom", tiny_sam_folder).model
    # 80 x 48 pixels become 96 x 96: x grows by 1.2, y by 2, around the pixels' centres.
    mapped = (torch.from_numpy(BOXES) + 0.5) * torch.tensor([1.2, 2.0, 1.2, 2.0]) - 0.5
    with torch.no_grad():
        embeddings = sam.encode(prepare(_image(), 96, "imagenet")[None])
        expected = sam.decode(embeddings, boxes=mapped, multimask=multimask)
    torch.testing.assert_close(logits, expected.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(iou, expected.iou, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(64, 64, 96), (32, 32, 48), (16, 64, 48), (8, 8, 16), (64, 256, 96)]
)
def test_with_a_dense_decoder_prompts_see_small_images_enlarged_as_in_training(
    tiny_sam_folder: Path, monkeypatch: pytest.MonkeyPatch, height: int, width: int, side: int
) -> None:
    model = load_base("custom", tiny_sam_folder).model
    predictor = Predictor(model, input_size=96, normalise="unit", dense=DenseSettings(window=64))
    shown: list[torch.Size] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        shown.append(pixels.shape)
        return torch.zeros(1, 16, pixels.shape[2] // 16, pixels.shape[3] // 16)

    def decode(_: torch.Tensor, boxes: torch.Tensor, **__: object) -> MaskPrediction:
        # The last pixel of the image is the last of what is shown.
        shape = torch.tensor([width, height])
        torch.testing.assert_close((boxes[0, 2:] + 0.5) * shape / side, shape - 0.5)
        return MaskPrediction(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1))

    monkeypatch.setattr(model, "encode", encode)
    monkeypatch.setattr(model, "decode", decode)
    encoded = predictor.encode(np.zeros((height, width, 3), np.uint8))
    assert shown == [(1, 3, side, side)]
    assert len(list(predictor.decode(encoded, boxes=np.array([[0, 0, width - 1, height - 1]], np.float32)))) == 1


@pytest.mark.parametrize("prompts", [{"boxes": BOXES}, {"points": BOXES[:, :2], "multimask": True}])
def test_chunks_change_nothing(tiny_sam_folder: Path, prompts: dict[str, object]) -> None:
    base = load_base("custom", tiny_sam_folder)
    whole, parts = (Predictor(base.model, input_size=64, normalise="unit", chunk=chunk) for chunk in (64, 2))
    for one, other in zip(_decoded(whole, **prompts), _decoded(parts, **prompts), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_at_most_a_chunk_is_decoded_at_once(make_fake: Callable[..., Predictor]) -> None:
    predictor = make_fake(chunk=2)
    predictor.masks(predictor.encode(_image()), boxes=BOXES)
    assert [len(part) for part in predictor.model.prompts] == [2, 2, 1]  # type: ignore[union-attr, arg-type]


def test_lower_precision_is_near(tiny_sam_folder: Path) -> None:
    base = load_base("custom", tiny_sam_folder)
    exact, rough = (
        _decoded(Predictor(base.model, input_size=64, normalise="unit", precision=precision), boxes=BOXES)[0]
        for precision in ("no", "bf16")
    )
    assert exact.dtype == rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().max() < 0.1 * exact.abs().max()


def test_no_prompts_give_no_masks(tiny_sam_folder: Path) -> None:
    predictor = load_model("custom", weights=tiny_sam_folder)
    encoded = predictor.encode(_image())
    assert predictor.masks(encoded, boxes=np.zeros((0, 4), np.float32)) == []
    assert predictor.masks(encoded, points=np.zeros((0, 2), np.float32)) == []


def test_boxes_and_points_at_once_are_refused(make_fake: Callable[..., Predictor]) -> None:
    predictor = make_fake()
    encoded = predictor.encode(_image())
    with pytest.raises(ValueError, match="either boxes or points"):
        next(predictor.decode(encoded, boxes=BOXES, points=BOXES[:, :2]))


def test_a_base_answers_a_point_with_the_best_of_three(make_fake: Callable[..., Predictor]) -> None:
    point = np.array([[32.0, 32.0]], np.float32)
    image = _image(64, 64)

    def area(predictor: Predictor, **limits: float) -> int:
        (mask,) = predictor.masks(predictor.encode(image), points=point, **limits)
        return int((mask.logits > 0).sum())

    disc = int((np.hypot(*(np.indices((64, 64)) - 32)) < 6).sum())
    assert area(make_fake(multimask_points=True)) == 64 * 64
    assert area(make_fake(multimask_points=True), largest_share=0.05) == disc
    # Nothing is small enough: then the best of all three.
    fake = make_fake(multimask_points=True)
    fake.model.decode = lambda *_, **__: _two_large_masks()  # type: ignore[method-assign]
    assert area(fake, largest_share=0.05) == 64 * 64
    assert area(make_fake(multimask_points=False)) == disc


def _two_large_masks() -> object:
    from nuclora.models.sam import MaskPrediction

    logits = torch.ones(1, 2, 64, 64)
    logits[0, 1, :10] = -1
    return MaskPrediction(logits, torch.tensor([[0.9, 0.8]]))


def test_the_model_inside_peft_is_prompted_and_put_in_evaluation_mode(tiny_sam_folder: Path) -> None:
    model = load_base("custom", tiny_sam_folder).model
    before = _decoded(Predictor(model, input_size=64, normalise="unit"), boxes=BOXES)[0]
    adapted = adapt(model, AdapterSettings(rank=2, dropout=0.5), seed=1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    adapted.train()
    predictor = Predictor(adapted, input_size=64, normalise="unit")
    first, second = (_decoded(predictor, boxes=BOXES)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, before)
    # What validation leaves behind must still train.
    adapted.train()
    adapted.get_base_model().encode(prepare(_image(), 64, "unit")[None]).sum().backward()


def test_an_unknown_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NucloraError, match="nothing-here"):
        load_model(tmp_path / "nothing-here")


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((40, 50), np.uint8), r"uint8 \(40, 50\)"),
        (np.zeros((40, 50, 4), np.uint8), r"uint8 \(40, 50, 4\)"),
        (np.zeros((1, 40, 50, 3), np.uint8), r"uint8 \(1, 40, 50, 3\)"),
        (np.zeros((40, 50, 3)), r"float64 \(40, 50, 3\)"),
        (np.zeros((0, 50, 3), np.uint8), r"uint8 \(0, 50, 3\)"),
        ([[1, 2, 3]], "a list"),
    ],
)
def test_what_is_no_image_is_refused_by_its_own_shape(
    image: Any, told: str, make_fake: Callable[..., Predictor]
) -> None:
    predictor = make_fake()
    for use in (predictor.nuclei, predictor.encode):
        with pytest.raises(NucloraError, match=rf"{told}, not an image: uint8 \(height, width, 3\); read it with"):
            use(image)


def test_views_are_averaged_and_their_disagreement_is_measured(tiny_sam_folder):
    def network(pixels, own):
        raw = torch.zeros(len(own), 5, own.shape[2] // 2, own.shape[3] // 2)
        raw[:, 3] = 0.5  # eight pixels down, however the window is turned
        return raw

    sam = load_base("custom", tiny_sam_folder).model
    predictor = Predictor(sam, input_size=64, normalise="unit", dense=DenseSettings(window=64), network=network)
    image = np.zeros((64, 64, 3), np.uint8)
    for views, down, apart in ((1, 8, 0), (2, 0, 8), (8, 0, 8)):
        maps = predictor.maps(image, views)
        np.testing.assert_allclose(maps.values[3], down, atol=1e-5)
        np.testing.assert_allclose(maps.values[4], 0, atol=1e-5)
        np.testing.assert_allclose(maps.disagreement, apart, atol=1e-5)


def test_scores_are_calibrated(tiny_sam_folder):
    truth = synthesize_tile(64, 1, ORGANS[0]).labels
    maps = dense_targets(truth)
    sam = load_base("custom", tiny_sam_folder).model
    found = Predictor(
        sam, input_size=64, normalise="unit", dense=DenseSettings(window=64), calibration=[(0.0, 0.1), (1.0, 0.2)]
    ).decode_maps(Maps(maps, np.zeros_like(maps[0])), truth.shape, EvaluateSettings())
    assert len(found.scores) == 2
    assert found.scores.min() >= 0.1
    assert found.scores.max() <= 0.2


@pytest.mark.parametrize("iou", [0.0, 1.0])
def test_a_loaded_adapter_goes_by_its_card_and_recipe(tiny_sam_folder, tmp_path, iou):
    base, folder = load_base("custom", tiny_sam_folder), tmp_path / "adapter"
    recipe = load_recipe("smoke", ["base=custom", "input.size=64", f"loss.iou={iou}"])
    write_adapter(folder, adapt(base.model, recipe.adapter, seed=0), base, recipe, "minmax")
    write_card(folder, read_card(folder).model_copy(update={"microns_per_pixel": 0.3, "thresholds": {"min_size": 7}}))
    found = load_model(folder, weights=tiny_sam_folder)
    assert (found.input_size, found.normalise, found.microns_per_pixel) == (64, "minmax", 0.3)
    assert found.settings.min_size == 7
    # Fine-tuning trains the single mask, and the predicted IoU where it has a loss.
    assert (found.multimask_points, found.iou_trained) == (False, iou > 0)
    as_it_came = load_model("custom", weights=tiny_sam_folder)
    assert (as_it_came.multimask_points, as_it_came.iou_trained) == (True, True)


def test_with_a_dense_decoder_images_are_smoothed_as_in_training(tiny_sam_folder, monkeypatch):
    model, image, shown = load_base("custom", tiny_sam_folder).model, _image(64, 64), []
    predictor = Predictor(model, input_size=32, normalise="unit", dense=DenseSettings(window=64))
    smooth = prepare(image, 32, "unit", antialias=True)
    pixels, own = predictor.window_inputs(image)
    assert torch.equal(pixels[0], smooth)
    assert torch.equal(own[0], prepare(image, 64, "unit"))
    monkeypatch.setattr(model, "encode", lambda pixels: shown.append(pixels[0]))
    predictor.encode(image)
    Predictor(model, input_size=32, normalise="unit").encode(image)
    assert torch.equal(shown[0], smooth)
    assert torch.equal(shown[1], prepare(image, 32, "unit"))


def test_a_model_in_training_finds_nuclei_in_evaluation_mode(tiny_sam_folder):
    model, modes = load_base("custom", tiny_sam_folder).model, []

    def network(pixels, own):
        modes.append(model.training)
        return torch.zeros(1, 5, 32, 32)

    predictor = Predictor(model, input_size=64, normalise="unit", dense=DenseSettings(window=64), network=network)
    model.train()
    predictor.maps(_image(64, 64), 1)
    assert modes == [False]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"precision": "fp8"}, "no precision 'fp8'; choose one of .*bf16.*auto"),
        ({"backend": "jax"}, "no backend 'jax'; choose one of torch, openvino"),
        ({"device": "gpu"}, r"cannot compute on gpu \(.*\); leave the device out, or name cpu"),
        ({"device": "hpu"}, "cannot compute on hpu"),
        ({"device": "cuda:99"}, r"cannot compute on cuda:99 \(.*\); leave the device out, or name cpu"),
        ({"input_size": 0}, "an input size of 0 pixels; leave it out"),
        ({"input_size": -64}, "an input size of -64 pixels; leave it out"),
    ],
)
def test_what_no_model_computes_in_is_refused(tiny_sam_folder: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(NucloraError, match=told):
        load_model("custom", weights=tiny_sam_folder, **wrong)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ({"boxes": BOXES[0]}, r"boxes of shape \(4,\); give them as \(N, 4\)"),
        ({"boxes": BOXES[:, :2]}, r"boxes of shape \(5, 2\)"),
        ({"points": BOXES}, r"points of shape \(5, 4\); give them as \(N, 2\)"),
        ({"points": [[1, 2], [3]]}, "points are no array of numbers"),
        ({"boxes": [[1, 2, 3, float("nan")]]}, "boxes with values that are not finite"),
    ],
)
def test_prompts_of_another_shape_are_refused(tiny_sam_folder: Path, prompts: dict[str, Any], told: str) -> None:
    predictor = load_model("custom", weights=tiny_sam_folder)
    with pytest.raises(NucloraError, match=told):
        predictor.masks(predictor.encode(_image()), **prompts)


def test_no_prompts_are_no_masks(tiny_sam_folder: Path) -> None:
    predictor = load_model("custom", weights=tiny_sam_folder)
    encoded = predictor.encode(_image())
    assert [predictor.masks(encoded, boxes=none) for none in ([], np.array([]), np.zeros((0, 4)))] == [[], [], []]  # type: ignore[arg-type]


def test_prompts_may_be_lists(tiny_sam_folder: Path) -> None:
    given = [
        _decoded(load_model("custom", weights=tiny_sam_folder), boxes=boxes)[0] for boxes in (BOXES, BOXES.tolist())
    ]
    torch.testing.assert_close(*given, rtol=0, atol=0)
