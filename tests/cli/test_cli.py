"""The command line itself: help, JSON, pipes, terminals, completion."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
from typing import Any

import pytest

import runner
from runner.cli.main import COMMANDS
from tests.conftest import ROLEBOX
from tests.e2e.rig import Desk

_EVIL = "evil \x1b[31mred\x1b]0;title\x07 \u202egnirts\u202c \x9b2J"


@pytest.fixture(scope="module")
def run(shared: Desk) -> str:
    """A run whose agent says, prints and writes what could act on a terminal."""
    show = r"printf 'evil \033[31mred\033]0;title\007 \342\200\256gnirts\n' | tee src/evil.txt"
    script = shared.script({"shell": show}, {"say": _EVIL})
    words = ("run", "scaffold", f"Do {_EVIL}", "--write", "src/", "--model-script", script)
    shared.run(*words).check()
    return shared.folder().id


def _dangerous(data: bytes) -> list[str]:
    text = data.decode(errors="replace")
    return re.findall("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def _in_terminal(desk: Desk, *words: str) -> bytes:
    """Run a command with its stdout a terminal, as a person has it; stderr is a pipe."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*ROLEBOX, *words],
        cwd=desk.repository,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=subprocess.PIPE,
        env=desk.env(),
    )
    os.close(slave)
    printed = b""
    try:
        while data := os.read(master, 65536):
            printed += data
    except OSError:  # the other side is closed
        pass
    _, err = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0, err
    return printed


@pytest.mark.parametrize(
    "words", [[], *[[c] for c in COMMANDS], *[["images", c] for c in ("build", "lock", "list")]]
)
def test_help_ends_with_0_and_shows_an_example(shared: Desk, words: list[str]) -> None:
    done = shared.run(*words, "--help").check()
    assert done.err == b""
    assert done.stdout.startswith("Usage: rolebox")
    assert re.search(r"Examples?:\n +(eval \"\$\()?rolebox", done.stdout)


def test_short_help_is_help(shared: Desk) -> None:
    assert shared.run("-h").check().out == shared.run("--help").check().out


def test_version(shared: Desk) -> None:
    assert shared.run("--version").check().stdout == f"rolebox {runner.__version__}\n"


@pytest.mark.parametrize(
    ("words", "schema"),
    [
        (("list", "--json"), "rolebox.runs/1"),
        (("show", "last", "--json"), "rolebox.run/1"),
        (("profiles", "--json"), "rolebox.profiles/1"),
        (("images", "list", "--json"), "rolebox.images/1"),
        (("plan", "reviewer", "x", "--json"), "rolebox.planned/1"),
    ],
)
def test_json_is_one_document_on_stdout(
    shared: Desk, run: str, words: tuple[str, ...], schema: str
) -> None:
    done = shared.run(*words).check()
    assert done.json()["_schema"] == schema
    assert done.err == b""


def test_list_and_show_agree_about_a_run(shared: Desk, run: str) -> None:
    listed = shared.run("list", "--json").check().json()["runs"]
    assert [r["id"] for r in listed] == shared.runs()
    shown = shared.run("show", run, "--json").check().json()
    brief = next(r for r in listed if r["id"] == run)
    assert brief.items() <= shown.items()
    assert (shown["role"], shown["status"]) == ("scaffold", "done")
    assert shared.run("list", "--role", "reviewer", "--json").check().json()["runs"] == []


def test_a_run_with_json_prints_one_document_and_progress_beside_it(shared: Desk) -> None:
    script = shared.script({"say": "Done."})
    done = shared.run("run", "scaffold", "x", "--json", "--model-script", script).check()
    assert done.json()["provenance"]["status"] == "done"
    progress = [json.loads(x) for x in done.stderr.splitlines() if x.startswith("{")]
    assert [p["stage"] for p in progress if p["kind"] == "stage"] == [
        "starting",
        "running",
        "collecting",
    ]


@pytest.mark.parametrize("kind", ["events", "egress", "model", "stderr", "controls"])
def test_logs_are_the_files_byte_for_byte(shared: Desk, run: str, kind: str) -> None:
    name = "stderr.log" if kind == "stderr" else f"{kind}.jsonl"
    done = shared.run("logs", run, "--kind", kind).check()
    assert done.out == (shared.folder(run).path / name).read_bytes()


