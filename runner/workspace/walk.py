"""A walk over a directory that an agent filled, after its container is gone.

Every step is by descriptor and never through a link. One directory is open at
a time: the way back up is `..`, and it must lead to the directory that the walk
came from. Depth, path length and the number of entries are bounded, so that no
tree can exhaust the stack, the descriptors or the memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runner.model.errors import InfrastructureError

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """One entry; `folder` is its directory's descriptor, valid during the visit."""

    path: bytes
    name: bytes
    folder: int
    info: os.stat_result
    depth: int


@dataclass(slots=True)
class _Level:
    prefix: bytes
    identity: _Identity
    names: list[bytes]


class TooManyEntriesError(Exception):
    """The walk met more entries than it may."""


def walk(
    root: Path,
    *,
    visit: Callable[[Found], bool],
    entered: Callable[[bytes, int], None],
    unreadable: Callable[[bytes, str], None],
    entries: int,
) -> int:
    """Visit every entry below a directory, in byte order within each directory.

    Args:
        root: The directory; it must not be a link itself.
        visit: Called for each entry; its answer says whether to enter a directory.
        entered: Called with the path and descriptor of each directory entered.
        unreadable: Called with path and reason where the walk cannot look.
        entries: How many entries may be met.

    Returns:
        How many entries were met.

    Raises:
        TooManyEntriesError: More than that.
    """
    folder = os.open(root, DIRECTORY)
    met = 0
    try:
        entered(b"", folder)
        levels = [_Level(b"", _identity(folder), _names(folder, entries))]
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop()
                if levels:
                    folder = _up(folder, levels[-1].identity)
                continue
            name = level.names.pop()
            met += 1
            if met > entries:
                raise TooManyEntriesError
            path = level.prefix + name
            try:
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError as error:
                unreadable(path, str(error.strerror))
                continue
            wanted = visit(Found(path, name, folder, info, len(levels)))
            if not (wanted and stat.S_ISDIR(info.st_mode)):
                continue
            try:
                child = _down(folder, name, level.identity)
            except OSError as error:
                unreadable(path, str(error.strerror))
                continue
            os.close(folder)
            folder = child
            entered(path, folder)
            names = _names(folder, entries - met)
            levels.append(_Level(path + b"/", _identity(folder), names))
    finally:
        os.close(folder)
    return met


def _names(folder: int, room: int) -> list[bytes]:
    """Return the names in a directory, last first, so that `pop` takes the first."""
    names: list[bytes] = []
    with os.scandir(folder) as found:
        for entry in found:
            names.append(os.fsencode(entry.name))
            if len(names) > room:
                raise TooManyEntriesError
    names.sort(reverse=True)
    return names


def _identity(fd: int) -> _Identity:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _down(folder: int, name: bytes, identity: _Identity) -> int:
    """Open a directory, and make sure that it also lets us out again."""
    child = os.open(name, DIRECTORY, dir_fd=folder)
    try:
        back = os.stat("..", dir_fd=child, follow_symlinks=False)
    except OSError:
        os.close(child)
        raise
    if (back.st_dev, back.st_ino) != identity:
        os.close(child)
        raise InfrastructureError(
            "a directory moved while its changes were collected",
            mend="make sure that the run's container is gone, then collect again",
        )
    return child


def _up(folder: int, identity: _Identity) -> int:
    parent = os.open("..", DIRECTORY, dir_fd=folder)
    if _identity(parent) != identity:
        os.close(parent)
        raise InfrastructureError(
            "a directory moved while its changes were collected",
            mend="make sure that the run's container is gone, then collect again",
        )
    os.close(folder)
    return parent
