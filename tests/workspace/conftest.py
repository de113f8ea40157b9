"""Real repositories, real overlays: what the engine would mount, mounted by hand."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.workspace.changes import PatchLimits
from runner.workspace.facts import TreeFacts, tree_facts
from runner.workspace.files import remove_tree
from runner.workspace.lease import parse_lease
from runner.workspace.mounts import Access, Mode, WorkspaceSpec
from runner.workspace.patch import PatchResult, collect_patch
from runner.workspace.prepare import Bind, Workspace, prepare
from runner.workspace.repository import open_repository, resolve
from runner.workspace.store import Checkout, Store, checkout, open_store

UID = 4242
PROTECTED = (".git", ".codex", ".github", ".rolebox", ".gitmodules", "AGENTS.md", "*.rules")
WHEN = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.invalid",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.invalid",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
}


def sh(*argv: str | Path, cwd: Path, user: int | None = None) -> str:
    """Run a command as a person (or the agent) would, and return its stdout."""
    done = subprocess.run(
        [str(arg) for arg in argv],
        cwd=cwd,
        env=ENV,
        capture_output=True,
        check=False,
        user=user,
        group=user,
        extra_groups=[] if user else None,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "surrogateescape")


@dataclass
class Sample:
    """A user's repository."""

    path: Path

    def git(self, *args: str) -> str:
        return sh("git", "-c", "protocol.file.allow=always", *args, cwd=self.path)

    def write(self, files: dict[str, str | bytes]) -> None:
        for name, content in files.items():
            place = self.path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            place.write_bytes(data)

    def commit(self, files: dict[str, str | bytes] | None = None, message: str = "m") -> str:
        self.write(files or {})
        self.git("add", "-A", "-f")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").strip()


def make_sample(path: Path, object_format: str = "sha1") -> Sample:
    path.mkdir(parents=True)
    sample = Sample(path)
    sample.git("init", "-q", "-b", "main", f"--object-format={object_format}")
    return sample


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    made = make_sample(tmp_path / "user")
    made.commit(
        {
            "README.md": "hello\n",
            "src/a.py": "a = 1\n",
            "src/b.py": "b = 1\n",
            "src/deep/c.py": "c = 1\n",
            "src/AGENTS.md": "rules\n",
            "data/x.bin": bytes(range(256)),
            ".github/workflows/ci.yml": "on: push\n",
        }
    )
    return made


@dataclass
class Run:
    """One run's workspace, mounted at `view` as the agent would see it."""

    store: Store
    checkout: Checkout
    facts: TreeFacts
    workspace: Workspace
    lease: tuple[str, ...]
    view: Path
    scratch: Path
    out: Path
    unmount: Callable[[], None]

    def agent(self, *argv: str, at: Path | None = None) -> str:
        return sh(*argv, cwd=at or self.view, user=UID)

    def collect(self, *, limits: PatchLimits | None = None, scratch: bool = False) -> PatchResult:
        self.unmount()
        return collect_patch(
            self.workspace,
            self.store,
            lease=parse_lease(self.lease),
            protected=PROTECTED,
            limits=limits or PatchLimits(),
            run_id="20300102t030405000-abcdef",
            when=WHEN,
            out=self.out,
            scratch=scratch,
        )


StartRun = Callable[..., Run]


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[StartRun]:
    """Prepare a run and mount it: overlays with the options made for the engine."""
    undo: list[Callable[[], None]] = []

    def start(
        sample: Sample,
        lease: Sequence[str] = (".",),
        *,
        mode: Mode = "overlay",
        access: Access = "write",
        scratch: bool = False,
        name: str = "run",
    ) -> Run:
        home = tmp_path / "home"
        repository = open_repository(sample.path)
        store = open_store(home, repository)
        made = checkout(store, resolve(repository).commit, uid=UID, gid=UID)
        facts = tree_facts(
            store, made.commit, protected_patterns=PROTECTED, lease=parse_lease(lease)
        )
        workspace = prepare(
            made,
            facts,
            WorkspaceSpec(mode=mode, access=access, scratch=scratch),
            run_id=name,
            root=home / "runs" / name / "ws",
            uid=UID,
            gid=UID,
        )
        base = tmp_path / f"mnt-{name}"
        view, scratch_view = base / "work", base / "scratch"
        view.mkdir(parents=True)
        scratch_view.mkdir()
        unmount = _mount(workspace, base)
        undo.append(unmount)
        for git_dir in (view / ".git", scratch_view / ".git"):
            _point_at_objects(git_dir, made)
        for parent in (tmp_path, *tmp_path.parents[:2], base):
            parent.chmod(parent.stat().st_mode | 0o011)
        return Run(
            store=store,
            checkout=made,
            facts=facts,
            workspace=workspace,
            lease=tuple(lease),
            view=view,
            scratch=scratch_view,
            out=tmp_path / f"{name}.diff",
            unmount=unmount,
        )

    yield start
    for unmount in undo:
        unmount()
    remove_tree(tmp_path / "home" / "runs")


def _mount(workspace: Workspace, base: Path) -> Callable[[], None]:
    mounted: list[Path] = []
    for mount in workspace.mounts:
        if mount.target.startswith("/run/"):
            continue
        place = base / mount.target.removeprefix("/")
        if isinstance(mount, Bind):
            sh("mount", "--bind", mount.host_path, place, cwd=base)
            mounted.append(place)
            if mount.read_only:
                sh("mount", "-o", "remount,bind,ro", place, cwd=base)
        else:
            options = mount.options + (",ro" if mount.read_only else "")
            sh("mount", "-t", "overlay", "overlay", "-o", options, place, cwd=base)
            mounted.append(place)

    def unmount() -> None:
        while mounted:
            sh("umount", mounted.pop(), cwd=base)

    return unmount


def _point_at_objects(git_dir: Path, made: Checkout) -> None:
    """Stand in for the mount at /run/rolebox/objects, which this host must not have."""
    alternates = git_dir / "objects" / "info" / "alternates"
    if alternates.exists() and os.statvfs(git_dir).f_flag & os.ST_RDONLY == 0:
        alternates.write_text(f"{made.objects}\n")
        for parent in (made.objects, *made.objects.parents[:4]):
            parent.chmod(parent.stat().st_mode | 0o055)
