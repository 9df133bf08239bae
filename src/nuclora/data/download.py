"""Downloads over HTTP that resume where they broke off and are verified before they get their name."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path

from nuclora.errors import NucloraError
from nuclora.files import disk_errors, hold_file

ATTEMPTS = 5
"""Attempts in a row that get no further before a download is given up."""
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further one waits twice as long."""
PATIENCE = 3600.0
"""Seconds to wait for another process that is downloading the same file."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes of all, or None where the server does not tell."""

_CHUNK = 1 << 18
# Answers of a server that may be another one in a moment.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


def download(
    url: str,
    dest: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a file, going on from what an earlier attempt or run left in ``DEST.part``.

    The file appears under its name only when it is whole and verified. A part of an earlier run is used
    only if a checksum will tell whether it fits. While another process downloads the file, this one waits.

    Args:
        url: HTTP or HTTPS address.
        dest: Where to write; kept as it is if it has the checksum already.
        sha256: Expected checksum.
        md5: Expected checksum, where the publisher gives no better one.
        size: Expected size in bytes.
        progress: Told the bytes done and the bytes of all.

    Returns:
        `dest`.

    Raises:
        NucloraError: No connection, an HTTP error, a full disk, another size or checksum than expected, or another
            process that takes too long.
    """
    checksums = {name: value.lower() for name, value in (("sha256", sha256), ("md5", md5)) if value}
    part = dest.with_name(f"{dest.name}.part")
    if _is_there(dest, checksums, size):
        return dest
    with disk_errors(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
    # Two that append to one part make a file of neither.
    with hold_file(part, "download", PATIENCE):
        if _is_there(dest, checksums, size):
            return dest
        with disk_errors(dest):
            if not checksums or (size is not None and _size(part) > size):
                part.unlink(missing_ok=True)
        if size is not None:
            require_space(dest.parent, size - _size(part))
        _Transfer(url, part, size, progress).run()
        wrong = _mismatch(part, checksums, size)
        if wrong:
            part.unlink()
            raise NucloraError(
                f"what {url} sent is not the expected file ({wrong}); it was deleted",
                path=dest,
                mend="try again later; behind a proxy or login page, download it with a browser",
            )
        with disk_errors(dest):
            part.replace(dest)
    return dest


def require_space(folder: Path, needed: int) -> None:
    """Require free space on a folder's disk.

    Raises:
        NucloraError: Fewer bytes than needed are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NucloraError(
            f"{needed / 1e9:.1f} GB needed and {free / 1e9:.1f} GB free", path=folder, mend="free some space"
        )


class _Transfer:
    """One file on its way into its part, over as many connections as it takes."""

    def __init__(self, url: str, part: Path, size: int | None, progress: Progress | None) -> None:
        self.url = url
        self.part = part
        self.size = size
        self.progress = progress
        self.version: str | None = None

    def run(self) -> None:
        failures, furthest = 0, _size(self.part)
        while True:
            try:
                self._attempt()
                return
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                error.close()
                if error.code not in _PASSING:
                    raise NucloraError(reason, path=self.url, mend="is the address still right?") from error
            except (_BrokenOffError, OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            failures = 1 if _size(self.part) > furthest else failures + 1
            furthest = max(furthest, _size(self.part))
            if failures >= ATTEMPTS:
                raise NucloraError(
                    f"cannot be downloaded ({reason}; {ATTEMPTS} attempts)",
                    path=self.url,
                    mend="check the network and run the same command again: it goes on from what is there",
                )
            time.sleep(FIRST_WAIT * 2 ** (failures - 1))

    def _attempt(self) -> None:
        offset = _size(self.part)
        if offset and offset == self.size:
            return
        headers = {"User-Agent": "nuclora"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self.version:
                # A file that changed between two connections comes whole then.
                headers["If-Range"] = self.version
        try:
            response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
                raise
            error.close()
            if _content_range(error.headers) != (None, offset):
                self.part.unlink()
                raise _BrokenOffError("the part is longer than the file") from error
            return
        with response:
            self._receive(response, offset)

    def _receive(self, response: http.client.HTTPResponse, offset: int) -> None:
        etag = response.headers.get("ETag", "")
        self.version = etag if etag.startswith('"') else None
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            start, total = _content_range(response.headers)
            if start != offset:
                self.part.unlink()
                raise _BrokenOffError("the server sent another range than asked for")
        else:
            offset = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        if self.size is not None and total is not None and total != self.size:
            raise NucloraError(
                f"the server has a file of {total} bytes where {self.size} are expected",
                path=self.url,
                mend="is the address still right, and no login page in between?",
            )
        with disk_errors(self.part):
            file = self.part.open("ab" if offset else "wb")
        with file:
            while chunk := response.read1(_CHUNK):
                with disk_errors(self.part):
                    file.write(chunk)
                offset += len(chunk)
                if self.progress is not None:
                    self.progress(offset, total)
            with disk_errors(self.part):
                file.flush()
        if total is not None and offset < total:
            raise _BrokenOffError(f"the connection ended after {offset} of {total} bytes")


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    """Start and whole length that ``Content-Range`` tells; None for what it does not."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", headers.get("Content-Range", "").strip())
    start, total = match.groups() if match else (None, None)
    return None if start is None else int(start), None if total is None else int(total)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_there(dest: Path, checksums: Mapping[str, str], size: int | None) -> bool:
    return bool(checksums) and dest.is_file() and _mismatch(dest, checksums, size) is None


def _mismatch(path: Path, checksums: Mapping[str, str], size: int | None) -> str | None:
    if size is not None and _size(path) != size:
        return f"{_size(path)} bytes, not {size}"
    for name, expected in checksums.items():
        digest = hashlib.new(name, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            return f"{name} {digest.hexdigest()}, not {expected}"
    return None
