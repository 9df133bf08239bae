"""Recipes: every choice that changes a trained adapter, in one strict document."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nuclora.errors import NucloraError
from nuclora.yaml_files import NOT_YAML, load_yaml, parse_yaml, read_yaml_file, yaml_fault

Views = Literal[1, 2, 4, 8]
VIEWS: tuple[Views, ...] = get_args(Views)
AskedPrecision = Literal["no", "bf16", "fp16", "auto"]
"""`auto` stands for `bf16` where the device computes in it fast, and for `no` elsewhere."""

Settings = TypeVar("Settings", bound=BaseModel)
_AUTO = "auto"
Protocol = Literal["oracle-box", "oracle-point", "automatic"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
_MEND = "see docs/recipes.md"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_1(cls, value: Any, field: ValidationInfo) -> Any:
        kind = cls.model_fields[str(field.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"{str(value).lower()} is neither a number nor a name")
        return value


class AdapterSettings(_Strict):
    """What trains: low-rank adapters on some layers, and some parts in full."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    targets: tuple[Literal["qkv", "proj", "mlp", "decoder_attention"], ...] = ("qkv",)
    last_blocks: int | None = Field(None, ge=1, description="LoRA on the last N encoder blocks only")
    train_parts: tuple[Literal["mask_decoder", "prompt_encoder", "neck", "convolutions", "vision_encoder"], ...] = (
        "mask_decoder",
        "prompt_encoder",
    )

    @model_validator(mode="after")
    def _decoder_trains_one_way(self) -> AdapterSettings:
        if "decoder_attention" in self.targets and "mask_decoder" in self.train_parts:
            raise ValueError(
                "LoRA on the mask decoder's attention and the whole mask decoder cannot both train: "
                "drop 'decoder_attention' from targets or 'mask_decoder' from train_parts"
            )
        of_encoder = {"neck", "convolutions"} & set(self.train_parts)
        if "vision_encoder" in self.train_parts and (of_encoder or self._adapts_encoder):
            raise ValueError(
                "the whole encoder trains (vision_encoder in train_parts), so neither its neck, its convolutions nor "
                "LoRA on it can train beside it: drop 'neck' and 'convolutions', and set targets=[decoder_attention] "
                "without 'mask_decoder'"
            )
        return self

    @property
    def _adapts_encoder(self) -> bool:
        return bool(set(self.targets) - {"decoder_attention"})


class InputSettings(_Strict):
    """How a tile becomes the network's input."""

    size: int | None = Field(
        1024, ge=32, le=8192, description="side of the square input in pixels; null: the base's own"
    )
    normalise: Literal["unit", "base"] = "unit"


class AugmentSettings(_Strict):
    """Random changes of a training tile; all zero means none."""

    rotation: float = Field(0.3, ge=0, description="largest rotation in radians")
    flip: float = Field(0.5, ge=0, le=1, description="probability of each of the two flips")
    noise: float = Field(0.2, ge=0, le=1, description="probability of additive Gaussian noise")
    noise_std: float = Field(0.05, ge=0, description="standard deviation of the noise, in units of the full range")
    stain: float = Field(0.0, ge=0, le=1, description="strength of the haematoxylin-eosin jitter; 0: off")
    restain: float = Field(0.0, ge=0, le=1, description="probability that eosin is shown in any other colour")
    exposure: float = Field(0.0, ge=0, le=1, description="probability that the tile is lit up, at most to white")
    crop: int | None = Field(
        None, ge=32, le=8192, description="side in tile pixels of a random square of the tile; null: the whole tile"
    )
    zoom: float = Field(1.0, ge=1, le=4, description="largest enlargement, and its inverse the smallest; 1: off")
    elastic: float = Field(
        0.0, ge=0, le=6, description="standard deviation of smooth shifts that bend the tile, in its pixels; 0: off"
    )
    light: float = Field(0.0, ge=0, le=1, description="strength of the change of brightness and contrast; 0: off")
    blur: float = Field(0.0, ge=0, le=1, description="probability of Gaussian blur")
    jpeg: float = Field(0.0, ge=0, le=1, description="probability of JPEG compression")


class PromptSettings(_Strict):
    """Training prompts: one a nucleus, a jittered box or a point inside it."""

    box_share: float = Field(0.5, ge=0, le=1, description="share of nuclei prompted by a box; the rest by a point")
    box_jitter: float = Field(0.1, ge=0, lt=0.5, description="largest shift of a box edge, in box sides")
    per_tile: int | None = Field(
        None, ge=0, description="at most so many nuclei a tile and step; 0: prompts are not trained; null: all"
    )
    chunk: int = Field(
        64, ge=1, description="prompts decoded at once; bounds memory, not results but by rounding and dropout"
    )


