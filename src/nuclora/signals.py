"""Signals that end a process, where others work for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")

_STOPS = (signal.SIGINT, signal.SIGTERM)
# Who sent a signal is told on Linux, among others; elsewhere workers end as they ever did.
_SENDER_IS_TOLD = hasattr(signal, "sigwaitinfo")


def start_loading(loader: DataLoader[T]) -> Iterator[Any]:
    """Iterate a loader whose processes go on where all of their group are told to stop, unless this one tells them.

    This process, which is told too, decides, and still wants their results. They inherit that the signals wait, so
    there is no moment at which one ends them; this process hears what came meanwhile when they are started.

    Args:
        loader: The loader; it has no function of its own for its processes.
    """
    if not _SENDER_IS_TOLD:
        return iter(loader)
    loader.worker_init_fn = _heed_only_the_parent
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_only_the_parent(worker: int) -> None:
    threading.Thread(target=_end_with_the_parents_word, daemon=True).start()


def _end_with_the_parents_word() -> None:
    while signal.sigwaitinfo(_STOPS).si_pid != os.getppid():
        pass
    os._exit(0)
