"""Adapters on disk: PEFT's two files, and what PEFT does not know: a card, and the dense decoder where there is one."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from nuclora.errors import NucloraError
from nuclora.files import atomic_folder, require_openable, unreadable, write_atomic
from nuclora.io.microns import require_plausible
from nuclora.models.bases import BASES
from nuclora.models.checkpoints import LoadedBase, load_base, require_finite
from nuclora.models.dense_sam import DenseSam
from nuclora.models.preprocess import Normalise
from nuclora.recipe import DecodeSettings, DenseSettings, EvaluateSettings, Recipe, fault, parse_recipe

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from nuclora.models.sam import NucleiSam

CARD = "nuclora.json"
_PAGE = "README.md"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
DENSE_WEIGHTS = "dense_decoder.safetensors"
INT8 = "dense_int8"
"""The network in 8 bits, in the `.xml` and `.bin` that OpenVINO writes."""
MIN_SIZE = "min_size"
SHIPPED = "embedded"

_MEND = "copy the adapter again; of a run, delete the folder of its fold and `nuclora cv` trains it again"


class AdapterCard(BaseModel):
    """What an adapter was trained on and how it is to be used; nuclora.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base: str = Field(description="name of the base")
    base_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of the base's weights")
    input_size: int = Field(ge=1, description="side of the network's input in pixels")
    normalise: Normalise
    microns_per_pixel: float | None = Field(None, gt=0, description="of the training tiles, where known")
    thresholds: dict[str, float] = Field({}, description="tuned fields of evaluate.decode, and min_size")
    calibration: list[tuple[float, float]] = Field([], description="score and the IoU to be expected at it, rising")
    int8: dict[str, str] = Field(
        {}, description="SHA-256 of the network in 8 bits and of what it was made from, by file"
    )
    recipe: dict[str, Any]
    metrics: dict[str, Any] = {}
    nuclora: str = Field(default_factory=lambda: version("nuclora"), description="version that wrote it")

    @field_validator("thresholds")
    @classmethod
    def _thresholds_can_be_used(cls, thresholds: dict[str, float]) -> dict[str, float]:
        smallest = thresholds.get(MIN_SIZE, 0.0)
        if smallest < 0 or smallest % 1:
            raise ValueError(f"{MIN_SIZE} is {smallest}, not a number of pixels")
        try:
            DecodeSettings.model_validate({name: value for name, value in thresholds.items() if name != MIN_SIZE})
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{first['loc'][0]}: {first['msg']}") from error
        return thresholds

    @field_validator("calibration")
    @classmethod
    def _calibration_rises(cls, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        for values in zip(*points, strict=True):
            if list(values) != sorted(values) or not 0 <= values[0] <= values[-1] <= 1:
                raise ValueError("scores and IoUs must rise from 0 to 1")
        return points


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter on its base, in evaluation mode.

    Args:
        model: The PEFT model; its `get_base_model()` is the NucleiSam to encode and decode with.
        card: What the adapter says of itself.
        recipe: The recipe that it was trained with.
        base: The base that it sits on.
    """

    model: PeftModel
    card: AdapterCard
    recipe: Recipe
    base: LoadedBase

    @property
    def settings(self) -> EvaluateSettings:
        """How to segment with it."""
        return tuned_settings(self.card, self.recipe)


def save_adapter(peft_model: PeftModel, folder: Path, card: AdapterCard) -> None:
    """Write an adapter, all of it or nothing; an older one there is replaced.

    Args:
        peft_model: What :func:`~nuclora.models.lora.adapt` gave.
        folder: Where to; made with its parents.
        card: What goes into nuclora.json.

    Raises:
        NucloraError: The disk is full or the folder cannot be written.
    """
    from peft import get_peft_model_state_dict

    config = copy.copy(peft_model.peft_config["default"])
    config.inference_mode = True
    # "auto" would ask the Hugging Face hub about the base.
    weights = {WEIGHTS: get_peft_model_state_dict(peft_model, save_embedding_layers=False)}
    if (dense_decoder := peft_model.get_base_model().dense_decoder) is not None:
        weights[DENSE_WEIGHTS] = dense_decoder.state_dict()
    _write(folder, config, weights, card)


def _write(
    folder: Path,
    config: LoraConfig,
    weights: Mapping[str, Mapping[str, torch.Tensor]],
    card: AdapterCard,
    others: Mapping[str, bytes] | None = None,
) -> None:
    """Write an adapter's files, its tensors and others by file name, all of them or none."""
    with atomic_folder(folder) as fresh:
        config.save_pretrained(str(fresh))
        for name, tensors in weights.items():
            _save_tensors(tensors, fresh / name)
        (fresh / CARD).write_text(card.model_dump_json(indent=2) + "\n", "utf-8")
        for name, content in (others or {}).items():
            (fresh / name).write_bytes(content)


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    # safetensors' own writing has an error of its own for a full disk, and makes files for the owner's eyes only.
    path.write_bytes(
        save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    )


def load_adapter(folder: Path, weights: Path | None = None) -> LoadedAdapter:
    """Load an adapter and the base that it was trained on.

    Args:
        folder: What :func:`save_adapter` wrote.
        weights: The base's weights, where they are not in their usual place.

    Raises:
        NucloraError: A file is missing or damaged, or these are other base weights than those of the training.
    """
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    from nuclora.models.lora import fold_adapters

    card = read_card(folder)
    recipe = read_recipe(folder, card)
    if card.base not in BASES:
        raise NucloraError(f"trained on {card.base!r}, which is no base", path=folder / CARD, mend="update nuclora")
    config, tensors = _read_config(folder), read_tensors(folder / WEIGHTS)
    base = load_base(card.base, weights)
    if base.sha256 != card.base_sha256:
        raise NucloraError(
            f"trained on {card.base} with sha256 {card.base_sha256}, but {base.path} has {base.sha256}",
            path=folder,
            mend="give the weights that it was trained on with --weights",
        )
    try:
        base.model.check_input(card.input_size, card.input_size)
    except NucloraError as error:
        raise NucloraError(f"input_size: {error.reason}", path=folder / CARD, mend=_MEND) from error
    # PEFT draws first weights from the global generator; they are replaced at once.
    with torch.random.fork_rng(devices=[]):
        try:
            model = PeftModel(base.model, fold_adapters(config))
        except MemoryError:
            raise
        # PEFT raises whatever a configuration that was edited leads it to.
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise NucloraError(f"does not fit {card.base} ({reason})", path=folder / CONFIG, mend=_MEND) from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    _check_fit(tensors, expected, folder / WEIGHTS)
    set_peft_model_state_dict(model, tensors)
    if recipe.dense is not None:
        load_dense_decoder(base.model, recipe.dense, folder / DENSE_WEIGHTS)
    return LoadedAdapter(model.eval(), card, recipe, base)


def load_dense_decoder(model: DenseSam, settings: DenseSettings, path: Path) -> None:
    """Add the dense decoder of an adapter to the network.

    Args:
        model: The network; changed in place.
        settings: Of the adapter's recipe.
        path: Its weights.

    Raises:
        NucloraError: They are missing, damaged, or not of such a decoder.
    """
    tensors = read_tensors(path)
    model.add_dense_decoder(settings, seed=0)
    assert model.dense_decoder is not None
    _check_fit(tensors, model.dense_decoder.state_dict(), path)
    model.dense_decoder.load_state_dict(tensors)


def shipped_adapter() -> Path:
    """Folder of the adapter that comes with the package, for the base that is embedded in an installation.

    Raises:
        NucloraError: This installation has none.
    """
    folder = Path(str(resources.files("nuclora") / "adapters" / SHIPPED))
    if not (folder / CARD).is_file():
        raise NucloraError("this installation of nuclora has no adapter in it", mend="name one with -a")
    return folder


def save_half(folder: Path, out: Path, microns_per_pixel: float | None = None) -> None:
    """Copy an adapter, with the page about it if there is one, in half precision: half the size, to share or to ship.

    Weights are read back into single precision, so only digits are lost, not range: SAM's are far below float16's
    largest number.

    Args:
        folder: What :func:`save_adapter` wrote.
        out: The copy; must not exist.
        microns_per_pixel: Of the training tiles, where their format did not say; noted on the copy's card.

    Raises:
        NucloraError: The adapter is damaged, `out` exists or cannot be written, a weight is too large, or the microns
            are not plausible.
    """
    require_plausible(microns_per_pixel)
    card = read_card(folder)
    names = [WEIGHTS, *([DENSE_WEIGHTS] if read_recipe(folder, card).dense is not None else [])]
    halves = {}
    for name in names:
        whole = read_tensors(folder / name)
        require_finite(whole, folder / name)
        halves[name] = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in whole.items()}
        for key, tensor in halves[name].items():
            if not bool(torch.isfinite(tensor).all()):
                raise NucloraError(f"{key} has weights over float16's largest", path=folder / name, mend="use it whole")
    if out.exists():
        raise NucloraError("exists already", path=out, mend="name a new folder")
    # The network in 8 bits stays behind: it was made from the weights as they are.
    card = card.model_copy(update={"int8": {}})
    if microns_per_pixel is not None:
        card = card.model_copy(update={"microns_per_pixel": microns_per_pixel})
    page = folder / _PAGE
    try:
        others = {_PAGE: page.read_bytes()} if page.is_file() else {}
    except OSError as error:
        raise unreadable(page, error) from error
    _write(out, _read_config(folder), halves, card, others)


