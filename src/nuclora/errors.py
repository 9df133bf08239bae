"""The one error that users are meant to see, and the one that every large computation may meet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path


class NucloraError(Exception):
    """Wrong use or bad input, told in one line: the file, the reason and the mend.

    The command line prints it without a traceback and exits with 2.

    Args:
        reason: What is wrong, as a clause without a full stop.
        path: The file or folder that it is wrong with.
        mend: What the user can do about it.
    """

    def __init__(self, reason: str, *, path: str | Path | None = None, mend: str | None = None) -> None:
        self.reason = reason
        self.path = path
        self.mend = mend
        line = f"{path}: {reason}" if path is not None else reason
        # A file's name may hold a line break.
        super().__init__(" ".join((f"{line}; {mend}" if mend else line).splitlines()))


def require_choice(what: str, choice: object, known: Iterable[str]) -> None:
    """See that something is one of what there is.

    Args:
        what: What kind of thing it is, for the error.
        choice: What was asked for.
        known: What there is.

    Raises:
        NucloraError: It is none of them.
    """
    known = tuple(known)
    if choice not in known:
        raise NucloraError(f"no {what} {choice!r}", mend=f"choose one of {', '.join(known)}")


# Of PyTorch's allocators, by system, of CUDA's driver, and of cuBLAS and cuDNN, which allocate by themselves.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or this process could get no more memory."""
    # By name and words: torch is not imported for the commands that do without.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))
    )


@contextlib.contextmanager
def shortage_told(mend: str = "end other work, or use a machine with more") -> Iterator[None]:
    """Turn the many errors of too little memory, and those of killed readers, into the ones that users see.

    Args:
        mend: What to do where memory is short.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            # Torch raises it wherever the main process is. Where memory is short the system kills readers; and a
            # container's 64 MB of shared memory hold one batch.
            for_readers = "set train.workers=0, or give more memory (to a container --shm-size=2g)"
            raise NucloraError("a process that reads tiles was killed", mend=for_readers) from error
        if not is_out_of_memory(error):
            raise
        raise NucloraError("out of memory", mend=mend) from error
