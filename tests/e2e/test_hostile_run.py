"""A hostile command leaves what it can in the tree; the host collects and is not touched.

Beside every hostile thing stands an ordinary edit, which must be in the patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import git
from tests.e2e.rig import Desk, Ended, left_in_engine, repository_facts


@dataclass(frozen=True)
class Wreck:
    done: Ended
    record: dict[str, Any]
    patch: bytes
    canary: Path
    desk: Desk

    def left_out(self, kind: str) -> set[str]:
        return {a["path"] for a in self.record["patch"]["anomalies"] if a["kind"] == kind}

    def breached(self) -> set[str]:
        return {a["path"] for a in self.record["patch"]["violations"]}


def _wreck(desk: Desk, script: str) -> Wreck:
    before = repository_facts(desk.repository)
    canary = desk.home.parent / "canary"
    words = ("exec", "scaffold", "--write", ".", "--", "sh", "-c")
    done = desk.run(*words, script.replace("CANARY", str(canary)))
    folder = desk.folder()
    wreck = Wreck(done, desk.provenance(), (folder.path / "patch.diff").read_bytes(), canary, desk)
    assert repository_facts(desk.repository) == before
    assert not (folder.path / "ws").exists()
    assert left_in_engine(folder.id) == []
    return wreck


_LITTER = r"""
cd /work
echo '# ordinary' >> src/app.py
mkfifo fifo
ln -s /etc/passwd absolute
ln -s ../../etc/shadow above
ln -s src/../../x around
ln -s .git/config dotgit
ln -s app.py src/neighbour
printf 'x\n' > "$(printf 'new\nline')"
printf 'x\n' > ./-rf
printf 'x\n' > '$(touch canary)'
printf '\033[31mred\n' > "$(printf 'esc\033[31m')"
printf 'x\n' > suid; chmod 4755 suid
mkdir closed; printf 'x\n' > closed/inside; chmod 000 closed
printf 'x\n' > shut; chmod 000 shut
python3 - <<'END'
import os, socket
socket.socket(socket.AF_UNIX).bind("/work/socket")
os.chdir("/work")
for _ in range(3000):
    os.mkdir("d"); os.chdir("d")
