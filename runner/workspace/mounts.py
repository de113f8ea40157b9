"""What is mounted where, as words: the part of a plan that the workspace fills.

`plan_mounts` is pure. Its result stands in the RunPlan as it is, and `prepare`
makes exactly these mounts, so the plan and the container cannot disagree.

Sources:

    tree            the shared checkout, read-only
    tree:PATH       a part of it, read-only, on top of a leased directory
    skeleton        the checkout plus the mount points that a lease needs, read-only
    overlay:PATH    a leased directory, writes kept apart in an upper layer
    copy:PATH       a leased directory, a private copy (hosts without overlay)
    file:PATH       a leased file, a private copy (empty if it is new)
    new:PATH        a leased directory that does not exist yet
    git             the run's private git directory
    objects         the history that it may read, read-only
    scratch         a throw-away copy of the whole tree, and `scratch-git` its git
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from runner.model.base import Frozen
from runner.model.errors import UsageError
from runner.workspace.facts import TreeFacts
from runner.workspace.lease import LeasedPath
from runner.workspace.privategit import OBJECTS_TARGET

WORK_TARGET: Final = "/work"
SCRATCH_TARGET: Final = "/scratch"
Mode = Literal["overlay", "copy"]
Access = Literal["read-only", "write"]


class MountPlan(Frozen):
    """One mount, free of host paths."""

    target: str
    source: str
    read_only: bool


@dataclass(frozen=True)
class WorkspaceSpec:
    """How a run sees the tree."""

    mode: Mode
    access: Access
    scratch: bool


def choose_mode(home: Path, wanted: Mode) -> Mode:
    """Return the mode that this state folder allows.

    Overlay options are one string with commas, colons and backslashes as syntax, which the
    engine hands on without escapes; a state folder with these gets copies.
    """
    return "copy" if set(str(home)) & set(',:\\"') else wanted


def plan_mounts(facts: TreeFacts, spec: WorkspaceSpec) -> tuple[MountPlan, ...]:
    """Return the mounts of a run, parents before children.

    Raises:
        UsageError: A read-only role was given a lease.
    """
    if spec.access == "read-only" and facts.leased:
        raise UsageError(
            "a read-only role has no write lease",
            why="leased: " + ", ".join(lease.path for lease in facts.leased),
            mend="drop --write, or use a role that may write",
        )
    mounts = [
        _root(facts, spec.mode),
        *(_leased(lease, spec.mode) for lease in facts.leased if lease.path != "."),
        *(
            MountPlan(target=_at(path), source=f"tree:{path}", read_only=True)
            for path in facts.protected
        ),
        MountPlan(target=_at(".git"), source="git", read_only=spec.access == "read-only"),
        MountPlan(target=OBJECTS_TARGET, source="objects", read_only=True),
    ]
    if spec.scratch:
        mounts.append(MountPlan(target=SCRATCH_TARGET, source="scratch", read_only=False))
        target = f"{SCRATCH_TARGET}/.git"
        mounts.append(MountPlan(target=target, source="scratch-git", read_only=False))
    return tuple(sorted(mounts, key=lambda mount: mount.target.split("/")))


def needs_skeleton(facts: TreeFacts) -> bool:
    return any(lease.kind in ("new-dir", "new-file") for lease in facts.leased)


def _root(facts: TreeFacts, mode: Mode) -> MountPlan:
    if any(lease.path == "." for lease in facts.leased):
        return MountPlan(target=WORK_TARGET, source=f"{mode}:.", read_only=False)
    source = "skeleton" if needs_skeleton(facts) else "tree"
    return MountPlan(target=WORK_TARGET, source=source, read_only=True)


def _leased(lease: LeasedPath, mode: Mode) -> MountPlan:
    word = {"dir": mode, "file": "file", "new-file": "file", "new-dir": "new"}[lease.kind]
    return MountPlan(target=_at(lease.path), source=f"{word}:{lease.path}", read_only=False)


def _at(path: str) -> str:
    return f"{WORK_TARGET}/{path}"
