from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.model.canonical import sha256_file
from runner.workspace.changes import PatchLimits
from runner.workspace.mounts import Mode
from runner.workspace.patch import PatchResult

from .conftest import Sample, StartRun, make_sample, sh


def applied_tree(sample: Sample, patch: Path, clone: Path) -> str:
    """Apply a patch to a fresh clone with the user's own git and name the tree."""
    sh("git", "clone", "-q", "--no-local", sample.path, clone, cwd=sample.path)
    sh("git", "apply", "--index", patch, cwd=clone)
    return sh("git", "write-tree", cwd=clone).strip()


def statuses(result: PatchResult) -> dict[str, str]:
    return {file.path: file.status for file in result.files}


@pytest.mark.parametrize("mode", ["overlay", "copy"])
@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_patch_applied_to_a_fresh_clone_gives_the_collected_tree(
    tmp_path: Path, start_run: StartRun, mode: Mode, object_format: str
) -> None:
    sample = make_sample(tmp_path / "user", object_format)
    sample.write(
        {
            "edit.txt": "one\ntwo\n",
            "gone.txt": "x\n",
            "old/name.txt": "renamed\n" * 9,
            "tool.sh": "#!/bin/sh\n",
            "dir/one": "1\n",
            "dir/two": "2\n",
            "becomes-dir": "f\n",
            "becomes-file/x": "f\n",
            "blob.bin": os.urandom(4096),
            "bad-\udcff-name": "latin\n",
        }
    )
    (sample.path / "link").symlink_to("edit.txt")
    sample.commit()
    run = start_run(sample, mode=mode)
    run.agent(
        "sh",
        "-ec",
        r"""
        echo three >> edit.txt; rm gone.txt; mkdir new; mv old/name.txt new/name.txt
        chmod +x tool.sh; rm -r dir; mkdir dir; echo 3 > dir/three
        rm becomes-dir; mkdir becomes-dir; echo y > becomes-dir/y
        rm -r becomes-file; echo z > becomes-file; : > empty
        head -c 3000 /dev/urandom > blob.bin; ln -sfn tool.sh link
        ln -s ../edit.txt new/up; printf 'no newline' > "new/with
newline"; printf q > 'new/quote"\tab'; cp blob.bin "$(printf 'new/\377raw')"
        """,
    )
    result = run.collect()
    assert result.anomalies == result.violations == ()
    assert result.complete
    assert applied_tree(sample, run.out, tmp_path / "clone") == result.tree
    assert result.sha256 == sha256_file(run.out)
    assert result.size == run.out.stat().st_size
    found = statuses(result)
    assert found["edit.txt"] == "changed"
    assert found["gone.txt"] == "removed"
    assert found["empty"] == "added"
    assert found["dir/one"] == "removed"
    assert found["new/with\\x0anewline"] == "added"
    assert found["new/\\xffraw"] == "added"


def test_the_same_changes_give_the_same_commit(sample: Sample, start_run: StartRun) -> None:
    commits = []
    for name in ("one", "two"):
        run = start_run(sample, name=name)
        run.agent("sh", "-c", "echo 2 >> src/a.py")
        commits.append(run.collect().commit)
    assert commits[0] is not None
    assert commits[0] == commits[1]


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_nothing_changed_gives_no_commit_though_files_were_touched(
    sample: Sample, start_run: StartRun, mode: Mode
) -> None:
    run = start_run(sample, mode=mode)
    run.agent("sh", "-c", "touch src/a.py; chmod 600 README.md; mkdir empty; git status")
    result = run.collect()
    assert result.commit is None
    assert result.size == 0
    assert result.files == ()
    assert result.anomalies == result.violations == ()


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_leases_on_directories_files_and_new_paths(
    sample: Sample, start_run: StartRun, mode: Mode
) -> None:
    lease = ("src/deep/", "src/a.py", "docs/new/", "notes.txt", "unused.txt")
    run = start_run(sample, lease, mode=mode)
    run.agent(
        "sh",
        "-ec",
        "echo 2 > src/a.py; rm src/deep/c.py; echo d > src/deep/d.py; echo n > notes.txt;"
        "mkdir docs/new/sub; echo p > docs/new/sub/p.md; chmod +x src/a.py",
    )
    for refused in ("src/b.py", "README.md", "other.txt", "docs/x"):
        with pytest.raises(AssertionError, match="Read-only file system"):
            run.agent("sh", "-c", f"echo x > {refused}")
    result = run.collect()
    assert result.anomalies == result.violations == ()
    assert statuses(result) == {
        "src/a.py": "changed",
        "src/deep/c.py": "removed",
        "src/deep/d.py": "added",
        "notes.txt": "added",
        "docs/new/sub/p.md": "added",
    }


