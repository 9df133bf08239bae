from __future__ import annotations

import pytest
import torch

from nuclora.errors import NucloraError
from nuclora.models.checkpoints import load_base
from nuclora.models.compiled import compile_blocks
from nuclora.models.lora import adapt, encoder_blocks
from nuclora.recipe import AdapterSettings

CPU = torch.device("cpu")


# PyTorch's compiler warns of PyTorch.
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_give_the_same_embeddings_and_gradients(tiny_sam_folder):
    pixels = torch.rand(2, 3, 64, 64)
    found = []
    for compiled in (False, True):
        model = load_base("custom", tiny_sam_folder).model
        adapt(model, AdapterSettings(rank=2, targets=("qkv",), dropout=0), seed=0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                # Zero at first, where it would hide the other half's gradients.
                torch.nn.init.constant_(parameter, 0.01)
        names = list(model.state_dict())
        if compiled:
            compile_blocks(model, CPU)
            # What checkpoints and adapters are written by.
            assert list(model.state_dict()) == names
            assert all(model.get_submodule(block)._compiled_call_impl for block in encoder_blocks(model))
        embeddings = model.train().encode(pixels)
        embeddings.square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((embeddings.detach(), gradients))
    (plain, expected), (fast, gradients) = found
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_a_machine_that_cannot_compile_is_told_before_the_training(tiny_sam_folder, monkeypatch):
    def fails(function):
        def call(values):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand a page of hints")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    model = load_base("custom", tiny_sam_folder).model
    with pytest.raises(NucloraError, match=r"^PyTorch cannot compile .*compiler found; set train\.compile=false$"):
        compile_blocks(model, CPU)
    assert not any(model.get_submodule(block)._compiled_call_impl for block in encoder_blocks(model))
