from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from nuclora.models.bases import BASES, Base

SMALL_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "window_size": 3,
    "global_attn_indexes": [1],
    "mlp_dim": 128,
}


@pytest.fixture(scope="session")
def original_code() -> ModuleType:
    """`segment_anything.modeling`, without the package's own imports: they want torchvision."""
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("segment-anything is not installed: pip install --no-deps segment-anything")
    package = ModuleType("segment_anything")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = package
    return importlib.import_module("segment_anything.modeling")


@pytest.fixture(scope="session")
def original_sam(original_code: ModuleType) -> nn.Module:
    """The original code's Sam with a small ViT, 64-pixel input and random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        sam: nn.Module = original_code.Sam(
            image_encoder=original_code.ImageEncoderViT(
                img_size=64,
                patch_size=16,
                embed_dim=32,
                depth=3,
                num_heads=2,
                out_chans=256,
                norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
                use_rel_pos=True,
                window_size=3,
                global_attn_indexes=(1,),
            ),
            prompt_encoder=original_code.PromptEncoder(256, (4, 4), (64, 64), 16),
            mask_decoder=original_code.MaskDecoder(
                transformer=original_code.TwoWayTransformer(2, 256, 8, 2048), transformer_dim=256
            ),
        )
        for parameter in sam.image_encoder.parameters():
            # Positions start at zero in the original, too.
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    return sam.eval()


@pytest.fixture
def small_base(original_sam: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The original Sam's checkpoint, loadable as the base "small"."""
    base = Base(name="small", encoder="vit", input_size=64, stride=16, normalise="imagenet", config=SMALL_VIT)
    monkeypatch.setitem(BASES, "small", base)
    path = tmp_path / "small.pth"
    torch.save(original_sam.state_dict(), path)
    return path
