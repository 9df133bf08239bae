from __future__ import annotations

import pytest
import torch
from torch import nn

from nuclora.errors import NucloraError
from nuclora.training.checkpoint import load_checkpoint, save_checkpoint


def _trained(steps: int, seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(steps):
        _one_step(model, optimizer, step)
    return model, optimizer


def _one_step(model, optimizer, step):
    torch.manual_seed(100 + step)
    model(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_training_goes_on_as_if_never_stopped(tmp_path):
    straight, _ = _trained(6)
    model, optimizer = _trained(3)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, {"step": 3})
    resumed, fresh = _trained(0)
    assert load_checkpoint(tmp_path / "c.safetensors", resumed, fresh) == {"step": 3}
    for step in range(3, 6):
        _one_step(resumed, fresh, step)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    model, _ = _trained(1)
    save_checkpoint(tmp_path / "c.safetensors", model, None, {})
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    with pytest.raises(NucloraError, match=r"c\.safetensors.*does not fit"):
        load_checkpoint(tmp_path / "c.safetensors", other)


@pytest.mark.parametrize("content", [b"", b"nonsense that is long enough", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_corrupt_checkpoint_is_named(tmp_path, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(NucloraError, match=r"c\.safetensors: cannot read the checkpoint"):
        load_checkpoint(tmp_path / "c.safetensors", nn.Linear(1, 1))
