from __future__ import annotations

import pytest
import torch

from nuclora.data.targets import MAPS
from nuclora.models.checkpoints import build_base, load_base
from nuclora.models.dense_decoder import DenseDecoder, _GroupNorm, _resize, activate
from nuclora.recipe import DenseSettings


@pytest.mark.parametrize("name", ["mobile_sam", "lite_medsam", "custom"])
def test_levels_have_the_channels_they_say_and_end_with_the_embedding(name, tiny_sam_folder):
    sam = load_base("custom", tiny_sam_folder).model if name == "custom" else build_base(name).to_empty(device="cpu")
    size = 64
    with torch.inference_mode():
        levels = sam.levels(torch.zeros(2, 3, size, size))
        embedding = sam.encode(torch.zeros(2, 3, size, size))
    assert tuple(level.shape[1] for level in levels) == sam.vision_encoder.level_channels
    assert levels[-1].shape == embedding.shape == (2, levels[-1].shape[1], size // sam.stride, size // sam.stride)
    sides = [level.shape[-1] for level in levels]
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h"])
def test_a_vit_is_tapped_after_its_blocks_with_global_attention(name):
    encoder = build_base(name).vision_encoder
    assert encoder._tapped() == tuple(encoder.config.global_attn_indexes)
    assert encoder.level_channels == (*[encoder.config.hidden_size] * 4, 256)


def test_maps_have_half_the_tiles_resolution_whatever_the_encoder_saw():
    decoder = DenseDecoder((8, 16, 16), 8, 8)
    levels = [torch.randn(2, 8, 24, 24), torch.randn(2, 16, 12, 12), torch.randn(2, 16, 12, 12)]
    for side in (32, 50, 96):
        assert decoder(levels, torch.randn(2, 3, side, side)).shape == (2, len(MAPS), side // 2, side // 2)


def test_every_level_and_the_pixels_count():
    decoder = DenseDecoder((8, 16), 8, 24)
    inputs = [torch.randn(1, 8, 8, 8, requires_grad=True), torch.randn(1, 16, 4, 4, requires_grad=True)]
    pixels = torch.randn(1, 3, 16, 16, requires_grad=True)
    decoder(inputs, pixels).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (*inputs, pixels))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norms_give_what_plain_ones_give(layout):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 16, 6, 5, generator=generator).to(memory_format=layout)
    weights = torch.randn(values.shape, generator=generator)
    found = []
    for kind in (torch.nn.GroupNorm, _GroupNorm):
        norm, features = kind(8, 16), values.clone().requires_grad_()
        normed = norm(features)
        (normed * weights).sum().backward()
        found.append((normed, features.grad, norm.weight.grad, norm.bias.grad))
    torch.testing.assert_close(found[0], found[1])


def test_maps_are_probabilities_a_share_and_pixels():
    raw = torch.tensor([-20.0, 20.0, 1.7, 0.5, -2.0]).reshape(1, 5, 1, 1)
    torch.testing.assert_close(activate(raw).flatten(), torch.tensor([0.0, 1.0, 1.0, 8.0, -32.0]), atol=1e-6, rtol=0)


def test_seed_alone_decides_and_the_global_generator_is_left_alone(tiny_sam_folder):
    state = torch.random.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        sam = load_base("custom", tiny_sam_folder).model
        sam.add_dense_decoder(DenseSettings(channels=8, fine_channels=8), seed)
        weights.append(sam.dense_decoder.head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_features_are_enlarged_about_the_middles_of_their_cells():
    found = _resize(torch.tensor([[[[0.0, 1.0]]]]), torch.zeros(1, 1, 1, 4))
    torch.testing.assert_close(found.flatten(), torch.tensor([0, 0.25, 0.75, 1]))
