from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuclora.cli.data import app
from nuclora.data import open_tiles
from nuclora.data.download import ATTEMPTS, download
from nuclora.data.fetch import fetch_nuinsseg, unpack_zip
from nuclora.errors import NucloraError
from nuclora.files import hold_file

CONTENT = np.random.default_rng(0).bytes(1_000_003)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()
LIMITS = {"max_bytes": 1 << 20, "max_files": 100}


@dataclass
class Server:
    """An HTTP server on this machine; `plan` says how it misbehaves, an entry a request, then it behaves."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    plan: list[str] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.requests.append((self.path, wanted))
            action = server.plan.pop(0) if server.plan else ""
            content = server.files.get(self.path)
            if content is None or action.isdecimal():
                self.send_error(int(action or 404))
                return
            start = (
                int(wanted.removeprefix("bytes=").rstrip("-"))
                if wanted and server.ranges and action != "no-range"
                else 0
            )
            if start and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            shift = 5 if action == "other-range" else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start + shift}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            # A break: fewer bytes than announced, then the connection closes.
            self.wfile.write(rest[: len(rest) // 2] if action == "break" else rest)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("nuclora.data.download.FIRST_WAIT", 0.0)
    state = Server()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{running.server_port}"
        yield state
        running.shutdown()
        thread.join()


@pytest.fixture
def content(server: Server) -> str:
    """Address of `CONTENT`."""
    server.files["/file"] = CONTENT
    return f"{server.url}/file"


def test_a_file_arrives_whole_with_progress(server: Server, content: str, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    dest = tmp_path / "new" / "file"
    told = lambda done, total: calls.append((done, total))  # noqa: E731
    assert download(content, dest, sha256=SHA256.upper(), md5=MD5, size=len(CONTENT), progress=told) == dest
    assert dest.read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert [entry.name for entry in dest.parent.iterdir()] == ["file"]
    download(content, dest, sha256=SHA256)
    assert len(server.requests) == 1  # it is there and verified


def test_broken_connections_go_on_where_they_ended(server: Server, content: str, tmp_path: Path) -> None:
    server.plan = ["break", "break", "503", "break"]
    download(content, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert [wanted for _, wanted in server.requests[:2]] == [None, f"bytes={half}-"]
    assert len(server.requests) == 5


def test_an_earlier_run_is_gone_on_from(server: Server, content: str, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:700_000])
    download(content, tmp_path / "file", md5=MD5)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == ["bytes=700000-"]


def test_without_a_checksum_an_earlier_part_is_not_trusted(server: Server, content: str, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"of some other version")
    download(content, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests[0][1] is None


@pytest.mark.parametrize("action", ["no-range", "other-range"])
def test_servers_that_ignore_or_botch_ranges(server: Server, content: str, tmp_path: Path, action: str) -> None:
    server.plan = ["break", action]
    download(content, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_a_part_that_is_whole_already(server: Server, content: str, tmp_path: Path, known: bool) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(content, tmp_path / "file", sha256=SHA256, size=len(CONTENT) if known else None)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.requests) == (0 if known else 1)


@pytest.mark.parametrize("known", [True, False])
def test_a_part_that_is_too_long(content: str, tmp_path: Path, known: bool) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + b"more")
    download(content, tmp_path / "file", sha256=SHA256, size=len(CONTENT) if known else None)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_wrong_content_is_deleted_and_told(server: Server, content: str, tmp_path: Path) -> None:
    with pytest.raises(NucloraError, match=f"not the expected file .sha256 {SHA256}, not {'0' * 64}.; it was deleted"):
        download(content, tmp_path / "file", sha256="0" * 64)
    with pytest.raises(NucloraError, match="md5"):
        download(content, tmp_path / "file", md5="0" * 32)
    with pytest.raises(NucloraError, match="a file of 1000003 bytes where 17 are expected"):
        download(content, tmp_path / "file", size=17)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_of_before_is_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    download(content, tmp_path / "file", sha256=SHA256)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_http_errors_are_told_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NucloraError, match="/absent: the server answers 404"):
        download(f"{server.url}/absent", tmp_path / "file")
    assert len(server.requests) == 1


def test_attempts_end(server: Server, content: str, tmp_path: Path) -> None:
    server.plan = ["503"] * 100
    with pytest.raises(NucloraError, match=f"cannot be downloaded .*503.*{ATTEMPTS} attempts.*goes on from what is"):
        download(content, tmp_path / "file")
    assert len(server.requests) == ATTEMPTS
    # A server that always breaks off half-way and knows no ranges gets no further either.
    server.plan = ["break"] * 100
    server.ranges = False
    with pytest.raises(NucloraError, match="the connection ended after 500001 of 1000003 bytes"):
        download(content, tmp_path / "file")


def test_no_server_is_told(tmp_path: Path, server: Server) -> None:
    with pytest.raises(NucloraError, match=r"http://127.0.0.1:9/x: cannot be downloaded .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "file")


def test_two_downloads_of_one_file_take_turns(server: Server, content: str, tmp_path: Path) -> None:
    begun = threading.Event()
    second = threading.Event()

    def stall(done: int, total: int | None) -> None:
        begun.set()
        second.wait(0.5)  # longer than the second needs, if it were let in

    def other(done: int, total: int | None) -> None:
        second.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(download, content, tmp_path / "file", sha256=SHA256, progress=stall)
        assert begun.wait(10)
        later = pool.submit(download, content, tmp_path / "file", sha256=SHA256, progress=other)
        assert first.result() == later.result() == tmp_path / "file"
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.requests) == 1  # the second found it there
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_download_that_never_ends_is_not_waited_for_for_ever(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nuclora.data.download.PATIENCE", 0.0)
    (tmp_path / ".file.part.lock").touch()  # of a killed process: nobody holds it
    with (
        hold_file(tmp_path / "file.part", "download", 0),
        pytest.raises(NucloraError, match=r"file\.part: another nuclora works on this download; wait for it"),
    ):
        download(content, tmp_path / "file", sha256=SHA256)
    download(content, tmp_path / "file", sha256=SHA256)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


class FullDisk(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NucloraError, match=r"GB needed and .* GB free; free some space"):
        download(content, tmp_path / "file", size=1 << 60)
    monkeypatch.setattr(Path, "open", lambda *_: FullDisk())
    with pytest.raises(NucloraError, match=r"file\.part: cannot write \(No space left on device\); free some space"):
        download(content, tmp_path / "file")


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_archives_are_unpacked(tmp_path: Path) -> None:
    entries = {"a/b c/x.txt": b"x" * 1000, "y.txt": b"", "w\\z.txt": b"from Windows"}
    calls: list[tuple[int, int | None]] = []
    archive = make_zip(tmp_path / "x.zip", entries)
    (tmp_path / "out").mkdir()
    unpack_zip(archive, tmp_path / "out", **LIMITS, progress=lambda done, total: calls.append((done, total)))
    for name, data in entries.items():
        assert (tmp_path / "out" / name.replace("\\", "/")).read_bytes() == data
    assert calls[-1] == (1012, 1012)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "x.zip"]
    with pytest.raises(NucloraError, match="exists and is not an empty folder"):
        unpack_zip(archive, tmp_path / "out", **LIMITS)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:/x", "..\\x", "C:\\x"])
def test_no_entry_leaves_the_destination(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "x.zip", {"fine.txt": b"", name: b"evil"})
    with pytest.raises(NucloraError, match=r"unsafe archive: .* would leave the destination"):
        unpack_zip(archive, tmp_path / "deep" / "out", **LIMITS)
    assert not (tmp_path / "deep").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(NucloraError, match="'link' is a link"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "out", **LIMITS)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"bomb": bytes(2 << 20)}, "1 files and 2097152 bytes, over the limits"),
        ({str(number): b"" for number in range(101)}, "101 files and 0 bytes, over the limits"),
    ],
)
def test_bombs_are_refused(tmp_path: Path, entries: dict[str, bytes], reason: str) -> None:
    with pytest.raises(NucloraError, match=reason):
        unpack_zip(make_zip(tmp_path / "x.zip", entries), tmp_path / "out", **LIMITS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_damaged_archives_leave_nothing(tmp_path: Path, damage: str) -> None:
    archive = make_zip(tmp_path / "x.zip", {"first.txt": b"fine", "x.bin": CONTENT[:50_000]})
    data = bytearray(archive.read_bytes())
    data[20_000] ^= 0xFF
    damaged = {"cut": data[:30_000], "flip": data, "text": b"<html>", "empty": b""}[damage]
    archive.write_bytes(damaged)
    with pytest.raises(NucloraError, match=r"x\.zip: not a whole ZIP archive .*; delete it and download it again"):
        unpack_zip(archive, tmp_path / "out", **LIMITS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.zip"]
    with pytest.raises(NucloraError, match=r"absent.zip: cannot be read \(No such file"):
        unpack_zip(tmp_path / "absent.zip", tmp_path / "out", **LIMITS)


@pytest.fixture
def zenodo(server: Server, nuinsseg_tree: Path) -> Server:
    """A server with the record of a small NuInsSeg, which unpacks to a folder of its own."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(nuinsseg_tree.rglob("*.*")):
            archive.write(path, Path("NuInsSeg") / path.relative_to(nuinsseg_tree))
    data = packed.getvalue()
    entry = {"key": "NuInsSeg.zip", "size": len(data), "checksum": f"md5:{hashlib.md5(data).hexdigest()}"}
    server.files["/api/records/10518968"] = json.dumps({"files": [entry]}).encode()
    server.files["/records/10518968/files/NuInsSeg.zip?download=1"] = data
    return server


