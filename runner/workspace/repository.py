"""The user's repository: found, named and resolved; never written.

Ownership is checked here and not by matching git's message: a repository that
belongs to another user may hold configuration that runs that user's programs
(CVE-2022-24765). Linked worktrees share one `repo_id`, because they share the
branches that an approved patch lands on.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from runner.model.errors import UsageError
from runner.workspace.git import GitError, run_git


@dataclass(frozen=True)
class Repository:
    """Where a repository keeps its parts.

    Attributes:
        top: The working tree's root; None for a store of rolebox's own.
        git_dir: The common directory: objects and refs.
        head_dir: The directory with this worktree's HEAD; `git_dir` unless linked.
        object_format: "sha1" or "sha256".
        repo_id: A short, stable hash of `git_dir`'s real path.
    """

    top: Path | None
    git_dir: Path
    head_dir: Path
    object_format: str
    repo_id: str

    @property
    def objects(self) -> Path:
        return self.git_dir / "objects"


@dataclass(frozen=True)
class Source:
    """A commit to run on."""

    commit: str
    tree: str


def open_repository(
    path: Path, *, owners: Collection[int] | None = None, user_home: Path | None = None
) -> Repository:
    """Find the repository that holds a path.

    It must belong to one of `owners` (the caller by default), or the git
    configuration below `user_home` must name it as a `safe.directory`.

    Raises:
        UsageError: No such path, no repository, no commits, or another user's.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory", mend="name the repository with -C DIR")
    real = path.resolve()
    try:
        out = run_git(
            [
                "-c",
                "safe.directory=*",
                "rev-parse",
                "--path-format=absolute",
                "--show-object-format",
                "--git-common-dir",
                "--absolute-git-dir",
            ],
            git_dir=None,
            cwd=real,
        )
    except GitError as error:
        if error.status is None:
            raise
        raise UsageError(
            f"{path} is not in a git repository", why=error.why, mend="run `git init`, or use -C"
        ) from error
    object_format, common, head = os.fsdecode(out).rstrip("\n").split("\n")
    _refuse_git_directory(Path(head), real)
    top = _top(real)
    git_dir = Path(common).resolve()
    repository = Repository(
        top=top,
        git_dir=git_dir,
        head_dir=Path(head).resolve(),
        object_format=object_format,
        repo_id=hashlib.sha256(os.fsencode(git_dir)).hexdigest()[:16],
    )
    _check_owner(repository, owners or (os.geteuid(),), user_home)
    _check_commits(repository, path)
    return repository


def safe_directories(user_home: Path) -> tuple[str, ...]:
    """Return the `safe.directory` values of a user's own git configuration."""
    values: list[str] = []
    for name in (".gitconfig", ".config/git/config"):
        file = user_home / name
        if file.is_file():
            wanted = ["config", "--file", str(file), "--null", "--get-all", "safe.directory"]
            try:
                values += os.fsdecode(run_git(wanted, git_dir=None)).split("\0")[:-1]
            except GitError as error:
                if error.status != 1:  # 1: the key is not set
                    raise
    return tuple(values)


def resolve(repository: Repository, rev: str = "HEAD") -> Source:
    """Resolve what the user typed to a commit.

    Raises:
        UsageError: It begins with `-`, or names no commit.
    """
    if rev.startswith("-") or not rev or "\0" in rev:
        raise UsageError(f"{rev!r} is not a revision", mend="name a branch, a tag or a commit")
    git_dir = repository.head_dir
    try:
        out = run_git(
            [
                "rev-list",
                "--max-count=1",
                "--no-commit-header",
                "--format=%H %T",
                "--end-of-options",
                f"{rev}^{{commit}}",
                "--",
            ],
            git_dir=git_dir,
        )
    except GitError as error:
        if error.status is None:
            raise
        raise UsageError(
            f"no commit is called {rev!r}", why="no such revision", mend=_close_names(git_dir, rev)
        ) from error
    commit, tree = out.decode().split()
    return Source(commit=commit, tree=tree)


def dirty_count(repository: Repository, store_git_dir: Path, commit: str) -> int:
    """Count tracked files that differ from a commit; such changes are not part of a run.

    Asked in the store, with the user's index and work tree: in the repository itself
    git would run the filters that its configuration names. A file whose bytes a
    filter or a line ending changes counts only when its time or size says so too.
    """
    index = repository.head_dir / "index"
    if repository.top is None or not index.is_file():
        return 0
    out = run_git(
        [
            *("diff", "--name-only", "-z", "--no-ext-diff", "--no-textconv", "--no-renames"),
            *("--ignore-submodules=all", commit, "--"),
        ],
        git_dir=store_git_dir,
        work_tree=repository.top,
        cwd=repository.top,
        env={"GIT_INDEX_FILE": str(index)},
    )
    return out.count(b"\0")


def _refuse_git_directory(head_dir: Path, inside: Path) -> None:
    """Refuse a place within a git directory, bare repositories included.

    Ordinary files of a repository can pose as a git directory (HEAD, objects, refs,
    config), and their configuration would then be somebody else's programs
    (git's own answer to this is safe.bareRepository = explicit).
    """
    git_dir = head_dir.resolve()
    if inside == git_dir or git_dir in inside.parents:
        raise UsageError(
            f"{inside} lies in a git directory, not in a work tree",
            why="files of a repository can pose as one, with a configuration of their own",
            mend="name a clone's work tree with -C",
        )


def _top(inside: Path) -> Path:
    out = run_git(
        ["-c", "safe.directory=*", "rev-parse", "--show-toplevel"], git_dir=None, cwd=inside
    )
    return Path(os.fsdecode(out).removesuffix("\n"))


def _check_owner(repository: Repository, owners: Collection[int], user_home: Path | None) -> None:
    for place in (repository.top, repository.git_dir, repository.head_dir):
        if place is None or place.stat().st_uid in owners:
            continue
        safe = safe_directories(user_home) if user_home is not None else ()
        if "*" in safe or str(repository.top or repository.git_dir) in safe:
            continue
        raise UsageError(
            f"{place} belongs to another user (uid {place.stat().st_uid})",
            why="its git configuration could run that user's programs as you",
            mend="run rolebox as its owner, or, if you trust it: "
            f"git config --global --add safe.directory {repository.top or repository.git_dir}",
        )


def _check_commits(repository: Repository, path: Path) -> None:
    wanted = ["rev-list", "--max-count=1", "--all", "HEAD", "--"]
    try:
        found = run_git(wanted, git_dir=repository.head_dir)
    except GitError:
        found = run_git(["rev-list", "--max-count=1", "--all"], git_dir=repository.head_dir)
    if not found.strip():
        raise UsageError(
            f"{path} has no commits", mend="commit something first: a run starts from a commit"
        )


def _close_names(git_dir: Path, rev: str) -> str:
    out = run_git(
        ["for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes"],
        git_dir=git_dir,
    )
    close = difflib.get_close_matches(rev, out.decode("utf-8", "replace").split("\n"), n=3)
    if not close:
        return "list them with `git branch --all` and `git tag`"
    return "did you mean " + " or ".join(close) + "?"
