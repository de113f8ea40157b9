"""What a run leaves, and how it becomes the provenance record and the ledger's entry.

`close_run` is the only way in which a run ends, also one that failed, was
killed, or is found later: it writes what there is and says what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import runner
from runner.engine.api import EngineInfo
from runner.evidence import ledger
from runner.evidence.events import EventSummary
from runner.evidence.store import RunFolder
from runner.model.canonical import canonical, digest, sha256, sha256_file
from runner.model.errors import RoleboxError
from runner.model.ids import rfc3339
from runner.model.plan import RunPlan
from runner.model.provenance import (
    CodexRecord,
    CommandsRecord,
    Completeness,
    ControlsRecord,
    EgressRecord,
    EngineRecord,
    EventsRecord,
    FileRecord,
    GitRecord,
    HashesRecord,
    ImagesRecord,
    ModelRecord,
    PatchRecord,
    Provenance,
    UsageRecord,
)
from runner.model.state import Failure, RunState, Status
from runner.session.agent import ControlLedger
from runner.session.gateway import GatewayTotals

#: Files of a run's folder that are not evidence: they change, or are this record itself.
_NOT_EVIDENCE = frozenset(
    {"state.json", "provenance.json", "attestation.json", ".lock", ".reserve"}
)


@dataclass
class Findings:
    """Everything that is known about a run when it ends; filled stage by stage."""

    plan: RunPlan
    started: datetime
    dirty: int = 0
    parent: str | None = None
    agents: Mapping[str, str] = field(default_factory=dict)
    engine: EngineInfo | None = None
    events: EventSummary = field(default_factory=EventSummary)
    controls: ControlLedger | None = None
    gateway: GatewayTotals = field(default_factory=GatewayTotals)
    patch: PatchRecord | None = None
    commands: CommandsRecord | None = None
    exit_code: int | None = None
    missing: list[str] = field(default_factory=list)
    uncleaned: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)


def close_run(
    folder: RunFolder,
    state: RunState,
    findings: Findings,
    status: Status,
    failure: RoleboxError | None,
    now: datetime,
) -> RunState:
    """Write provenance and ledger entry, then the last state; returns that state.

    Raises:
        RoleboxError: The disk or the ledger refuses even this.
    """
    told = None
    if failure is not None:
        words = {"what": failure.what, "why": failure.why, "mend": failure.mend}
        told = Failure(**_sayable(words))
    provenance = _provenance(folder, findings, status, told, now)
    record = _sayable(provenance.to_json())
    folder.write_json("provenance.json", record)
    ledger.append(
        folder.path.parent.parent / "ledger.jsonl",
        {
            "kind": "run",
            "time": rfc3339(now),
            "run": folder.id,
            "role": findings.plan.role,
            "status": status,
            "plan": findings.plan.digest,
            "provenance": digest(record),
        },
    )
    last = state.model_copy(
        update={
            "status": status,
            "updated": rfc3339(now),
            "exit_code": findings.exit_code,
            "failure": told,
            "patch_bytes": findings.patch.bytes if findings.patch else 0,
            "total_tokens": findings.gateway.total_tokens,
            "denied": findings.gateway.denied,
            "duration_s": round((now - findings.started).total_seconds(), 3),
        }
    )
    folder.write_state(last)
    return last


def _sayable(value: Any) -> Any:
    """Return a value that has UTF-8: what an agent or a model said may hold lone surrogates.

    JSON lets them in as escapes; no canonical form has them, so they stay escapes here.
    """
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_sayable(key): _sayable(item) for key, item in value.items()}
        case list():
            return [_sayable(item) for item in value]
        case _:
            return value


def evidence_files(folder: RunFolder) -> dict[str, FileRecord]:
    """Return every file of evidence with its digest and size, sorted by name."""
    found: dict[str, FileRecord] = {}
    for path in sorted(folder.path.rglob("*")):
        name = path.relative_to(folder.path).as_posix()
        if name in _NOT_EVIDENCE or name.startswith("ws/") or path.is_symlink():
            continue
        if path.is_file():
            found[name] = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)
    return found


def _provenance(
    folder: RunFolder,
    findings: Findings,
    status: Status,
    failure: Failure | None,
    now: datetime,
) -> Provenance:
    plan, gateway = findings.plan, findings.gateway
    return Provenance(
        rolebox_version=runner.__version__,
        run=folder.id,
        role=plan.role,
        kind=plan.command.kind,
        status=status,
        failure=failure,
        started=rfc3339(findings.started),
        ended=rfc3339(now),
        model=ModelRecord(
            asked=plan.model,
            observed=tuple(gateway.observed),
            backend=plan.gateway.backend,
            requests=gateway.requests,
        ),
        codex=CodexRecord(**plan.codex.to_json()),
        images=ImagesRecord(
            agent=plan.agent_container.image,
            gateway=plan.gateway_container.image,
            lock_sha256=plan.image_lock_sha256,
        ),
        engine=EngineRecord(**vars(findings.engine)) if findings.engine else None,
        hashes=_hashes(findings),
        attachments=plan.attachments,
        git=GitRecord(commit=plan.source.commit, tree=plan.source.tree, dirty=findings.dirty),
        access=plan.access,
        lease=plan.lease,
        patch=findings.patch,
        usage=_usage(findings),
        egress=EgressRecord(allowed=gateway.allowed, denied=gateway.denied),
        controls=_controls(findings),
        events=_events(findings.events),
        commands=findings.commands,
        exit_code=findings.exit_code,
        parent=findings.parent,
        overrides=plan.overrides,
        timings_ms={k: round(v, 1) for k, v in findings.timings_ms.items()},
        files=evidence_files(folder),
        completeness=Completeness(
            complete=not findings.missing,
            missing=tuple(findings.missing),
            uncleaned=tuple(findings.uncleaned),
        ),
    )


def _hashes(findings: Findings) -> HashesRecord:
    plan = findings.plan
    rules = {k: v for k, v in plan.files.items() if k.startswith("codex/rules/")}
    return HashesRecord(
        plan=plan.digest,
        profile=plan.profile_sha256,
        config=plan.files.get("codex/config.toml"),
        requirements=plan.files.get("codex/requirements.toml"),
        rules=digest(rules) if rules else None,
        agents=findings.agents,
        seccomp=plan.agent_container.seccomp or "",
        egress_policy=sha256(canonical(plan.gateway.egress.to_json())),
        prompt=plan.prompt_sha256,
    )


def _usage(findings: Findings) -> UsageRecord:
    gateway = findings.gateway
    reported: dict[str, Any] | None = None
    if findings.events.terminal == "turn.completed":
        reported = findings.events.usage.model_dump()
    return UsageRecord(
        input_tokens=gateway.input_tokens,
        cached_input_tokens=gateway.cached_input_tokens,
        output_tokens=gateway.output_tokens,
        reasoning_output_tokens=gateway.reasoning_output_tokens,
        total_tokens=gateway.total_tokens,
        reported_by_codex=reported,
    )


def _controls(findings: Findings) -> ControlsRecord:
    ledger_ = findings.controls
    if ledger_ is None or not (ledger_.records or ledger_.finished):
        return ControlsRecord(planned=len(findings.plan.controls), passed=0, failed=())
    return ControlsRecord(
        planned=len(findings.plan.controls), passed=ledger_.passed, failed=ledger_.failures()
    )


def _events(summary: EventSummary) -> EventsRecord:
    return EventsRecord(
        events=summary.events,
        unknown=summary.unknown,
        invalid=summary.invalid,
        oversized=summary.oversized,
        torn=summary.torn,
        truncated=summary.truncated,
        terminal=summary.terminal,
    )
