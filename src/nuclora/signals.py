"""Signals that end a process, where others work for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_STOPS = (signal.SIGINT, signal.SIGTERM)
# Who sent a signal is told on Linux, among others; elsewhere workers end as they ever did.
_SENDER_IS_TOLD = hasattr(signal, "sigwaitinfo")


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Start processes that call :func:`heed_only_the_parent` first.

    They inherit that signals wait, so there is no moment before that call at which one ends them. This process hears
    at the end of the block what came meanwhile.
    """
    if not _SENDER_IS_TOLD:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_only_the_parent(worker: int) -> None:
    """Let a process go on where all of its group are told to stop, unless its parent tells it.

    The parent, which is told too, decides, and still wants the result.

    Args:
        worker: Number of the process, which a :class:`torch.utils.data.DataLoader` gives.
    """
    if _SENDER_IS_TOLD:
        threading.Thread(target=_end_with_the_parents_word, daemon=True).start()


def _end_with_the_parents_word() -> None:
    while signal.sigwaitinfo(_STOPS).si_pid != os.getppid():
        pass
    os._exit(0)
