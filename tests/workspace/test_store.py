from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from runner.model.errors import InfrastructureError, UsageError
from runner.workspace import store as store_module
from runner.workspace.listing import list_tree
from runner.workspace.repository import open_repository, resolve
from runner.workspace.store import Checkout, Store, checkout, open_store, private_git, prune

from .conftest import UID, Sample, StartRun, make_sample, sh


def opened(sample: Sample, home: Path) -> tuple[Store, str]:
    repository = open_repository(sample.path)
    return open_store(home, repository), resolve(repository).commit


def built(sample: Sample, home: Path) -> Checkout:
    store, commit = opened(sample, home)
    return checkout(store, commit, uid=UID, gid=UID)


def stamps(tree: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            info = Path(folder, name).lstat()
            found[f"{folder}/{name}"] = (info.st_ino, info.st_ctime_ns)
    return found


def test_20000_files_are_written_once(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "user")
    sample.commit({f"d{i % 97}/e{i % 13}/f{i}": f"{i}\n" for i in range(20_000)})
    first = built(sample, tmp_path / "home")
    before = stamps(first.tree)
    assert len(before) == 20_000
    second = built(sample, tmp_path / "home")
    assert (first.built, second.built) == (True, False)
    assert stamps(second.tree) == before
    assert second.files == 20_000


def test_files_have_the_commits_time_the_agents_owner_and_plain_modes(
    sample: Sample, tmp_path: Path
) -> None:
    (sample.path / "run.sh").write_text("x")
    (sample.path / "run.sh").chmod(0o700)
    (sample.path / "link").symlink_to("README.md")
    sample.commit()
    tree = built(sample, tmp_path / "home").tree
    for path in (tree, *tree.rglob("*")):
        info = path.lstat()
        assert (info.st_uid, info.st_gid, info.st_mtime) == (UID, UID, 1_700_000_000)
    assert (tree / "run.sh").stat().st_mode & 0o7777 == 0o755
    assert (tree / "README.md").stat().st_mode & 0o7777 == 0o644
    assert (tree / "link").readlink() == Path("README.md")
    assert list((tree / ".git").iterdir()) == []


def test_bytes_of_files_are_bytes_of_blobs_whatever_attributes_say(tmp_path: Path) -> None:
    sample = make_sample(tmp_path / "user")
    content: dict[str, str | bytes] = {
        "unix.txt": b"one\ntwo\n",
        "dos.txt": b"one\r\ntwo\r\n",
        "ident.c": b"/* $Id$ */\n",
        "big.psd": b"version https://git-lfs.github.com/spec/v1\n",
        "wide.txt": b"wide\n",
    }
    sample.commit(content)
    sample.write(
        {
            ".gitattributes": "*.txt text eol=crlf\n*.c ident\n"
            "*.psd filter=lfs diff=lfs merge=lfs -text\n"
            "wide.txt working-tree-encoding=UTF-16 text\n*.psd export-ignore\n"
        }
    )
    sample.git("add", ".gitattributes")
    sample.git("commit", "-q", "-m", "attributes")
    blobs = {name: sample.git("rev-parse", f"HEAD:{name}").strip() for name in content}
    made = built(sample, tmp_path / "home")
    for name, oid in blobs.items():
        ours = sh("git", "hash-object", "--no-filters", made.tree / name, cwd=tmp_path).strip()
        assert ours == oid


def test_status_of_a_tree_with_attributes_and_filters_is_clean(
    tmp_path: Path, start_run: StartRun
) -> None:
    sample = make_sample(tmp_path / "user")
    sample.commit({"dos.txt": b"one\r\ntwo\r\n", "a.psd": b"pointer\n"})
    sample.write({".gitattributes": "*.txt text eol=lf\n*.psd filter=lfs -text\n"})
    sample.git("add", ".gitattributes")
    sample.git("commit", "-q", "-m", "attributes")
    run = start_run(sample)
    run.agent("touch", "dos.txt", "a.psd")
    assert run.agent("git", "status", "--porcelain") == ""
    run.agent("sh", "-c", "echo more >> a.psd")
    assert run.agent("git", "status", "--porcelain") == " M a.psd\n"


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_private_git_works_for_the_agent_and_holds_a_short_history(
    tmp_path: Path, start_run: StartRun, object_format: str
) -> None:
    sample = make_sample(tmp_path / "user", object_format)
    secret = sample.commit({"secret.txt": "old secret\n", "a": "1\n"}, "first")
    sample.git("rm", "-q", "secret.txt")
    sample.commit({"a": "2\n"}, "second")
    sample.commit({"a": "3\n"}, "third")
    run = start_run(sample)
    assert run.agent("git", "log", "--format=%s").split() == ["third", "second"]
    assert run.agent("git", "branch", "--show-current") == "work\n"
    assert "-2" in run.agent("git", "diff", "HEAD~1")
    assert run.agent("git", "status", "--porcelain") == ""
    with pytest.raises(AssertionError):
        run.agent("git", "cat-file", "-e", secret)
    run.agent("sh", "-c", "echo 4 > a; git commit -qam agent; git fsck --strict")
    assert run.agent("git", "log", "-1", "--format=%s") == "agent\n"


def test_first_status_needs_no_file_to_be_read(sample: Sample, start_run: StartRun) -> None:
    run = start_run(sample)
    index = run.view / ".git" / "index"
    before = index.read_bytes()
    assert run.agent("git", "diff-files", "--name-only") == ""
    assert index.read_bytes() == before


def test_merge_commit_keeps_both_parents(tmp_path: Path, start_run: StartRun) -> None:
    sample = make_sample(tmp_path / "user")
    sample.commit({"a": "1"}, "root")
    sample.git("checkout", "-q", "-b", "side")
    sample.commit({"b": "1"}, "side")
    sample.git("checkout", "-q", "main")
    sample.commit({"c": "1"}, "main")
    sample.git("merge", "-q", "--no-ff", "-m", "merge", "side")
    run = start_run(sample)
    assert sorted(run.agent("git", "log", "--format=%s").split()) == ["main", "merge", "side"]


def test_a_shallow_clone_of_the_user_is_a_repository_like_any(
    tmp_path: Path, start_run: StartRun
) -> None:
    sample = make_sample(tmp_path / "origin")
    sample.commit({"a": "1"}, "first")
    sample.commit({"a": "2"}, "second")
    clone = tmp_path / "user"
    sample.git("clone", "-q", "--depth=1", f"file://{sample.path}", str(clone))
    run = start_run(Sample(clone))
    assert run.agent("git", "log", "--format=%s").split() == ["second"]


def test_submodules_are_empty_directories_and_protected(
    tmp_path: Path, start_run: StartRun
) -> None:
    inner = make_sample(tmp_path / "inner")
    inner.commit({"x": "1"})
    sample = make_sample(tmp_path / "user")
    sample.commit({"a": "1\n"})
    sample.git("submodule", "--quiet", "add", str(inner.path), "libs/inner")
    sample.commit()
    run = start_run(sample)
    assert run.facts.submodules == ("libs/inner",)
    assert run.facts.protected == (".gitmodules", "libs/inner")
    assert list((run.view / "libs/inner").iterdir()) == []
    assert run.agent("git", "status", "--porcelain") == ""
    with pytest.raises(AssertionError, match="Read-only file system"):
        run.agent("touch", "libs/inner/x")
    run.agent("sh", "-c", "echo 2 > a")
    result = run.collect()
    assert [file.path for file in result.files] == ["a"]
    assert result.violations == ()


def test_two_processes_building_one_checkout_make_one(sample: Sample, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sample.commit({f"f{i}": "x" for i in range(300)})
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        made = pool.starmap(built, [(sample, home)] * 4)
    assert sorted(one.built for one in made) == [False, False, False, True]
    assert len({one.path for one in made}) == 1
    assert len(list((home / "trees").glob("*/*/checkout.json"))) == 1
    assert list((home / "trees").glob("*/.tmp-*")) == []


def test_a_crash_while_building_leaves_no_half_checkout(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"

    def crash(*_args: object, **_named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "build_template", crash)
        with pytest.raises(KeyboardInterrupt):
            built(sample, home)
    leftovers = list((home / "trees").glob("*/.tmp-*"))
    assert len(leftovers) == 1
    assert (leftovers[0] / "tree" / "README.md").exists()
    made = built(sample, home)
    assert made.built
    assert (made.template / "index").exists()
    assert list((home / "trees").glob("*/.tmp-*")) == []


def test_a_missing_object_is_an_error_and_no_empty_file(sample: Sample, tmp_path: Path) -> None:
    oid = sample.git("rev-parse", "HEAD:README.md").strip()
    (sample.path / ".git/objects" / oid[:2] / oid[2:]).unlink()
    with pytest.raises(InfrastructureError):
        built(sample, tmp_path / "home")
    places = [path.parent.name for path in (tmp_path / "home/trees").glob("*/*/tree")]
    assert all(name.startswith(".tmp-") for name in places)


@pytest.mark.parametrize("name", [".git", "..", ".GIT"])
def test_a_tree_with_dangerous_names_is_refused(sample: Sample, tmp_path: Path, name: str) -> None:
    blob = sample.git("rev-parse", "HEAD:README.md").strip()
    raw = b"100644 " + name.encode() + b"\0" + bytes.fromhex(blob)
    (tmp_path / "raw").write_bytes(raw)
    tree = sample.git("hash-object", "-t", "tree", "-w", "--literally", str(tmp_path / "raw"))
    commit = sample.git("commit-tree", "-m", "evil", tree.strip()).strip()
    store, good = opened(sample, tmp_path / "home")
    with pytest.raises(UsageError, match="cannot be checked out safely"):
        checkout(store, commit, uid=UID, gid=UID)
    assert checkout(store, good, uid=UID, gid=UID).built


def test_prune_deletes_what_is_unused_and_keeps_the_rest(sample: Sample, tmp_path: Path) -> None:
    home = tmp_path / "home"
    old = built(sample, home)
    sample.commit({"new": "1"})
    mounted = built(sample, home)
    sample.commit({"new": "2"})
    fresh = built(sample, home)
    for made in (old, mounted):
        os.utime(made.path / "checkout.json", (1000, 1000))
    assert prune(home, keep={mounted.path}, unused_since=2000) == (old.path,)
    assert not old.path.exists()
    assert mounted.path.exists()
    assert fresh.path.exists()


def test_private_gits_of_two_runs_are_apart(sample: Sample, tmp_path: Path) -> None:
    made = built(sample, tmp_path / "home")
    one = private_git(made, tmp_path / "one", uid=UID, gid=UID)
    two = private_git(made, tmp_path / "two", uid=UID, gid=UID)
    (one / "config").write_text("changed")
    assert "changed" not in (two / "config").read_text()
    assert (one / "config").stat().st_uid == UID
    assert "changed" not in (made.template / "config").read_text()


def test_listing_finds_what_lies_under_a_path(sample: Sample, tmp_path: Path) -> None:
    store, commit = opened(sample, tmp_path / "home")
    listing = list_tree(store.git_dir, commit)
    assert listing.at_or_under(b"src/deep") == (b"src/deep/c.py",)
    assert listing.at_or_under(b"src/de") == ()
    assert listing.kind(b"src") == "dir"
    assert listing.kind(b"README.md") == "file"
    assert listing.kind(b"nothing") is None
