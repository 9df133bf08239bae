"""A Ray cluster: how to reach it, what it has room for, and what comes back from its workers."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from nuclora.errors import NucloraError
from nuclora.extras import require

TRIES: Final = 4
"""Work is given up after so many workers have died of it."""

POLL: Final = 1.0
"""Seconds between two looks at a stop that was asked for, and at what there is to tell."""

Machine: TypeAlias = dict[str, float]
"""What a machine of a cluster has, by Ray's names."""

# Seconds.
_JOINING: Final = 60.0

SETTINGS: Final = {
    # Nothing is asked of anybody, and nothing told.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers without a GPU must not see one: this will be Ray's default, and until then it warns of it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # By default workers give way to everybody by 15 steps. Where we start them, they are this very command.
    "RAY_worker_niceness": "0",
}
"""Environment of a cluster that is started here, unless it has them already."""


@dataclass(frozen=True)
class WorkerSize:
    """What a worker is given.

    Attributes:
        cpus: Cores; it computes with as many threads, unless OMP_NUM_THREADS says otherwise.
        per_gpu: How many workers share a GPU, where there is any.
    """

    cpus: int = 1
    per_gpu: int = 1


class WorkerLost(Exception):
    """A worker, or its machine, died before it gave a result."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        size: What a worker is given.
        needs: The same in Ray's words.
    """

    size: WorkerSize
    needs: dict[str, float]

    @property
    def workers(self) -> int:
        """How many workers it has room for; machines may come and go."""
        import ray

        return count_workers(_machines(ray), self.size)

    def result(self, reference: Any) -> Any:
        """What a worker returned.

        Raises:
            WorkerLost: The worker died.
            BaseException: What the worker raised, as if it had been raised here.
        """
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise WorkerLost(type(error).__name__) from error


@contextlib.contextmanager
def connect(size: WorkerSize = WorkerSize()) -> Iterator[Cluster]:
    """Connect to the cluster that Ray finds (RAY_ADDRESS, or the one of this machine), else start one here.

    Where a machine of the cluster has GPUs, every worker gets one or its share of one; CPUs alone are not worked with
    then.

    Args:
        size: What a worker is given.

    Raises:
        NucloraError: Ray is not installed, no cluster answers, it has no room for a single worker, or no GPU to share.
    """
    ray = require("ray", "--engine ray")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NucloraError("--engine ray starts its own processes", mend="run it without torchrun or accelerate launch")
    ours = not ray.is_initialized()
    if ours:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            _reach(address)
            # Ray would try for minutes to reach a cluster that was killed.
            where = "local" if not address and _is_stale(_noted()) else address or None
            ray.init(where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        # Ray raises a plain Exception where a busy machine does not start it in time.
        except Exception as error:
            what = " ".join(str(error).split())[:200]
            mend = "check RAY_ADDRESS and `ray status`, or unset it to work on this machine"
            if not address:
                mend = "see `ray status`, try again when the machine is less busy, or leave out --engine ray"
            raise NucloraError(f"no Ray cluster{f' at {address}' if address else ''} ({what})", mend=mend) from error
    try:
        # Machines of a cluster that is just being started may join later than its head.
        deadline = time.monotonic() + (_JOINING if "RAY_ADDRESS" in os.environ else 0)
        while True:
            machines = _machines(ray)
            shares_nothing = size.per_gpu > 1 and not _with_gpus(machines)
            if count_workers(machines, size) and not shares_nothing:
                break
            if time.monotonic() > deadline:
                if shares_nothing:
                    raise NucloraError(
                        "no machine of the Ray cluster has a GPU",
                        mend="leave out --workers-per-gpu, or see `ray status`",
                    )
                gpu = " and a GPU" if _with_gpus(machines) else ""
                raise NucloraError(
                    f"no machine of the Ray cluster has {size.cpus} cores{gpu} for a worker",
                    mend="lower --worker-cpus, or see `ray status`",
                )
            time.sleep(1)
        yield Cluster(size, needs_of(machines, size))
    finally:
        if ours:
            ray.shutdown()


def _noted() -> Path:
    """Where Ray notes the cluster that `ray start` has started on this machine."""
    usual = os.environ.get("TMPDIR", "/tmp") if sys.platform == "linux" else "/tmp"
    return Path(os.environ.get("RAY_TMPDIR", usual), "ray", "ray_current_cluster")


def _is_stale(note: Path) -> bool:
    """Whether Ray has noted a cluster of this machine that does not answer: it was killed and not stopped."""
    try:
        _reach(note.read_text("utf-8").strip())
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError):
        return True
    return False


def _reach(address: str) -> None:
    """See that something answers at an address; Ray would try for minutes, and tell every time."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_JOINING).close()


def needs_of(machines: list[Machine], size: WorkerSize) -> dict[str, float]:
    """What a worker needs, in Ray's words: so many cores, and its share of a GPU where there is any.

    Args:
        machines: What each machine of the cluster has.
        size: What a worker is given.
    """
    # Ray counts ten-thousandths: rounded up, the last of the workers that share a GPU would find no room.
    share = 10_000 // size.per_gpu / 10_000
    return {"num_cpus": size.cpus} | ({"num_gpus": share} if _with_gpus(machines) else {})


def count_workers(machines: list[Machine], size: WorkerSize) -> int:
    """How many workers fit; counted machine by machine, because a worker lies on one.

    Args:
        machines: What each machine of the cluster has.
        size: What a worker is given.
    """
    by_cores = [int(machine.get("CPU", 0) // size.cpus) for machine in machines]
    if not _with_gpus(machines):
        return sum(by_cores)
    by_gpus = [int(machine.get("GPU", 0)) * size.per_gpu for machine in machines]
    return sum(map(min, by_cores, by_gpus))


def _with_gpus(machines: list[Machine]) -> bool:
    return any(machine.get("GPU", 0) >= 1 for machine in machines)


def _machines(ray: Any) -> list[Machine]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@dataclass(frozen=True)
class Place:
    """Where the command runs; workers go there, so that they mean the same files by the same paths.

    Attributes:
        shared: A file that this process has written, by which workers see that they share its storage.
        folder: Working folder.
        command: The command line, which runs note.
    """

    shared: Path
    folder: Path = field(default_factory=Path.cwd)
    command: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv))

    def take(self) -> None:
        """Make a worker stand where the command runs.

        Raises:
            NucloraError: The worker's machine does not have these files.
        """
        # As the command line does, before anything imports transformers.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        sys.argv = list(self.command)
        for path in (self.folder, self.folder / self.shared):
            if not path.exists():
                raise NucloraError(
                    f"not to be seen from the worker on {platform.node()}",
                    path=path,
                    mend="run the command in a folder, and with paths, that all machines of the cluster share",
                )
        os.chdir(self.folder)
