"""A person, a limit or a supervisor stops a run: it ends, and its evidence is whole."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest

from tests.e2e.rig import Desk, left_in_engine, said, until

_SLEEP = {"shell": "echo one > src/one.txt; echo begun; sleep 600", "yield_time_ms": 30000}

_STUBBORN = (
    "import signal, time\n"
    "for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
    "open('/work/src/left.txt', 'w').write('left\\n')\n"
    "print('ignoring', flush=True)\n"
    "time.sleep(600)\n"
)


def _end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


def _whole(desk: Desk, run: str, status: str) -> dict[str, Any]:
    record = desk.provenance(run)
    assert record["status"] == status
    assert record["completeness"] == {"complete": True, "missing": [], "uncleaned": []}
    assert left_in_engine(run) == []
    folder = desk.folder(run).path
    assert not (folder / "ws").exists()
    assert desk.folder(run).read_state().status == status
    assert status in (desk.home / "ledger.jsonl").read_text().splitlines()[-1]
    return record


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_codex_run_keeps_all_that_it_did(shared: Desk, number: signal.Signals) -> None:
    script = shared.script(_SLEEP, {"say": "Done."})
    words = ("run", "scaffold", "Sleep.", "--write", "src/", "--model-script", script)
    known = shared.runs()[:1]
    with shared.started(*words) as process:
        run = until(lambda: [r for r in shared.runs()[:1] if r not in known], "the run")[0]
        until(lambda: said(shared, "item.started")() == run, "the command")
        process.send_signal(number)
        code, err = _end(process)
    assert code == 130
    assert err.count("rolebox: the run was interrupted") == 1
    record = _whole(shared, run, "interrupted")
    assert "turn_aborted" in shared.text("rollout.jsonl", run)
    assert record["patch"]["kind"] == "leased"
    assert "+one" in shared.text("patch.diff", run)
    assert record["usage"]["total_tokens"] > 0


def test_a_second_interrupt_ends_it_by_force(shared: Desk) -> None:
    """Grace is ten seconds by profile; a stubborn command needs the force."""
    words = ("exec", "scaffold", "--write", "src/", "--", "python3", "-c", _STUBBORN)
    with shared.started(*words) as process:
        run = until(said(shared, "ignoring"), "the command")
        process.send_signal(signal.SIGINT)
        until(lambda: shared.folder(run).read_state().status == "running", "still running")
        process.send_signal(signal.SIGINT)
        code, _ = _end(process)
    assert code == 130
    record = _whole(shared, run, "interrupted")
    assert record["exit_code"] == 137
    assert "+left" in shared.text("patch.diff", run)


def test_a_command_that_ignores_every_signal_is_killed_after_the_grace(desk: Desk) -> None:
    desk.profile("hasty", 'extends = "scaffold"\n[limits]\ngrace_s = 0.5\n')
    words = ("exec", "hasty", "--write", "src/", "--timeout", "2", "--", "python3", "-c", _STUBBORN)
    done = desk.run(*words)
    assert done.code == 5
    assert done.stdout == "ignoring\n"
    record = _whole(desk, "last", "timeout")
    assert record["exit_code"] == 137
    assert "+left" in desk.text("patch.diff")


def test_a_command_that_obeys_is_not_killed(shared: Desk) -> None:
    polite = "trap 'echo bye; exit 9' INT; echo up; while :; do sleep 0.1; done"
    with shared.started("exec", "reviewer", "--", "sh", "-c", polite) as process:
        run = until(said(shared, "up"), "the command")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b"up\nbye\n"
    assert _whole(shared, run, "interrupted")["exit_code"] == 9


def test_a_codex_run_over_its_time_ends_with_5(shared: Desk) -> None:
    script = shared.script(_SLEEP, {"say": "Done."})
    words = ("run", "scaffold", "Sleep.", "--timeout", "3", "--model-script", script)
    done = shared.run(*words)
    assert done.code == 5
    assert "did not end within 3 s" in done.stderr
    assert "--timeout" in done.stderr
    _whole(shared, "last", "timeout")
    assert "turn_aborted" in shared.text("rollout.jsonl")


def test_a_run_within_its_time_is_done(shared: Desk) -> None:
    script = shared.script({"shell": "sleep 1"}, {"say": "Done."})
    words = ("run", "scaffold", "Sleep.", "--timeout", "30", "--model-script", script)
    shared.run(*words).check()
    _whole(shared, "last", "done")


def test_a_killed_rolebox_leaves_a_run_that_the_next_command_completes(shared: Desk) -> None:
    script = shared.script(_SLEEP, {"say": "Done."})
    words = ("run", "scaffold", "Sleep.", "--write", "src/", "--model-script", script)
    known = shared.runs()[:1]
    with shared.started(*words) as process:
        run = until(lambda: [r for r in shared.runs()[:1] if r not in known], "the run")[0]
        until(lambda: said(shared, "item.started")() == run, "the command")
        process.kill()
        process.communicate(timeout=60)
    assert len(left_in_engine(run)) >= 4  # nobody was there to remove them
    done = shared.run("list", "--json").check()
    assert run in done.stderr
    assert [r["status"] for r in done.json()["runs"] if r["id"] == run] == ["lost"]
    assert left_in_engine(run) == []
    record = shared.provenance(run)
    assert record["status"] == "lost"
    assert record["completeness"]["complete"] is False
    assert record["controls"]["passed"] == record["controls"]["planned"]
    assert "+one" in shared.text("patch.diff", run)
    assert "item.started" in shared.text("events.jsonl", run)
    assert shared.run("list").stderr == ""  # it is completed once
