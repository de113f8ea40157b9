"""What planning has to know about a commit's tree: pure data, read from the store."""

from __future__ import annotations

from collections.abc import Sequence

from runner.model.base import Frozen
from runner.model.errors import LeaseRefused
from runner.workspace.lease import Lease, LeasedPath, check_lease
from runner.workspace.listing import Listing, list_tree
from runner.workspace.names import shown, text
from runner.workspace.protected import Protected, compile_protected
from runner.workspace.store import Store


class TreeFacts(Frozen):
    """A lease held against a tree.

    Attributes:
        leased: Each leased path with its kind.
        protected: Existing protected files and directories inside leased
            directories, topmost only: each gets a read-only mount.
        protected_links: Protected symbolic links there. A mount would follow
            them, so only the patch's checks guard those.
        submodules: Every submodule path of the tree.
        files: Leaves of the tree, submodules not counted.
    """

    commit: str
    leased: tuple[LeasedPath, ...]
    protected: tuple[str, ...]
    protected_links: tuple[str, ...]
    submodules: tuple[str, ...]
    files: int


def tree_facts(
    store: Store, commit: str, *, protected_patterns: Sequence[str], lease: Lease
) -> TreeFacts:
    """Hold a lease against a commit's tree.

    Raises:
        LeaseRefused: See `check_lease`; or a protected path inside the lease has
            a name that no mount can carry.
        UsageError: A pattern is not supported, or the tree is not safe.
    """
    listing = list_tree(store.git_dir, commit)
    rules = compile_protected(protected_patterns, submodules=listing.submodules)
    leased = check_lease(lease, listing, rules)
    mounts, links = _protected_inside(listing, rules, leased)
    return TreeFacts(
        commit=commit,
        leased=leased,
        protected=mounts,
        protected_links=links,
        submodules=tuple(shown(path) for path in listing.submodules),
        files=len(listing.paths) - len(listing.submodules),
    )


def _protected_inside(
    listing: Listing, rules: Protected, leased: Sequence[LeasedPath]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found: set[bytes] = set()
    for lease in leased:
        if lease.kind == "dir":
            area = b"" if lease.path == "." else lease.path.encode()
            for path in listing.at_or_under(area):
                top = _topmost(listing, rules, path)
                if top is not None:
                    found.add(top)
    links = {path for path in found if listing.kind(path) == "symlink"}
    return tuple(sorted(map(_mountable, found - links))), tuple(sorted(map(shown, links)))


def _topmost(listing: Listing, rules: Protected, leaf: bytes) -> bytes | None:
    """Return the highest protected path on the way to a leaf, if there is one."""
    if rules.match(leaf) is None:
        return None
    parts = leaf.split(b"/")
    for depth in range(1, len(parts)):
        parent = b"/".join(parts[:depth])
        if rules.match(parent, is_dir=listing.kind(parent) == "dir") is not None:
            return parent
    return leaf


def _mountable(path: bytes) -> str:
    name = text(path)
    if not name.isprintable():
        raise LeaseRefused(
            f"the protected path {shown(path)} cannot be mounted read-only",
            why="its name holds control characters or is not UTF-8",
            mend="lease directories that do not contain it",
        )
    return name
