from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from sklearn.model_selection import GroupKFold, KFold

from nuclora.data import open_tiles
from nuclora.data.folds import FoldRow, FoldTable, inner_split, make_folds
from nuclora.data.tiles import Tile, TileSet
from nuclora.errors import NucloraError


def tile_set(**sizes: int) -> TileSet:
    names = [(f"{organ}/{number:03d}", organ) for organ, size in sizes.items() for number in range(size)]
    return TileSet(Path("/data"), "folder", tuple(Tile(name, organ, Path(name), Path(name)) for name, organ in names))


@pytest.mark.parametrize("seed", [42, 19])
def test_folds_are_those_of_kfold_over_the_sorted_tiles(seed: int) -> None:
    tiles = tile_set(a=13, b=10, c=4)
    table = make_folds(tiles, 5, seed)
    assert table.folds == (1, 2, 3, 4, 5)
    for fold, (train, test) in enumerate(KFold(5, shuffle=True, random_state=seed).split(range(27)), start=1):
        assert table.test(fold) == [tiles.names[i] for i in test]
        assert table.train(fold) == [tiles.names[i] for i in train]


def test_folds_of_the_real_tiles_are_those_of_the_study(shared_data: Path) -> None:
    names = sorted(
        f"{image.parent.name}/tissue images/{image.stem}.png"
        for image in (shared_data / "nuinsseg" / "tiles").glob("*/*.webp")
    )
    assert len(names) == 665
    tiles = TileSet(Path("/"), "nuinsseg", tuple(Tile(n, n.split("/")[0], Path(n), Path(n)) for n in names))
    table = make_folds(tiles)
    expected = [test for _, test in KFold(5, shuffle=True, random_state=42).split(names)]
    assert [len(table.test(fold)) for fold in table.folds] == [133] * 5
    assert table.test(1) == [names[i] for i in expected[0]]
    organs = make_folds(tiles, 31, by="organ")
    assert all(len({name.split("/")[0] for name in organs.test(fold)}) == 1 for fold in organs.folds)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_organs_are_never_shared_between_folds(k: int) -> None:
    table = make_folds(tile_set(a=13, b=10, c=4, d=9), k, by="organ")
    assert len({(row.group, row.fold) for row in table.rows}) == 4
    assert sorted(Counter(row.fold for row in table.rows)) == list(range(1, k + 1))
    groups = [row.group for row in table.rows]
    expected = [len(test) for _, test in GroupKFold(k).split(groups, groups=groups)]
    assert [len(table.test(fold)) for fold in table.folds] == expected
    assert table == make_folds(tile_set(a=13, b=10, c=4, d=9), k, seed=7, by="organ")


def test_equally_large_organs_are_dealt_in_alphabetical_order() -> None:
    table = make_folds(tile_set(**dict.fromkeys("dcba", 2)), 2, by="organ")
    assert [{row.group for row in table.rows if row.fold == fold} for fold in (1, 2)] == [{"a", "c"}, {"b", "d"}]


@pytest.mark.parametrize(
    ("k", "by", "message"),
    [
        (1, "tile", "1 fold of 6 tiles; choose 2 to 6"),
        (7, "tile", "7 folds of 6 tiles"),
        (3, "organ", "3 folds of 2 organs; choose 2 folds"),
    ],
)
def test_impossible_numbers_of_folds_are_refused(k: int, by: str, message: str) -> None:
    with pytest.raises(NucloraError, match=message):
        make_folds(tile_set(a=4, b=2), k, by=by)  # type: ignore[arg-type]


def test_tables_survive_the_disk_and_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    awkward = TileSet(Path("/"), "folder", tuple(Tile(n, "a, b", Path(n), Path(n)) for n in ('x"y', "ü", "a,b")))
    table = make_folds(awkward, 3)
    path = tmp_path / "new" / "folds.csv"
    table.write(path)
    assert FoldTable.read(path) == table
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.read_text("utf-8").splitlines()[0] == "tile,group,fold"
    # A spreadsheet program's byte order mark and line ends change neither table nor hash.
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert FoldTable.read(path).sha256 == table.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column tile, group, fold"),
        ("tile,fold\na,1\n", "no column group"),
        ("tile,group,fold\n", "has no rows"),
        ("tile,group,fold\na,g,1\na,g,2\n", "tile 'a' is in more than one row"),
        ("tile,group,fold\na,g,1\nb,g,3\n", r"folds are \[1, 3\]"),
        ("tile,group,fold\na,g,0\nb,g,1\n", r"folds are \[0, 1\]"),
        ("tile,group,fold\na,g,1\nb,g,1\n", r"folds are \[1\]"),
        ("tile,group,fold\na,g,one\n", "line 2: fold 'one' is not a number"),
        ("tile,group,fold\na,g\n", "line 2: fold None is not a number"),
        ("tile,group,fold\n,g,1\nb,g,2\n", "line 2: no tile or group"),
        # A quote that is not closed.
        ('tile,group,fold\na,g,1\n"b,g,2\n' + "c,g,1\n" * 30_000, r"line \d+: no CSV \(field larger than"),
        ('"tile,group,fold\n' + "c,g,1\n" * 30_000, r"line \d+: no CSV \(field larger than"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(content)
    with pytest.raises(NucloraError, match=rf"folds\.csv: .*{message}.*; write it anew"):
        FoldTable.read(path)


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NucloraError, match="no such file"):
        FoldTable.read(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NucloraError, match="cannot be read as text"):
        FoldTable.read(tmp_path / "binary.csv")


