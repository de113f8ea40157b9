"""Make the demo's repository: the same files, dates and identity, so the same commit every time."""

from __future__ import annotations

import shutil
from pathlib import Path

from runner.model.errors import UsageError
from runner.workspace.git import run_git

_SAMPLE = Path(__file__).parent / "sample"
_IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (
        ("NAME", "rolebox demo"),
        ("EMAIL", "demo@rolebox.invalid"),
        ("DATE", "2026-01-01T00:00:00Z"),
    )
}


def make_repository(target: Path) -> Path:
    """Return the sample repository at `target`, made if it is not there.

    Raises:
        UsageError: Something else is there.
    """
    if (target / ".git").is_dir() and (target / "wordbox").is_dir():
        return target
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty", mend="name an empty folder with --keep")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(_SAMPLE, target, dirs_exist_ok=True, ignore=ignore)
    git_dir = target / ".git"
    run_git(["init", "--quiet", "--initial-branch=main", str(target)], git_dir=None)
    run_git(["add", "--all"], git_dir=git_dir, work_tree=target, cwd=target)
    run_git(
        ["commit", "--quiet", "--message", "wordbox: count words"],
        git_dir=git_dir,
        work_tree=target,
        cwd=target,
        env=_IDENTITY,
    )
    return target


def script(role: str) -> Path:
    """Return the model script of one role of the demo."""
    return Path(__file__).parent / "scripts" / f"{role}.json"
