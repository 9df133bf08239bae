from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nuclora.errors import NucloraError
from nuclora.recipe import EvaluateSettings, Recipe, change_evaluation, load_recipe, shipped_recipes


def _get(recipe: Recipe, field: str):
    value: object = recipe
    for part in field.split("."):
        value = getattr(value, part)
    return value


def test_shipped_recipes_load_under_their_own_names():
    names = shipped_recipes()
    assert {"paper", "smoke"} <= set(names)
    for name in names:
        assert load_recipe(name).name == name


STUDY = {
    "base": "sam_vit_h",
    "seed": 42,
    "input.size": 1024,
    "input.normalise": "unit",
    "augment.rotation": 0.3,
    "augment.flip": 0.5,
    "augment.noise": 0.2,
    "augment.stain": 0,
    "adapter.rank": 16,
    "adapter.alpha": 32,
    "adapter.dropout": 0.1,
    "adapter.targets": ("qkv",),
    "adapter.last_blocks": None,
    "adapter.train_parts": ("mask_decoder", "prompt_encoder"),
    "train.learning_rate": 1e-4,
    "train.weight_decay": 0,  # without it AdamW is the study's Adam
    "train.batch_size": 4,
    "train.accumulation": 1,
    "train.workers": 60,
    "train.epochs": 5,
    "train.precision": "no",
    "train.validations_per_epoch": 1,
    "train.validation_tiles": None,
    "train.validate_on": "test",
    "train.select": "last",
    "prompts.per_tile": None,  # every nucleus
    "loss.bce": 1,
    "loss.dice": 0,
    "loss.iou": 0,
    "loss.touching_weight": 0,
    "loss.small_weight": 0,
    "loss.stride": 1,
}


@pytest.mark.parametrize(("field", "value"), STUDY.items())
def test_paper_is_the_study(field, value):
    assert _get(load_recipe("paper"), field) == value


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=10", 10),
        ("train.learning_rate=5e-4", 5e-4),
        ("train.learning_rate=5.0e-4", 5e-4),
        ("adapter.rank=32", 32),
        ("adapter.alpha=64", 64),
        ("augment.rotation=.5", 0.5),
        ("augment.flip=.7", 0.7),
        ("augment.stain=0.3", 0.3),
        ("adapter.targets=[qkv, mlp]", ("qkv", "mlp")),
        ("loss.dice=1", 1),
        ("loss.small_weight=1", 1),
        ("loss.touching_weight=1.5", 1.5),
        ("train.precision=bf16", "bf16"),
        ("train.precision=no", "no"),
        ("input.size=null", None),
        ("base=mobile_sam", "mobile_sam"),
    ],
)
def test_every_proposed_change_can_be_set_and_changes_nothing_else(override, value):
    field = override.partition("=")[0]
    plain, changed = load_recipe("paper"), load_recipe("paper", [override])
    assert _get(changed, field) == value
    left, right = plain.model_dump(), changed.model_dump()
    *parents, leaf = field.split(".")
    for part in parents:
        assert {key for key in left if left[key] != right[key]} <= {part}
        left, right = left[part], right[part]
    assert {key for key in left if left[key] != right[key]} <= {leaf}


def test_batch_size_auto_keeps_the_batch_and_lets_the_parts_be_found():
    for name, batch in (("paper", 4), ("nuclora", 2)):
        train = load_recipe(name, ["train.accumulation=2", "train.batch_size=auto"]).train
        assert (train.batch_size, train.accumulation) == (batch, 1)


