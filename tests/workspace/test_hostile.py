"""Each thing an agent may plant: nothing happens on the host, its neighbour is collected.

The canary is a command that would leave a file behind if anything ran it.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.model.errors import InfrastructureError
from runner.workspace.changes import PatchLimits
from runner.workspace.files import remove_tree
from runner.workspace.mounts import Mode
from runner.workspace.patch import PatchResult

from .conftest import UID, Run, Sample, StartRun


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A program whose running is seen: it makes `<itself>.ran`."""
    program = tmp_path / "canary"
    program.write_text(f'#!/bin/sh\n: > "{program}.ran"\ncat\n')
    program.chmod(0o755)
    return program


def upper(run: Run) -> Path:
    return run.workspace.areas[0].host


def neighbour(run: Run) -> None:
    run.agent("sh", "-c", "echo 'a = 2' > src/a.py")


def assert_only_neighbour(result: PatchResult, *more: str) -> None:
    assert result.commit is not None
    assert {file.path for file in result.files} == {"src/a.py", *more}


def kinds(result: PatchResult) -> set[tuple[str, str]]:
    return {(item.path, item.kind) for item in result.anomalies}


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_hooks_and_configuration_planted_in_the_private_git_never_run(
    sample: Sample, start_run: StartRun, canary: Path, mode: Mode
) -> None:
    run = start_run(sample, mode=mode)
    git = run.view / ".git"
    for key in ("core.fsmonitor", "core.sshCommand", "core.pager", "diff.external"):
        run.agent("git", "config", key, str(canary))
    for key in ("filter.evil.clean", "filter.evil.smudge", "diff.evil.textconv"):
        run.agent("git", "config", key, str(canary))
    run.agent("git", "config", "core.hooksPath", str(git / "hooks"))
    run.agent("mkdir", "-p", str(git / "hooks"))
    for hook in ("post-index-change", "reference-transaction", "post-checkout", "pre-commit"):
        run.agent("cp", str(canary), str(git / "hooks" / hook))
    run.agent("sh", "-c", "echo '* filter=evil diff=evil' > .gitattributes")
    neighbour(run)
    result = run.collect()
    assert_only_neighbour(result, ".gitattributes")
    assert not Path(f"{canary}.ran").exists()
    planted = run.workspace.root / "git" / "config"
    assert str(canary) in planted.read_text(), "the plant itself must have worked"


@pytest.mark.parametrize("name", [".git", ".GIT", "git~1", ".g\u200cit", ".git "])
def test_nested_repository_is_left_out(
    sample: Sample, start_run: StartRun, canary: Path, name: str
) -> None:
    run = start_run(sample)
    run.agent("mkdir", "-p", f"sub/{name}/hooks")
    run.agent("sh", "-c", f"printf '[core]\\n\\tfsmonitor = {canary}\\n' > 'sub/{name}/config'")
    neighbour(run)
    result = run.collect()
    assert_only_neighbour(result)
    assert {item.kind for item in result.anomalies} == {"nested-git"}
    assert not Path(f"{canary}.ran").exists()


def test_files_in_place_of_the_git_mount_point_are_left_out(
    sample: Sample, start_run: StartRun
) -> None:
    run = start_run(sample, mode="copy")
    neighbour(run)
    run.unmount()
    (upper(run) / ".git" / "config").write_text("[core]\n")
    result = run.collect()
    assert_only_neighbour(result)
    assert kinds(result) == {(".git", "nested-git")}


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../etc/passwd", "x/../../y", ".git/config", "src/.GIT/hooks"]
)
def test_symlink_out_of_the_tree_is_left_out_and_never_followed(
    sample: Sample, start_run: StartRun, target: str
) -> None:
    run = start_run(sample)
    run.agent("ln", "-s", target, "escape")
    run.agent("ln", "-s", "../README.md", "src/inside")
    neighbour(run)
    result = run.collect()
    assert_only_neighbour(result, "src/inside")
    assert kinds(result) == {("escape", "symlink-leaves-tree")}
    assert b"root:" not in run.out.read_bytes()


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_directory_replaced_by_a_link_to_the_host_is_not_walked(
    sample: Sample, start_run: StartRun, tmp_path: Path, mode: Mode
) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "secret").write_text("host secret\n")
    run = start_run(sample, ("src", "data"), mode=mode)
    run.agent("rm", "-r", "src/deep")
    run.agent("ln", "-s", str(tmp_path / "host"), "src/deep")
    neighbour(run)
    result = run.collect()
    assert_only_neighbour(result)
    assert b"host secret" not in run.out.read_bytes()


def make_socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(place.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("fifo", os.mkfifo),
        ("socket", make_socket),
        ("device", lambda place: os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))),
        ("device", lambda place: os.mknod(place, stat.S_IFBLK | 0o666, os.makedev(7, 0))),
    ],
)
@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_special_files_are_reported_and_never_opened(
    sample: Sample, start_run: StartRun, mode: Mode, kind: str, make: Callable[[Path], None]
) -> None:
    run = start_run(sample, mode=mode)
    neighbour(run)
    run.unmount()
    make(upper(run) / "special")
    (upper(run) / "README.md").unlink(missing_ok=True)
    make(upper(run) / "README.md")
    result = run.collect()
    assert_only_neighbour(result)
    assert kinds(result) == {("special", kind), ("README.md", kind)}


