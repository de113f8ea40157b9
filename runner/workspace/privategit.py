"""The git directory that an agent sees: a branch `work`, a short history, nothing else.

It carries no remote, no hook and no configuration of the user's. Its objects
are a read-only mount, named through `info/alternates`; where history is cut,
`shallow` says so. The index is written with the stat data of the shared tree:
with `checkStat=minimal` and `trustctime=false` these hold for an overlay and
for a copy of it as well, so that the first `git status` reads no file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from runner.workspace.files import own_path
from runner.workspace.git import GitError, run_git

OBJECTS_TARGET: Final = "/run/rolebox/objects"
BRANCH: Final = "work"
_ATTRIBUTES: Final = "* -text !filter -ident !working-tree-encoding !eol !crlf\n"
_CONFIG: Final = """\
[core]
	repositoryformatversion = {version}
	bare = false
	filemode = true
	symlinks = true
	checkStat = minimal
	trustctime = false
	logAllRefUpdates = true
[extensions]
{extensions}[user]
	name = rolebox agent
	email = agent@rolebox.invalid
[gc]
	auto = 0
[maintenance]
	auto = false
"""


def build_template(
    store_git: Path,
    commit: str,
    *,
    tree: Path,
    objects: Path,
    template: Path,
    object_format: str,
    history: int,
    mtime: int,
) -> None:
    """Write `objects/` and `gitdir-template/` for a tree that was just extracted."""
    commits, cut = _recent(store_git, commit, history)
    (objects / "pack").mkdir(parents=True)
    (objects / "info").mkdir()
    wanted = run_git(["rev-list", "--objects", "--no-walk", *commits], git_dir=store_git)
    run_git(
        ["pack-objects", "--quiet", "--threads=1", str(objects / "pack" / "pack")],
        git_dir=store_git,
        stdin=wanted,
    )
    sha256 = object_format == "sha256"
    for name in ("refs/heads", "refs/tags", "objects/info", "objects/pack", "info"):
        (template / name).mkdir(parents=True)
    (template / "HEAD").write_text(f"ref: refs/heads/{BRANCH}\n")
    (template / "refs" / "heads" / BRANCH).write_text(commit + "\n")
    extensions = "\tobjectFormat = sha256\n" if sha256 else ""
    (template / "config").write_text(_CONFIG.format(version=int(sha256), extensions=extensions))
    (template / "info" / "attributes").write_text(_ATTRIBUTES)
    if cut:
        (template / "shallow").write_text("".join(f"{oid}\n" for oid in cut))
    borrow = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects)}
    run_git(["read-tree", commit], git_dir=template, work_tree=tree, env=borrow)
    run_git(
        ["update-index", "-q", "--refresh"], git_dir=template, work_tree=tree, cwd=tree, env=borrow
    )
    # An index no younger than its files is "racily clean" and makes git read them all.
    os.utime(template / "index", (mtime + 1, mtime + 1))
    (template / "objects" / "info" / "alternates").write_text(OBJECTS_TARGET + "\n")
    for path in (template, objects):
        _open_modes(path)


def copy_template(template: Path, dest: Path, *, uid: int, gid: int) -> None:
    """Copy a template for one run, times kept, owned by the agent's user."""
    shutil.copytree(template, dest)
    for folder, _, files in os.walk(dest):
        own_path(Path(folder), uid, gid)
        for name in files:
            own_path(Path(folder, name), uid, gid)


def _recent(store_git: Path, commit: str, history: int) -> tuple[list[str], list[str]]:
    """Return the commits to show and those of them whose parents are not shown.

    Parents are followed as `git clone --depth` does; one that the user's own
    shallow clone lacks ends the history there.
    """
    seen: dict[str, list[str]] = {}
    level = [commit]
    for _ in range(max(1, history)):
        for oid in level:
            seen[oid] = _parents(store_git, oid)
        above = dict.fromkeys(parent for oid in level for parent in seen[oid])
        level = [oid for oid in above if oid not in seen and _has(store_git, oid)]
    cut = [oid for oid, parents in seen.items() if any(parent not in seen for parent in parents)]
    return list(seen), sorted(cut)


def _parents(store_git: Path, commit: str) -> list[str]:
    header = run_git(["cat-file", "commit", commit], git_dir=store_git).partition(b"\n\n")[0]
    lines = [line.split(b" ", 1) for line in header.split(b"\n")]
    return [line[1].decode() for line in lines if line[0] == b"parent"]


def _has(store_git: Path, oid: str) -> bool:
    try:
        run_git(["cat-file", "-e", oid + "^{tree}"], git_dir=store_git)
    except GitError as error:
        if error.status is None:
            raise
        return False
    return True


def _open_modes(top: Path) -> None:
    """Readable by every user: the agent's uid differs from the host's."""
    for folder, _, files in os.walk(top):
        Path(folder).chmod(0o755)
        for name in files:
            Path(folder, name).chmod(0o644)
