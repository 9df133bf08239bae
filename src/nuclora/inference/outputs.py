"""The folder of predictions: what is in it, what it was made from, and what is still to do.

OUT/
  NAME.labels.tif, NAME.overlay.png, NAME.geojson, NAME.csv, NAME.coco.json, NAME.parquet, NAME.zarr    as asked for
  NAME.parts/      what is found of a slide while it is worked on, see :mod:`nuclora.inference.parts`
  summary.csv      a row an image
  predict.jsonl    what each image's files were made from, a line when they are begun and one when they are there; and
                   the images' hashes, see :mod:`nuclora.inference.hashes`
  .lock            held while a process works on the folder
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from nuclora.errors import NucloraError
from nuclora.files import LONGEST_NAME, AppendLog, disk_errors, hold, remove_torn
from nuclora.inference.hashes import KnownHashes
from nuclora.inference.image_files import ImageFile
from nuclora.inference.parts import part_files, remove_parts
from nuclora.io.tables import write_rows

FORMATS: Final[Mapping[str, str]] = {
    "labels": ".labels.tif",
    "overlay": ".overlay.png",
    "geojson": ".geojson",
    "table": ".csv",
    "coco": ".coco.json",
    "parquet": ".parquet",
    "zarr": ".zarr",
}
"""Endings of the files by format; a store of Zarr is a folder."""

USUAL: Final = ("labels", "overlay", "geojson", "table")
"""The formats that are written unless others are asked for."""

SUMMARY = "summary"
_LOG = "predict.jsonl"
_KINDS: Final = {"name": str, "path": str, "sha256": str, "made_by": dict, "formats": list, "written": dict}
# Whatever is asked for now: other formats may be later.
_LONGEST_NAME: Final = LONGEST_NAME - max(map(len, FORMATS.values()))
_MEND = "name another folder with -o, or replace them with --overwrite"


@dataclass(frozen=True)
class Row:
    """What the summary says of one image.

    Attributes:
        image: Its file, as it was given.
        width: In pixels; of a slide's region.
        height: In pixels; of a slide's region.
        nuclei: How many were found.
        mean_area_px: Mean area of a nucleus in pixels; None where there is none.
        seconds: From its pixels to its last output; of a slide in all runs that worked on it.
        tissue_mm2: Area of the tissue in a slide's region, or of all of it where tissue was not looked for.
        peak_mb: Most memory that the process held, for a slide.
    """

    image: str
    width: int
    height: int
    nuclei: int
    mean_area_px: float | None
    seconds: float
    tissue_mm2: float | None = None
    peak_mb: float | None = None


@dataclass(frozen=True)
class Record:
    """What the outputs of one image were made from.

    Attributes:
        name: As in :class:`nuclora.inference.image_files.ImageFile`.
        path: The image file, absolute.
        sha256: Its hash.
        made_by: Adapter and settings.
        formats: The outputs that are there, or that are being made.
        row: Its row of the summary, once its outputs are there.
        written: :func:`stamp_of` of each output when it was written, by format: what somebody has changed since is
            not replaced.
        before: What the outputs were made from that these are to replace or to go with, until these are there.
    """

    name: str
    path: str
    sha256: str
    made_by: dict[str, Any]
    formats: list[str] = field(default_factory=list)
    row: Row | None = None
    written: dict[str, list[int]] = field(default_factory=dict)
    before: Record | None = None


@contextlib.contextmanager
def open_outputs(root: Path, *, overwrite: bool = False) -> Iterator[OutputFolder]:
    """Make a folder of outputs if need be, and hold it for this process.

    Args:
        root: The folder; made with its parents.
        overwrite: As in :class:`OutputFolder`.

    Raises:
        NucloraError: It is a file, cannot be made, another process holds it, or its notes are damaged.
    """
    if root.exists() and not root.is_dir():
        raise NucloraError("a file, not a folder", path=root, mend="name a folder with -o")
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    with hold(root, "folder"):
        remove_torn(root, deep=True, stores=FORMATS["zarr"])
        yield OutputFolder(root, overwrite=overwrite)


class OutputFolder:
    """The outputs of `nuclora predict`.

    Args:
        root: An existing folder.
        overwrite: Drop damaged notes, instead of refusing them, and what is noted of outputs that are replaced: what is
            made anew needs none.

    Raises:
        NucloraError: Its notes are damaged, or there is a summary without any.
    """

    def __init__(self, root: Path, *, overwrite: bool = False) -> None:
        self.root = root
        self._overwrite = overwrite
        self._log = AppendLog(root / _LOG)
        if self._log.is_empty and self._summary.exists() and not overwrite:
            raise NucloraError("there already, and not from `nuclora predict`", path=self._summary, mend=_MEND)
        self.records: dict[str, Record] = {}
        """The last record of each image by name, in the order in which they were asked for."""
        self.hashes = KnownHashes(lambda note: self._log.append(json.dumps(note)))
        """The hashes of images that earlier commands have read."""
        lines = self._log.raw_lines()
        sound = []
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8")
                self._restore(json.loads(text))
                sound.append(text)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if not overwrite:
                    raise NucloraError(
                        f"line {number} is damaged",
                        path=self._log.path,
                        mend="delete this line and the outputs of its image, or make all anew with --overwrite",
                    ) from error
        if len(sound) < len(lines):
            # Else the next command, without --overwrite, would meet them again.
            self._log.rewrite(sound)

    @property
    def _summary(self) -> Path:
        return self.root / f"{SUMMARY}.csv"

    def path(self, name: str, output: str) -> Path:
        """File or folder of one output of an image."""
        return self.root / f"{name}{FORMATS[output]}"

    def parts(self, name: str) -> Path:
        """Folder of what is found of a slide while it is worked on."""
        return self.root / f"{name}.parts"

    def is_done(self, image: ImageFile, sha256: str, made_by: Mapping[str, Any], formats: Iterable[str]) -> bool:
        """Whether all outputs asked for are there, of this very image and made in the same way."""
        record = self.records.get(image.name)
        return (
            record is not None
            and record.row is not None
            and record.sha256 == sha256
            and record.made_by == made_by
            and all(output in record.formats and self.path(image.name, output).exists() for output in formats)
        )

    def refuse_name(self, image: ImageFile) -> None:
        """See that the outputs of an image can be called after it.

        Raises:
            NucloraError: Their names would be too long for a file system, or the folder's own.
        """
        if image.name.casefold() == SUMMARY:
            raise NucloraError(f"its table would replace {SUMMARY}.csv", path=image.path, mend="rename the image")
        if len(os.fsencode(Path(image.name).name)) > _LONGEST_NAME:
            raise NucloraError("the name is too long for its outputs", path=image.path, mend="rename the image")

    def refuse_conflict(self, image: ImageFile, sha256: str, made_by: Mapping[str, Any]) -> None:
        """See that the outputs of an image replace none that were made of something else, or by somebody.

        Raises:
            NucloraError: They would.
        """
        record = self.records.get(image.name)
        made = _finished(record)
        if made is not None:
            if made.sha256 != sha256 and Path(made.path) != image.path.resolve():
                raise NucloraError(
                    f"there are nuclei of another image of this name, {made.path}",
                    path=self.root / image.name,
                    mend=_MEND,
                )
            keys = {**made.made_by, **made_by}
            if differing := [key for key in keys if made.made_by.get(key) != made_by.get(key)]:
                raise NucloraError(
                    f"there are nuclei that were made differently: other {', '.join(differing)}",
                    path=self.root / image.name,
                    mend=_MEND,
                )
        for output in FORMATS:
            file = self.path(image.name, output)
            if file.exists() and (record is None or output not in record.formats):
                raise NucloraError("there already, and not from `nuclora predict`", path=file, mend=_MEND)
            noted = record.written.get(output) if record else None
            if noted and file.exists() and noted != stamp_of(file):
                raise NucloraError("changed since `nuclora predict` wrote it", path=file, mend=_MEND)

    def begin(self, image: ImageFile, sha256: str, made_by: dict[str, Any], formats: Iterable[str]) -> list[str]:
        """Note that the outputs of an image are going to be written, so that a killed run's are known for ours.

        Returns:
            The formats to write: those asked for, and those that are there of an earlier run, lest one image's outputs
            be of two makes.
        """
        record = self.records.get(image.name)
        # What somebody else has put there is not ours to replace.
        ours = record.formats if record else ()
        there = [output for output in ours if self.path(image.name, output).exists()]
        wanted = [output for output in FORMATS if output in formats or output in there]
        begun = Record(image.name, str(image.path.resolve()), sha256, made_by, wanted)
        if record is not None and not self._overwrite:
            before = _finished(record)
            # Not those of what a first attempt wrote, which nothing forbids to replace.
            noted = {output: stamp for output, stamp in record.written.items() if before and output in before.written}
            begun = replace(begun, written=noted, before=before)
        self._add(begun)
        return wanted

    def wrote(self, name: str, output: str, stamp: list[int]) -> None:
        """Note that an output has been written: after a kill it is none that somebody changed.

        Args:
            name: The image.
            output: The format.
            stamp: Of who wrote it, see :func:`stamp_of`: a file system that machines share may not show it here yet.
        """
        record = self.records[name]
        noted = replace(record, written=record.written | {output: stamp})
        if output in record.written:
            self._add(noted)
        else:
            # A kill would leave what no note forbids to replace.
            self.records[name] = noted

    def finish(self, name: str, formats: Sequence[str], row: Row) -> None:
        """Note that the outputs of an image are there."""
        record = self.records[name]
        written = {output: stamp for output, stamp in record.written.items() if output in formats}
        self._add(replace(record, formats=list(formats), row=row, written=written, before=None))

    def drop_parts(self, name: str) -> None:
        """Remove the parts of a slide whose outputs are there, where a kill came in between.

        Parts that are newer than the outputs are of unfinished work, for other formats or settings, and stay.

        Raises:
            NucloraError: They cannot be removed.
        """
        ended = max((time for _, time in self.records[name].written.values()), default=0)
        if all(path.stat().st_mtime_ns <= ended for path in part_files(self.parts(name))):
            remove_parts(self.parts(name))

    def arrange(self, names: Sequence[str]) -> None:
        """Put the records of some images into this order, in the places that they have among all.

        Args:
            names: Images in the order in which they were asked for; those without a record are passed over.

        Raises:
            NucloraError: The disk is full.
        """
        asked = [name for name in names if name in self.records]
        places, in_turn = set(asked), iter(asked)
        order = [next(in_turn) if name in places else name for name in self.records]
        if order != list(self.records):
            self.records = {name: self.records[name] for name in order}
            kept = [*self.hashes.notes(), *map(asdict, self.records.values())]
            self._log.rewrite([json.dumps(note) for note in kept])

    def write_summary(self) -> None:
        """Write ``summary.csv``, a row for each image whose outputs are in the folder."""
        rows = [asdict(record.row) for record in self.records.values() if record.row is not None]
        for row in rows:
            if row["tissue_mm2"] is not None:
                # Of a small region four decimals are too few.
                row["tissue_mm2"] = f"{row['tissue_mm2']:.6g}"
        if rows or self._summary.exists():
            write_rows(self._summary, list(Row.__dataclass_fields__), (row.values() for row in rows))

    def _restore(self, fields: dict[str, Any]) -> None:
        """Take up a note of an earlier command; raises nearly anything where it is none."""
        if "stamp" in fields:
            self.hashes.restore(fields)
            return
        self.records[fields["name"]] = _record(fields)

    def _add(self, record: Record) -> None:
        self._log.append(json.dumps(asdict(record)))
        self.records[record.name] = record


def _record(fields: Mapping[str, Any]) -> Record:
    row = Row(**fields["row"]) if fields["row"] else None
    before = _record(fields["before"]) if fields.get("before") else None
    record = Record(**{**fields, "row": row, "before": before})
    if not all(isinstance(getattr(record, name), kind) for name, kind in _KINDS.items()):
        raise TypeError(f"a field of another type than {_KINDS}")
    return record


def _finished(record: Record | None) -> Record | None:
    """The record of outputs that are all there: this one, or the one that it was begun after."""
    return record if record is None or record.row is not None else record.before


def stamp_of(path: Path) -> list[int]:
    """Size of a file or of all files in a folder, and time of the last change in nanoseconds."""
    files = [file.stat() for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path.stat()]
    return [sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)]
