from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nuclora.data import open_tiles
from nuclora.data.tiles import Sample
from nuclora.models.checkpoints import load_base
from nuclora.models.lora import adapt
from nuclora.recipe import LossSettings
from nuclora.training import validation
from nuclora.training.losses import mask_bce, mask_dice, mask_iou
from nuclora.training.samples import TrainingSamples
from nuclora.training.step import TileLoss, passes


@pytest.fixture
def model(tiny_sam_folder, tiny_recipe):
    adapter = tiny_recipe.adapter.model_copy(update={"dropout": 0.0})
    return adapt(load_base("custom", tiny_sam_folder).model, adapter, seed=1)


@pytest.fixture
def samples(tiny_data, tiny_recipe):
    dataset = TrainingSamples(open_tiles(tiny_data), tiny_recipe, size=64, normalise="unit", epoch=0)
    return [dataset[0], dataset[1], dataset[2]]


def _gradients(loss: TileLoss, samples):
    loss.zero_grad()
    value = loss(samples)
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}


def _decoded_alone(model, sample):
    """Of each nucleus, prompted by itself: logits, truth and valid pixels at full size; the IoU that is predicted."""
    sam = model.get_base_model()
    embedding = sam.encode(sample.pixel_values[None])
    for n in range(len(sample.ids)):
        if sample.is_box[n]:
            found = sam.decode(embedding, boxes=sample.boxes[n : n + 1])
        else:
            label = torch.ones(1, 1, dtype=torch.int64)
            found = sam.decode(embedding, points=sample.points[n].reshape(1, 1, 2), point_labels=label)
        logits = torch.nn.functional.interpolate(found.logits, (64, 64), mode="bilinear", align_corners=False)
        yield (logits[0], (sample.labels == sample.ids[n])[None], sample.valid), found.iou[0, 0]


def test_loss_is_the_plain_mean_over_nuclei_and_tiles(model, samples):
    with torch.no_grad():
        expected = [
            np.mean([mask_bce(*masks).item() for masks, _ in _decoded_alone(model, sample)]) for sample in samples
        ]
    assert TileLoss(model, LossSettings(), 64)(samples).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_chunks_change_memory_and_not_the_gradient(model, samples):
    whole, gradients = _gradients(TileLoss(model, LossSettings(dice=1, iou=1), 64), samples)
    chunked, same = _gradients(TileLoss(model, LossSettings(dice=1, iou=1), 2), samples)
    assert chunked == pytest.approx(whole, rel=1e-5)
    assert gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-3, atol=1e-6)


def test_few_prompts_of_all_tiles_go_through_the_decoder_together(model, samples):
    few = [
        replace(sample, **{name: getattr(sample, name)[:2] for name in ("ids", "is_box", "boxes", "points", "weights")})
        for sample in samples
    ]
    alone = [_gradients(TileLoss(model, LossSettings(dice=1, iou=1), 64), [sample]) for sample in few]
    seen = []
    decoder = model.get_base_model().mask_decoder
    decoder.register_forward_pre_hook(lambda module, inputs: seen.append((len(inputs[0]), len(inputs[2]))))
    together, gradients = _gradients(TileLoss(model, LossSettings(dice=1, iou=1), 64), few)
    # Each prompt with the embedding of its own tile.
    prompts = sum(len(sample.ids) for sample in few)
    assert prompts > len(few)
    assert seen == [(prompts, prompts)]
    assert together == pytest.approx(np.mean([value for value, _ in alone]), rel=1e-5)
    for name, gradient in gradients.items():
        mean = sum(of_tile[name] for _, of_tile in alone) / len(alone)
        torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "chunk", "expected"),
    [
        ([2, 0, 1], 8, [[(0, slice(0, 2)), (2, slice(0, 1))]]),
        ([3, 7], 4, [[(0, slice(0, 3))], [(1, slice(0, 4))], [(1, slice(4, 7))]]),
        # Nine are more than four a tile, and three more than a chunk.
        ([9, 0], 64, [[(0, slice(0, 9))]]),
        ([1, 2], 2, [[(0, slice(0, 1))], [(1, slice(0, 2))]]),
        ([0, 0], 64, []),
    ],
)
def test_which_prompts_go_together(counts, chunk, expected):
    assert passes(counts, chunk) == expected


def test_adapter_and_decoder_get_gradients_and_the_base_none(model, samples):
    _, gradients = _gradients(TileLoss(model, LossSettings(), 64), samples)
    assert any("lora_" in name for name in gradients)
    assert any("mask_decoder" in name for name in gradients)
    assert not any("patch_embed" in name for name in gradients)


def test_the_iou_head_learns_only_when_asked(model, samples):
    _, without = _gradients(TileLoss(model, LossSettings(), 64), samples)
    _, trained = _gradients(TileLoss(model, LossSettings(iou=1), 64), samples)
    assert not any("iou_prediction_head" in name for name in without)
    assert any("iou_prediction_head" in name for name in trained)


def test_a_batch_without_nuclei_has_a_loss_of_zero_and_a_graph(model, samples):
    empty = [
        type(sample)(
            pixel_values=sample.pixel_values,
            labels=torch.zeros_like(sample.labels),
            valid=sample.valid,
            ids=sample.ids[:0],
            is_box=sample.is_box[:0],
            boxes=sample.boxes[:0],
            points=sample.points[:0],
            weights=sample.weights[:0],
        )
        for sample in samples
    ]
    value, _ = _gradients(TileLoss(model, LossSettings(), 64), empty)
    assert value == 0


def test_terms_and_weights_of_the_prompted_loss(model, samples):
    settings = LossSettings(bce=0.5, dice=1.5, iou=2.0)
    samples = [replace(s, weights=torch.arange(1.0, len(s.ids) + 1) / sum(range(len(s.ids) + 1))) for s in samples]
    expected = []
    with torch.no_grad():
        for sample in samples:
            total = 0.0
            for weight, (masks, iou) in zip(sample.weights, _decoded_alone(model, sample), strict=True):
                wrong = (iou - mask_iou(*masks)) ** 2
                total += float(weight * (0.5 * mask_bce(*masks) + 1.5 * mask_dice(*masks) + 2 * wrong))
            expected.append(total)
    assert TileLoss(model, settings, 64)(samples).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_vague_areas_do_not_count_in_validation(tiny_recipe, monkeypatch):
    labels = np.zeros((32, 32), np.int32)
    labels[2:10, 2:10], labels[20:30, 20:30] = 1, 2

    class Tile:
        def read(self):
            return Sample(np.zeros((32, 32, 3), np.uint8), labels, labels == 2)

    monkeypatch.setattr(validation, "segment", lambda *_: np.where(labels == 1, 1, 0).astype(np.int32))
    assert validation.score_validation(None, [Tile()], tiny_recipe)["aji"] == 1
