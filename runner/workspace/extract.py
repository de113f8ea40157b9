# names are bytes, relative to directories that are, which pathlib cannot express.
# ruff: noqa: PTH101, PTH102, PTH118, PTH211
"""Blobs to files, byte for byte, without git's checkout machinery.

Directories are made first, files then with O_EXCL, links last: nothing is ever
written through a link that the tree itself brought.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from runner.model.errors import InfrastructureError
from runner.workspace.files import new_file, own_path, write_all
from runner.workspace.git import git_process
from runner.workspace.listing import GITLINK, PROGRAM, SYMLINK, Entry, Listing

_CHUNK: Final = 1 << 20


def extract(
    git_dir: Path, listing: Listing, target: Path, *, uid: int, gid: int, mtime: int
) -> None:
    """Write a listed tree to a new directory.

    Files are 0644 or 0755, submodules are empty directories, and an empty
    `.git` is added as a mount point. Everything carries one time and one owner.

    Raises:
        InfrastructureError: An object is missing (a partial clone) or the disk fails.
    """
    root = os.fsencode(target)
    submodules = {path for path in listing.paths if listing.entries[path].mode == GITLINK}
    dirs = [b"", *sorted(listing.dirs | submodules | {b".git"})]
    for path in dirs:
        os.mkdir(os.path.join(root, path) if path else root)
    leaves = [listing.entries[path] for path in listing.paths if path not in submodules]
    leaves.sort(key=lambda entry: entry.mode == SYMLINK)
    with _blobs(git_dir, leaves) as stream:
        for entry in leaves:
            _write(stream, entry, os.path.join(root, entry.path), uid=uid, gid=gid, mtime=mtime)
    for path in reversed(dirs):
        place = os.path.join(root, path) if path else root
        os.chmod(place, 0o755)  # noqa: S103  the agent's user must read it
        own_path(place, uid, gid)
        os.utime(place, (mtime, mtime))


@contextmanager
def _blobs(git_dir: Path, leaves: list[Entry]) -> Iterator[IO[bytes]]:
    """Open a stream of what `cat-file --batch` prints, one for each leaf, in order."""
    with tempfile.TemporaryFile() as wanted:
        wanted.write(b"".join(entry.oid.encode() + b"\n" for entry in leaves))
        wanted.seek(0)
        with git_process(["cat-file", "--batch", "--buffer"], git_dir=git_dir, stdin=wanted) as git:
            assert git.stdout is not None
            yield git.stdout


def _write(
    stream: IO[bytes], entry: Entry, place: bytes, *, uid: int, gid: int, mtime: int
) -> None:
    header = stream.readline().split()
    if len(header) != 3 or header[1] != b"blob" or header[0] != entry.oid.encode():
        raise InfrastructureError(
            f"the object {entry.oid} cannot be read",
            why="the repository does not hold it, as in a partial clone",
            mend="run `git fetch --refetch --no-filter` in the repository",
        )
    left = int(header[2])
    if entry.mode == SYMLINK:
        os.symlink(_take(stream, left), place)
        own_path(place, uid, gid)
        os.utime(place, (mtime, mtime), follow_symlinks=False)
    else:
        mode = 0o755 if entry.mode == PROGRAM else 0o644
        with new_file(place, mode=mode, uid=uid, gid=gid, mtime=mtime) as fd:
            while left:
                data = _take(stream, min(left, _CHUNK))
                write_all(fd, data)
                left -= len(data)
    _take(stream, 1)


def _take(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise InfrastructureError("git ended in the middle of an object")
    return data