class LossSettings(_Strict):
    """The loss of one mask; masks are averaged over a tile's nuclei, tiles over the batch."""

    bce: float = Field(1.0, ge=0)
    dice: float = Field(0.0, ge=0)
    iou: float = Field(0.0, ge=0, description="weight of the squared error of the predicted IoU; 0: it is not trained")
    touching_weight: float = Field(0.0, ge=0, description="extra weight of nuclei that touch another one")
    small_weight: float = Field(0.0, ge=0, description="extra weight of nuclei smaller than the tile's median")
    stride: int = Field(1, ge=1, le=4, description="input pixels per pixel of the masks that are compared")

    @model_validator(mode="after")
    def _some_mask_loss(self) -> LossSettings:
        if not self.bce + self.dice:
            raise ValueError("bce and dice are both 0: nothing would teach the masks")
        return self


class DenseSettings(_Strict):
    """The prompt-free decoder: maps of all nuclei at once, at half the tile's resolution.

    The four losses are summed with these weights, and added to the prompts' loss.
    """

    window: int = Field(
        512, ge=32, le=8192, multiple_of=2, description="side in tile pixels of what `input.size` pixels show"
    )
    channels: int = Field(64, ge=8, multiple_of=8, description="channels of the decoder's coarse levels")
    fine_channels: int = Field(32, ge=8, multiple_of=8, description="channels at half the tile's resolution")
    learning_rate: float = Field(2e-3, gt=0, le=100)
    weight_decay: float = Field(0.01, ge=0)
    foreground: float = Field(1.0, gt=0, description="weight of the loss of inside against outside")
    contact: float = Field(1.0, ge=0, description="weight of the loss of where two nuclei meet")
    # Decoding goes by the distance and the offset: maps that were not trained would say anything.
    distance: float = Field(2.0, gt=0, description="weight of the loss of the distance to the nucleus's edge")
    offset: float = Field(1.0, gt=0, description="weight of the loss of the way to the nucleus's centre")
    contact_weight: float = Field(2.0, ge=0, description="extra weight of pixels where two nuclei meet")
    small_weight: float = Field(1.0, ge=0, description="extra weight of the pixels of small nuclei")