def test_logs_that_follow_end_with_the_run(shared: Desk) -> None:
    script = shared.script({"shell": "sleep 1"}, {"say": "Done."})
    known = len(shared.runs())
    with shared.started("run", "scaffold", "x", "--model-script", script) as process:
        while len(shared.runs()) == known:
            pass
        done = shared.run("logs", "last", "-f").check()
        process.communicate(timeout=60)
    assert b"turn.completed" in done.out
    assert done.out == (shared.folder().path / "events.jsonl").read_bytes()


def test_diff_is_the_patch_byte_for_byte(shared: Desk, run: str) -> None:
    done = shared.run("diff", run).check()
    assert done.out == (shared.folder(run).path / "patch.diff").read_bytes()
    assert b"+evil \x1b[31mred" in done.out


@pytest.mark.parametrize("words", ["logs last", "logs last --kind controls", "show last", "list"])
def test_a_reader_that_goes_away_is_no_error(shared: Desk, run: str, words: str) -> None:
    command = f"set -o pipefail; {ROLEBOX[0]} {words} | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], env=shared.env(), capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 1, b"")


def test_a_failed_run_fails_though_nobody_reads_its_answer(shared: Desk) -> None:
    script = shared.script({"say": "not the JSON that is demanded"})
    words = f"{ROLEBOX[0]} run reviewer x --model-script {script} | true"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words}"], cwd=shared.repository, env=shared.env(),
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"not the JSON" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_is_gone_before_the_run_ends_changes_nothing(shared: Desk) -> None:
    command = f"{ROLEBOX[0]} exec reviewer -- seq 200000 | head -1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=shared.repository, env=shared.env(), capture_output=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"1\n", b"")
    assert shared.provenance()["status"] == "done"
    assert shared.text("events.jsonl").endswith("200000\n")


@pytest.mark.parametrize(
    "words", [("show", "{}"), ("list",), ("diff", "{}"), ("logs", "{}"), ("diff", "--stat", "{}")]
)
def test_what_an_agent_wrote_is_inert_in_a_terminal(
    shared: Desk, run: str, words: tuple[str, ...]
) -> None:
    printed = _in_terminal(shared, *[word.format(run) for word in words])
    assert printed
    assert _dangerous(printed) == []


def test_a_run_in_a_terminal_prints_the_answer_inert(shared: Desk) -> None:
    script = shared.script({"say": _EVIL})
    printed = _in_terminal(shared, "run", "scaffold", "x", "--model-script", script)
    assert b"evil \\x1b[31mred" in printed
    assert _dangerous(printed) == []


def test_a_failure_that_quotes_the_model_is_inert(shared: Desk) -> None:
    script = shared.script({"error": {"status": 400, "message": _EVIL}})
    done = shared.run("run", "scaffold", "x", "--model-script", script)
    assert done.code == 1
    assert b"evil" in done.err
    assert _dangerous(done.err) == []


def test_progress_for_programs_is_inert(shared: Desk) -> None:
    script = shared.script({"think": _EVIL, "shell": f"echo '{_EVIL}'"}, {"say": _EVIL})
    done = shared.run("run", "scaffold", "x", "--model-script", script).check()
    assert b"evil" in done.err
    assert _dangerous(done.err) == []


def test_the_profiles_are_listed_with_what_they_may(shared: Desk) -> None:
    found = {p["role"]: p for p in shared.run("profiles", "--json").check().json()["profiles"]}
    assert set(found) >= {"scaffold", "fixer", "reviewer"}
    assert found["reviewer"]["access"] == "read-only"
    shown = shared.run("profiles").check().stdout
    assert re.search(r"^reviewer +reads only", shown, re.MULTILINE)


def test_the_images_are_in_the_engine(shared: Desk) -> None:
    document: dict[str, Any] = shared.run("images", "list", "--json").check().json()
    assert document["complete"] is True
    assert {i["image"] for i in document["images"]} >= {"agent", "gateway"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shared: Desk, shell: str) -> None:
    done = shared.run("completion", shell).check()
    assert "_ROLEBOX_COMPLETE" in done.stdout
    if shutil.which(shell):
        check = subprocess.run([shell, "-n"], input=done.out, capture_output=True, check=False)
        assert (check.returncode, check.stderr) == (0, b"")


def test_completion_completes_commands_and_roles(shared: Desk) -> None:
    def complete(line: str, word: int) -> str:
        env = {"_ROLEBOX_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(word)}
        return shared.run(env=env).check().stdout

    assert "plain,profiles" in complete("rolebox pro", 1)
    assert "plain,reviewer" in complete("rolebox run rev", 2)
