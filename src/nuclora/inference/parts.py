"""What is found of a slide while it is worked on: a file a block, so that a killed prediction goes on.

NAME.parts/
  made-from.json    the slide, the adapter and all settings: parts made of something else are never mixed in
  000012.npz        the nuclei that block 12 owns
"""

from __future__ import annotations

import io
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from nuclora.errors import NucloraError
from nuclora.files import disk_errors, remove_torn, write_atomic
from nuclora.inference.blocks import Found

_MADE_FROM: Final = "made-from.json"
BLOCKS: Final = "blocks"
"""Under which `made_from` says how the model cuts a slide into blocks: known once it is loaded."""
_COLUMN: Final = "column-"
# As `Parts._path` has it: what else lies there ("copy of 000012.npz") is none of ours.
_NUMBER: Final = re.compile(r"[0-9]{6}|[1-9][0-9]{6,}")


class DamagedPart(NucloraError):
    """A part that cannot be read; its slide waits, others go on."""


class Parts:
    """The parts of one slide.

    Args:
        root: Their folder; made with the first part.
        made_from: What they are made from; JSON values only.
        overwrite: Drop what is there of something else, instead of refusing it.

    Raises:
        NucloraError: There are parts of something else, or their note is damaged.
    """

    def __init__(self, root: Path, made_from: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.root = root
        self._made_from = made_from
        if not root.exists():
            return
        note = root / _MADE_FROM
        if self._is_ours(note):
            return
        if not note.exists() and not self.indices():
            # A kill came between the folder and its note, or before the last of it was removed.
            return
        if not overwrite:
            refuse_other_parts(root, made_from)
        self.remove()

    def __contains__(self, index: int) -> bool:
        return self._path(index).is_file()

    def indices(self) -> list[int]:
        """Numbers of the blocks that are done, ascending."""
        return [int(path.stem) for path in part_files(self.root)]

    def begin(self) -> None:
        """Note what the parts are made from, before several processes add to them.

        Raises:
            NucloraError: The disk is full, or nothing can be written there.
        """
        if not (self.root / _MADE_FROM).exists():
            write_atomic(self.root / _MADE_FROM, json.dumps(self._made_from, sort_keys=True))

    def write(self, index: int, found: Found, seconds: float) -> None:
        """Keep what a block found, and how long it took.

        Raises:
            NucloraError: The disk is full, or nothing can be written there.
        """
        self.begin()
        rings = [ring for outline in found.outlines for ring in outline]
        arrays = {
            "origin": np.array(found.origin),
            "seconds": np.array(seconds),
            "labels": found.labels,
            "points": np.concatenate([np.empty((0, 2)), *rings]),
            "points_of_ring": np.array([len(ring) for ring in rings], dtype=np.int64),
            "rings_of_nucleus": np.array([len(outline) for outline in found.outlines], dtype=np.int64),
        } | {f"{_COLUMN}{name}": values for name, values in found.columns.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomic(self._path(index), buffer.getvalue())

    def read(self, index: int) -> Found:
        """Read what a block found.

        Raises:
            DamagedPart: Its file is damaged.
        """
        arrays = self._load(index)
        rings = iter(np.split(arrays["points"], np.cumsum(arrays["points_of_ring"])[:-1]))
        outlines = [[next(rings) for _ in range(count)] for count in arrays["rings_of_nucleus"].tolist()]
        columns = {name.removeprefix(_COLUMN): arrays[name] for name in arrays if name.startswith(_COLUMN)}
        return Found((int(arrays["origin"][0]), int(arrays["origin"][1])), arrays["labels"], columns, outlines)

    def seconds(self) -> float:
        """How long all of them took."""
        return sum(float(self._load(index, "seconds")["seconds"]) for index in self.indices())

    def totals(self) -> tuple[int, float]:
        """How many nuclei there are in all of them, and their area in pixels of level 0."""
        areas = [self._load(index, f"{_COLUMN}area_px")[f"{_COLUMN}area_px"] for index in self.indices()]
        return sum(map(len, areas)), float(sum(area.sum() for area in areas))

    def before(self) -> dict[int, int]:
        """By the number of each block that is done, in order, how many nuclei the ones before it have."""
        counts = {index: len(self._load(index, "rings_of_nucleus")["rings_of_nucleus"]) for index in self.indices()}
        return dict(zip(counts, itertools.accumulate(counts.values(), initial=0), strict=False))

    def numbered(self) -> Iterator[tuple[int, int, Found]]:
        """Each part in order: its block's number, how many nuclei come before it, and what it found."""
        for index, before in self.before().items():
            yield index, before, self.read(index)

    def remove(self) -> None:
        """Remove all of them."""
        remove_parts(self.root)

    def _path(self, index: int) -> Path:
        return self.root / f"{index:06d}.npz"

    def _load(self, index: int, *wanted: str) -> dict[str, Any]:
        path = self._path(index)
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in wanted or file.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DamagedPart(
                "damaged", path=path, mend="delete it and run the same command again: it alone is made anew"
            ) from error

    def _is_ours(self, note: Path) -> bool:
        try:
            return bool(json.loads(note.read_text("utf-8")) == json.loads(json.dumps(self._made_from)))
        except (OSError, ValueError):
            return False


def refuse_other_parts(root: Path, made_from: Mapping[str, Any]) -> None:
    """See that the parts of a slide, if there are any, were made from these things.

    Args:
        root: Their folder.
        made_from: What they are to be made from; JSON values only. Without `blocks`, these are not compared.

    Raises:
        NucloraError: They were made from others, or their note is damaged.
    """
    if not part_files(root) and not (root / _MADE_FROM).exists():
        return
    try:
        there, wanted = json.loads((root / _MADE_FROM).read_text("utf-8")), json.loads(json.dumps(made_from))
        keys = {**wanted, **there}.keys() - ({BLOCKS} - wanted.keys())
        differing = sorted(key for key in keys if there.get(key) != wanted.get(key))
        told = f"other {', '.join(differing)}"
    except (OSError, ValueError, TypeError):
        differing, told = [_MADE_FROM], f"no sound {_MADE_FROM}"
    if differing:
        raise NucloraError(
            f"there is unfinished work that was made differently: {told}",
            path=root,
            mend="name another folder with -o, or drop it with --overwrite",
        )


def remove_parts(root: Path) -> None:
    """Remove the parts of a slide and their folder, if there is one; what else lies in it stays, and it.

    Raises:
        NucloraError: They cannot be removed.
    """
    if not root.is_dir():
        return
    remove_torn(root)
    with disk_errors(root):
        # Parts first: what a kill leaves of a folder is parts with their note, or nothing that counts.
        for path in part_files(root):
            path.unlink()
        (root / _MADE_FROM).unlink(missing_ok=True)
        if not any(root.iterdir()):
            root.rmdir()


def part_files(root: Path) -> list[Path]:
    """The files of a slide's parts, in the order of their blocks; none where there is no such folder."""
    found = (path for path in root.glob("*.npz") if _NUMBER.fullmatch(path.stem))
    return sorted(found, key=lambda path: int(path.stem))
