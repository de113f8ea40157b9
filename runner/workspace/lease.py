"""Write leases: the paths of the tree that a role may change.

A lease is text that a person typed, so it is normalised first (`parse_lease`)
and then held against the tree of the run's commit (`check_lease`). Both refuse
rather than repair. `src` and `src/` name the same directory when it exists; the
slash decides only what a path becomes that does not exist yet.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

from runner.model.base import Frozen
from runner.model.errors import LeaseRefused
from runner.workspace.listing import Listing
from runner.workspace.names import is_dotgit
from runner.workspace.protected import Protected

LeaseKind = Literal["dir", "file", "new-dir", "new-file"]


class Lease(Frozen):
    """Normalised paths, sorted, none inside another; "." alone is the whole tree.

    A trailing slash is kept where it was written. No paths: nothing may be written.
    """

    paths: tuple[str, ...] = ()

    def covers(self, path: bytes) -> bool:
        """Say whether a path of the tree is leased or lies below a leased one."""
        for leased in self.paths:
            name = leased.removesuffix("/").encode()
            if name == b"." or path == name or path.startswith(name + b"/"):
                return True
        return False


class LeasedPath(Frozen):
    """A leased path as the tree has it; no trailing slash."""

    path: str
    kind: LeaseKind


def parse_lease(paths: Sequence[str]) -> Lease:
    """Normalise leased paths.

    Raises:
        LeaseRefused: Empty, absolute, `..`, `.git`, control characters, not UTF-8.
    """
    slashed: dict[str, bool] = {}
    for path in paths:
        name = _normalise(path)
        slashed[name] = slashed.get(name, False) or (name != "." and path.endswith("/"))
    kept = [name for name in slashed if not any(_inside(name, other) for other in slashed)]
    return Lease(paths=tuple(name + "/" * slashed[name] for name in sorted(kept)))


def check_lease(lease: Lease, listing: Listing, protected: Protected) -> tuple[LeasedPath, ...]:
    """Hold a lease against a tree.

    Raises:
        LeaseRefused: A path is protected, or goes through a link, a submodule or a file.
    """
    return tuple(_check(path, listing, protected) for path in lease.paths)


def overlaps(a: str, b: str) -> bool:
    """Say whether two leased paths could mean one file on any file system."""
    one, other = _key(a), _key(b)
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def leases_overlap(a: Lease, b: Lease) -> bool:
    return any(overlaps(one, other) for one in a.paths for other in b.paths)


def _normalise(path: str) -> str:
    if not path:
        raise _refused(path, "it is empty", "use . for the whole tree")
    if path.startswith("/"):
        raise _refused(path, "it is absolute", "write it relative to the root of the tree")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise _refused(path, "it holds a control character or is not UTF-8", "lease its parent")
    components = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in components:
        raise _refused(path, "it goes up with ..", "write it relative to the root of the tree")
    if any(is_dotgit(part.encode()) for part in components):
        raise _refused(path, "git's own directory is never leased", "lease the files you need")
    return "/".join(components) or "."


def _inside(path: str, other: str) -> bool:
    return path != other and (other == "." or path.startswith(other + "/"))


def _check(path: str, listing: Listing, protected: Protected) -> LeasedPath:
    name = path.removesuffix("/")
    slash = path.endswith("/")
    if name == ".":
        return LeasedPath(path=".", kind="dir")
    raw = name.encode()
    parts = raw.split(b"/")
    for depth in range(1, len(parts) + 1):
        part = b"/".join(parts[:depth])
        kind = listing.kind(part)
        last = depth == len(parts)
        if kind == "symlink":
            raise _refused(path, f"{part.decode()} is a symbolic link", "lease its target")
        if kind == "submodule":
            raise _refused(path, f"{part.decode()} is a submodule", "run on the submodule itself")
        if kind == "file" and (slash or not last):
            raise _refused(path, f"{part.decode()} is a file", "lease the file itself")
    found = listing.kind(raw)
    is_dir = found == "dir" or (found is None and slash)
    pattern = protected.match(raw, is_dir=is_dir)
    if pattern is not None:
        raise _refused(path, f"it is protected by {pattern!r}", "change it by hand, outside a run")
    if found is None:
        return LeasedPath(path=name, kind="new-dir" if slash else "new-file")
    return LeasedPath(path=name, kind="dir" if is_dir else "file")


def _refused(path: str, why: str, mend: str) -> LeaseRefused:
    return LeaseRefused(f"the lease {path!r} is refused", why=why, mend=mend)


def _key(path: str) -> tuple[str, ...]:
    decomposed = unicodedata.normalize("NFD", path)
    folded = unicodedata.normalize("NFC", decomposed.casefold())
    return tuple(part for part in folded.split("/") if part not in ("", "."))
