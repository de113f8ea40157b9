"""What a commit's tree holds, read from the store and never from a working directory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from runner.model.errors import InfrastructureError, UsageError
from runner.workspace.git import run_git
from runner.workspace.names import is_dotgit, shown

Kind = Literal["file", "symlink", "submodule", "dir"]
FILE: Final = 0o100644
PROGRAM: Final = 0o100755
SYMLINK: Final = 0o120000
GITLINK: Final = 0o160000


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf of the tree; `size` is the blob's bytes, 0 for a submodule."""

    path: bytes
    mode: int
    oid: str
    size: int

    @property
    def kind(self) -> Kind:
        if self.mode == GITLINK:
            return "submodule"
        return "symlink" if self.mode == SYMLINK else "file"


@dataclass(frozen=True)
class Listing:
    """The leaves by path, their paths in byte order, and the directories above them."""

    entries: Mapping[bytes, Entry]
    paths: tuple[bytes, ...]
    dirs: frozenset[bytes]

    def kind(self, path: bytes) -> Kind | None:
        if path in self.dirs:
            return "dir"
        entry = self.entries.get(path)
        return entry.kind if entry else None

    def at_or_under(self, path: bytes) -> tuple[bytes, ...]:
        """Return the leaves at a path or below it; b"" is the whole tree."""
        if not path:
            return self.paths
        start = bisect_left(self.paths, path + b"/")
        end = bisect_left(self.paths, path + b"0")
        leaf = (path,) if path in self.entries else ()
        return leaf + self.paths[start:end]

    @property
    def submodules(self) -> tuple[bytes, ...]:
        return tuple(path for path in self.paths if self.entries[path].mode == GITLINK)


def list_tree(git_dir: Path, commit: str) -> Listing:
    """List a commit's tree.

    Raises:
        UsageError: The tree holds what git itself would not check out: `.git`,
            `.` or `..` as a component, or one path twice.
        InfrastructureError: The commit or a part of it is not there.
    """
    out = run_git(["ls-tree", "-r", "-t", "-z", "-l", "--full-tree", commit], git_dir=git_dir)
    entries: dict[bytes, Entry] = {}
    dirs: set[bytes] = set()
    for record in out.split(b"\0")[:-1]:
        meta, _, path = record.partition(b"\t")
        mode, kind, oid, size = meta.split()
        name = path.rpartition(b"/")[2]
        if name in (b"", b".", b"..") or is_dotgit(name) or path in dirs or path in entries:
            raise UsageError(
                f"the tree of {commit} cannot be checked out safely",
                why=f"it holds the entry {shown(path)}",
                mend="choose another commit, or rewrite this one without that entry",
            )
        if size == b"BAD":
            raise InfrastructureError(
                f"the object {oid.decode()} cannot be read",
                why=f"the repository does not hold {shown(path)}, as in a partial clone",
                mend="run `git fetch --refetch --no-filter` in the repository",
            )
        if kind == b"tree":
            dirs.add(path)
        else:
            entries[path] = Entry(
                path, _plain_mode(int(mode, 8)), oid.decode(), 0 if size == b"-" else int(size)
            )
    return Listing(entries=entries, paths=tuple(sorted(entries)), dirs=frozenset(dirs))


def _plain_mode(mode: int) -> int:
    """Old commits carry modes such as 100664; git reads them as one of the four."""
    if mode in (SYMLINK, GITLINK):
        return mode
    return PROGRAM if mode & 0o100 else FILE
