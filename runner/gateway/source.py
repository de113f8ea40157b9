"""Lines of a file descriptor."""

from __future__ import annotations

import os


class Input:
    """Reads lines without a lock, which a thread could hold when the process ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._left = b""

    def line(self, limit: int) -> bytes | None:
        """Return the next line, or None at the end of input or of patience."""
        parts = [self._left]
        size = len(self._left)
        while b"\n" not in parts[-1]:
            data = os.read(self._fd, 65_536)
            size += len(data)
            if not data or size > limit:
                return None
            parts.append(data)
        line, _, self._left = b"".join(parts).partition(b"\n")
        return line
