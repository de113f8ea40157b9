"""Changed files into the host-owned store, by `git fast-import`.

Blobs go in as raw bytes, so nothing that the agent wrote is ever seen by git's
filters, attributes or working-tree code. The commit has a fixed author and the
caller's time: the same changes give the same commit id.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Final

from runner.model.errors import InfrastructureError
from runner.workspace.git import git_process

AUTHOR: Final = "rolebox <rolebox@rolebox.invalid>"
_CHUNK: Final = 1 << 20


class Importer:
    """The open end of one fast-import; use it through `importing`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._marks = 0

    def blob(self, data: bytes) -> int:
        """Store some bytes and return their mark."""
        mark = self._begin(len(data))
        self._stream.write(data + b"\n")
        return mark

    def blob_from(self, fd: int, size: int) -> int:
        """Store exactly `size` bytes of an open file, from its start.

        Raises:
            InfrastructureError: The file is shorter by now.
        """
        mark = self._begin(size)
        os.lseek(fd, 0, os.SEEK_SET)
        left = size
        while left:
            data = os.read(fd, min(left, _CHUNK))
            if not data:
                raise InfrastructureError(
                    "a file changed while it was collected",
                    mend="make sure that the run's container is gone, then collect again",
                )
            self._stream.write(data)
            left -= len(data)
        self._stream.write(b"\n")
        return mark

    def commit(
        self,
        ref: str,
        base: str,
        *,
        when: datetime,
        message: str,
        deleted: Iterable[bytes],
        written: Iterable[tuple[bytes, int, int | str]],
    ) -> None:
        """Commit on top of `base`.

        Args:
            ref: Set to the commit.
            base: The parent commit's id.
            when: An aware time, for author and committer.
            message: The commit message.
            deleted: Paths that go, before anything is written.
            written: Path, mode, and a mark of this importer or the id of a known blob.
        """
        text = message.encode()
        stamp = f"{AUTHOR} {int(when.timestamp())} +0000"
        self._stream.write(
            f"commit {ref}\nauthor {stamp}\ncommitter {stamp}\ndata {len(text)}\n".encode()
            + text
            + f"\nfrom {base}\n".encode()
        )
        for path in deleted:
            self._stream.write(b"D " + quoted(path) + b"\n")
        for path, mode, blob in written:
            name = blob if isinstance(blob, str) else f":{blob}"
            self._stream.write(f"M {mode:06o} {name} ".encode() + quoted(path) + b"\n")

    def done(self) -> None:
        self._stream.write(b"done\n")
        self._stream.flush()

    def _begin(self, size: int) -> int:
        self._marks += 1
        self._stream.write(f"blob\nmark :{self._marks}\ndata {size}\n".encode())
        return self._marks


@contextmanager
def importing(git_dir: Path) -> Iterator[Importer]:
    """Run fast-import around a block; the block's exception leaves no commit.

    Raises:
        GitError: fast-import refused something.
    """
    args = ["fast-import", "--quiet", "--done", "--force", "--date-format=raw"]
    with git_process(args, git_dir=git_dir, stdin=PIPE, stdout=DEVNULL) as process:
        assert process.stdin is not None
        importer = Importer(process.stdin)
        yield importer
        importer.done()


def quoted(path: bytes) -> bytes:
    """Return a path as fast-import's C-style quoted string."""
    out = bytearray(b'"')
    for byte in path:
        if byte in b'"\\':
            out += b"\\" + bytes([byte])
        elif 0x20 <= byte < 0x7F:
            out.append(byte)
        else:
            out += b"\\%03o" % byte
    return bytes(out + b'"')
