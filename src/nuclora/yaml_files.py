"""YAML that users write, and in a line what is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from nuclora.errors import NucloraError
from nuclora.files import unreadable

NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: 2020-99-99 is a ValueError to it, and a thousand brackets are a RecursionError."""

_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
# To YAML 1.1, and so to PyYAML, 010 is eight and 1:30 is ninety.
_OLD_NUMBER = re.compile(r":|^[-+]?0[0-9_]")


class _Strict(yaml.SafeLoader):
    """Without what PyYAML takes in silence: a key that is there twice, and numbers that are not what they seem."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            # Lists and mappings, as of a template that nobody filled in, are refused as keys below.
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_scalar_node(self, anchor: dict[Any, Any]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.tag in _NUMBERS and _OLD_NUMBER.search(node.value):
            told = f"{node.value} would be another number to some: write it without leading zeros and colons"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
        return node


def load_yaml(text: str) -> Any:
    """What a text in YAML says, plain values alone.

    Raises:
        YAMLError, ValueError, RecursionError: It is not YAML (`NOT_YAML`), has a key twice, or a number with leading
            zeros or colons.
    """
    return yaml.load(text, _Strict)


def read_yaml_file(source: str, absent: str, choice: str) -> str:
    """Read a YAML file that a user names.

    Args:
        source: Its path.
        absent: What to say where there is no such file: a name may have been meant.
        choice: The mend.

    Raises:
        NucloraError: No such file, a folder, or one that cannot be read.
    """
    try:
        return Path(source).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise NucloraError("not a text file in UTF-8", path=source, mend="save it as UTF-8") from error
    except OSError as error:
        if Path(source).is_dir():
            raise NucloraError("a folder, not a YAML file", path=Path(source), mend=choice) from error
        if isinstance(error, FileNotFoundError):
            raise NucloraError(absent, path=source, mend=choice) from error
        raise unreadable(Path(source), error) from error


def parse_yaml(text: str, source: str, mend: str) -> Any:
    """What a text in YAML says.

    Args:
        text: The text.
        source: Where it is from.
        mend: What the user can do about it where it is not YAML.

    Raises:
        NucloraError: It is not YAML.
    """
    try:
        return load_yaml(text)
    except NOT_YAML as error:
        raise NucloraError(f"not YAML ({yaml_fault(error)})", path=source, mend=mend) from error


def yaml_fault(error: Exception) -> str:
    """What is wrong with text that is not YAML, in a few words: the place, and what the parser says."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())[:100]
