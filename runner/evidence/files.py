"""Small file habits of the evidence room: whole or not at all, and private."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from runner.model.errors import InfrastructureError, RoleboxError, UsageError

PRIVATE_DIR = 0o700


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part.

    Args:
        path: The file; its folder exists.
        data: The bytes.
        mode: Permission bits.
        durable: Also flush to the disk before the name is given.

    Raises:
        RoleboxError: With the disk's reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> RoleboxError:
    """Turn a failure of the disk into what, why, the mend."""
    if isinstance(error, PermissionError):
        return UsageError(
            f"{path} cannot be written",
            why=error.strerror or "",
            mend="set ROLEBOX_HOME to a folder of your own",
        )
    return InfrastructureError(
        f"{path} cannot be written",
        why=error.strerror or str(error),
        mend="free some space, or set ROLEBOX_HOME to a larger disk",
    )