def test_batch_size_auto_in_a_file_is_the_default_batch(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase: mobile_sam\ntrain: {batch_size: auto}\n")
    assert load_recipe(path).train == load_recipe(path, ["train.batch_size=4"]).train
    assert load_recipe(path, ["train.batch_size=auto"]).train == load_recipe(path).train
    path.write_text("name: mine\nbase: mobile_sam\ntrain: {batch_size: auto, accumulation: 4}\n")
    with pytest.raises(NucloraError, match="train: batch_size=auto finds the parts itself: drop accumulation"):
        load_recipe(path)


def test_the_last_of_two_overrides_wins():
    assert load_recipe("paper", ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


def test_precision_no_in_a_file_is_not_false(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase: mobile_sam\ntrain: {precision: no}\n")
    assert load_recipe(path).train.precision == "no"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.epoch=10"], r"paper: not a valid recipe: train\.epoch: no such field"),
        (["optimiser.name=adam"], r"optimiser: no such field"),
        (["train.epochs=many"], r"train\.epochs: Input should be a valid integer"),
        (["train.epochs=0"], r"train\.epochs: Input should be greater than or equal to 1"),
        (["train=5"], r"train: Input should be"),
        (["dense={offset: 0}"], r"dense\.offset: Input should be greater than 0"),
        (["dense={distance: 0}"], r"dense\.distance: Input should be greater than 0"),
        (["input.normalise=imagenet"], r"input\.normalise: Input should be 'unit' or 'base'"),
        (["adapter.targets=[qkv, key]"], r"adapter\.targets\.1: Input should be"),
        (["train.epochs.first=1"], r"--set train\.epochs\.first=1: epochs has no fields"),
        (["train.epochs"], r"--set train\.epochs: not of the form field=value"),
        (["=3"], r"--set =3: not of the form field=value"),
        (["train.epochs=[1"], r"--set train\.epochs=\[1: the value is not YAML"),
        (["train.learning_rate=true"], r"train\.learning_rate: .*true is neither a number nor a name"),
        (["adapter.last_blocks=yes"], r"adapter\.last_blocks: .*true is neither a number nor a name"),
        (["dense={window: 64, window: 128}"], r"--set dense=.*: the value is not YAML"),
        (["evaluate.protocols=[]"], r"evaluate\.protocols: Tuple should have at least 1 item"),
        (["train.select=best"], r"train\.select=best needs train\.validate_on=inner"),
        (
            ["train.select=best", "train.validate_on=inner", "train.validations_per_epoch=0"],
            r"train\.select=best needs train\.validate_on=inner and validations",
        ),
        (["adapter.targets=[qkv, decoder_attention]"], r"adapter: .*cannot both train"),
        (
            ["evaluate.tiles=inner", "train.validate_on=inner", "train.select=best"],
            r"evaluate\.tiles=inner scores the tiles that train\.select=best would choose by",
        ),
    ],
)
def test_a_wrong_override_is_named(overrides, told):
    with pytest.raises(NucloraError, match=told) as caught:
        load_recipe("paper", overrides)
    assert "\n" not in str(caught.value)


def test_best_with_inner_validation_is_fine():
    recipe = load_recipe("paper", ["train.select=best", "train.validate_on=inner"])
    assert recipe.train.select == "best"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: [", r"mine\.yaml: not YAML \(line 1, column 8: expected the node content.*\); see docs/recipes"),
        (b"name: a\nbase: b: c\n", r"not YAML \(line 2, column 8: mapping values are not allowed here\); see docs"),
        (
            b"name: a\ntrain: {epochs: 40}\nbase: b\ntrain:\n  workers: 4\n",
            r"mine\.yaml: not YAML \(line 4, column 1: train is there twice\); see docs",
        ),
        (
            b"train:\n  epochs: {{ n }}\n",
            r"mine\.yaml: not YAML \(line 2, column 12: found unhashable key\); see docs",
        ),
        (b"[a]: b\n", r"mine\.yaml: not YAML \(line 1, column 1: found unhashable key\); see docs"),
        (b"name: 2020-99-99\n", r"mine\.yaml: not YAML \(month must be in 1\.\.12.*\); see docs/recipes\.md"),
        (b"name: \x00\n", r"mine\.yaml: not YAML \(.*\); see docs/recipes\.md"),
        (b"- name\n- base\n", r"mine\.yaml: not a recipe: the file holds no mapping"),
        (b"", r"mine\.yaml: not a recipe: the file is empty; see docs/recipes\.md"),
        (b"name: mine\n", r"mine\.yaml: not a valid recipe: base: Field required"),
        (b"name: \xff\n", r"mine\.yaml: not a text file in UTF-8; save it as UTF-8"),
        (b"nmae: mine\nbase: a\n", r"mine\.yaml: not a valid recipe: nmae: no such field"),
        (b"train: {epochs: many}\n", r"mine\.yaml: not a valid recipe: train\.epochs: Input should be"),
        (b"name: mine\nbase: a\nepochs: 3\n", r"mine\.yaml: not a valid recipe: epochs: no such field"),
    ],
)
def test_a_bad_file_is_named(content, told, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(NucloraError, match=told) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["papr", "no/such/file.yaml"])
def test_a_recipe_that_is_not_there_is_named_with_those_that_are(name):
    with pytest.raises(NucloraError, match=rf"{name}: no such recipe; name a YAML file or one of .*paper"):
        load_recipe(name)


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(NucloraError, match=r"a folder, not a YAML file; name a YAML file or one of .*paper"):
        load_recipe(tmp_path)


