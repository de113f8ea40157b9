# names are bytes, relative to directories that are, which pathlib cannot express.
# ruff: noqa: PTH101, PTH102, PTH115, PTH116, PTH118, PTH211
"""Files of the host's own making: exclusive creation, private copies, hostile removal.

`remove_tree` works on directories that an agent filled. It opens each by a
descriptor and without following links, and moves nested directories up instead
of descending, so that depth costs neither stack, descriptors nor long paths.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from runner.model.errors import InfrastructureError

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE: Final = 0x40049409
_FS_IOC_SETFLAGS: Final = 0x40086602


def own(fd: int, uid: int, gid: int) -> None:
    """Give a file to a user, where the caller may (root); elsewhere it stays the caller's."""
    if os.geteuid() == 0:
        os.fchown(fd, uid, gid)


def own_path(path: Path | bytes, uid: int, gid: int) -> None:
    """As `own`, by path, never through a link."""
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)


def make_dir(path: Path, *, uid: int, gid: int, mode: int = 0o755) -> Path:
    """Make one directory, which must not exist yet."""
    path.mkdir()
    path.chmod(mode)
    own_path(path, uid, gid)
    return path


@contextlib.contextmanager
def new_file(path: bytes, *, mode: int, uid: int, gid: int, mtime: int) -> Iterator[int]:
    """Open a file that must not exist yet; mode, owner and time are set when it is left."""
    fd = os.open(path, _CREATE, 0o600)
    try:
        yield fd
        os.fchmod(fd, mode)
        own(fd, uid, gid)
        os.utime(fd, (mtime, mtime))
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_file(source: bytes, target: bytes, *, uid: int, gid: int) -> None:
    """Copy a regular file with its mode and time; shares its blocks where the disk can."""
    src = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(src)
        mode, mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
        with new_file(target, mode=mode, uid=uid, gid=gid, mtime=mtime) as dst:
            try:
                fcntl.ioctl(dst, _FICLONE, src)
            except OSError:
                while os.sendfile(dst, src, None, 1 << 24):
                    pass
    finally:
        os.close(src)


def copy_tree(source: Path, target: Path, *, uid: int, gid: int) -> None:
    """Copy a host-owned tree of files, links and directories; the target must not exist."""
    made: list[tuple[bytes, os.stat_result]] = []
    pending = [(os.fsencode(source), os.fsencode(target))]
    while pending:
        src, dst = pending.pop()
        os.mkdir(dst)
        made.append((dst, os.stat(src)))
        with os.scandir(src) as entries:
            for entry in entries:
                there = os.path.join(dst, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, there))
                elif entry.is_symlink():
                    os.symlink(os.readlink(entry.path), there)
                    own_path(there, uid, gid)
                    mtime = entry.stat(follow_symlinks=False).st_mtime
                    os.utime(there, (mtime, mtime), follow_symlinks=False)
                else:
                    copy_file(entry.path, there, uid=uid, gid=gid)
    for dst, info in reversed(made):
        os.chmod(dst, stat.S_IMODE(info.st_mode))
        own_path(dst, uid, gid)
        os.utime(dst, (info.st_mtime, info.st_mtime))


def remove_tree(path: Path) -> None:
    """Delete a file or a directory and all below it, whatever an agent left there.

    Raises:
        InfrastructureError: Something resists (another owner, a mount, a read-only disk).
    """
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(info.st_mode):
            path.unlink()
            return
        parent = os.open(path.parent, _DIRECTORY)
        try:
            top = _open_for_removal(path.name, parent)
        finally:
            os.close(parent)
        try:
            _empty(top)
        finally:
            os.close(top)
        path.rmdir()
    except OSError as error:
        raise InfrastructureError(
            f"{path} cannot be deleted",
            why=f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})",
            mend="unmount what is mounted there, or delete it as root (lsattr shows locks)",
        ) from error


def _empty(top: int) -> None:
    """Empty a directory: its files go, and what its directories hold moves up into it."""
    serial = 0
    while True:
        with os.scandir(top) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        if not names:
            return
        for name, is_dir in names:
            if not is_dir:
                _unlink(name, top)
                continue
            if _rmdir_empty(name, top):
                continue
            child = _open_for_removal(name, top)
            try:
                with os.scandir(child) as entries:
                    inner = [(item.name, item.is_dir(follow_symlinks=False)) for item in entries]
                for item, item_is_dir in inner:
                    if not item_is_dir:
                        _unlink(item, child)
                        continue
                    if _rmdir_empty(item, child):
                        continue
                    os.close(_open_for_removal(item, child))
                    serial = _free_name(top, serial)
                    os.rename(item, f".gone-{serial}", src_dir_fd=child, dst_dir_fd=top)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=top)


def _rmdir_empty(name: str, parent: int) -> bool:
    """Remove an empty directory, also one that is not ours to open.

    The kernel's own `work` below an overlay's work directory belongs to root; its
    parent is ours, and that is all that removing it takes.
    """
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError:
        return False
    return True


def _free_name(top: int, serial: int) -> int:
    while True:
        serial += 1
        try:
            os.stat(f".gone-{serial}", dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            return serial


def _unlink(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except PermissionError:
        _unlock(name, parent)
        os.unlink(name, dir_fd=parent)


def _unlock(name: str, parent: int) -> None:
    """Clear chattr's flags of a file; only root may, and not every disk has them."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        fd = os.open(name, flags, dir_fd=parent)
        try:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, bytes(8))
        finally:
            os.close(fd)


def _open_for_removal(name: str, parent: int) -> int:
    """Open a directory and make it ours to empty, though its mode may forbid everything."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o700 != 0o700:
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        return os.open(".", _DIRECTORY, dir_fd=handle)
    finally:
        os.close(handle)
