"""Lists of changes to a recipe, and the recipes that they make: the rows of an ablation."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nuclora.errors import NucloraError
from nuclora.recipe import Recipe, fault, load_recipe, shipped_recipes
from nuclora.yaml_files import parse_yaml, read_yaml_file

REFERENCE = "reference"
"""Name of the row that is the recipe itself."""


class Change(BaseModel):
    """One row of a list: what to change, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Lower case, because some file systems take a and A for the same.
    name: str = Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$", max_length=24, description="also the row's folder")
    why: str = Field(min_length=1)
    set: tuple[str, ...] = Field(min_length=1, description="field=value each, as after --set")


class ChangeList(BaseModel):
    """A named list of changes to a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    recipe: str = Field(min_length=1, description="a shipped recipe, or a path relative to the list's own file")
    rows: tuple[Change, ...] = Field(min_length=1)

    @field_validator("rows")
    @classmethod
    def _names_differ(cls, rows: tuple[Change, ...]) -> tuple[Change, ...]:
        name, count = Counter([REFERENCE, *(row.name for row in rows)]).most_common(1)[0]
        if count > 1:
            kept = " (the recipe itself has that name)" if name == REFERENCE else ""
            raise ValueError(f"two rows are named {name!r}{kept}")
        return rows


@dataclass(frozen=True)
class AblationRow:
    """A recipe to train: the reference, or one change of it.

    Attributes:
        name: Name of the row and of its run folder.
        why: What the change is about.
        set: The changed fields, ``field=value`` each; none for the reference.
        recipe: The resolved recipe.
    """

    name: str
    why: str
    set: tuple[str, ...]
    recipe: Recipe


def shipped_lists() -> list[str]:
    """Names of the lists of changes inside the package."""
    folder = resources.files("nuclora") / "recipes" / "ablations"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def list_of(recipe: str | Path | None) -> str:
    """The shipped list that goes with a recipe; without a recipe `paper`.

    Raises:
        NucloraError: There is none.
    """
    name = str(recipe or "paper")
    if name not in shipped_lists():
        mend = f"name one with --changes: {', '.join(shipped_lists())} or a YAML file"
        raise NucloraError(f"no list of changes goes with the recipe {name}", mend=mend)
    return name


def load_list(name: str | Path) -> ChangeList:
    """Read a list of changes.

    Args:
        name: Name of a shipped list, or path of a YAML file.

    Raises:
        NucloraError: No such list, not YAML, or a field that is missing, unknown or has a wrong value.
    """
    source, mend = str(name), "see docs/ablation.md"
    shipped = source in shipped_lists()
    if shipped:
        text = (resources.files("nuclora") / "recipes" / "ablations" / f"{source}.yaml").read_text("utf-8")
    else:
        choice = f"name a YAML file or one of {', '.join(shipped_lists())}"
        text = read_yaml_file(source, "no such list of changes", choice)
    fields = parse_yaml(text, source, mend)
    try:
        changes = ChangeList.model_validate(fields)
    except ValidationError as error:
        raise NucloraError(f"not a list of changes: {fault(error)}", path=source, mend=mend) from error
    if shipped or changes.recipe in shipped_recipes():
        return changes
    return changes.model_copy(update={"recipe": str(Path(source).parent / changes.recipe)})


def resolve_rows(
    changes: ChangeList, recipe: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[AblationRow, ...]:
    """The reference and every change of it as whole recipes.

    Args:
        changes: The list.
        recipe: The reference in place of the list's own.
        overrides: ``field=value`` each; they change every row, before the row's own changes.

    Raises:
        NucloraError: A recipe that is not valid, with the name of its row.
    """
    source = recipe or changes.recipe
    reference = load_recipe(source, overrides)
    rows = [AblationRow(REFERENCE, f"the recipe {reference.name}", (), reference)]
    for change in changes.rows:
        with told_of_row(change.name):
            changed = load_recipe(source, [*overrides, *change.set])
        # Reports and adapters show the name; it changes nothing else.
        named = changed.model_copy(update={"name": f"{reference.name}, {change.name}"})
        rows.append(AblationRow(change.name, change.why, change.set, named))
    return tuple(rows)


@contextlib.contextmanager
def told_of_row(row: str) -> Iterator[None]:
    """Name the row in an error."""
    try:
        yield
    except NucloraError as error:
        raise NucloraError(f"row {row}: {error.reason}", path=error.path, mend=error.mend) from error