def test_scratch_is_writable_and_collected_apart(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample, (), access="read-only", scratch=True)
    with pytest.raises(AssertionError, match="Read-only file system"):
        run.agent("sh", "-c", "echo x > README.md")
    run.agent("sh", "-ec", "echo x > README.md; git commit -qam s", at=run.scratch)
    assert run.collect().commit is None
    assert statuses(run.collect(scratch=True)) == {"README.md": "changed"}


def test_numstat_counts_lines_and_marks_binary_files(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    run.agent("sh", "-c", "printf 'x\\ny\\n' > README.md; printf '\\0' >> data/x.bin")
    files = {file.path: file for file in run.collect().files}
    assert (files["README.md"].added, files["README.md"].removed) == (2, 1)
    assert files["data/x.bin"].added is None


def test_protected_changes_are_violations_and_stay_out(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample, mode="copy")
    run.unmount()
    host = run.workspace.areas[0].host
    (host / ".github/workflows/ci.yml").write_text("on: evil\n")
    (host / "src/AGENTS.md").unlink()
    (host / ".CODEX").mkdir()
    (host / ".CODEX/config.toml").write_text("x")
    (host / "src/a.py").write_text("a = 2\n")
    result = run.collect()
    assert {(item.path, item.kind) for item in result.violations} == {
        (".github/workflows/ci.yml", "protected"),
        ("src/AGENTS.md", "protected"),
        (".CODEX/config.toml", "protected"),
    }
    assert statuses(result) == {"src/a.py": "changed"}


def test_a_file_put_where_protected_files_lie_stays_out(
    sample: Sample, start_run: StartRun
) -> None:
    run = start_run(sample, mode="copy")
    run.unmount()
    host = run.workspace.areas[0].host
    sh("rm", "-r", "src", cwd=host)
    (host / "src").write_text("now a file\n")
    result = run.collect()
    assert statuses(result) == {
        "src/a.py": "removed",
        "src/b.py": "removed",
        "src/deep/c.py": "removed",
    }
    assert {item.path for item in result.violations} == {"src", "src/AGENTS.md"}


def test_existing_protected_paths_are_read_only_mounts(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    assert run.facts.protected == (".github", "src/AGENTS.md")
    for path in (".github/workflows/ci.yml", "src/AGENTS.md"):
        with pytest.raises(AssertionError, match="Read-only file system"):
            run.agent("sh", "-c", f"echo x > {path}")
    run.agent("sh", "-c", "echo x > src/b.py")
    assert statuses(run.collect()) == {"src/b.py": "changed"}


@pytest.mark.parametrize(
    ("limits", "kind", "complete"),
    [
        (PatchLimits(file_bytes=100), "oversized", True),
        (PatchLimits(total_bytes=100), "total-size", True),
        (PatchLimits(entries=2), "too-many-files", False),
        (PatchLimits(patch_bytes=100), "patch-too-large", False),
        (PatchLimits(path_bytes=10), "path-too-long", True),
    ],
)
def test_bounds_are_reported(
    sample: Sample, start_run: StartRun, limits: PatchLimits, kind: str, complete: bool
) -> None:
    run = start_run(sample)
    run.agent(
        "sh", "-c", "seq 500 > big.txt; seq 3 > ok.txt; mkdir many; echo 1 > many/very-long-name"
    )
    result = run.collect(limits=limits)
    assert kind in {item.kind for item in result.anomalies}
    assert result.complete is complete
    if complete:
        assert "ok.txt" in statuses(result)
    else:
        assert result.commit is None
        assert run.out.read_bytes() == b""


def test_reports_beyond_their_cap_are_counted(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    run.agent("sh", "-c", "for i in 1 2 3 4 5; do mkfifo f$i; done; echo ok > ok.txt")
    result = run.collect(limits=PatchLimits(reported=2))
    assert len(result.anomalies) == 2
    assert result.omitted == 3
    assert statuses(result) == {"ok.txt": "added"}