def merge(peft_model: PeftModel) -> NucleiSam:
    """Fold an adapter into its base: the same outputs without PEFT. The model given is used up."""
    merged: NucleiSam = peft_model.merge_and_unload()
    return merged


def read_card(folder: Path) -> AdapterCard:
    """The card of an adapter.

    Raises:
        NucloraError: No card, or not a valid one.
    """
    path = folder / CARD
    if not folder.is_dir():
        raise NucloraError("no such folder", path=folder, mend="name the folder of an adapter")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise NucloraError("not an adapter of nuclora: no nuclora.json", path=folder, mend=_MEND) from error
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return AdapterCard.model_validate_json(content)
    except ValidationError as error:
        mend = _mend_of_version(_version_told(content))
        raise NucloraError(f"not a valid card: {fault(error)}", path=path, mend=mend) from error


def read_recipe(folder: Path, card: AdapterCard) -> Recipe:
    """The recipe that an adapter was trained with, from its card."""
    try:
        return parse_recipe(card.recipe, folder / CARD)
    except NucloraError as error:
        raise NucloraError(error.reason, path=error.path, mend=_mend_of_version(card.nuclora)) from error


def _version_told(content: bytes) -> object:
    try:
        return json.loads(content)["nuclora"]
    except (ValueError, KeyError, TypeError):
        return None


