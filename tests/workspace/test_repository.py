from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runner.model.errors import UsageError
from runner.workspace.git import GitError, run_git
from runner.workspace.repository import (
    dirty_count,
    open_repository,
    resolve,
    safe_directories,
)
from runner.workspace.store import open_store

from .conftest import UID, Sample, make_sample, sh


def test_subdirectory_git_directory_and_linked_worktree_are_one_repository(
    sample: Sample, tmp_path: Path
) -> None:
    sample.git("worktree", "add", "-q", "-b", "other", str(tmp_path / "linked"))
    sh("git", "commit", "-q", "--allow-empty", "-m", "there", cwd=tmp_path / "linked")
    main = open_repository(sample.path)
    assert main.top == sample.path
    assert open_repository(sample.path / "src" / "deep") == main
    linked = open_repository(tmp_path / "linked" / "src")
    assert linked.top == tmp_path / "linked"
    assert (linked.git_dir, linked.repo_id) == (main.git_dir, main.repo_id)
    assert resolve(linked).commit != resolve(main).commit
    assert resolve(linked, "main") == resolve(main)


def test_a_place_within_a_git_directory_is_refused(sample: Sample, tmp_path: Path) -> None:
    sample.git("clone", "-q", "--bare", str(sample.path), str(tmp_path / "bare.git"))
    for place in (tmp_path / "bare.git", sample.path / ".git", sample.path / ".git" / "refs"):
        with pytest.raises(UsageError, match="git directory"):
            open_repository(place)
    assert open_repository(sample.path / "src").top == sample.path


def test_files_that_pose_as_a_repository_run_nothing(sample: Sample, tmp_path: Path) -> None:
    """A clone's ordinary files: vendor/x is a git directory whose filter is a program."""
    canary = tmp_path / "canary"
    fake = sample.path / "vendor" / "x"
    subprocess.run(["git", "init", "-q", "--bare", str(fake)], check=True)
    config = f'[core]\n\tbare = false\n\tworktree = ..\n[filter "e"]\n\tclean = touch {canary}\n'
    (fake / "config").write_text(config)
    (sample.path / "vendor" / ".gitattributes").write_text("* filter=e\n")
    with pytest.raises(UsageError, match="git directory"):
        open_repository(fake)
    assert not canary.exists()


def test_counting_changes_runs_no_filter_of_the_repository(sample: Sample, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    sample.git("config", "filter.e.clean", f"touch {canary}; cat")
    sample.git("config", "core.fsmonitor", f"touch {canary}")
    sample.write({".git/info/attributes": "* filter=e\n", "src/a.py": "other text"})
    repository = open_repository(sample.path)
    store = open_store(tmp_path / "home", repository)
    assert dirty_count(repository, store.git_dir, resolve(repository).commit) == 1
    assert not canary.exists()
    sample.git("status")
    assert canary.exists(), "the planted filter would have run"


def test_sha256_repository(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "user", "sha256")
    commit = sample.commit({"a": "1"})
    repository = open_repository(sample.path)
    assert repository.object_format == "sha256"
    assert resolve(repository).commit == commit
    assert len(commit) == 64


def test_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a directory"):
        open_repository(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not in a git repository"):
        open_repository(tmp_path)
    empty = make_sample(tmp_path / "empty")
    with pytest.raises(UsageError, match="no commits"):
        open_repository(empty.path)
    empty.commit({"a": "1"})
    assert open_repository(empty.path)


def test_another_users_repository_is_refused_unless_named_safe(
    sample: Sample, tmp_path: Path
) -> None:
    os.chown(sample.path, UID, UID)
    with pytest.raises(UsageError, match="another user") as caught:
        open_repository(sample.path)
    assert "safe.directory" in caught.value.mend
    (tmp_path / ".gitconfig").write_text(f"[safe]\n\tdirectory = {sample.path}\n")
    assert safe_directories(tmp_path) == (str(sample.path),)
    assert open_repository(sample.path, user_home=tmp_path)
    assert open_repository(sample.path, owners=(0, UID))
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = x\n")
    assert safe_directories(tmp_path) == ()
    with pytest.raises(UsageError, match="another user"):
        open_repository(sample.path, user_home=tmp_path)


@pytest.mark.parametrize("rev", ["-x", "--all", "", "nope", "HEAD:README.md", "HEAD^9"])
def test_what_names_no_commit_is_refused(sample: Sample, rev: str) -> None:
    with pytest.raises(UsageError):
        resolve(open_repository(sample.path), rev)


def test_unknown_revision_names_close_ones(sample: Sample) -> None:
    sample.git("branch", "feature/login")
    sample.git("tag", "v1.0")
    repository = open_repository(sample.path)
    with pytest.raises(UsageError) as caught:
        resolve(repository, "feature/logn")
    assert "did you mean feature/login" in caught.value.mend
    assert resolve(repository, "feature/login") == resolve(repository)
    assert resolve(repository, "v1.0") == resolve(repository)


def test_dirty_count_counts_tracked_changes_only(sample: Sample, tmp_path: Path) -> None:
    repository = open_repository(sample.path)
    store = open_store(tmp_path / "home", repository)
    assert dirty_count(repository, store.git_dir, resolve(repository).commit) == 0
    sample.write({"src/a.py": "changed", "README.md": "changed", "untracked": "x"})
    sample.git("add", "README.md")
    (sample.path / "src/b.py").unlink()
    assert dirty_count(repository, store.git_dir, resolve(repository).commit) == 3


def test_no_program_of_the_repositorys_configuration_runs(sample: Sample, tmp_path: Path) -> None:
    program = tmp_path / "canary"
    program.write_text(f"#!/bin/sh\n: > {program}.ran\n")
    program.chmod(0o755)
    sample.git("config", "core.fsmonitor", str(program))
    sample.git("status")
    ran = Path(f"{program}.ran")
    assert ran.exists(), "git itself runs it"
    ran.unlink()
    hook = sample.path / ".git/hooks/post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_bytes(program.read_bytes())
    hook.chmod(0o755)
    sample.write({"src/a.py": "changed"})
    repository = open_repository(sample.path / "src")
    store = open_store(tmp_path / "home", repository)
    assert dirty_count(repository, store.git_dir, resolve(repository).commit) == 1
    resolve(repository)
    assert not ran.exists()


def test_environment_of_the_caller_does_not_reach_git(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_sample(tmp_path / "other")
    other.commit({"x": "1"})
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "leak")
    assert open_repository(sample.path).top == sample.path
    with pytest.raises(GitError) as caught:
        run_git(["config", "user.name"], git_dir=sample.path / ".git")
    assert caught.value.status == 1


def test_git_that_does_not_end_is_stopped(sample: Sample) -> None:
    with pytest.raises(GitError, match="did not end"):
        run_git(["-c", "alias.wait=!sleep 60", "wait"], git_dir=sample.path / ".git", timeout=0.2)
