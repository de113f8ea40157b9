"""A run that went well, as everything that is known about it, and its end."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from runner.engine.api import EngineInfo
from runner.evidence.events import EventSummary
from runner.evidence.store import RunFolder
from runner.model.plan import RunPlan
from runner.model.provenance import PatchRecord
from runner.session.gateway import GatewayTotals
from runner.session.record import Findings, close_run

STARTED = datetime(2026, 11, 22, 20, 15, 1, tzinfo=UTC)
ENDED = STARTED + timedelta(seconds=2.5)
ENGINE = EngineInfo(
    "id", "host", "20.10.24", "1.41", "6.18", "Debian", "x86_64", "1", "runc", False, ("seccomp",)
)
REVIEW = {"summary": "s", "risk": "low", "recommendation": "approve", "findings": []}


def patch(*violations: dict[str, str]) -> PatchRecord:
    return PatchRecord(
        kind="leased",
        sha256="sha256:" + "0" * 64,
        bytes=10,
        commit="1" * 40,
        tree="2" * 40,
        files=1,
        added=1,
        removed=0,
        anomalies=(),
        violations=violations,
    )


def good(plan: RunPlan, **changes: Any) -> Findings:
    """Everything that is known about a run that went well."""
    message = json.dumps(REVIEW)
    findings = Findings(
        plan=plan,
        started=STARTED,
        engine=ENGINE,
        events=EventSummary(terminal="turn.completed", last_message=message),
        gateway=GatewayTotals(requests=2, observed=["gpt-5.5"], stopped=True),
        exit_code=0,
    )
    for name, value in changes.items():
        setattr(findings, name, value)
    return findings


def close(folder: RunFolder, findings: Findings, **end: Any) -> dict[str, Any]:
    values = {"status": "done", "failure": None, **end}
    state = folder.read_state()
    close_run(folder, state, findings, values["status"], values["failure"], ENDED)
    record = folder.read_json("provenance.json")
    assert record is not None
    return record