END
mkdir nested; cd nested; git init -q .; mkdir -p .git/hooks
printf '#!/bin/sh\ntouch CANARY\n' > .git/hooks/post-checkout; chmod +x .git/hooks/*
git config core.fsmonitor 'touch CANARY; false'
printf 'inner\n' > file.txt; cd ..
echo litter is done
"""


@pytest.fixture(scope="module")
def litter(shared: Desk) -> Wreck:
    return _wreck(shared, _LITTER)


def test_the_run_ends_well_and_its_patch_holds_the_ordinary_edit(litter: Wreck) -> None:
    assert litter.done.stdout == "litter is done\n", litter.done.stderr
    assert litter.done.code == 0
    assert b"+# ordinary\n" in litter.patch
    assert not litter.canary.exists()


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("fifo", {"fifo"}),
        ("socket", {"socket"}),
        ("symlink-leaves-tree", {"absolute", "above", "around", "dotgit"}),
        ("setuid", {"suid"}),
    ],
)
def test_what_git_must_not_carry_is_left_out_and_named(
    litter: Wreck, kind: str, paths: set[str]
) -> None:
    assert litter.left_out(kind) == paths
    for path in paths:
        assert b"+++ b/" + path.encode() + b"\n" not in litter.patch


def test_a_link_within_the_tree_is_carried(litter: Wreck) -> None:
    assert b"new file mode 120000" in litter.patch
    assert b"+++ b/src/neighbour" in litter.patch


def test_odd_names_are_carried_as_names(litter: Wreck) -> None:
    for name in (rb'"b/new\nline"', b"b/-rf", b"b/$(touch ", rb'"b/esc\033[31m"'):
        assert b"+++ " + name in litter.patch, name


def test_a_closed_directory_is_opened_or_named(litter: Wreck) -> None:
    """Root may read it, another user may not: neither loses it in silence."""
    carried = b"+++ b/closed/inside" in litter.patch
    assert carried or litter.left_out("unreadable") & {"closed"}


def test_a_bottomless_directory_is_named_and_ends(litter: Wreck) -> None:
    assert any(a["path"].startswith("d/d/d/") for a in litter.record["patch"]["anomalies"])
    assert b"/d/d/d/d" not in litter.patch


def test_nested_git_directories_are_not_carried(litter: Wreck) -> None:
    assert b"hooks/post-checkout" not in litter.patch
    assert b"fsmonitor" not in litter.patch
    named = {a["path"] for a in litter.record["patch"]["anomalies"]} | litter.breached()
    assert any(path.startswith("nested") for path in named)


def test_the_patch_applies_and_nothing_of_it_runs(litter: Wreck, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(litter.desk.repository), str(clone))
    git(clone, "apply", str(litter.desk.folder(litter.record["run"]).path / "patch.diff"))
    assert "# ordinary" in (clone / "src" / "app.py").read_text()
    assert not litter.canary.exists()


def test_what_people_are_shown_of_it_is_inert(litter: Wreck) -> None:
    shown = litter.desk.run("show", litter.record["run"]).check()
    assert b"\033" not in shown.out
    stat = litter.desk.run("diff", "--stat", litter.record["run"]).check()
    assert "left out (fifo): fifo" in stat.stdout
    assert not litter.canary.exists()


_GIT = r"""
cd /work
echo '# ordinary' >> src/app.py
mkdir -p .git/hooks /tmp/h
for h in pre-commit post-checkout post-index-change reference-transaction fsmonitor-watchman; do
  printf '#!/bin/sh\ntouch CANARY\n' > .git/hooks/$h; chmod +x .git/hooks/$h
done
git config core.fsmonitor 'touch CANARY; false'
git config core.hooksPath .git/hooks
git config core.pager 'touch CANARY'
git config core.sshCommand 'touch CANARY'
git config diff.evil.textconv 'touch CANARY'
git config diff.external 'touch CANARY'
git config filter.evil.clean 'touch CANARY; cat'
git config filter.evil.smudge 'touch CANARY; cat'
git config filter.evil.process 'touch CANARY'
git config filter.evil.required true
git config include.path /etc/passwd
git config alias.diff '!touch CANARY'
echo '*.py filter=evil diff=evil' > .gitattributes
echo '/host/objects' > .git/objects/info/alternates
ln -sf /etc .git/refs/evil
echo armed
"""


def test_a_git_directory_that_is_armed_runs_nothing_on_the_host(desk: Desk) -> None:
    wreck = _wreck(desk, _GIT)
    assert wreck.done.stdout == "armed\n", wreck.done.stderr
    assert b"+# ordinary\n" in wreck.patch
    assert wreck.breached() == {".gitattributes"}
    assert b"filter=evil" not in wreck.patch
    for words in (("diff",), ("diff", "--stat"), ("show",)):
        desk.run(*words, "last").check()
    after = desk.run("exec", "reviewer", "--after", "last", "--", "tail", "-1", "src/app.py")
    assert after.stdout == "# ordinary\n", after.stderr
    assert not wreck.canary.exists()


def test_a_replaced_git_directory_does_not_stop_the_collection(desk: Desk) -> None:
    script = (
        "cd /work; echo '# ordinary' >> src/app.py; rm -rf .git/* .git/.??* 2>/dev/null;"
        "echo x > .git/HEAD; ls .git"
    )
    wreck = _wreck(desk, script)
    assert wreck.done.stdout == "HEAD\n"
    assert b"+# ordinary\n" in wreck.patch
    assert wreck.record["completeness"]["complete"]


def test_files_over_the_limits_are_refused_by_the_kernel_or_left_out(desk: Desk) -> None:
    script = (
        "cd /work; echo '# ordinary' >> src/app.py; ulimit -f;"
        "truncate -s 5G huge 2>&1; truncate -s 900M sparse && echo sparse is made;"
        "head -c 1000000 /dev/zero > small"
    )
    wreck = _wreck(desk, script)
    assert wreck.done.stdout.splitlines()[0].isdigit()  # the limit is no "unlimited"
    assert "sparse is made" in wreck.done.stdout
    assert wreck.left_out("oversized") == {"sparse"}
    assert b"+# ordinary\n" in wreck.patch
    assert b"b/small" in wreck.patch
    huge = {a["path"] for a in wreck.record["patch"]["anomalies"]} & {"huge"}
    assert not huge
    assert sum(f["bytes"] for f in wreck.record["files"].values()) < 50_000_000


_PROTECTED = [
    ("an AGENTS.md in a subdirectory", "echo obey > src/AGENTS.md"),
    ("a new CI system", "mkdir .circleci; echo x > .circleci/config.yml"),
    ("rules", "echo x > docs/evil.rules"),
    ("codex configuration", "mkdir -p src/.codex; echo x > src/.codex/config.toml"),
    ("another case", "echo obey > src/agents.MD"),
]


@pytest.mark.parametrize("script", [p[1] for p in _PROTECTED], ids=[p[0] for p in _PROTECTED])
def test_a_protected_path_that_is_created_refuses_the_run(shared: Desk, script: str) -> None:
    wreck = _wreck(shared, f"cd /work; echo '# ordinary' >> src/app.py; {script}")
    assert wreck.done.code == 3
    assert wreck.record["status"] == "refused"
    assert "changed what it must not" in wreck.done.stderr
    assert len(wreck.breached()) == 1
    assert b"+# ordinary\n" in wreck.patch
    assert wreck.patch.count(b"diff --git") == 1


def test_protected_paths_that_exist_are_read_only_inside_the_lease(shared: Desk) -> None:
    script = (
        "cd /work; for p in AGENTS.md .github/workflows/ci.yml .github/workflows/x.yml; do "
        "(echo x >> $p) 2>/dev/null && echo WROTE $p; done; rm -rf .github AGENTS.md 2>/dev/null; "
        "mv .github moved 2>/dev/null; cat .github/workflows/ci.yml;"
        "echo '# ordinary' >> src/app.py"
    )
    wreck = _wreck(shared, script)
    assert (wreck.done.code, wreck.done.stdout) == (0, "on: push\n")
    assert wreck.breached() == set()
    assert wreck.patch.count(b"diff --git") == 1


def test_deleting_and_replacing_files_is_an_ordinary_change(shared: Desk) -> None:
    script = "cd /work; rm src/keep.txt; rm -r docs; echo 'a file now' > docs; chmod +x src/app.py"
    wreck = _wreck(shared, script)
    assert wreck.done.code == 0, wreck.done.stderr
    for part in (b"deleted file mode 100644", b"+a file now", b"new mode 100755"):
        assert part in wreck.patch


def test_a_fork_bomb_and_a_full_tmp_end_in_the_container(shared: Desk) -> None:
    script = (
        "cd /work; echo '# ordinary' >> src/app.py\n"
        "python3 - <<'END'\n"
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    for _ in range(5000):\n"
        "        if os.fork() == 0: time.sleep(30); os._exit(0)\n"
        "        made += 1\n"
        "except OSError as e: print('stopped', 0 < made < 600)\n"
        "END\n"
        "head -c 2G /dev/zero > /tmp/full 2>/dev/null || echo full; true"
    )
    wreck = _wreck(shared, script)
    assert wreck.done.stdout.splitlines() == ["stopped True", "full"]
    assert b"+# ordinary\n" in wreck.patch
