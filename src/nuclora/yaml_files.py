"""YAML that users write, and in a line what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nuclora.errors import NucloraError

NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: 2020-99-99 is a ValueError to it, and a thousand brackets are a RecursionError."""


class _EachKeyOnce(yaml.SafeLoader):
    """YAML forbids a key that is there twice; PyYAML takes the last, and what stood under the first is lost."""

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


def load_yaml(text: str) -> Any:
    """What a text in YAML says, plain values alone.

    Raises:
        YAMLError, ValueError, RecursionError: It is not YAML (`NOT_YAML`), or a mapping has a key twice.
    """
    return yaml.load(text, _EachKeyOnce)


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
        told = f"cannot be read ({error.strerror})"
        raise NucloraError(told, path=source, mend="check the path and its permissions") from error


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
        raise NucloraError(f"not YAML ({_fault(error)})", path=source, mend=mend) from error


def _fault(error: Exception) -> str:
    """What is wrong with text that is not YAML, in a few words: the place, and what the parser says."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())[:100]
