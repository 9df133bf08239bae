"""SAM as a first script would have it: `transformers.SamModel` with plain PEFT, and TinyViT in its published form."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamVisionEncoderOutput

from nuclora.inference.predictor import Predictor
from nuclora.models.bases import get_base
from nuclora.models.checkpoints import build_base
from nuclora.models.lora import PARTS, _target_pattern
from nuclora.models.sam import NucleiSam
from nuclora.models.tiny_vit import FrozenNormConv, TinyViT, WindowAttention
from nuclora.recipe import AdapterSettings


def random_base(name: str, seed: int = 0, device: str = "cpu") -> NucleiSam:
    """A base of the published shape with random weights: speed does not depend on them."""
    model = build_base(name).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for key, value in model.state_dict().items():
        norm = value.ndim == 1 and key.endswith("weight")
        if norm or key.endswith("running_var"):
            value.fill_(1.0)
        elif value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5, generator=generator)
        else:
            value.zero_()
    # One matrix under two names.
    model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
    return model


def plain_sam(model: NucleiSam) -> SamModel:
    """The same network as `transformers` has it, with the same weights.

    Args:
        model: A base without an adapter, for an input of 1,024 pixels; it is left as it is.
    """
    base = get_base(model.name_or_path)
    vision = {} if base.encoder == "tiny_vit" else base.config
    config = SamConfig(vision_config={"image_size": base.input_size, "patch_size": model.stride, **vision})
    # "eager" is the default of the class; named here because the comparison rests on it.
    config._attn_implementation = "eager"
    if isinstance(model.vision_encoder, TinyViT):
        # The ViT that the class builds is thrown away; a small one is built faster.
        config.vision_config.num_hidden_layers = 1
        config.vision_config.global_attn_indexes = [0]
    # On a GPU the numbers that the weights replace are drawn there, in no time.
    with torch.device(model.prompt_encoder.no_mask_embed.weight.device):
        plain = SamModel(config)
    state = {key: value for key, value in model.state_dict().items() if "dense_decoder" not in key}
    if isinstance(model.vision_encoder, TinyViT):
        encoder = plain_tiny_vit(model.vision_encoder)
        state = {key: value for key, value in state.items() if not key.startswith("vision_encoder.")}
        missing, unexpected = plain.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.startswith("vision_encoder.") for key in missing if "shared" not in key)
        plain.vision_encoder = _AsVisionEncoder(encoder)
    else:
        plain.load_state_dict(state)
    return plain.eval()


def plain_adapt(plain: SamModel, settings: AdapterSettings, like: NucleiSam) -> PeftModel:
    """Plain PEFT on the layers that ours adapts."""
    prefix = "encoder." if isinstance(like.vision_encoder, TinyViT) else ""
    pattern = _target_pattern(like, settings).replace("vision_encoder\\.", f"vision_encoder\\.{prefix}")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=pattern,
        modules_to_save=[PARTS[part] for part in settings.train_parts],
    )
    model = get_peft_model(plain, config)
    for name, parameter in model.named_parameters():
        # SAM's random frequencies, which `transformers` has among its parameters, are no weights.
        if name.endswith("shared_embedding.positional_embedding"):
            parameter.requires_grad_(False)
    return model


def plain_step(model: PeftModel, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> float:
    """One step on box prompts, written as the documentation of `transformers` suggests.

    Args:
        model: The adapted model.
        optimizer: Over what trains.
        batch: `pixel_values` (B, 3, S, S), `boxes` (B, N, 4) and `masks` float (B, N, S, S).

    Returns:
        The loss, mean binary cross-entropy over pixels, nuclei and tiles.
    """
    output = model(pixel_values=batch["pixel_values"], input_boxes=batch["boxes"], multimask_output=False)
    logits = F.interpolate(
        output.pred_masks.squeeze(2).float(), batch["masks"].shape[-2:], mode="bilinear", align_corners=False
    )
    loss = F.binary_cross_entropy_with_logits(logits, batch["masks"])
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def plain_tiny_vit(encoder: TinyViT) -> TinyViT:
    """TinyViT in the form of its published code.

    Convolutions and batch norms apart, in channels-first order; attention as two products with a softmax between them.
    """
    plain = copy.deepcopy(encoder)
    _replace(plain)
    plain.levels = _levels.__get__(plain)  # type: ignore[method-assign]
    return plain


def as_published(predictor: Predictor) -> Predictor:
    """Give a predictor its encoder in the published form."""
    encoder = predictor.model.vision_encoder
    assert isinstance(encoder, TinyViT)
    predictor.model.vision_encoder = plain_tiny_vit(encoder)
    return predictor


class _ConvThenNorm(nn.Module):
    def __init__(self, folded: FrozenNormConv) -> None:
        super().__init__()
        self.conv, self.norm = folded.conv, folded.norm

    def forward(self, features: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(
            self.conv(features), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )


class _PlainAttention(WindowAttention):
    def forward(self, windows: Tensor) -> Tensor:
        count, tokens, dim = windows.shape
        qkv = self.qkv(self.norm(windows)).reshape(count, tokens, self.num_heads, -1)
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5 + self.position_bias()
        result: Tensor = self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, dim))
        return result


class _AsVisionEncoder(nn.Module):
    def __init__(self, encoder: TinyViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values: Tensor, **_: object) -> SamVisionEncoderOutput:
        return SamVisionEncoderOutput(last_hidden_state=self.encoder(pixel_values))

    def get_input_embeddings(self) -> nn.Module:
        """PEFT asks for it."""
        return self.encoder.patch_embed


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, FrozenNormConv):
            setattr(module, name, _ConvThenNorm(child))
        elif isinstance(child, WindowAttention):
            child.__class__ = _PlainAttention
        else:
            _replace(child)


def _levels(self: TinyViT, pixel_values: Tensor) -> tuple[Tensor, ...]:
    tokens, found = self.patch_embed(pixel_values), []
    for stage in self.layers:
        features, tokens = stage(tokens)
        found.append(features)
    return (*found, self.neck(tokens))