class TrainSettings(_Strict):
    """The optimisation."""

    epochs: int = Field(5, ge=1)
    batch_size: int = Field(
        4, ge=1, description="tiles a step, over all processes; auto: the recipe's own number, as many at once as fit"
    )
    accumulation: int = Field(
        1, ge=1, description="parts a batch is worked off in on each process, to begin with: out of memory, they halve"
    )
    checkpointing: bool = Field(False, description="compute each encoder block again in the backward pass")
    compile: bool = Field(False, description="compile the encoder's blocks at the first step, which takes a minute")
    learning_rate: float = Field(1e-4, gt=0, le=100)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rates rise from 0")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0: off")
    precision: AskedPrecision = "no"
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="0: each tile once an epoch; 1: each organ as often as any other",
    )
    workers: int = Field(60, ge=0, description="loader processes; capped at the machine's cores")
    select: Literal["last", "best"] = "last"
    validate_on: Literal["test", "inner"] = "test"
    validations_per_epoch: int = Field(1, ge=0)
    validation_tiles: int | None = Field(None, ge=1, description="at most so many tiles a validation; null: all")
    checkpoint_steps: int = Field(50, ge=1, description="steps between checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _auto_finds_the_parts(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping) or fields.get("batch_size") != _AUTO:
            return fields
        # One part is what `--set train.batch_size=auto` writes, which may come on top.
        if fields.get("accumulation", 1) != 1:
            raise ValueError("batch_size=auto finds the parts itself: drop accumulation")
        # Parts begin with the whole batch and halve where memory runs out, so the default of both says it.
        return {name: value for name, value in fields.items() if name != "batch_size"}

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        # YAML 1.1 reads a bare no as false.
        return "no" if value is False else value

    @model_validator(mode="after")
    def _best_needs_inner_validation(self) -> TrainSettings:
        if self.select == "best" and (self.validate_on != "inner" or self.validations_per_epoch == 0):
            raise ValueError(
                "train.select=best needs train.validate_on=inner and validations: "
                "choosing the checkpoint on the test fold would leak it"
            )
        return self


class GridSettings(_Strict):
    """SAM's automatic mask generator: a grid of points, filtered."""

    points_per_side: int = Field(32, ge=1)
    iou_threshold: float = Field(0.7, ge=0, le=1, description="least predicted IoU")
    stability_threshold: float = Field(0.85, ge=0, le=1)
    stability_offset: float = Field(1.0, gt=0, description="shift of the logit threshold for the stability score")
    overlap_threshold: float = Field(0.5, gt=0, le=1, description="box IoU over which the worse mask goes")
    largest_share: float = Field(0.05, gt=0, le=1, description="largest mask, as a share of the tile's area")


class DecodeSettings(_Strict):
    """From the dense decoder's maps to nuclei."""

    foreground: float = Field(0.5, gt=0, lt=1, description="least foreground probability of a nucleus's pixel")
    smooth: float = Field(3.5, gt=0, le=64, description="blur of the votes for middles, in pixels of the tile")
    valley: float = Field(
        0.75, gt=0, le=1, description="peaks with more than this share of the lower one between them are one nucleus"
    )
    core: float = Field(0.4, ge=0, lt=1, description="least distance, as a share of 1, in a nucleus's middle")
    agreement: float = Field(
        0.0, ge=0, lt=1, description="least agreement of the views on a nucleus, as in its score; 0: all are kept"
    )
    views: Views = Field(8, description="flips and quarter turns that are averaged")


class EvaluateSettings(_Strict):
    """How test tiles are segmented and scored."""

    protocols: tuple[Protocol, ...] = Field(("oracle-box", "oracle-point", "automatic"), min_length=1)
    tiles: Literal["test", "inner"] = Field(
        "test", description="inner: score the inner validation tiles, for choices that must not see a test tile"
    )
    automatic_tiles: int | None = Field(None, ge=1, description="at most so many tiles a fold for automatic; null: all")
    min_size: int = Field(10, ge=0, description="smallest predicted nucleus in pixels of the tile")
    grid: GridSettings = GridSettings()
    decode: DecodeSettings = DecodeSettings()
    tune: bool = Field(False, description="choose `decode` and `min_size` on a fold's inner validation tiles")

    @field_validator("protocols")
    @classmethod
    def _each_once(cls, value: tuple[Protocol, ...]) -> tuple[Protocol, ...]:
        if len(set(value)) < len(value):
            raise ValueError("name each protocol once")
        return value

    def with_views(self, views: int) -> EvaluateSettings:
        """The same settings, but for how many flips and quarter turns are averaged.

        Raises:
            ValueError: Not 1, 2, 4 or 8.
        """
        decode = DecodeSettings.model_validate(self.decode.model_dump() | {"views": views})
        return self.model_copy(update={"decode": decode})


class Recipe(_Strict):
    """One training recipe.

    Equal recipes, bases, fold tables and tiles make equal adapters.
    """

    name: str
    base: str
    seed: int = Field(42, ge=0, le=2**32 - 1)
    input: InputSettings = InputSettings()
    adapter: AdapterSettings = AdapterSettings()
    augment: AugmentSettings = AugmentSettings()
    prompts: PromptSettings = PromptSettings()
    loss: LossSettings = LossSettings()
    dense: DenseSettings | None = None
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _crops_go_with_the_dense_decoder(self) -> Recipe:
        crop = self.augment.crop
        if (self.dense is None) != (crop is None):
            raise ValueError(
                "augment.crop and dense go together: the dense decoder trains on crops, prompts alone on whole tiles"
            )
        if crop is not None and crop % 2:
            raise ValueError(f"augment.crop={crop} must be even: the maps have half the tile's resolution")
        if self.dense is None and self.prompts.per_tile == 0:
            raise ValueError("prompts.per_tile=0 without dense: nothing would train")
        if self.evaluate.tune and (self.dense is None or self.train.validate_on != "inner"):
            raise ValueError("evaluate.tune needs dense and train.validate_on=inner: tuning on the test fold leaks it")
        return self

    @model_validator(mode="after")
    def _inner_tiles_are_held_back_and_not_tuned_on(self) -> Recipe:
        if self.evaluate.tiles == "inner" and self.train.validate_on != "inner":
            raise ValueError("evaluate.tiles=inner needs train.validate_on=inner: else no inner tiles are held back")
        if self.evaluate.tiles == "inner" and self.evaluate.tune:
            raise ValueError(
                "evaluate.tiles=inner scores the tiles that evaluate.tune would tune on: set evaluate.tune=false"
            )
        if self.evaluate.tiles == "inner" and self.train.select == "best":
            raise ValueError(
                "evaluate.tiles=inner scores the tiles that train.select=best would choose by: set train.select=last"
            )
        return self

    @property
    def sha256(self) -> str:
        """Hash of every field, equal for equal recipes."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The recipe as the YAML that :func:`load_recipe` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("nuclora") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change some of its fields.

    Args:
        name: Name of a shipped recipe, or path of a YAML file.
        overrides: ``field.path=value`` each, the value in YAML, as in ``train.epochs=10``.

    Raises:
        NucloraError: No such recipe, not YAML, or a field that is unknown or has a wrong value.
    """
    source = str(name)
    if source in shipped_recipes():
        text = (resources.files("nuclora") / "recipes" / f"{source}.yaml").read_text("utf-8")
    else:
        text = read_yaml_file(source, "no such recipe", f"name a YAML file or one of {', '.join(shipped_recipes())}")
    fields = parse_yaml(text, source, _MEND)
    if not isinstance(fields, dict):
        what = "the file holds no mapping" if text.strip() else "the file is empty"
        raise NucloraError(f"not a recipe: {what}", path=source, mend=_MEND)
    for override in overrides:
        _set_field(fields, override)
    return _validate(Recipe, fields, source)


def change_evaluation(settings: EvaluateSettings, overrides: Sequence[str]) -> EvaluateSettings:
    """Change fields of the evaluation alone.

    Args:
        settings: What to start from.
        overrides: As in :func:`load_recipe`, each beginning with ``evaluate.``.

    Raises:
        NucloraError: A field that is not of the evaluation, is unknown or has a wrong value.
    """
    fields = {"evaluate": settings.model_dump(mode="json")}
    for override in overrides:
        if not override.startswith("evaluate."):
            raise NucloraError(f"--set {override}: only fields of evaluate can change for an adapter that is trained")
        if override.startswith(("evaluate.tiles=", "evaluate.tune=")):
            raise NucloraError(f"--set {override}: only `nuclora cv` goes by it", mend="leave it out")
        _set_field(fields, override)
    return _validate(EvaluateSettings, fields["evaluate"], "evaluate")


def parse_recipe(fields: Mapping[str, Any], source: str | Path) -> Recipe:
    """The recipe that some fields make.

    Args:
        fields: As :meth:`Recipe.model_dump` gives them.
        source: The file that they are from, for errors.

    Raises:
        NucloraError: A field that is missing, unknown or has a wrong value.
    """
    return _validate(Recipe, fields, str(source))


def fault(error: ValidationError) -> str:
    """The first thing that is wrong with a document, in one line: the field, and what it should be."""
    # What is written wrongly comes before what is not written at all: it may be that, misspelt.
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    where = ".".join(str(part) for part in first["loc"])
    told = {"extra_forbidden": "no such field"}.get(first["type"], first["msg"].removeprefix("Value error, "))
    return f"{where}: {told}" if where else told


def _validate(model: type[Settings], fields: Mapping[str, Any], source: str) -> Settings:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise NucloraError(f"not a valid recipe: {fault(error)}", path=source, mend=_MEND) from error


def _set_field(fields: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise NucloraError(f"--set {override}: not of the form field=value", mend="write e.g. --set train.epochs=10")
    try:
        value = load_yaml(text)
    except NOT_YAML as error:
        told = f"--set {override}: the value is not YAML ({yaml_fault(error)})"
        raise NucloraError(told, mend="write it as in a recipe's file") from error
    if isinstance(value, str):
        # YAML 1.1 reads 5e-4 as a string; people write learning rates so.
        with contextlib.suppress(ValueError):
            value = float(value)
    if (path, value) == ("train.batch_size", _AUTO):
        # How many tiles a step sees is left as the recipe has it: only how they are worked off is to be found.
        path, value = "train.accumulation", 1
    *parents, leaf = path.split(".")
    for parent in parents:
        if fields.get(parent) is None:
            # A recipe that was written out says of a section that it has not: null.
            fields[parent] = {}
        fields = fields[parent]
        if not isinstance(fields, dict):
            raise NucloraError(f"--set {override}: {parent} has no fields", mend=_MEND)
    fields[leaf] = value