def test_whiteout_made_by_hand_in_a_copy_is_a_device(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample, mode="copy")
    neighbour(run)
    run.unmount()
    os.mknod(upper(run) / "w", stat.S_IFCHR, os.makedev(0, 0))
    result = run.collect()
    assert_only_neighbour(result)
    assert kinds(result) == {("w", "device")}


def test_sparse_file_of_5_gb_is_not_read(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    run.agent("truncate", "-s", "5G", "huge")
    run.agent("truncate", "-s", "5G", "README.md")
    neighbour(run)
    result = run.collect()
    assert_only_neighbour(result)
    assert kinds(result) == {("huge", "oversized"), ("README.md", "oversized")}


def test_setuid_files_are_left_out(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    run.agent("sh", "-c", "echo x > tool; chmod 4755 tool")
    neighbour(run)
    result = run.collect()
    assert_only_neighbour(result)
    assert kinds(result) == {("tool", "setuid")}


def test_path_with_a_newline_forges_no_command_of_the_import(
    sample: Sample, start_run: StartRun
) -> None:
    run = start_run(sample)
    name = 'x\nM 100644 :1 .github/pwned\nreset refs/heads/main\n"'
    (run.view / "odd").mkdir()
    os.chown(run.view / "odd", UID, UID)
    run.agent("touch", f"odd/{name.replace('/', '_')}")
    neighbour(run)
    result = run.collect()
    assert result.anomalies == result.violations == ()
    assert len(result.files) == 2
    assert all("\n" not in file.path for file in result.files)


def test_directory_without_any_permission(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    run.agent("sh", "-c", "mkdir shut; echo x > shut/x; chmod 000 shut/x shut src/deep")
    neighbour(run)
    result = run.collect()
    assert result.commit is not None
    assert {file.path for file in result.files} <= {"src/a.py", "shut/x"}
    assert "src/a.py" in {file.path for file in result.files}


@pytest.mark.parametrize("depth", [200, 3000])
def test_deep_directory(sample: Sample, start_run: StartRun, depth: int) -> None:
    run = start_run(sample)
    make = "import os\nfor _ in range(%d):\n os.mkdir('d'); os.chdir('d')\nopen('leaf', 'w')"
    run.agent("python3", "-c", make % depth)
    neighbour(run)
    result = run.collect()
    if depth == 200:
        assert_only_neighbour(result, "d/" * 200 + "leaf")
        assert result.anomalies == ()
    else:
        assert_only_neighbour(result)
        assert {item.kind for item in result.anomalies} == {"path-too-long"}


def test_unreadable_directory_is_reported_by_a_collector_without_root(
    tmp_path: Path,
) -> None:
    from runner.workspace.walk import walk

    root = tmp_path / "upper"
    (root / "shut").mkdir(parents=True)
    (root / "listed").mkdir()
    (root / "listed" / "x").touch()
    (root / "plain").touch()
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o055)
    (root / "shut").chmod(0o000)
    (root / "listed").chmod(0o444)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(UID)
        os.setuid(UID)
        seen: list[bytes] = []
        walk(
            root,
            visit=lambda found: seen.append(found.path) or True,  # type: ignore[func-returns-value]
            entered=lambda path, fd: None,
            unreadable=lambda path, why: seen.append(b"!" + path),
            entries=100,
        )
        os.write(writer, b" ".join(seen))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as out:
        assert out.read() == b"listed !listed plain shut !shut"


def test_a_flood_of_files_stops_at_the_cap(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    run.agent("python3", "-c", "for i in range(3000): open(f'f{i}', 'w')")
    result = run.collect(limits=PatchLimits(entries=1000))
    assert {item.kind for item in result.anomalies} == {"too-many-files"}
    assert not result.complete


def test_the_users_repository_is_not_written(sample: Sample, start_run: StartRun) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        files = [path for path in sample.path.rglob("*") if not path.is_dir()]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    before = state()
    run = start_run(sample)
    run.agent("git", "commit", "-q", "--allow-empty", "-m", "agent")
    neighbour(run)
    assert_only_neighbour(run.collect())
    assert state() == before


def test_removal_of_a_hostile_directory(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    (doomed / ".gone-1").mkdir()
    (doomed / ".gone-1" / "d").mkdir()
    (doomed / "link").symlink_to(outside)
    os.mkfifo(doomed / "fifo")
    os.mknod(doomed / "dev", stat.S_IFCHR, os.makedev(0, 0))
    here = Path.cwd()
    os.chdir(doomed)
    try:
        for _ in range(10_000):
            Path("d").mkdir()
            os.chdir("d")
        Path("leaf").touch()
    finally:
        os.chdir(here)
    shut = doomed / "shut"
    shut.mkdir()
    (shut / "x").touch()
    shut.chmod(0)
    remove_tree(doomed)
    assert not doomed.exists()
    assert (outside / "kept").exists()
    remove_tree(doomed)


def test_removal_of_a_link_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    remove_tree(tmp_path / "link")
    assert (tmp_path / "target").exists()
    assert not (tmp_path / "link").is_symlink()


def test_removal_that_is_resisted_is_a_typed_error(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    (run.view.parent / "other").mkdir()
    with pytest.raises(InfrastructureError, match="cannot be deleted"):
        remove_tree(run.view.parent)
    run.unmount()
    remove_tree(run.workspace.root)
    assert not run.workspace.root.exists()
