"""What an agent changed, judged entry by entry.

The walk meets entries that may be anything. Each ends in one of four ways: it
equals the base and is nothing; it is a change, and its bytes go to the importer;
it breaks a rule of the run (a violation: protected, or outside the lease); or
git must not or cannot carry it (an anomaly). The last two leave the base's
content as it was, and are reported.

Deletions are what the base has and the walk did not meet, within the regions
where absence means deletion: a whole private copy, or in an overlay's upper
layer a whiteout (a 0:0 character device) and an opaque directory.

A symbolic link is carried when its target certainly stays in the tree: relative,
`..` only at its start (after a name, `..` may go through another link), and
nothing named like `.git` in it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, field
from typing import Final

from runner.model.base import Frozen
from runner.model.errors import InfrastructureError
from runner.workspace.fastimport import Importer
from runner.workspace.lease import Lease
from runner.workspace.listing import FILE, PROGRAM, SYMLINK, Entry, Listing
from runner.workspace.names import is_dotgit, shown
from runner.workspace.prepare import Area
from runner.workspace.protected import Protected
from runner.workspace.walk import DIRECTORY, Found, TooManyEntriesError, walk

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OPAQUE: Final = ("user.overlay.opaque", "trusted.overlay.opaque")
_SPECIAL: Final = stat.S_ISUID | stat.S_ISGID


class PatchLimits(Frozen):
    """Bounds of a collection; sizes in bytes."""

    file_bytes: int = 50_000_000
    total_bytes: int = 256_000_000
    patch_bytes: int = 64 << 20
    entries: int = 200_000
    path_bytes: int = 2048
    depth: int = 256
    reported: int = 1000


class Anomaly(Frozen):
    """Something left out of the patch; `path` is escaped, one printable line."""

    path: str
    kind: str
    detail: str


@dataclass
class Changes:
    """The judge of one collection, and what it found so far."""

    base: Listing
    lease: Lease
    protected: Protected
    limits: PatchLimits
    importer: Importer
    object_format: str
    written: dict[bytes, tuple[int, int | str]] = field(default_factory=dict)
    anomalies: list[Anomaly] = field(default_factory=list)
    violations: list[Anomaly] = field(default_factory=list)
    omitted: int = 0
    truncated: bool = False
    _present: set[bytes] = field(default_factory=set)
    _left_out: set[bytes] = field(default_factory=set)
    _masked: set[bytes] = field(default_factory=set)
    _met: int = 0
    _bytes: int = 0

    def collect(self, area: Area) -> None:
        """Judge everything in one place that the agent could write."""
        if area.kind in ("file", "new-file"):
            self._collect_file(area)
            return
        if area.kind == "full":
            self._masked.add(area.path)
        prefix = area.path + b"/" if area.path else b""
        overlay = area.kind == "overlay"
        try:
            self._met += walk(
                area.host,
                visit=lambda found: self._visit(prefix + found.path, found, overlay=overlay),
                entered=lambda path, fd: self._entered(
                    (prefix + path).removesuffix(b"/"), fd, overlay=overlay
                ),
                unreadable=lambda path, why: self._leave_out(prefix + path, "unreadable", why),
                entries=self.limits.entries - self._met,
            )
        except TooManyEntriesError:
            self.truncated = True
            self._note(area.path, "too-many-files", f"more than {self.limits.entries} entries")

    def deleted(self) -> tuple[bytes, ...]:
        """Return the base's paths that go; call it once, after the last `collect`."""
        gone: list[bytes] = []
        kept: list[bytes] = []
        for region in sorted(self._masked):
            for path in self.base.at_or_under(region):
                if path in self._present or _within(path, self._left_out):
                    continue
                (gone if self._allowed(path, "deleted") else kept).append(path)
        for path in kept:
            for parent in _parents(path):
                if self.written.pop(parent, None):
                    self._breach(parent, "protected", f"replaces the directory of {shown(path)}")
        return tuple(sorted(set(gone)))

    def _visit(self, path: bytes, found: Found, *, overlay: bool) -> bool:
        mode = found.info.st_mode
        if is_dotgit(found.name):
            if not (path == b".git" and _is_empty_dir(found)):
                self._leave_out(path, "nested-git", "a git directory or file of the agent's own")
            return False
        if overlay and stat.S_ISCHR(mode) and found.info.st_rdev == 0:
            self._masked.add(path)
            return False
        too_deep = found.depth > self.limits.depth
        if too_deep or len(path) > self.limits.path_bytes:
            self._leave_out(path, "path-too-long", f"depth {found.depth}, {len(path)} bytes")
            return False
        if stat.S_ISDIR(mode):
            if mode & _SPECIAL:
                self._note(path, "setuid", f"a directory with mode {stat.S_IMODE(mode):04o}")
            if self.base.kind(path) == "submodule":
                self._present.add(path)
            return True
        if stat.S_ISLNK(mode):
            self._link(path, found)
        elif stat.S_ISREG(mode):
            self._file(path, found.name, found.folder, found.info)
        else:
            self._leave_out(path, _kind_of(mode), f"mode {mode:o}")
        return False

    def _entered(self, path: bytes, folder: int, *, overlay: bool) -> None:
        if overlay and (_is_opaque(folder) or path in self.base.entries):
            self._masked.add(path)

    def _link(self, path: bytes, found: Found) -> None:
        target = os.readlink(found.name, dir_fd=found.folder)
        base = self.base.entries.get(path)
        self._present.add(path)
        if base and (base.mode, base.oid) == (SYMLINK, self._oid_of(target)):
            return
        if not self._allowed(path, "changed" if base else "created"):
            return
        trouble = _link_trouble(path, target)
        if trouble:
            self._leave_out(path, "symlink-leaves-tree", f"{shown(target)}: {trouble}")
        elif self._spend(path, len(target)):
            self.written[path] = (SYMLINK, self.importer.blob(target))

    def _file(self, path: bytes, name: bytes, folder: int, info: os.stat_result) -> None:
        base = self.base.entries.get(path)
        self._present.add(path)
        if base is None and not self._allowed(path, "created"):
            return
        if info.st_mode & _SPECIAL:
            self._leave_out(path, "setuid", f"mode {stat.S_IMODE(info.st_mode):04o}")
            return
        same_size = base is not None and base.mode != SYMLINK and base.size == info.st_size
        if info.st_size > self.limits.file_bytes and not same_size:
            self._leave_out(path, "oversized", f"{info.st_size} bytes")
            return
        try:
            fd = os.open(name, _OPEN, dir_fd=folder)
        except OSError as error:
            self._leave_out(path, "unreadable", str(error.strerror))
            return
        try:
            self._content(path, fd, base if same_size else None, known=base is not None)
        finally:
            os.close(fd)

    def _content(self, path: bytes, fd: int, same_size: Entry | None, *, known: bool) -> None:
        """Compare a file with a base entry of its size, and import it if it differs."""
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InfrastructureError(
                f"{shown(path)} changed while it was collected",
                mend="make sure that the run's container is gone, then collect again",
            )
        mode = PROGRAM if info.st_mode & stat.S_IXUSR else FILE
        same_bytes = same_size is not None and self._oid_of_file(fd, info.st_size) == same_size.oid
        if same_size and same_bytes and same_size.mode == mode:
            return
        if known and not self._allowed(path, "changed"):
            return
        if same_size and same_bytes:
            self.written[path] = (mode, same_size.oid)
        elif info.st_size > self.limits.file_bytes:
            self._leave_out(path, "oversized", f"{info.st_size} bytes")
        elif self._spend(path, info.st_size):
            self.written[path] = (mode, self.importer.blob_from(fd, info.st_size))

    def _collect_file(self, area: Area) -> None:
        """Judge a leased file; one that did not exist and stayed empty was not created."""
        folder = os.open(area.host.parent, DIRECTORY)
        try:
            name = os.fsencode(area.host.name)
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if area.kind == "new-file" and info.st_size == 0:
                return
            self._file(area.path, name, folder, info)
        finally:
            os.close(folder)

    def _allowed(self, path: bytes, verb: str) -> bool:
        if not self.lease.covers(path):
            self._breach(path, "outside-lease", verb)
            return False
        pattern = self.protected.match(path)
        if pattern is not None:
            self._breach(path, "protected", f"{verb}, protected by {pattern}")
            return False
        return True

    def _spend(self, path: bytes, size: int) -> bool:
        if self._bytes + size > self.limits.total_bytes:
            detail = f"{size} bytes more than the {self.limits.total_bytes} of a patch"
            self._leave_out(path, "total-size", detail)
            return False
        self._bytes += size
        return True

    def _oid_of(self, data: bytes) -> str:
        digest = hashlib.new(self.object_format, b"blob %d\0" % len(data), usedforsecurity=False)
        digest.update(data)
        return digest.hexdigest()

    def _oid_of_file(self, fd: int, size: int) -> str:
        digest = hashlib.new(self.object_format, b"blob %d\0" % size, usedforsecurity=False)
        while data := os.read(fd, 1 << 20):
            digest.update(data)
        return digest.hexdigest()

    def _leave_out(self, path: bytes, kind: str, detail: str) -> None:
        self._left_out.add(path)
        self._note(path, kind, detail)

    def _note(self, path: bytes, kind: str, detail: str) -> None:
        self._report(self.anomalies, Anomaly(path=_brief(path), kind=kind, detail=detail))

    def _breach(self, path: bytes, kind: str, detail: str) -> None:
        self._report(self.violations, Anomaly(path=_brief(path), kind=kind, detail=detail))

    def _report(self, reports: list[Anomaly], report: Anomaly) -> None:
        if len(reports) < self.limits.reported:
            reports.append(report)
        else:
            self.omitted += 1


