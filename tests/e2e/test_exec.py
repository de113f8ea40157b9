"""`rolebox exec`: CMD in the seal, its streams and exit code untouched, and what it may write."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import git
from tests.e2e.rig import Desk, left_in_engine, repository_facts

_ALL_BYTES = "bytes(range(256)) * 300"


def test_both_streams_and_the_exit_code_are_the_commands_byte_for_byte(shared: Desk) -> None:
    code = (
        f"import sys; sys.stdout.buffer.write({_ALL_BYTES});"
        f"sys.stderr.buffer.write(({_ALL_BYTES})[::-1]); sys.exit(7)"
    )
    done = shared.run("exec", "reviewer", "--", "python3", "-c", code)
    wanted = bytes(range(256)) * 300
    assert done.code == 7
    assert done.out == wanted
    assert wanted[::-1] in done.err
    assert b"Traceback" not in done.err
    folder = shared.folder().path
    assert (folder / "events.jsonl").read_bytes() == wanted
    assert (folder / "stderr.log").read_bytes() == wanted[::-1]


def test_a_readers_stderr_holds_nothing_but_the_commands(shared: Desk) -> None:
    done = shared.run("exec", "reviewer", "--", "sh", "-c", "printf 'a\\nb' >&2")
    assert (done.code, done.out, done.err) == (0, b"", b"a\nb")


def test_the_commands_input_is_empty(shared: Desk) -> None:
    done = shared.run("exec", "reviewer", "--", "wc", "-c", stdin=b"a secret of the host\n")
    assert (done.code, done.stdout.strip()) == (0, "0")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 130"], 130),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_code_is_the_commands(shared: Desk, command: list[str], code: int) -> None:
    assert shared.run("exec", "reviewer", "--", *command).code == code
    assert shared.provenance()["exit_code"] == code
    assert shared.provenance()["status"] == "failed"


def test_arguments_reach_the_command_unchanged(shared: Desk) -> None:
    words = ["a b", "", "$HOME", "*", "-x", "--", "é\n'\""]
    code = "import sys; print(ascii(sys.argv[1:]))"
    done = shared.run("exec", "reviewer", "--", "python3", "-c", code, *words).check()
    assert done.stdout.strip() == ascii(words)


def test_a_reader_writes_nowhere_but_in_its_own_home_and_tmp(shared: Desk) -> None:
    places = "/work/x /work/.git/x /work/src/app.py /etc/x /etc/codex/config.toml /opt/x /usr/x"
    script = (
        f"for p in {places} /run/rolebox/gateway/x /run/rolebox/objects/x; do "
        "(echo x >> $p) 2>/dev/null && echo WROTE $p; done; "
        "for p in /codex-home/x /tmp/x; do (echo x > $p) && echo wrote $p; done; "
        "echo x > /work/x"
    )
    done = shared.run("exec", "reviewer", "--", "sh", "-c", script)
    assert done.code != 0
    assert done.stdout.splitlines() == ["wrote /codex-home/x", "wrote /tmp/x"]
    assert "Read-only file system" in done.stderr
    assert shared.provenance()["patch"] is None


_TRY = """
for p in README.md src/app.py src/new.py docs/guide.md AGENTS.md .github/x notes/n.md notes2; do
  (mkdir -p $(dirname $p) && echo changed >> $p) 2>/dev/null && echo $p
