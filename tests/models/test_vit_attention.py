"""Attention by fused kernels against the form that writes every bias down."""

from __future__ import annotations

import pytest
import torch
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention

from nuclora.models.checkpoints import build_base
from nuclora.models.vit import FusedAttention


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("window", "height", "width"), [(0, 8, 8), (0, 6, 11), (3, 3, 3)])
def test_outputs_and_gradients_are_those_of_the_plain_form(relative, window, height, width):
    torch.manual_seed(0)
    # A head of 10 channels is no multiple of what kernels want.
    config = SamVisionConfig(hidden_size=20, num_attention_heads=2, image_size=128, use_rel_pos=relative)
    found = []
    tokens = torch.randn(3, height, width, 20, dtype=torch.float64)
    plain = SamVisionAttention(config, window).double()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    fused = FusedAttention(config, window).double()
    fused.load_state_dict(plain.state_dict())
    for attention in (plain, fused):
        seen = tokens.clone().requires_grad_()
        output = attention(seen)[0]
        (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)).sum().backward()
        gradients = {name: parameter.grad for name, parameter in attention.named_parameters()}
        found.append((output, seen.grad, gradients))
    # The plain form takes its softmax in single precision whatever comes in.
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_every_block_of_a_vit_has_it():
    encoder = build_base("sam_vit_b").vision_encoder
    assert {type(layer.attn) for layer in encoder.layers} == {FusedAttention}
