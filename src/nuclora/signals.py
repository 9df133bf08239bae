"""Signals that end a process, where it works for another one."""

from __future__ import annotations

import signal


def leave_stopping_to_the_parent(worker: int) -> None:
    """Let a process go on where all of its group are told to stop: its parent, which decides, still wants its result.

    Args:
        worker: Number of the process, which a :class:`torch.utils.data.DataLoader` gives.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
