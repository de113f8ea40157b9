"""A host-owned bare store per repository, and the checkouts built from it.

The store borrows the user's objects through `info/alternates` and never writes
there. What runs produce (the patch commits) lands in the store alone.

A checkout is shared by every run on the same commit: `checkout()` builds it
once, in a temporary directory beside its place, and renames it when it is
whole. Building it by hand from `cat-file` instead of `git checkout` makes the
bytes of files the bytes of blobs whatever attributes, filters or line endings
the tree asks for, and sets owner and time in the same pass. The price: files
kept in LFS appear as their pointers.

    tree/               the files; an empty `.git` to mount the private git on
    objects/            one pack with the last `history` commits, nothing older
    gitdir-template/    HEAD, config, index, shallow: copied for each run
    checkout.json       what it is; its mtime is the last use
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from runner.locks import LockBusy, locked
from runner.model.base import Frozen
from runner.model.errors import UsageError
from runner.workspace.extract import extract
from runner.workspace.files import remove_tree
from runner.workspace.git import run_git
from runner.workspace.listing import list_tree
from runner.workspace.privategit import build_template, copy_template
from runner.workspace.repository import Repository

HISTORY: Final = 2
_LOCK_SECONDS: Final = 1800.0
NEUTRAL_ATTRIBUTES: Final = "* -text !filter -ident !working-tree-encoding !diff !eol !crlf\n"


@dataclass(frozen=True)
class Store:
    """One repository's host-owned objects and refs."""

    home: Path
    repo_id: str
    git_dir: Path
    object_format: str


class CheckoutRecord(Frozen):
    """`checkout.json`."""

    schema_: Literal["rolebox.checkout/1"] = "rolebox.checkout/1"
    commit: str
    files: int


@dataclass(frozen=True)
class Checkout:
    """A whole checkout; `built` says whether this call made it."""

    path: Path
    commit: str
    object_format: str
    files: int
    built: bool

    @property
    def tree(self) -> Path:
        return self.path / "tree"

    @property
    def objects(self) -> Path:
        return self.path / "objects"

    @property
    def template(self) -> Path:
        return self.path / "gitdir-template"


def open_store(home: Path, repository: Repository) -> Store:
    """Return the repository's store, made on first use.

    Raises:
        UsageError: The path of the repository cannot be written into `alternates`.
    """
    folder = home / "repos" / repository.repo_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    git_dir = folder / "store.git"
    objects = str(repository.objects)
    if "\n" in objects:
        raise UsageError("the repository's path holds a line break", mend="move it elsewhere")
    with locked(folder / "store.lock", _LOCK_SECONDS):
        if not git_dir.exists():
            new = folder / "store.new"
            remove_tree(new)
            form = f"--object-format={repository.object_format}"
            run_git(["init", "--quiet", "--bare", "--template=", form, str(new)], git_dir=None)
            (new / "objects" / "info").mkdir(parents=True, exist_ok=True)
            (new / "info").mkdir(exist_ok=True)
            (new / "info" / "attributes").write_text(NEUTRAL_ATTRIBUTES)
            (new / "objects" / "info" / "alternates").write_bytes(os.fsencode(objects) + b"\n")
            new.rename(git_dir)
        _copy_shallow(repository.git_dir, git_dir)
    return Store(home, repository.repo_id, git_dir, repository.object_format)


def checkout(store: Store, commit: str, *, uid: int, gid: int, history: int = HISTORY) -> Checkout:
    """Return the shared checkout of a commit, built on first use.

    `uid` and `gid` own the files where the caller may give them away (root);
    `history` is how many commits deep the agent's `git log` reaches.

    Raises:
        InfrastructureError: The checkout is being built elsewhere and does not get done.
    """
    folder = store.home / "trees" / store.repo_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = folder / f"{commit}-{uid}-{gid}-{history}"
    with locked(_lock_of(place), _LOCK_SECONDS):
        built = not place.exists()
        if built:
            _build(store, commit, place, uid=uid, gid=gid, history=history)
        record = CheckoutRecord.model_validate_json((place / "checkout.json").read_bytes())
        os.utime(place / "checkout.json")
    return Checkout(
        path=place,
        commit=commit,
        object_format=store.object_format,
        files=record.files,
        built=built,
    )


def private_git(checkout: Checkout, dest: Path, *, uid: int, gid: int) -> Path:
    """Copy the template to a run's own git directory, to be mounted at `/work/.git`.

    What is copied is small; the objects are mounted read-only, not copied.
    """
    copy_template(checkout.template, dest, uid=uid, gid=gid)
    return dest


def prune(home: Path, *, keep: Collection[Path], unused_since: float) -> tuple[Path, ...]:
    """Delete checkouts that no run needs and return their paths.

    Those in `keep` (mounted by live runs) stay, and those used later than the
    POSIX time `unused_since`.
    """
    removed = []
    for record in sorted((home / "trees").glob("*/*/checkout.json")):
        place = record.parent
        if place in keep or place.name.startswith("."):
            continue
        try:
            with locked(_lock_of(place), 0):
                if not record.exists() or record.stat().st_mtime > unused_since:
                    continue
                doomed = place.parent / f".tmp-{place.name}-gone"
                place.rename(doomed)
                remove_tree(doomed)
                removed.append(place)
        except LockBusy:
            continue
    return tuple(removed)


def _copy_shallow(source: Path, git_dir: Path) -> None:
    """A shallow clone's missing parents are missing here too; git has to know which."""
    theirs, ours = source / "shallow", git_dir / "shallow"
    cut = theirs.read_bytes() if theirs.exists() else b""
    if cut != (ours.read_bytes() if ours.exists() else b""):
        new = git_dir / "shallow.new"
        new.write_bytes(cut)
        new.replace(ours)


def _lock_of(place: Path) -> Path:
    return place.parent / f"{place.name}.lock"


def _build(store: Store, commit: str, place: Path, *, uid: int, gid: int, history: int) -> None:
    """Build a checkout beside its place, then rename it; the caller holds its lock."""
    for leftover in place.parent.glob(f".tmp-{place.name}-*"):
        remove_tree(leftover)
    temporary = place.parent / f".tmp-{place.name}-{os.getpid()}"
    temporary.mkdir(mode=0o755)
    temporary.chmod(0o755)
    when = run_git(["show", "-s", "--format=%ct", commit], git_dir=store.git_dir)
    mtime = max(0, int(when))
    listing = list_tree(store.git_dir, commit)
    extract(store.git_dir, listing, temporary / "tree", uid=uid, gid=gid, mtime=mtime)
    build_template(
        store.git_dir,
        commit,
        tree=temporary / "tree",
        objects=temporary / "objects",
        template=temporary / "gitdir-template",
        object_format=store.object_format,
        history=history,
        mtime=mtime,
    )
    record = CheckoutRecord(commit=commit, files=len(listing.paths))
    (temporary / "checkout.json").write_text(record.model_dump_json())
    os.sync()
    temporary.rename(place)
