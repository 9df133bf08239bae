"""Names of the weights: ours, which are `transformers`', and the original code's, which publishers use."""

from __future__ import annotations

import re

# Pattern over our names, name in the original layout. The first that matches a key's start is applied.
_SHARED = (
    (r"shared_image_embedding\.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (
        r"prompt_encoder\.shared_embedding\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"(mask_decoder\.transformer\.layers\.\d+)\.layer_norm(\d)\.", r"\1.norm\2."),
    (r"mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))\.proj_in\.", r"\1.layers.0."),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))\.layers\.0\.", r"\1.layers.1."),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head))\.proj_out\.", r"\1.layers.2."),
    (r"vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
)
_ENCODERS = {
    "vit": (
        (r"vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
        (r"vision_encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"image_encoder.blocks.\1.norm\2."),
        (r"vision_encoder\.layers\.", "image_encoder.blocks."),
        (r"vision_encoder\.", "image_encoder."),
    ),
    "tiny_vit": (
        (r"vision_encoder\.patch_embed\.conv1\.", "image_encoder.patch_embed.seq.0."),
        (r"vision_encoder\.patch_embed\.conv2\.", "image_encoder.patch_embed.seq.2."),
        (r"vision_encoder\.", "image_encoder."),
    ),
}
# What a published file may hold beside the network: TinyViT's classifier, which SAM has no use for.
UNUSED = {
    "vit": frozenset[str](),
    "tiny_vit": frozenset(
        f"image_encoder.{name}.{kind}" for name in ("head", "norm_head") for kind in ("weight", "bias")
    ),
}


def original_name(name: str, encoder: str) -> str:
    """The name that the original code gives to one of our weights.

    Args:
        name: Key of :class:`~nuclora.models.sam.NucleiSam`'s state.
        encoder: Family of its image encoder, "vit" or "tiny_vit".
    """
    for pattern, replacement in (*_SHARED, *_ENCODERS[encoder]):
        renamed, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            name = renamed
            break
    if encoder == "tiny_vit" and name.startswith("image_encoder."):
        name = re.sub(r"\.conv\.(?=weight$)", ".c.", name)
        name = re.sub(r"\.norm\.(?=(weight|bias|running_mean|running_var|num_batches_tracked)$)", _norm_name, name)
    return name


def _norm_name(match: re.Match[str]) -> str:
    owner = match.string[: match.start()].rpartition(".")[2]
    # Layer norms of attention and perceptron keep their name; batch norms are "bn" there.
    return match.group() if owner in ("attn", "mlp") else ".bn."