def test_a_recipe_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase: a\n")
    names = shipped_recipes()
    monkeypatch.setattr("nuclora.recipe.shipped_recipes", lambda: names)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NucloraError, match=r"mine\.yaml: cannot be read \(Permission denied\); check the path and its"):
        load_recipe(path)


def test_the_evaluation_of_a_trained_adapter_can_change_and_nothing_else():
    settings = EvaluateSettings(min_size=3)
    changed = change_evaluation(settings, ["evaluate.grid.points_per_side=8", "evaluate.automatic_tiles=2"])
    assert changed == EvaluateSettings(min_size=3, automatic_tiles=2, grid={"points_per_side": 8})
    assert settings == EvaluateSettings(min_size=3)
    for override in ("train.epochs=3", "evaluate=3", "seed=1"):
        with pytest.raises(NucloraError, match="only fields of evaluate can change"):
            change_evaluation(settings, [override])
    for override in ("evaluate.tiles=inner", "evaluate.tune=true"):
        with pytest.raises(NucloraError, match=f"--set {override}: only `nuclora cv` goes by it"):
            change_evaluation(settings, [override])
    with pytest.raises(NucloraError, match=r"grid\.points: no such field"):
        change_evaluation(settings, ["evaluate.grid.points=8"])


@pytest.mark.parametrize("overrides", [[], ["train.learning_rate=1e-7", "input.size=null", "train.precision=bf16"]])
def test_yaml_round_trip(overrides, tmp_path):
    recipe = load_recipe("paper", overrides)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert load_recipe(path).sha256 == recipe.sha256


def _leaves(fields: dict, prefix: str = ""):
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


OTHER = {
    "train.select": "best",
    "train.validate_on": "inner",
    "adapter.targets": ["proj"],
    "adapter.train_parts": ["neck"],
    "evaluate.protocols": ["automatic"],
    "loss.stride": 1,
    "augment.crop": 64,
    "augment.zoom": 1.2,
    "dense.window": 256,
    "dense.channels": 16,
    "dense.fine_channels": 8,
    "input.normalise": "unit",
    "train.precision": "no",
    "train.schedule": "constant",
    "evaluate.decode.views": 2,
    "evaluate.tune": True,
    "evaluate.tiles": "inner",
}


def test_each_field_changes_the_hash_and_equal_recipes_have_equal_ones():
    plain = ["evaluate.tune=false"]
    base = load_recipe("nuclora", plain)
    assert base.sha256 == load_recipe("nuclora", plain).sha256
    hashes = {base.sha256}
    fields = list(_leaves(base.model_dump(mode="json")))
    assert len(fields) > 40
    for field, value in fields:
        other = OTHER.get(field)
        if field == "train.validate_on":
            other = "test"
        elif other is None and isinstance(value, str):
            other = "other"
        elif other is None:
            other = 3 if value is None else value + 1 if isinstance(value, int) else value * 0.5 + 0.01
        changed = load_recipe("nuclora", [*plain, f"{field}={yaml.safe_dump(other).strip()}"])
        assert changed != base, field
        hashes.add(changed.sha256)
    assert len(hashes) == len(fields) + 1


def test_the_hash_does_not_depend_on_the_order_or_spelling_of_a_file(tmp_path):
    a, b = Path(tmp_path / "a.yaml"), Path(tmp_path / "b.yaml")
    a.write_text("name: mine\nbase: mobile_sam\nloss: {bce: 1, dice: 0.50}\n")
    b.write_text("loss:\n  dice: 5.0e-1\n  bce: 1.0\nbase: mobile_sam\nname: 'mine'\n")
    assert load_recipe(a).sha256 == load_recipe(b).sha256


@pytest.mark.parametrize("value", ["010", "1:30", "-010", "1:30.5", "0_1"])
def test_numbers_that_yaml_once_read_otherwise_are_refused(value, tmp_path):
    with pytest.raises(NucloraError, match=f"--set seed={value}: the value is not YAML .*leading zeros and colons"):
        load_recipe("paper", [f"seed={value}"])
    path = tmp_path / "recipe.yaml"
    path.write_text(load_recipe("paper").to_yaml().replace("seed: 42", f"seed: {value}"))
    with pytest.raises(NucloraError, match=r"recipe\.yaml: not YAML \(line .*leading zeros and colons"):
        load_recipe(path)


def test_a_section_that_is_null_can_be_set(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(load_recipe("paper").to_yaml())
    overrides = ["dense.window=512", "augment.crop=320"]
    assert load_recipe(path, overrides) == load_recipe("paper", overrides)
    with pytest.raises(NucloraError, match=r"--set seed\.a=1: seed has no fields; see"):
        load_recipe("paper", ["seed.a=1"])
