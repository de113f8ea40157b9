"""Locks between the rolebox processes of one host: flock(2) on a file of its own.

The kernel frees them when their process ends, however it ends.

Decision: the standard library's fcntl, not the filelock package, which imports
asyncio and so cost 45 ms of every start.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.model.errors import InfrastructureError

_POLL_S = 0.02


class LockBusy(InfrastructureError):
    """Another process holds the lock, and goes on holding it."""


def try_lock(path: Path) -> int | None:
    """Take a lock; returns its descriptor, to be closed, or None if another process holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: The lock's file; made if it is not there, and never removed.
        timeout_s: How long to wait for another process.

    Raises:
        LockBusy: It was not freed in time.
    """
    deadline = time.monotonic() + timeout_s
    while (fd := try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise LockBusy(
                f"{path.name} stays locked",
                why="another rolebox process is at work there",
                mend="wait for that process, or end it",
            )
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(fd)
