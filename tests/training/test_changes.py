from __future__ import annotations

import pytest

from nuclora.errors import NucloraError
from nuclora.recipe import load_recipe
from nuclora.training.changes import REFERENCE, list_of, load_list, resolve_rows, shipped_lists

GOOD = """
name: mine
recipe: paper
rows:
  - {name: rank-4, why: small, set: [adapter.rank=4]}
  - {name: long, why: more, set: [train.epochs=9, train.learning_rate=5e-4]}
"""


def _write(tmp_path, text):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    return path


def test_every_shipped_list_makes_recipes_that_differ():
    assert set(shipped_lists()) == {"embedded", "nuclora", "paper"}
    for name in shipped_lists():
        changes = load_list(name)
        assert changes.name == name
        rows = resolve_rows(changes)
        assert rows[0].name == REFERENCE
        assert rows[0].recipe == load_recipe(changes.recipe)
        assert len({row.recipe.model_copy(update={"name": ""}) for row in rows}) == len(rows)


def test_the_studys_own_proposals():
    recipes = {row.name: row.recipe for row in resolve_rows(load_list("paper"))}
    assert recipes["epochs-10"].train.epochs == 10
    assert recipes["lr-5e-4"].train.learning_rate == 5e-4
    assert (recipes["rank-32"].adapter.rank, recipes["rank-32"].adapter.alpha) == (32, 64)
    assert (recipes["strong-turns"].augment.rotation, recipes["strong-turns"].augment.flip) == (0.5, 0.7)
    assert recipes["stain"].augment.stain == 0.2
    assert recipes["mlp"].adapter.targets == ("qkv", "mlp")
    assert (recipes["bce-dice"].loss.bce, recipes["bce-dice"].loss.dice) == (1, 1)
    weights = recipes["instance-weights"].loss
    assert weights.touching_weight > 0
    assert weights.small_weight > 0
    assert len(recipes) == 9


def test_last_half_is_half_of_tiny_vits_blocks():
    from nuclora.models.checkpoints import build_base
    from nuclora.models.lora import encoder_blocks

    (row,) = [row for row in load_list("nuclora").rows if row.name == "last-half"]
    assert row.set == (f"adapter.last_blocks={len(encoder_blocks(build_base('mobile_sam'))) // 2}",)


def test_a_row_changes_what_it_says_and_overrides_change_all(tmp_path):
    reference, small, long = resolve_rows(load_list(_write(tmp_path, GOOD)), overrides=["seed=5", "adapter.rank=8"])
    assert {row.recipe.seed for row in (reference, small, long)} == {5}
    assert [row.recipe.adapter.rank for row in (reference, small, long)] == [8, 4, 8]
    assert (long.recipe.train.epochs, long.recipe.train.learning_rate) == (9, 5e-4)
    assert (reference.recipe.name, small.recipe.name) == ("paper", "paper, rank-4")


def test_a_recipe_file_stands_beside_its_list(tmp_path):
    (tmp_path / "own.yaml").write_text(load_recipe("smoke", ["name=own"]).to_yaml())
    changes = load_list(_write(tmp_path, GOOD.replace("recipe: paper", "recipe: own.yaml")))
    assert resolve_rows(changes)[0].recipe.name == "own"
    assert resolve_rows(changes, "paper")[0].recipe.name == "paper"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: mine", "nam: mine", "nam: no such field"),
        ("name: mine\n", "", "name: Field required"),
        ("name: mine", "name: mine\nfolds: 3", "folds: no such field"),
        ("why: small", "why: small, also: x", "rows.0.also: no such field"),
        ("rank-4", "../up", "rows.0.name: String should match pattern"),
        ("rank-4", "Rank", "rows.0.name: String should match pattern"),
        ("rank-4", "a.b", "rows.0.name: String should match pattern"),
        ("rank-4", "r" * 25, "rows.0.name: String should have at most 24 characters"),
        ("rank-4", "long", "rows: two rows are named 'long'"),
        ("rank-4", "reference", "rows: two rows are named 'reference' (the recipe itself has that name)"),
        ("[adapter.rank=4]", "[]", "rows.0.set: Tuple should have at least 1 item"),
        ("[adapter.rank=4]", "adapter.rank=4", "rows.0.set: Input should be a valid tuple"),
        (GOOD, "name: mine\nrecipe: paper\nrows: []", "rows: Tuple should have at least 1 item"),
        (GOOD, "just text", "not a list of changes: "),
        (GOOD, "a: [b", "not YAML"),
    ],
)
def test_bad_lists_are_told_in_one_line(old, new, told, tmp_path):
    path = _write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(NucloraError) as error:
        load_list(path)
    assert str(error.value).startswith(f"{path}: not ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.mend == "see docs/ablation.md"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.epoch=9", "row long: not a valid recipe: train.epoch: no such field"),
        ("train.epochs=0", "row long: not a valid recipe: train.epochs: Input should be greater than or equal to 1"),
        ("train.epochs", "row long: --set train.epochs: not of the form field=value"),
        ("seed.x=0", "row long: --set seed.x=0: seed has no fields"),
    ],
)
def test_a_bad_field_names_its_row(change, told, tmp_path):
    changes = load_list(_write(tmp_path, GOOD.replace("train.epochs=9", change)))
    with pytest.raises(NucloraError) as error:
        resolve_rows(changes)
    assert told in str(error.value)


def test_no_such_list():
    with pytest.raises(
        NucloraError, match=r"papr: no such list of changes; name a YAML file or one of embedded, nuclora, paper"
    ):
        load_list("papr")
    with pytest.raises(NucloraError, match=r"no list of changes goes with the recipe smoke; name one with --changes"):
        list_of("smoke")
    assert (list_of(None), list_of("nuclora")) == ("paper", "nuclora")