def test_unknown_folds_are_refused() -> None:
    table = make_folds(tile_set(a=4), 2)
    for number in (0, 3):
        with pytest.raises(NucloraError, match=f"no fold {number}; the table has folds 1 to 2"):
            table.test(number)


def test_a_table_of_other_data_is_told_by_the_difference() -> None:
    table = make_folds(tile_set(a=4, b=2), 2)
    table.check_against(tile_set(a=4, b=2))
    with pytest.raises(NucloraError, match=r"1 tile only in the fold table \(b/001\); 2 tiles only in the data \(a/"):
        table.check_against(tile_set(a=6, b=1))
    moved = FoldTable(tuple(FoldRow(row.tile, "elsewhere", row.fold) for row in table.rows))
    with pytest.raises(NucloraError, match=r"6 tiles in another group \(a/000, a/001, a/002, \.\.\.\)"):
        moved.check_against(tile_set(a=4, b=2))


@pytest.mark.parametrize("fraction", [0.125, 0.3, 0.9])
def test_inner_split_is_stratified_and_complete(fraction: float) -> None:
    table = make_folds(tile_set(a=60, b=33, c=9, d=2), 4)
    fit, validation = inner_split(table, 1, fraction=fraction, seed=3)
    training = table.train(1)
    assert sorted(fit + validation) == sorted(training)
    assert len(validation) == round(fraction * len(training))
    group = {row.tile: row.group for row in table.rows}
    sizes = Counter(group[name] for name in training)
    chosen = Counter(group[name] for name in validation)
    for organ, size in sizes.items():
        if size >= 2:
            assert chosen[organ] < size, organ
        if fraction < 0.5 and size >= 2:
            assert abs(chosen[organ] - fraction * size) < 1, organ
    order = {name: index for index, name in enumerate(training)}
    assert fit == sorted(fit, key=order.__getitem__)


def test_inner_split_depends_on_seed_and_fold_only() -> None:
    table = make_folds(tile_set(a=60, b=33), 4)
    assert inner_split(table, 1, seed=3) == inner_split(table, 1, seed=3)
    assert inner_split(table, 1, seed=3) != inner_split(table, 1, seed=4)
    known = [FoldRow(f"t{i}", "g", 1 + i % 2) for i in range(8)]
    # Written down once: a change of Python, platform or library may not change a split.
    assert inner_split(FoldTable(tuple(known)), 1, fraction=0.5, seed=0)[1] == ["t1", "t5"]


def test_inner_split_keeps_one_tile_a_group_whatever_the_fraction() -> None:
    table = FoldTable(tuple(FoldRow(f"{group}{i}", group, 1 + i // 2) for group in "ab" for i in range(4)))
    fit, validation = inner_split(table, 2, fraction=0.9, seed=0)
    assert sorted(name[0] for name in fit) == sorted(name[0] for name in validation) == ["a", "b"]


def test_inner_split_of_the_smallest_tables() -> None:
    single = FoldTable(tuple(FoldRow(name, name, fold) for name, fold in (("a", 1), ("b", 2), ("c", 2), ("d", 2))))
    fit, validation = inner_split(single, 1, seed=0)
    assert (len(fit), len(validation)) == (2, 1)
    pairs = FoldTable((*single.rows, FoldRow("b2", "b", 2)))
    assert inner_split(pairs, 1, seed=0)[1][0].startswith("b")  # an organ of two rather than an only tile
    with pytest.raises(NucloraError, match=r"fold 2: 1 training tile; inner"):
        inner_split(FoldTable(single.rows[:3]), 2, seed=0)


def test_command_writes_the_table(
    plain_folder: Path, tmp_path: Path, invoke: Callable[..., tuple[int, str, BaseException | None]]
) -> None:
    from nuclora.cli.folds import folds

    app = typer.Typer()
    app.command()(folds)
    path = tmp_path / "out.csv"
    expected = make_folds(open_tiles(plain_folder), 2)
    code, output, _ = invoke(app, str(plain_folder), "-k", "2", "-o", str(path))
    assert code == 0
    assert FoldTable.read(path) == expected
    assert expected.sha256 in output
    code, _, error = invoke(app, str(plain_folder), "-k", "3", "-o", str(path))
    assert code != 0
    assert "out.csv: there is another fold table; name another file" in str(error)
    assert FoldTable.read(path) == expected
    assert invoke(app, str(plain_folder), "-k", "2", "-o", str(path))[0] == 0
    path.unlink()
    code, output, _ = invoke(app, str(plain_folder), "-k", "2", "--by", "organ", "-o", str(path), "--json")
    document = json.loads(output)
    assert code == 0
    assert document["sha256"] == FoldTable.read(path).sha256
    assert [fold["groups"] for fold in document["folds"]] == [["all"], ["liver"]]
    assert [fold["train"] for fold in document["folds"]] == [2, 2]


def test_names_that_differ_in_how_accents_are_encoded_are_told() -> None:
    tiles = tile_set(é=2)
    rows = [FoldRow(unicodedata.normalize("NFD", tile.name), tile.group, 1 + i) for i, tile in enumerate(tiles)]
    with pytest.raises(NucloraError, match="encode accents in two ways"):
        FoldTable(tuple(rows)).check_against(tiles)