done; true
"""


@pytest.mark.parametrize(
    ("lease", "writable"),
    [
        (["src/"], ["src/app.py", "src/new.py"]),
        (["src/app.py"], ["src/app.py"]),
        (["src/new.py"], ["src/new.py"]),
        (["notes/"], ["notes/n.md"]),
        (["notes2", "docs/guide.md"], ["docs/guide.md", "notes2"]),
        (["."], ["README.md", "src/app.py", "src/new.py", "docs/guide.md", "notes/n.md", "notes2"]),
    ],
)
def test_a_writer_writes_its_lease_and_nothing_else(
    shared: Desk, lease: list[str], writable: list[str]
) -> None:
    before = repository_facts(shared.repository)
    flags = [word for path in lease for word in ("--write", path)]
    done = shared.run("exec", "scaffold", *flags, "--", "sh", "-c", _TRY).check()
    assert done.stdout.split() == writable
    patch = shared.text("patch.diff")
    changed = [line[6:] for line in patch.splitlines() if line.startswith("+++ b/")]
    assert sorted(changed) == sorted(writable)
    record = shared.provenance()["patch"]
    assert (record["kind"], record["violations"], record["anomalies"]) == ("leased", [], [])
    assert repository_facts(shared.repository) == before
    assert left_in_engine(shared.folder().id) == []
    git(shared.repository, "apply", "--check", str(shared.folder().path / "patch.diff"))


def test_a_writer_without_a_lease_reads_only_and_is_told(shared: Desk) -> None:
    done = shared.run("exec", "scaffold", "--", "sh", "-c", "echo x > /work/src/app.py")
    assert done.code != 0
    assert "Read-only file system" in done.stderr
    assert "--write PATH leases a path" in done.stderr
    assert shared.provenance()["patch"] is None


def test_a_fixer_without_a_lease_proposes_what_it_changed_in_its_scratch_copy(shared: Desk) -> None:
    script = "echo x > README.md; cd /scratch && echo 'answer = 42' > src/app.py && git status -s"
    done = shared.run("exec", "fixer", "--", "sh", "-c", script).check()
    assert done.stdout == " M src/app.py\n"
    assert "README.md: Read-only file system" in done.stderr
    record = shared.provenance()
    assert record["patch"]["kind"] == "proposed"
    assert record["lease"] == []
    assert "+answer = 42" in shared.text("patch.diff")
    git(shared.repository, "apply", "--check", str(shared.folder().path / "patch.diff"))


def test_a_fixer_with_a_lease_has_no_scratch_copy(shared: Desk) -> None:
    script = "ls -A /scratch; echo y > src/app.py"
    done = shared.run("exec", "fixer", "--write", "src/", "--", "sh", "-c", script).check()
    assert done.stdout == ""
    assert shared.provenance()["patch"]["kind"] == "leased"


def test_git_works_in_the_tree_and_commits_with_a_lease(shared: Desk) -> None:
    script = (
        "set -e; git status --porcelain; echo '# more' >> src/app.py; git diff --stat | tail -1;"
        "git add -A; git commit --quiet -m work; git log --format=%s%n%an; git status -s"
    )
    done = shared.run("exec", "scaffold", "--write", "src/", "--", "sh", "-c", script).check()
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "1 file changed, 1 insertion(+)"
    assert lines[1:3] == ["work", "rolebox scaffold"]
    assert "+# more" in shared.text("patch.diff")
    assert git(shared.repository, "rev-list", "--count", "--all") == "1"


def test_the_hosts_own_git_directory_is_not_what_the_agent_sees(desk: Desk) -> None:
    top = desk.repository
    git(top, "config", "remote.origin.url", "https://user:hunter2@git.invalid/x.git")
    git(top, "branch", "secret-branch")
    (top / ".git" / "canary").write_text("canary")
    script = (
        "git branch -a; git remote -v; cat .git/config; ls -A .git; "
        "git cat-file --batch-all-objects --batch-check | wc -l; git rev-parse HEAD"
    )
    done = desk.run("exec", "reviewer", "--", "sh", "-c", script).check()
    for hidden in ("hunter2", "git.invalid", "secret-branch", "canary", str(top)):
        assert hidden not in done.stdout
    assert git(top, "rev-parse", "HEAD") in done.stdout


def test_uncommitted_and_ignored_files_stay_on_the_host(desk: Desk) -> None:
    (desk.repository / "README.md").write_text("dirty\n")
    (desk.repository / ".env").write_text("TOKEN=1\n")
    done = desk.run("exec", "reviewer", "--", "sh", "-c", "cat README.md; ls -A").check()
    assert done.stdout.startswith("# sample\n")
    assert ".env" not in done.stdout
    assert "1 changed file(s) here are not committed" in done.stderr
    assert desk.provenance()["git"]["dirty"] == 1


def test_ref_names_the_commit_that_the_run_sees(desk: Desk) -> None:
    (desk.repository / "README.md").write_text("second\n")
    git(desk.repository, "commit", "--quiet", "--all", "--message", "second")
    git(desk.repository, "tag", "v2")
    for ref, text in (("HEAD~1", "# sample\n"), ("v2", "second\n"), ("main", "second\n")):
        done = desk.run("exec", "reviewer", "--ref", ref, "--", "cat", "README.md").check()
        assert done.stdout == text


def test_after_builds_on_a_runs_patch_by_short_id_or_last(desk: Desk) -> None:
    write = ("exec", "scaffold", "--write", "src/", "--", "sh", "-c")
    desk.run(*write, "echo one > src/one.txt").check()
    first = desk.folder().id
    cat = ("--", "sh", "-c", "cat src/*.txt")
    assert desk.run("exec", "reviewer", "--after", "last", *cat).stdout == "keep\none\n"
    short = first[:-3]
    done = desk.run("exec", "scaffold", "--write", "src/", "--after", short, "--", "sh", "-c",
                    "echo two > src/two.txt").check()  # fmt: skip
    assert done.code == 0
    assert desk.provenance()["parent"] == first
    patch = desk.text("patch.diff")
    assert "two.txt" in patch
    assert "one.txt" not in patch
    assert git(desk.repository, "status", "--porcelain") == ""


def test_after_a_run_without_a_patch_is_refused(shared: Desk) -> None:
    shared.run("exec", "reviewer", "--", "true").check()
    done = shared.run("exec", "reviewer", "--after", "last", "--", "true")
    assert done.code == 2
    assert "left no patch to build on" in done.stderr


def test_c_names_the_repository_from_elsewhere(shared: Desk) -> None:
    done = shared.run(
        "-C", str(shared.repository / "src"), "exec", "reviewer", "--", "ls", "README.md",
        cwd=shared.home.parent,
    )  # fmt: skip
    assert (done.code, done.stdout) == (0, "README.md\n")


def test_a_loud_command_is_kept_whole(shared: Desk) -> None:
    code = "import sys\nfor n in range(200000): sys.stdout.write(f'line {n}\\n')"
    done = shared.run("exec", "reviewer", "--", "python3", "-c", code).check()
    assert done.out.count(b"\n") == 200_000
    assert (shared.folder().path / "events.jsonl").read_bytes() == done.out
    assert sys.getsizeof(done.out) > 2_000_000
