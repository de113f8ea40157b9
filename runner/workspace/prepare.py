"""From symbolic mounts to directories on the host, for one run.

Layout below a run's `ws`: `lower/` links to parts of the shared checkout (their
names are ours, so nothing that a repository is called enters an option string),
`upper/` and `layer/` what the kernel writes, `private/` copies, `git` and
`scratch-git` the private git directories, `skeleton/` mount points.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from runner.model.errors import InfrastructureError, UsageError
from runner.workspace.facts import TreeFacts
from runner.workspace.files import copy_file, copy_tree, make_dir, new_file
from runner.workspace.lease import LeasedPath
from runner.workspace.mounts import MountPlan, WorkspaceSpec, choose_mode, plan_mounts
from runner.workspace.store import Checkout, private_git


@dataclass(frozen=True)
class Bind:
    """A directory or file of the host, mounted as it is."""

    host_path: Path
    target: str
    read_only: bool


@dataclass(frozen=True)
class Overlay:
    """A volume of the engine's `local` driver: type and device `overlay`, o = `options`.

    Attributes:
        name: The volume's name, unique to the run.
        lower: The lower directories joined with `:`, uppermost first.
        upper: Where writes go; None for a read-only overlay, as `work`.
    """

    name: str
    target: str
    read_only: bool
    lower: str
    upper: Path | None
    work: Path | None

    @property
    def options(self) -> str:
        layers = f"lowerdir={self.lower}"
        if self.upper is not None:
            layers += f",upperdir={self.upper},workdir={self.work}"
        return layers + ",userxattr"


WorkMount = Bind | Overlay


@dataclass(frozen=True)
class Area:
    """A place where the agent could write files of the tree.

    Attributes:
        path: Where it lies in the tree; b"" is the root.
        kind: "overlay": `host` is an upper layer. "full": `host` is all there is.
            "file": `host` is one file. "new-file": one that did not exist.
    """

    path: bytes
    kind: Literal["overlay", "full", "file", "new-file"]
    host: Path


@dataclass(frozen=True)
class Workspace:
    """All that the engine mounts for a run, and where its writes are found after."""

    root: Path
    commit: str
    plan: tuple[MountPlan, ...]
    mounts: tuple[WorkMount, ...]
    areas: tuple[Area, ...]
    scratch: Area | None


def prepare(
    checkout: Checkout,
    facts: TreeFacts,
    spec: WorkspaceSpec,
    *,
    run_id: str,
    root: Path,
    uid: int,
    gid: int,
) -> Workspace:
    """Make what `plan_mounts(facts, spec)` names.

    `root` is the run's own directory for this and must not exist yet; `uid` and
    `gid` are the agent's, who gets what may be written.

    Raises:
        UsageError: Overlay mode under a path that overlay options cannot carry.
        InfrastructureError: `root` exists, or the checkout is of another commit.
    """
    if choose_mode(root, spec.mode) != spec.mode:
        raise UsageError(
            f"{root} cannot hold an overlay",
            why='its path holds one of , : \\ "',
            mend="set ROLEBOX_HOME to a plainer path, or use copy mode",
        )
    if checkout.commit != facts.commit:
        raise InfrastructureError(
            "the lease was checked on another commit than the checkout's",
            why=f"{facts.commit} is not {checkout.commit}",
        )
    plan = plan_mounts(facts, spec)
    try:
        root.mkdir(parents=True, mode=0o700)
    except FileExistsError as error:
        raise InfrastructureError(f"the run already has a workspace at {root}") from error
    for name in ("lower", "upper", "layer", "private"):
        (root / name).mkdir()
    builder = _Builder(checkout, facts, spec, run_id, root, uid, gid)
    mounts = tuple(builder.make(mount) for mount in plan)
    return Workspace(
        root=root,
        commit=checkout.commit,
        plan=plan,
        mounts=mounts,
        areas=tuple(builder.areas),
        scratch=builder.scratch,
    )


@dataclass
class _Builder:
    checkout: Checkout
    facts: TreeFacts
    spec: WorkspaceSpec
    run_id: str
    root: Path
    uid: int
    gid: int
    areas: list[Area] = field(default_factory=list)
    scratch: Area | None = None
    serial: int = 0

    def make(self, mount: MountPlan) -> WorkMount:
        word, _, path = mount.source.partition(":")
        self.serial += 1
        match word:
            case "tree":
                return self._bind(mount, self.checkout.tree / path)
            case "objects":
                return self._bind(mount, self.checkout.objects)
            case "git" | "scratch-git":
                git = private_git(self.checkout, self.root / word, uid=self.uid, gid=self.gid)
                return self._bind(mount, git)
            case "skeleton":
                return self._skeleton(mount)
            case "scratch":
                made, self.scratch = self._writable(mount, self.spec.mode, ".")
                return made
            case "overlay" | "copy":
                made, area = self._writable(mount, self.spec.mode, path)
            case "file":
                made, area = self._file(mount, path)
            case "new":
                host = make_dir(self._private(), uid=self.uid, gid=self.gid)
                made, area = self._bind(mount, host), Area(path.encode(), "full", host)
            case _:
                raise InfrastructureError(f"the mount source {mount.source!r} is not known")
        self.areas.append(area)
        return made

    def _writable(self, mount: MountPlan, mode: str, path: str) -> tuple[WorkMount, Area]:
        source = self.checkout.tree / path
        where = b"" if path == "." else path.encode()
        if mode == "copy":
            host = self._private()
            copy_tree(source, host, uid=self.uid, gid=self.gid)
            return self._bind(mount, host), Area(where, "full", host)
        upper = make_dir(self.root / "upper" / str(self.serial), uid=self.uid, gid=self.gid)
        work = make_dir(self.root / "layer" / str(self.serial), uid=self.uid, gid=self.gid)
        overlay = Overlay(
            name=f"rolebox-{self.run_id}-ws{self.serial}",
            target=mount.target,
            read_only=mount.read_only,
            lower=str(self._lower(source, self.serial)),
            upper=upper,
            work=work,
        )
        return overlay, Area(where, "overlay", upper)

    def _file(self, mount: MountPlan, path: str) -> tuple[WorkMount, Area]:
        host = self._private()
        existing = LeasedPath(path=path, kind="file") in self.facts.leased
        if existing:
            source = os.fsencode(self.checkout.tree / path)
            copy_file(source, os.fsencode(host), uid=self.uid, gid=self.gid)
        else:
            self._touch(host)
        kind: Literal["file", "new-file"] = "file" if existing else "new-file"
        return self._bind(mount, host), Area(path.encode(), kind, host)

    def _skeleton(self, mount: MountPlan) -> WorkMount:
        """Add the mount points of new paths: by a second lower layer, or to a copy."""
        tree, skeleton = self.checkout.tree, self.root / "skeleton"
        if self.spec.mode == "copy":
            copy_tree(tree, skeleton, uid=self.uid, gid=self.gid)
        else:
            make_dir(skeleton, uid=self.uid, gid=self.gid)
        for lease in self.facts.leased:
            place = skeleton / lease.path
            if lease.kind in ("new-dir", "new-file"):
                last = place if lease.kind == "new-dir" else place.parent
                for folder in reversed(last.relative_to(skeleton).parents):
                    self._ensure_dir(skeleton / folder)
                self._ensure_dir(last)
            if lease.kind == "new-file":
                self._touch(place)
        if self.spec.mode == "copy":
            return self._bind(mount, skeleton)
        return Overlay(
            name=f"rolebox-{self.run_id}-ws{self.serial}",
            target=mount.target,
            read_only=True,
            lower=f"{skeleton}:{self._lower(tree, self.serial)}",
            upper=None,
            work=None,
        )

    def _ensure_dir(self, folder: Path) -> None:
        if not folder.exists():
            make_dir(folder, uid=self.uid, gid=self.gid)

    def _touch(self, path: Path) -> None:
        with new_file(os.fsencode(path), mode=0o644, uid=self.uid, gid=self.gid, mtime=0):
            pass

    def _lower(self, source: Path, serial: int) -> Path:
        link = self.root / "lower" / str(serial)
        link.symlink_to(source)
        return link

    def _private(self) -> Path:
        return self.root / "private" / str(self.serial)

    @staticmethod
    def _bind(mount: MountPlan, host: Path) -> Bind:
        return Bind(host_path=host, target=mount.target, read_only=mount.read_only)
