"""`nuclora params` and `nuclora weights`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from nuclora.cli import weights
from nuclora.cli.params import params
from nuclora.errors import NucloraError
from nuclora.recipe import AdapterSettings
from nuclora.report.facts import PART_NAMES

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command("params")(params)
    app.add_typer(weights.app, name="weights")
    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_params_of_the_paper(invoke: Invoke) -> None:
    shown = invoke("params", "--recipe", "paper")
    assert shown.exit_code == 0
    for number in ("641,090,608", "2,621,440", "4,058,340", "6,220", "643,712,048", "6,686,000", "1.04%"):
        assert number in shown.stdout
    numbers = json.loads(invoke("params", "--json").stdout)
    assert (numbers["total"], numbers["trainable"]) == (643_712_048, 6_686_000)
    assert numbers["share"] == pytest.approx(0.0104, abs=5e-5)


@pytest.mark.parametrize("base", ["sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam", "lite_medsam"])
def test_params_of_each_base(invoke: Invoke, base: str) -> None:
    numbers = json.loads(invoke("params", "--base", base, "--json").stdout)
    assert numbers["total"] == numbers["base"] + numbers["adapter"]
    assert numbers["trainable"] == numbers["adapter"] + numbers["mask_decoder"] + numbers["prompt_encoder"]


def test_params_with_changes(invoke: Invoke, tiny_sam_folder: Path) -> None:
    single = json.loads(invoke("params", "--json").stdout)
    doubled = json.loads(invoke("params", "--set", "adapter.rank=32", "--set", "adapter.alpha=64", "--json").stdout)
    assert doubled["adapter"] == 2 * single["adapter"]
    custom = json.loads(invoke("params", "--base", "custom", "--weights", str(tiny_sam_folder), "--json").stdout)
    assert custom["adapter"] == 2 * 16 * (32 + 96)
    with pytest.raises(NucloraError, match="no base is called"):
        invoke("params", "--base", "resnet")


def test_params_of_parts_of_the_encoder(invoke: Invoke) -> None:
    changes = ["--set", "adapter.train_parts=[neck,convolutions]", "--set", "adapter.targets=[qkv]"]
    result = invoke("params", "--recipe", "nuclora", "--base", "lite_medsam", *changes)
    assert "encoder convolutions" in result.stdout
    parts = get_args(get_args(AdapterSettings.model_fields["train_parts"].annotation)[0])
    # In the report's table too.
    assert {*parts, "base", "adapter", "dense_decoder"} == set(PART_NAMES)


def test_a_recipes_name_is_no_markup(invoke: Invoke) -> None:
    assert "a [/b] [red]c on" in invoke("params", "--recipe", "smoke", "--set", "name='a [/b] [red]c'").stdout


def test_weights_list(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUCLORA_WEIGHTS", str(tmp_path))
    (tmp_path / "mobile_sam.pt").touch()
    rows = {row["name"]: row for row in json.loads(invoke("weights", "list", "--json").stdout)}
    assert rows["mobile_sam"]["path"] == str(tmp_path / "mobile_sam.pt")
    assert rows["sam_vit_h"]["path"] is None
    assert rows["sam_vit_h"]["bytes"] == 2_564_550_879
    shown = invoke("weights", "list").stdout
    assert "mobile_sam.pt" in shown
    assert "nuclora weights fetch" in shown


def test_weights_fetch_of_what_has_no_address(invoke: Invoke) -> None:
    with pytest.raises(NucloraError, match="cannot be downloaded by themselves"):
        invoke("weights", "fetch", "custom")


def test_params_refuses_an_input_that_the_base_cannot_take(invoke: Invoke) -> None:
    with pytest.raises(NucloraError, match="squares of a multiple of 16; the nearest is 96"):
        invoke("params", "--recipe", "paper", "--base", "mobile_sam", "--set", "input.size=100")