def _brief(path: bytes) -> str:
    return shown(path) if len(path) <= 4096 else shown(path[:4096]) + "…"


def _parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(1, len(parts))]


def _within(path: bytes, regions: set[bytes]) -> bool:
    return path in regions or any(parent in regions for parent in _parents(path))


def _is_empty_dir(found: Found) -> bool:
    """Tell the mount point of the private git from something put in its place."""
    if not stat.S_ISDIR(found.info.st_mode):
        return False
    fd = os.open(found.name, DIRECTORY, dir_fd=found.folder)
    try:
        with os.scandir(fd) as entries:
            return next(entries, None) is None
    finally:
        os.close(fd)


def _is_opaque(folder: int) -> bool:
    for name in _OPAQUE:
        try:
            if os.getxattr(folder, name) == b"y":
                return True
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
                raise
    return False


def _kind_of(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _link_trouble(path: bytes, target: bytes) -> str:
    """Say why a link may not be carried; "" if it may."""
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    names = [part for part in parts if part != b".."]
    ups = len(parts) - len(names)
    if target.startswith(b"/"):
        return "absolute"
    if parts[:ups] != [b".."] * ups:
        return "goes up after a name"
    if ups > path.count(b"/"):
        return "goes above the root of the tree"
    if any(is_dotgit(name) for name in names):
        return "names a git directory"
    return ""
