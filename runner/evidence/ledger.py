"""The ledger: one line a run, each holding the digest of the line before.

Append-only, under a lock that all rolebox processes of this home share, flushed
to the disk before it counts. A changed, removed or reordered line breaks the
chain after it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from runner.evidence.files import disk_error
from runner.model.canonical import canonical, digest
from runner.model.errors import EvidenceError

SCHEMA = "rolebox.ledger/1"
GENESIS = "sha256:" + "0" * 64
_TAIL = 1 << 16


def append(path: Path, entry: dict[str, Any]) -> str:
    """Append an entry and return its digest.

    Args:
        path: The ledger's file; made if it is not there.
        entry: JSON values; `_schema`, `seq` and `previous` are added.

    Raises:
        EvidenceError: The last line is no whole entry.
        UsageError, InfrastructureError: The disk refuses.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_error(path, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        last = _last_entry(fd, path)
        record = {
            "_schema": SCHEMA,
            "seq": last["seq"] + 1 if last else 1,
            "previous": digest(last) if last else GENESIS,
            **entry,
        }
        _write_whole(fd, canonical(record) + b"\n")
    except OSError as error:
        raise disk_error(path, error) from None
    finally:
        os.close(fd)
    return digest(record)


def _write_whole(fd: int, line: bytes) -> None:
    """Append a line and flush it, or leave the file as it was (a full disk tears lines)."""
    size = os.fstat(fd).st_size
    try:
        if os.write(fd, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, size)
        raise


def _last_entry(fd: int, path: Path) -> dict[str, Any] | None:
    size = os.fstat(fd).st_size
    if size == 0:
        return None
    want = _TAIL
    while True:
        start = max(0, size - want)
        tail = os.pread(fd, size - start, start)
        if start == 0 or b"\n" in tail[:-1]:
            break
        want *= 2  # the last line is longer than that
    lines = tail.splitlines()
    try:
        if not tail.endswith(b"\n"):
            raise ValueError("the last line is torn")
        entry = json.loads(lines[-1])
        if not isinstance(entry, dict) or not isinstance(entry.get("seq"), int):
            raise ValueError("the last line is no entry")
    except ValueError as error:
        raise EvidenceError(
            f"the ledger {path} does not end with a whole entry",
            why=str(error),
            mend="keep the file as it is, and look at its last lines",
        ) from None
    return entry