def _mend_of_version(written_by: object) -> str:
    """What to do about a card that cannot be understood: it may be of a later version."""
    ours = version("nuclora")
    if written_by in (None, ours):
        return _MEND
    return f"nuclora {written_by} wrote it, and this is {ours}: install that version"


def tuned_settings(card: AdapterCard, recipe: Recipe) -> EvaluateSettings:
    """How a recipe evaluates, with the thresholds that were tuned for one adapter."""
    decode = {name: value for name, value in card.thresholds.items() if name != MIN_SIZE}
    changes: dict[str, Any] = {"decode": recipe.evaluate.decode.model_dump() | decode}
    if MIN_SIZE in card.thresholds:
        changes[MIN_SIZE] = int(card.thresholds[MIN_SIZE])
    return EvaluateSettings.model_validate(recipe.evaluate.model_dump() | changes)


def write_card(folder: Path, card: AdapterCard) -> None:
    """Replace the card of an adapter."""
    write_atomic(folder / CARD, card.model_dump_json(indent=2) + "\n")


def _read_config(folder: Path) -> LoraConfig:
    from peft import LoraConfig

    path = folder / CONFIG
    if not path.is_file():
        # PEFT would look for it on the Hugging Face hub.
        raise NucloraError("missing from the adapter", path=path, mend=_MEND)
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT passes on whatever its parsing meets
        reason = " ".join(str(error).split())[:120]
        raise NucloraError(f"not a PEFT configuration ({reason})", path=path, mend=_MEND) from error
    if not isinstance(config, LoraConfig):
        raise NucloraError("not the configuration of a LoRA adapter", path=path, mend=_MEND)
    return config


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one of an adapter's files.

    Raises:
        NucloraError: It is missing or damaged, or may not be read.
    """
    try:
        require_openable(path)
        return load_file(path)
    except FileNotFoundError as error:
        raise NucloraError("missing from the adapter", path=path, mend=_MEND) from error
    except (SafetensorError, OSError) as error:
        raise NucloraError(f"not a readable safetensors file ({error})", path=path, mend=_MEND) from error


def _check_fit(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], path: Path) -> None:
    faults = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    faults += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    faults += [
        f"{name} is {_kind(tensors[name])}, not {_kind(expected[name])}"
        for name in sorted(expected.keys() & tensors.keys())
        if _kind(tensors[name]) != _kind(expected[name])
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise NucloraError(f"not the weights of this adapter: {', '.join(faults[:3])}{more}", path=path, mend=_MEND)
    require_finite(tensors, path)


def _kind(tensor: torch.Tensor) -> str:
    """Its shape; and its type, where that holds no fractions and so no weights."""
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")
