from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nuclora.errors import NucloraError
from nuclora.files import AppendLog, atomic_folder, remove_torn, require_openable, write_atomic


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _raiser(error: BaseException):
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("content", "written"), [("täglich\n", "täglich\n".encode()), (b"\0\xff", b"\0\xff"), ("", b"")]
)
def test_what_is_written_is_there_and_nothing_else(content, written, tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomic(path, content)
    write_atomic(path, content)
    assert path.read_bytes() == written
    assert _names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_user_wants(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file.txt", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    script = """
import os, pathlib, signal, sys
from nuclora.files import atomic_file
with atomic_file(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "below" / "labels.tif"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert len(_names(path.parent)) == 1
    mine = [path.with_name(name) for name in (".notes.tmp", "a.0123abcd.tmp", ".a.tif")]
    for file in mine:
        file.write_text("mine")
    remove_torn(tmp_path)
    assert len(_names(path.parent)) == 4
    remove_torn(tmp_path, deep=True)
    assert _names(path.parent) == sorted(file.name for file in mine)


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_old_content_survives_a_failure(where, error, tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    owner = os if where == "fsync" else Path
    monkeypatch.setattr(owner, where, _raiser(error))
    with pytest.raises((NucloraError, KeyboardInterrupt)):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free some space and run the same command again"),
        (errno.EDQUOT, "free some space and run the same command again"),
        (errno.EFBIG, "raise the limit (ulimit -f)"),
        (errno.EACCES, "check the path and its permissions"),
        (errno.EROFS, "check the path and its permissions"),
    ],
)
def test_a_full_or_locked_disk_is_told_in_one_line(number, mend, tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    monkeypatch.setattr(os, "fsync", _raiser(OSError(number, os.strerror(number))))
    with pytest.raises(NucloraError) as caught:
        write_atomic(path, "new")
    line = str(caught.value)
    assert line.startswith(f"{path}: cannot write ({os.strerror(number)}); {mend}")
    assert "\n" not in line
    assert _names(tmp_path) == []


def test_a_path_through_a_file_or_onto_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(NucloraError, match=r"cannot write \(.*\); check the path"):
        write_atomic(tmp_path / "file" / "below", "new")
    with pytest.raises(NucloraError, match="folder: a folder, not a file; name a file"):
        write_atomic(tmp_path / "folder", "new")
    assert _names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "here"


def test_lines_come_back(tmp_path):
    log = AppendLog(tmp_path / "folder" / "log")
    assert log.lines() == []
    for line in ("one", "", "drei ä"):
        log.append(line)
    assert log.lines() == AppendLog(log.path).lines() == ["one", "", "drei ä"]
    assert log.path.read_bytes() == "one\n\ndrei ä\n".encode()
    log.rewrite(["four"])
    log.append("five")
    assert log.lines() == ["four", "five"]


@pytest.mark.parametrize("torn", [b"tor", "ä".encode()[:1], b"torn, and much longer than any block" * 1000])
def test_a_torn_line_is_passed_over_and_the_next_append_drops_it(torn, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"whole\n" + torn)
    log = AppendLog(path)
    assert log.lines() == ["whole"]
    assert path.read_bytes() == b"whole\n" + torn
    log.append("next")
    assert path.read_bytes() == b"whole\nnext\n"


def test_reading_writes_nothing(tmp_path):
    assert AppendLog(tmp_path / "none" / "log").lines() == []
    assert _names(tmp_path) == []
    path = tmp_path / "log"
    path.write_bytes(b"whole\ntorn")
    before = path.stat()
    reader, writer = AppendLog(path), AppendLog(path)
    assert reader.lines() == ["whole"]
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (before.st_mtime_ns, before.st_ino, before.st_size)
    # A reader beside a writer, as `nuclora report` beside `nuclora cv`, sees whole lines as they come.
    writer.append("next")
    assert reader.lines() == ["whole", "next"]


def test_only_the_first_append_looks_for_a_torn_line(tmp_path, monkeypatch):
    log = AppendLog(tmp_path / "log")
    log.append("one")
    monkeypatch.setattr(Path, "read_bytes", _raiser(AssertionError("read again")))
    log.append("two")
    monkeypatch.undo()
    assert log.lines() == ["one", "two"]


def test_appending_to_a_full_disk_is_told(tmp_path, monkeypatch):
    log = AppendLog(tmp_path / "log")
    log.append("one")
    monkeypatch.setattr(Path, "open", _raiser(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(NucloraError, match=r"log: cannot write \(No space left on device\); free some space"):
        log.append("two")


def test_after_a_torn_line_the_next_is_whole(tmp_path, monkeypatch):
    log = AppendLog(tmp_path / "log")
    log.append("one")

    whole = Path.open

    def full(path, mode="r", **more):
        if mode == "a":
            with whole(path, "ab") as file:
                file.write(b"tw")
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, mode, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(NucloraError, match="No space left"):
        log.append("two")
    monkeypatch.undo()
    log.append("three")
    assert log.lines() == ["one", "three"]


def test_a_log_knows_whether_it_is_empty(tmp_path):
    log = AppendLog(tmp_path / "log")
    assert log.is_empty
    (tmp_path / "log").write_text("torn")
    assert log.is_empty
    log.append("whole")
    assert not log.is_empty
    assert not AppendLog(tmp_path / "log").is_empty
    log.rewrite([])
    assert log.is_empty


def _fill(path, content):
    with atomic_folder(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(content)


def test_a_folder_is_written_and_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    for content in ("one", "two"):
        _fill(path, content)
        assert (path / "deep" / "file").read_text() == content
        assert _names(path.parent) == ["folder"]
    # A file of this name goes too: whoever writes here has asked whether it may.
    (tmp_path / "file").write_text("here")
    _fill(tmp_path / "file", "three")
    assert (tmp_path / "file" / "deep" / "file").read_text() == "three"


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    _fill(path, "old")
    replace = Path.replace

    def fails(self, target):
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(NucloraError, match="Input/output error"):
        _fill(path, "new")
    assert (path / "deep" / "file").read_text() == "old"
    assert _names(tmp_path) == ["folder"]


def test_a_folder_that_a_kill_put_aside_comes_back(tmp_path):
    path = tmp_path / "folder"
    _fill(path, "old")
    (tmp_path / ".folder.scratch" / "new").mkdir(parents=True)
    path.rename(tmp_path / ".folder.scratch" / "old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path):
        raise KeyboardInterrupt
    assert (path / "deep" / "file").read_text() == "old"
    assert _names(tmp_path) == ["folder"]


def test_what_a_kill_left_of_a_store_goes_and_an_old_one_comes_back(tmp_path):
    for name in ("old.zarr", "new.zarr"):
        (tmp_path / f".{name}.scratch" / "new").mkdir(parents=True)
        (tmp_path / f".{name}.scratch" / "old").mkdir()
        (tmp_path / f".{name}.scratch" / "old" / "zarr.json").write_text("old")
    (tmp_path / "new.zarr").mkdir()
    # Of `nuclora export` and the like, which hold no folder, somebody may be writing it.
    (tmp_path / ".adapter.scratch" / "new").mkdir(parents=True)
    (tmp_path / ".mine.zarr.scratch").write_text("mine")
    remove_torn(tmp_path)
    assert len(_names(tmp_path)) == 5
    remove_torn(tmp_path, stores=".zarr")
    assert _names(tmp_path) == [".adapter.scratch", ".mine.zarr.scratch", "new.zarr", "old.zarr"]
    assert (tmp_path / "old.zarr" / "zarr.json").read_text() == "old"
    assert not _names(tmp_path / "new.zarr")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_old_folder_survives_a_failure_and_what_a_kill_left_goes(error, tmp_path, monkeypatch):
    path = tmp_path / "folder"
    _fill(path, "old")
    monkeypatch.setattr(os, "fsync", _raiser(error))
    with pytest.raises((NucloraError, KeyboardInterrupt)):
        _fill(path, "new")
    monkeypatch.undo()
    assert (path / "deep" / "file").read_text() == "old"
    assert _names(tmp_path) == ["folder"]
    (tmp_path / ".folder.scratch" / "new").mkdir(parents=True)
    (tmp_path / ".folder.scratch" / "new" / "half").touch()
    _fill(path, "new")
    assert [file.name for file in path.rglob("*")] == ["deep", "file"]
    assert _names(tmp_path) == ["folder"]


def test_a_file_that_safetensors_cannot_open_is_told_apart_from_a_missing_one(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        require_openable(tmp_path / "none")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(NucloraError, match="not UTF-8, and weights are only read from such; rename the folder"):
        require_openable(odd)
    (tmp_path / "locked").touch()
    monkeypatch.setattr(Path, "open", _raiser(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(
        NucloraError, match=r"locked: cannot be read \(Permission denied\); check the path and its perm"
    ):
        require_openable(tmp_path / "locked")
