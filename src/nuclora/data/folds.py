"""Fold tables: which tile is tested in which fold, fixed in a file before training."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nuclora.data.pairs import composed
from nuclora.data.tiles import TileSet, counted
from nuclora.errors import NucloraError
from nuclora.files import write_atomic
from nuclora.recipe import Recipe

COLUMNS = ("tile", "group", "fold")
ALL_TILES = 0
"""The number of the fold that holds nothing back."""


def fold_name(fold: int) -> str:
    """How tables and figures name a fold."""
    return "all tiles" if fold == ALL_TILES else f"fold {fold}"


@dataclass(frozen=True)
class FoldRow:
    """One tile, its group, and the fold (from 1) that tests it."""

    tile: str
    group: str
    fold: int


@dataclass(frozen=True)
class FoldTable:
    """The fold of every tile; row order is part of it, and of its hash."""

    rows: tuple[FoldRow, ...]

    @property
    def folds(self) -> tuple[int, ...]:
        """Numbers of the folds, 1 to k."""
        return tuple(sorted({row.fold for row in self.rows}))

    def test(self, fold: int) -> list[str]:
        """Names of the tiles that the fold tests."""
        self._require(fold)
        return [row.tile for row in self.rows if row.fold == fold]

    def train(self, fold: int) -> list[str]:
        """Names of the tiles that the fold trains on: all that it does not test, so all for `ALL_TILES`."""
        if fold != ALL_TILES:
            self._require(fold)
        return [row.tile for row in self.rows if row.fold != fold]

    def _require(self, fold: int) -> None:
        if fold not in self.folds:
            raise NucloraError(f"no fold {fold}", mend=f"the table has folds {self.folds[0]} to {self.folds[-1]}")

    def to_csv(self) -> str:
        """The table as CSV with the columns tile, group, fold and lines that end in LF."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row.tile, row.group, row.fold) for row in self.rows)
        return text.getvalue()

    @property
    def sha256(self) -> str:
        """Hash of the CSV's bytes."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()

    def write(self, path: str | Path) -> None:
        """Write the CSV, whole or not at all."""
        write_atomic(Path(path), self.to_csv())

    @classmethod
    def read(cls, path: str | Path) -> FoldTable:
        """Read and validate a CSV, whatever its line ends and byte order mark.

        Raises:
            NucloraError: No such file, not such a table, a doubled tile, or folds that are not 1 to k.
        """
        path = Path(path)
        mend = "write it anew with `nuclora folds`"
        try:
            text = path.read_text("utf-8-sig")
        except FileNotFoundError as error:
            raise NucloraError("no such file", path=path, mend=mend) from error
        except (OSError, UnicodeDecodeError) as error:
            raise NucloraError(f"cannot be read as text ({error.__class__.__name__})", path=path, mend=mend) from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            lines = [(reader.line_num, line) for line in reader]
        except csv.Error as error:
            # Of a quote that nobody closes: the rest of the file is one cell.
            raise NucloraError(f"line {reader.line_num}: no CSV ({error})", path=path, mend=mend) from error
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise NucloraError(f"not a fold table: no column {', '.join(missing)}", path=path, mend=mend)
        rows = []
        for number, line in lines:
            if not line["tile"] or not line["group"]:
                raise NucloraError(f"line {number}: no tile or group", path=path, mend=mend)
            try:
                rows.append(FoldRow(line["tile"], line["group"], int(line["fold"])))
            except (TypeError, ValueError) as error:
                reason = f"line {number}: fold {line['fold']!r} is not a number"
                raise NucloraError(reason, path=path, mend=mend) from error
        _validate(rows, path, mend)
        return cls(tuple(rows))

    def check_against(self, tiles: TileSet) -> None:
        """Require that the table has just the tiles of a data set, each in its group.

        Raises:
            NucloraError: Tiles are missing on either side, or a group differs.
        """
        table = {row.tile: row.group for row in self.rows}
        data = {tile.name: tile.group for tile in tiles}
        if table.keys() != data.keys() and set(map(composed, table)) == set(map(composed, data)):
            named = min(table.keys() - data.keys())
            raise NucloraError(
                f"the fold table and the data encode accents in two ways, as in {named}: one is from a Mac",
                path=tiles.root,
                mend="rename the files as in the table (convmv), or write a new table with `nuclora folds`",
            )
        differences = (
            ("only in the fold table", sorted(table.keys() - data.keys())),
            ("only in the data", sorted(data.keys() - table.keys())),
            ("in another group", sorted(name for name in table.keys() & data.keys() if table[name] != data[name])),
        )
        told = [
            f"{counted(len(names), 'tile')} {where} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for where, names in differences
            if names
        ]
        if told:
            raise NucloraError(
                f"the fold table does not match the data: {'; '.join(told)}",
                path=tiles.root,
                mend="use the table's own data, or write a new table with `nuclora folds`",
            )


def are_folds(numbers: Collection[int]) -> bool:
    """Whether numbers are those of folds: 1 to k, with k at least 2."""
    return len(numbers) > 1 and set(numbers) == set(range(1, len(numbers) + 1))


def _validate(rows: list[FoldRow], path: Path, mend: str) -> None:
    if not rows:
        raise NucloraError("the fold table has no rows", path=path, mend=mend)
    doubled = [tile for tile, count in Counter(row.tile for row in rows).items() if count > 1]
    if doubled:
        raise NucloraError(f"tile {doubled[0]!r} is in more than one row", path=path, mend=mend)
    folds = {row.fold for row in rows}
    if not are_folds(folds):
        raise NucloraError(f"folds are {sorted(folds)}, not 1 to k with k at least 2", path=path, mend=mend)


def make_folds(
    tiles: TileSet, k: int = 5, seed: int = 42, by: Literal["tile", "organ", "published"] = "tile"
) -> FoldTable:
    """Deal the tiles into folds.

    By tile: scikit-learn's shuffled `KFold` over the sorted tiles, as the study (seed 42) and the data
    set's authors (seed 19) did. By organ: whole organs, the largest first into the lightest fold, so that
    the folds' tile counts are as even as organs allow; nothing is drawn then, and the seed has no effect.
    Published: the folds of the data set's authors (PanNuke, Lizard); neither k nor the seed has an effect.

    Args:
        tiles: The data set.
        k: Number of folds; as many as organs, by organ, is leave-one-organ-out.
        seed: Seed of the shuffle.
        by: What a fold is made of.

    Raises:
        NucloraError: Fewer than two folds, more folds than tiles or organs, a seed out of range, or no published
            folds, or not all of them.
    """
    if by == "published":
        return _published_folds(tiles)
    units = len(tiles) if by == "tile" else len(tiles.groups)
    if not 2 <= k <= units:
        what = counted(units, "tile" if by == "tile" else "organ")
        wanted = "2" if units == 2 else f"2 to {units}"
        mend = f"choose {wanted} folds" if units >= 2 else f"add {'tiles' if by == 'tile' else 'organs'}"
        raise NucloraError(f"{counted(k, 'fold')} of {what}", path=tiles.root, mend=mend)
    if not 0 <= seed < 2**32:
        raise NucloraError(f"{seed} is no seed", mend="choose a whole number from 0 to 4294967295")
    if by == "organ":
        fold_of = _organ_folds(Counter(tile.group for tile in tiles), k)
        return FoldTable(tuple(FoldRow(tile.name, tile.group, fold_of[tile.group]) for tile in tiles))
    from sklearn.model_selection import KFold

    tests = [test for _, test in KFold(k, shuffle=True, random_state=seed).split(tiles.names)]
    numbers = {int(index): fold for fold, test in enumerate(tests, start=1) for index in test}
    return FoldTable(tuple(FoldRow(tile.name, tile.group, numbers[i]) for i, tile in enumerate(tiles)))


def _published_folds(tiles: TileSet) -> FoldTable:
    rows = [FoldRow(tile.name, tile.group, tile.fold) for tile in tiles if tile.fold is not None]
    if len(rows) < len(tiles):
        named = next(tile.name for tile in tiles if tile.fold is None)
        raise NucloraError(
            f"no published fold of {named}", path=tiles.root, mend="deal the tiles out by tile or by organ"
        )
    _validate(rows, tiles.root, "add the data set's missing folds, or deal the tiles out by tile")
    return FoldTable(tuple(rows))


def _organ_folds(sizes: Mapping[str, int], k: int) -> dict[str, int]:
    """Fold of each organ: the largest first, each into the fold with the fewest tiles so far.

    scikit-learn's GroupKFold does the same, but leaves the order of equally large organs to an unstable sort.
    """
    loads = dict.fromkeys(range(1, k + 1), 0)
    folds: dict[str, int] = {}
    for organ in sorted(sizes, key=lambda organ: (-sizes[organ], organ)):
        folds[organ] = min(loads, key=lambda fold: (loads[fold], fold))
        loads[folds[organ]] += sizes[organ]
    return folds


def inner_split(table: FoldTable, fold: int, *, fraction: float = 0.125, seed: int) -> tuple[list[str], list[str]]:
    """Split a fold's training tiles into those to fit and those to choose checkpoints and thresholds on.

    Every organ gives its share, rounded so that the shares sum to the whole (largest remainders). A tile's
    rank within its organ is a hash of seed, fold and name, so it depends on no other tile.

    Args:
        table: The folds.
        fold: Number of the fold.
        fraction: Share of the training tiles to validate on.
        seed: Seed of the choice.

    Returns:
        Names to fit and names to validate on, each in the table's order. An organ of two tiles or more
        keeps at least one to fit, whatever the fraction.

    Raises:
        NucloraError: Fewer than two training tiles, or no such fold.
    """
    training = table.train(fold)
    if len(training) < 2:
        raise NucloraError(
            f"{fold_name(fold)}: {counted(len(training), 'training tile')}", mend="inner validation needs two"
        )
    ranked: defaultdict[str, list[str]] = defaultdict(list)
    for row in table.rows:
        if row.fold != fold:
            ranked[row.group].append(row.tile)
    for names in ranked.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed}/{fold}/{name}".encode()).digest())
    counts = _apportion({group: len(names) for group, names in ranked.items()}, fraction)
    chosen = {name for group, names in ranked.items() for name in names[: counts[group]]}
    return [name for name in training if name not in chosen], [name for name in training if name in chosen]


def scored_tiles(table: FoldTable, fold: int, recipe: Recipe) -> list[str]:
    """Names of the tiles that say how good a fold's adapter is: see `evaluate.tiles` of the recipe.

    Args:
        table: The folds.
        fold: Number of the fold.
        recipe: `evaluate.tiles` and `seed` are read.

    Raises:
        NucloraError: As :func:`inner_split`.
    """
    if recipe.evaluate.tiles == "test":
        return table.test(fold)
    return inner_split(table, fold, seed=recipe.seed)[1]


def _apportion(sizes: dict[str, int], fraction: float) -> dict[str, int]:
    total = sum(sizes.values())
    wanted = min(max(1, round(fraction * total)), total - 1)
    counts = {group: min(int(fraction * size), size - 1) for group, size in sizes.items()}
    # Organs of one tile come last: a validation tile whose organ is never fitted says least.
    order = sorted(sizes, key=lambda group: (sizes[group] == 1, counts[group] - fraction * sizes[group], group))
    while (left := wanted - sum(counts.values())) > 0:
        spare = [group for group in order if counts[group] < sizes[group] - 1] or [
            group for group in order if sizes[group] == 1 and counts[group] == 0
        ]
        if not spare:
            break
        for group in spare[:left]:
            counts[group] += 1
    return counts
