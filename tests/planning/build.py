"""Fixed inputs of a plan, so that a test names only what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.model.pins import Pins
from runner.model.plan import MountSpec, PlannedRun, SourceSpec
from runner.model.profile import PROTECTED
from runner.planning.profiles import Role, load_role
from runner.planning.resolve import Task, Tree, resolve
from runner.resources import profiles_dir

ROLES = ("fixer", "reviewer", "scaffold")
UID = GID = 1000
SECCOMP = {"agent": '{"agent":1}', "agent-userns": '{"userns":1}', "gateway": '{"gateway":1}'}
SCRIPT: Mapping[str, Any] = {"turns": [{"say": "done"}]}

PINS = Pins(
    agent_image="sha256:" + "a" * 64,
    gateway_image="sha256:" + "b" * 64,
    codex_version="0.169.0",
    codex_sha256="sha256:" + "c" * 64,
    models=("gpt-5.5", "gpt-6.1"),
    lock_sha256="sha256:" + "d" * 64,
    origin="shipped",
)

SOURCE = SourceSpec(commit="1" * 40, tree="2" * 40, history=2)


def mount(target: str, source: str, *, read_only: bool = True) -> MountSpec:
    return MountSpec(target=target, source=source, read_only=read_only)


def tree(*lease: str, scratch: bool = False, source: SourceSpec = SOURCE) -> Tree:
    """The tree as the workspace room gives it: leased directories that exist, one protected."""
    mounts = [mount("/work", "overlay:." if "." in lease else "tree", read_only="." not in lease)]
    for path in lease:
        if path != ".":
            name = path.rstrip("/")
            mounts.append(mount(f"/work/{name}", f"overlay:{name}", read_only=False))
            mounts.append(mount(f"/work/{name}/AGENTS.md", f"tree:{name}/AGENTS.md"))
    mounts += [
        mount("/work/.git", "git", read_only=not lease),
        mount("/objects", "objects"),
    ]
    if scratch:
        mounts += [
            mount("/scratch", "scratch", read_only=False),
            mount("/scratch/.git", "scratch-git", read_only=False),
        ]
    return Tree(source=source, lease=lease, protected=PROTECTED, mounts=tuple(mounts))


def usual_tree(role: str) -> Tree:
    """The tree of a role's usual run."""
    return {
        "scaffold": tree("src/"),
        "fixer": tree(scratch=True),
        "reviewer": tree(),
    }[role]


def role(name: str, own: Path | None = None) -> Role:
    return load_role(name, profiles_dir(), own)


def planned(
    name: str = "scaffold",
    task: Task | None = None,
    at: Tree | None = None,
    *,
    pins: Pins = PINS,
    as_role: Role | None = None,
    seccomp: Mapping[str, str] = SECCOMP,
) -> PlannedRun:
    return resolve(
        as_role or role(name),
        task or Task(prompt="do it", script=SCRIPT),
        at or usual_tree(name),
        pins,
        uid=UID,
        gid=GID,
        seccomp=seccomp,
    )