def test_nuinsseg_is_fetched_over_a_connection_that_breaks(zenodo: Server, nuinsseg_tree: Path, tmp_path: Path) -> None:
    zenodo.plan = ["break", "", "break", "break"]
    phases: set[str] = set()
    dest = fetch_nuinsseg(tmp_path / "new" / "data", lambda phase, *_: phases.add(phase), base_url=zenodo.url)
    assert open_tiles(dest).names == open_tiles(nuinsseg_tree).names
    assert open_tiles(dest)[0].read().labels.max() == 1
    assert phases == {"download", "unpack"}
    assert [entry.name for entry in dest.parent.iterdir()] == ["data"]
    with pytest.raises(NucloraError, match=r"not an empty folder.*nuclora data check"):
        fetch_nuinsseg(dest, base_url=zenodo.url)


def test_an_archive_of_the_users_own_stays(zenodo: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"mine")
    fetch_nuinsseg(tmp_path / "data", base_url=zenodo.url)
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith(("data", ".data"))) == [
        "data",
        "data.zip",
    ]
    assert (tmp_path / "data.zip").read_bytes() == b"mine"


def test_the_current_folder_is_refused_before_anything_is_fetched(
    zenodo: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(NucloraError, match=r"the current folder, whose place .*; name a folder in it"):
        fetch_nuinsseg(Path(), base_url=zenodo.url)
    assert zenodo.requests == []


def test_a_link_to_an_empty_folder_is_filled(zenodo: Server, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    try:
        (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    fetch_nuinsseg(tmp_path / "link", base_url=zenodo.url)
    assert (tmp_path / "link").is_symlink()
    assert len(open_tiles(tmp_path / "disk")) == 6


def test_two_fetches_into_one_folder_take_turns(zenodo: Server, tmp_path: Path) -> None:
    begun = threading.Event()

    def stall(phase: str, done: int, total: int | None) -> None:
        if phase == "unpack" and not begun.is_set():
            begun.set()
            time.sleep(0.5)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch_nuinsseg, tmp_path / "new" / "data", stall, base_url=zenodo.url)
        assert begun.wait(10)
        later = pool.submit(fetch_nuinsseg, tmp_path / "new" / "data", base_url=zenodo.url)
        assert len(open_tiles(first.result())) == 6
        with pytest.raises(NucloraError, match="exists and is not an empty folder"):
            later.result()
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["data"]


def test_a_fetch_cut_off_goes_on_in_the_next_run(zenodo: Server, tmp_path: Path) -> None:
    zenodo.plan = ["", "break", "404"]
    with pytest.raises(NucloraError, match="404"):
        fetch_nuinsseg(tmp_path / "data", base_url=zenodo.url)
    zenodo.requests.clear()
    fetch_nuinsseg(tmp_path / "data", base_url=zenodo.url)
    assert [wanted is not None for _, wanted in zenodo.requests] == [False, True]


@pytest.mark.parametrize(
    "record",
    [
        b"<html>",
        b"[]",
        b'{"files": []}',
        b'{"files": [{"key": "NuInsSeg.zip", "size": 3}]}',
        b'{"files": [{"key": "NuInsSeg.zip", "size": 3, "checksum": "crc:1"}]}',
    ],
)
def test_a_record_that_tells_no_checksum_is_refused(zenodo: Server, tmp_path: Path, record: bytes) -> None:
    zenodo.files["/api/records/10518968"] = record
    with pytest.raises(NucloraError, match="/api/records/10518968: Zenodo's record does not tell size and checksum"):
        fetch_nuinsseg(tmp_path / "data", base_url=zenodo.url)


def test_an_archive_of_something_else_is_refused(zenodo: Server, tmp_path: Path) -> None:
    data = make_zip(tmp_path / "x.zip", {"readme.txt": b"moved"}).read_bytes()
    entry = {"key": "NuInsSeg.zip", "size": len(data), "checksum": f"md5:{hashlib.md5(data).hexdigest()}"}
    zenodo.files["/api/records/10518968"] = json.dumps({"files": [entry]}).encode()
    zenodo.files["/records/10518968/files/NuInsSeg.zip?download=1"] = data
    with pytest.raises(NucloraError, match="the archive holds no NuInsSeg tree"):
        fetch_nuinsseg(tmp_path / "data", base_url=zenodo.url)


def test_command_fetches(
    zenodo: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    invoke: Callable[..., tuple[int, str, BaseException | None]],
) -> None:
    monkeypatch.setattr("nuclora.data.fetch.ZENODO", zenodo.url)
    code, output, _ = invoke(app, "fetch", "nuinsseg", str(tmp_path / "data"))
    assert code == 0
    assert "nuclora data check" in output
    assert len(open_tiles(tmp_path / "data")) == 6
