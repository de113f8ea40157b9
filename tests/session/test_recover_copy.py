"""What recovery believes: our own live record first, the engine's copy where it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from runner.engine.api import Engine, ExitStatus
from runner.evidence.store import RunFolder
from runner.session.agent import ControlLedger
from runner.session.record import Findings
from runner.session.recover import _take_streams
from tests.evidence.ended import good
from tests.planning.build import planned


class Copy:
    """An engine that has only its copies of the two streams."""

    def __init__(self, stdout: bytes, stderr: bytes = b"") -> None:
        self._copies = {"stdout": stdout, "stderr": stderr}

    def logs(self, container: str, stream: str, limit: int) -> bytes:
        return self._copies[stream][:limit]

    def status(self, container: str) -> ExitStatus:
        return ExitStatus(137)


def lines(findings: Findings, detail: str = "") -> bytes:
    """The supervisor's words when all controls hold."""
    records: list[dict[str, Any]] = [
        {
            "_schema": "rolebox.control/1",
            "name": control.name,
            "expect": control.expect,
            "observed": control.expect,
            "ok": True,
            "detail": detail,
        }
        for control in findings.plan.controls
    ]
    records.append({"_schema": "rolebox.controls/1", "done": True, "passed": 1, "failed": 0})
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture
def findings() -> Findings:
    plan = planned("reviewer").plan
    found = good(plan)
    found.missing.clear()
    found.controls = ControlLedger(plan.controls)
    return found


def take(findings: Findings, folder: Path, copy: Copy) -> None:
    _take_streams(cast(Engine, copy), "agent", RunFolder(folder), findings, 1 << 30)


def test_the_engines_copy_goes_on_where_ours_was_cut_off(
    findings: Findings, tmp_path: Path
) -> None:
    proven = lines(findings)
    (tmp_path / "controls.jsonl").write_bytes(proven)
    (tmp_path / "events.jsonl").write_bytes(b"one\n")
    take(findings, tmp_path, Copy(proven + b"one\ntwo\n", b"late\n"))
    assert (tmp_path / "events.jsonl").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "stderr.log").read_bytes() == b"late\n"
    assert findings.controls is not None
    assert findings.controls.failures() == ()
    assert findings.missing == []


def test_a_copy_that_lost_its_start_replaces_nothing(findings: Findings, tmp_path: Path) -> None:
    """The engine rotates a long log away; the agent prints control lines of its own."""
    proven, forged = lines(findings), lines(findings, "FORGED")
    (tmp_path / "controls.jsonl").write_bytes(proven)
    (tmp_path / "events.jsonl").write_bytes(b"honest\n" * 100)
    take(findings, tmp_path, Copy(forged + b"more\n"))
    assert (tmp_path / "controls.jsonl").read_bytes() == proven
    assert (tmp_path / "events.jsonl").read_bytes() == b"honest\n" * 100
    assert any("lost its start" in reason for reason in findings.missing)


def test_controls_that_were_never_finished_are_taken_from_the_copy(
    findings: Findings, tmp_path: Path
) -> None:
    proven = lines(findings)
    (tmp_path / "controls.jsonl").write_bytes(proven[:100].rpartition(b"\n")[0])
    take(findings, tmp_path, Copy(proven))
    assert findings.controls is not None
    assert findings.controls.finished
    assert (tmp_path / "controls.jsonl").read_bytes() == proven


def test_what_follows_the_summary_is_the_commands_and_no_control(
    findings: Findings, tmp_path: Path
) -> None:
    proven = lines(findings)
    take(findings, tmp_path, Copy(proven + b"output\n"))
    assert (tmp_path / "controls.jsonl").read_bytes() == proven
    assert (tmp_path / "events.jsonl").read_bytes() == b"output\n"


def test_deep_nesting_in_the_copy_stops_nothing(findings: Findings, tmp_path: Path) -> None:
    take(findings, tmp_path, Copy(b"[" * 200_000 + b"\n" + lines(findings)))
    assert findings.controls is not None
    assert findings.controls.finished
