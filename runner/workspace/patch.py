"""From what an agent wrote to a patch: a commit in the host-owned store and its diff.

Git never runs in a directory of the agent's. `changes.py` reads that directory
by descriptors and streams bytes into `git fast-import`; the diff is then made
between two commits of a store that only the host writes.

A collection that met a bound (too many entries, a diff beyond its cap) gives no
commit at all: a part of a change is not what anybody asked for.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from runner.model.base import Frozen
from runner.model.errors import UsageError
from runner.workspace.changes import Anomaly, Changes, PatchLimits
from runner.workspace.fastimport import importing
from runner.workspace.git import git_process, run_git
from runner.workspace.lease import Lease
from runner.workspace.listing import list_tree
from runner.workspace.names import shown
from runner.workspace.prepare import Workspace
from runner.workspace.protected import compile_protected
from runner.workspace.store import Store

_DIFF = (
    "--full-index",
    "--no-renames",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--ignore-submodules=none",
)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


class _TooLargeError(Exception):
    pass


class FileChange(Frozen):
    """One changed path, escaped; line counts are None for binary files."""

    path: str
    status: Literal["added", "changed", "removed"]
    added: int | None
    removed: int | None


class PatchResult(Frozen):
    """The outcome of a collection.

    Attributes:
        commit: The commit under `ref`; None when nothing may be or was changed.
        tree: The tree that the patch leads to: the base's when there is no commit.
        sha256: Of the diff's bytes, as `sha256:<hex>`; of no bytes when there is none.
        violations: Changes that a rule of the run forbids; not in the commit.
        anomalies: What git must not or cannot carry; not in the commit.
        omitted: Reports beyond the cap on their number.
        complete: False when a bound was met and the commit was given up for it.
    """

    ref: str | None
    commit: str | None
    base: str
    tree: str
    sha256: str
    size: int
    files: tuple[FileChange, ...]
    violations: tuple[Anomaly, ...]
    anomalies: tuple[Anomaly, ...]
    omitted: int
    complete: bool


def collect_patch(
    workspace: Workspace,
    store: Store,
    *,
    lease: Lease,
    protected: tuple[str, ...],
    limits: PatchLimits,
    run_id: str,
    when: datetime,
    out: Path,
    scratch: bool = False,
) -> PatchResult:
    """Compute the patch of a run whose container is gone.

    Args:
        workspace: As `prepare` returned it, its overlays unmounted.
        store: The repository's store; gets `refs/rolebox/<run_id>`.
        lease: What the run may have changed; ignored for scratch.
        protected: The patterns that the run was planned with.
        limits: See `PatchLimits`.
        run_id: Names the ref and stands in the commit's message.
        when: Author and committer time.
        out: Where the diff is written; replaced if it exists.
        scratch: Collect the scratch copy (into `refs/rolebox-scratch/<run_id>`) instead.

    Raises:
        GitError: The store failed.
        InfrastructureError: The directories changed during the collection.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(f"{run_id!r} is not a run id", mend="use letters, digits and hyphens")
    areas = workspace.areas
    ref = f"refs/rolebox/{run_id}"
    if scratch:
        areas = (workspace.scratch,) if workspace.scratch else ()
        lease = Lease(paths=(".",))
        ref = f"refs/rolebox-scratch/{run_id}"
    base = list_tree(store.git_dir, workspace.commit)
    rules = compile_protected(protected, submodules=base.submodules)
    with importing(store.git_dir) as importer:
        changes = Changes(base, lease, rules, limits, importer, store.object_format)
        for area in areas:
            changes.collect(area)
        deleted = () if changes.truncated else changes.deleted()
        changed = bool(deleted or changes.written) and not changes.truncated
        if changed:
            importer.commit(
                ref,
                workspace.commit,
                when=when,
                message=f"rolebox run {run_id}\n",
                deleted=deleted,
                written=sorted((path, *what) for path, what in changes.written.items()),
            )
    return _result(workspace.commit, ref if changed else None, store, changes, out)


def _result(base: str, ref: str | None, store: Store, changes: Changes, out: Path) -> PatchResult:
    git_dir = store.git_dir
    commit = _rev(git_dir, ref) if ref else None
    digest, size = hashlib.sha256().hexdigest(), 0
    complete = not changes.truncated
    with out.open("wb") as stream:
        try:
            if commit:
                digest, size = _diff(git_dir, base, commit, stream, changes.limits.patch_bytes)
        except _TooLargeError:
            stream.truncate(0)
            detail = f"more than {changes.limits.patch_bytes} bytes of diff"
            changes.anomalies.append(Anomaly(path=".", kind="patch-too-large", detail=detail))
            run_git(["update-ref", "-d", str(ref)], git_dir=git_dir)
            ref, commit, complete = None, None, False
    return PatchResult(
        ref=ref,
        commit=commit,
        base=base,
        tree=_rev(git_dir, f"{commit or base}^{{tree}}"),
        sha256=f"sha256:{digest}",
        size=size,
        files=_files(git_dir, base, commit) if commit else (),
        violations=tuple(changes.violations),
        anomalies=tuple(changes.anomalies),
        omitted=changes.omitted,
        complete=complete,
    )


def _rev(git_dir: Path, name: str) -> str:
    return run_git(["rev-parse", "--verify", name], git_dir=git_dir).decode().strip()


def _diff(git_dir: Path, base: str, commit: str, stream: IO[bytes], cap: int) -> tuple[str, int]:
    """Write the diff and return its SHA-256 and size; stop as soon as it passes `cap`."""
    digest, size = hashlib.sha256(), 0
    args = ["diff-tree", "-p", "-r", "--binary", *_DIFF, base, commit]
    with git_process(args, git_dir=git_dir) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 20):
            size += len(data)
            if size > cap:
                raise _TooLargeError
            digest.update(data)
            stream.write(data)
    return digest.hexdigest(), size


def _files(git_dir: Path, base: str, commit: str) -> tuple[FileChange, ...]:
    raw = run_git(["diff-tree", "-r", "-z", "--raw", *_DIFF, base, commit], git_dir=git_dir)
    counts = run_git(["diff-tree", "-r", "-z", "--numstat", *_DIFF, base, commit], git_dir=git_dir)
    lines: dict[bytes, tuple[int | None, int | None]] = {}
    for record in counts.split(b"\0")[:-1]:
        added, removed, path = record.split(b"\t", 2)
        lines[path] = (_count(added), _count(removed))
    fields = raw.split(b"\0")[:-1]
    words: dict[bytes, Literal["added", "changed", "removed"]] = {b"A": "added", b"D": "removed"}
    files = []
    for meta, path in zip(fields[::2], fields[1::2], strict=True):
        plus, minus = lines.get(path, (0, 0))
        status = words.get(meta.rsplit(b" ", 1)[1], "changed")
        files.append(FileChange(path=shown(path), status=status, added=plus, removed=minus))
    return tuple(files)


def _count(field: bytes) -> int | None:
    return None if field == b"-" else int(field)
