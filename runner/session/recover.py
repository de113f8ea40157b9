"""Finish what a rolebox left behind that died: complete its runs as `lost`, clean up.

Nothing is guessed: the engine's own copy of what was printed, the session files
and the workspace are taken as they are, and the record says that it was
completed afterwards.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from runner.engine.api import Engine
from runner.evidence.events import EventRecorder, EventSummary
from runner.evidence.store import RunFolder, RunLock, RunStore
from runner.model.errors import EvidenceError, InfrastructureError, RoleboxError
from runner.model.plan import RunPlan
from runner.session.agent import ControlLedger
from runner.session.bind import Names
from runner.session.folder import release_room
from runner.session.gateway import GatewayLog
from runner.session.harvest import (
    clean,
    empty_overlays,
    harvest_patch,
    harvest_session,
    recall_areas,
)
from runner.session.record import Findings, close_run
from runner.workspace.instructions import agents_digests
from runner.workspace.lease import Lease
from runner.workspace.repository import open_repository
from runner.workspace.store import open_store

_MIB = 1 << 20
_SUMMARY = b'"rolebox.controls/1"'


def recover(
    store: RunStore, engine: Callable[[], Engine], now: Callable[[], datetime]
) -> tuple[str, ...]:
    """Complete every orphaned run; returns their ids.

    Args:
        store: Where runs lie.
        engine: Connects to the engine; called only if there is an orphan.
        now: The clock.

    Raises:
        RoleboxError: What kept the first one that could not be completed; the others are,
            and it waits for the next command.
    """
    recovered, failures = [], []
    for folder, lock in store.orphans():
        try:
            if _complete(store, folder, lock, engine(), now):
                recovered.append(folder.id)
        except RoleboxError as error:
            failures.append(error)
        except (OSError, ValueError, RecursionError) as error:
            failures.append(
                EvidenceError(f"run {folder.id} cannot be completed", why=repr(error)[:200])
            )
        finally:
            lock.release()
    if failures:
        raise failures[0]
    return tuple(recovered)


def _complete(
    store: RunStore,
    folder: RunFolder,
    lock: RunLock,
    engine: Engine,
    now: Callable[[], datetime],
) -> bool:
    """Complete a run, or only clean up after one that has its record; True if completed."""
    state = folder.read_state()
    release_room(folder)
    if state.ended:
        if not clean(engine, Names(folder.id), folder):
            store.retire(folder, lock)
        return False
    try:
        plan = RunPlan.model_validate_json((folder.path / "plan.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise EvidenceError(
            f"the plan of run {folder.id} cannot be read", why=type(error).__name__
        ) from None
    findings = Findings(plan=plan, started=datetime.fromisoformat(state.created))
    findings.parent = state.parent
    findings.engine = engine.info()
    findings.missing.append(
        f"completed afterwards: the rolebox of this run (pid {state.pid}) ended "
        f"while it was {state.status}"
    )
    _take_from_engine(engine, folder, findings)
    findings.missing.append("git: how many changed files it did not see is not known")
    _take_patch(store.home, folder, Path(state.repository), findings, now())
    findings.uncleaned = clean(engine, Names(folder.id), folder)
    lost = InfrastructureError(
        "the run was lost", why="its rolebox was killed or crashed", mend="run it again"
    )
    close_run(folder, state, findings, "lost", lost, now())
    if not findings.uncleaned:
        store.retire(folder, lock)
    return True


def _take_from_engine(engine: Engine, folder: RunFolder, findings: Findings) -> None:
    found = engine.objects(folder.id)
    limit = findings.plan.limits.evidence_mb * _MIB
    findings.controls = ControlLedger(findings.plan.controls)
    parts = {part: container for container, part in found.parts.items()}
    for container in found.containers:
        engine.signal(container, "SIGKILL")
        engine.wait(container, 10)
    if (agent := parts.get("agent")) is not None:
        try:
            _take_streams(engine, agent, folder, findings, limit)
        except InfrastructureError as error:
            findings.missing.append(f"events: {error.what}")
        findings.exit_code = engine.status(agent).code
        if findings.plan.command.kind == "codex":
            harvest_session(engine, agent, folder, findings)
        else:
            empty_overlays(engine, agent)
    else:
        _take_own_copy(folder, findings, limit)
    if (gateway := parts.get("gateway")) is not None:
        try:
            _take_gateway(engine, gateway, folder, findings, limit)
        except InfrastructureError as error:
            findings.missing.append(f"egress: {error.what}")
    for container in found.containers:
        engine.remove(container)


def _take_streams(
    engine: Engine, container: str, folder: RunFolder, findings: Findings, limit: int
) -> None:
    """Go on where our own copy was cut off, with the engine's.

    What was recorded live stands: the engine drops the start of a long log, and what is
    left of it may be the agent's words in the supervisor's form. So the engine's copy
    counts only where it begins with ours.
    """
    assert findings.controls is not None
    own = _bytes(folder, "controls.jsonl")
    _take_controls(own, findings)
    copy = engine.logs(container, "stdout", limit)
    if not findings.controls.finished:
        # The supervisor's words end with its summary; what follows is the command's. (Our
        # own copy has no summary where rolebox died before its `go`, or the disk lost it.)
        head, rest = _cut_after_summary(copy)
        _take_controls(head[len(own) :], findings)
        folder.write("controls.jsonl", head)
        _append_rest(folder, "events.jsonl", rest, findings)
    elif copy.startswith(own):
        _append_rest(folder, "events.jsonl", copy[len(own) :], findings)
    else:
        findings.missing.append("events: the engine's copy has lost its start; ours stands")
    _append_rest(folder, "stderr.log", engine.logs(container, "stderr", limit), findings)
    findings.events = _read_events(folder, findings, limit)


def _cut_after_summary(copy: bytes) -> tuple[bytes, bytes]:
    """Part what the container printed at the end of the supervisor's first summary line."""
    at = copy.find(_SUMMARY)
    if at < 0:
        return copy, b""
    end = copy.find(b"\n", at) + 1
    return (copy[:end], copy[end:]) if end else (copy, b"")


def _take_controls(lines: bytes, findings: Findings) -> None:
    assert findings.controls is not None
    for line in lines.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict):
                findings.controls.take(record)


def _append_rest(folder: RunFolder, name: str, copy: bytes, findings: Findings) -> None:
    own = _bytes(folder, name)
    if not copy.startswith(own):
        findings.missing.append(f"{name}: the engine's copy is another; ours stands")
    elif len(copy) > len(own):
        folder.write(name, copy)


def _read_events(folder: RunFolder, findings: Findings, limit: int) -> EventSummary:
    typed = findings.plan.command.kind == "codex"
    recorder = EventRecorder(io.BytesIO(), limit=limit, typed=typed)
    recorder.feed(_bytes(folder, "events.jsonl"))
    return recorder.finish()


def _take_own_copy(folder: RunFolder, findings: Findings, limit: int) -> None:
    """Read what the run itself wrote, where the engine holds nothing (any more)."""
    _take_controls(_bytes(folder, "controls.jsonl"), findings)
    findings.events = _read_events(folder, findings, limit)
    findings.gateway = _own_gateway_log(folder).totals
    findings.missing.append("exit: the container was gone, and its exit code with it")


def _own_gateway_log(folder: RunFolder) -> GatewayLog:
    log = GatewayLog(io.BytesIO(), io.BytesIO())
    log.feed(_bytes(folder, "egress.jsonl") + _bytes(folder, "model.jsonl"))
    return log


def _bytes(folder: RunFolder, name: str) -> bytes:
    try:
        return (folder.path / name).read_bytes()
    except FileNotFoundError:
        return b""


def _take_gateway(
    engine: Engine, container: str, folder: RunFolder, findings: Findings, limit: int
) -> None:
    copy = engine.logs(container, "stdout", limit)
    if b'"seq":0,' in copy.partition(b"\n")[0]:
        with (
            (folder.path / "egress.jsonl").open("wb") as egress,
            (folder.path / "model.jsonl").open("wb") as model,
        ):
            log = GatewayLog(egress, model)
            log.feed(copy)
    else:
        log = _own_gateway_log(folder)
        findings.missing.append("egress: the engine's copy has lost its start; ours stands")
    findings.gateway = log.totals
    if not findings.gateway.stopped:
        findings.missing.append("egress: the gateway did not confirm its last record")


def _take_patch(
    home: Path, folder: RunFolder, repository: Path, findings: Findings, when: datetime
) -> None:
    workspace = recall_areas(folder)
    try:
        store = open_store(home, open_repository(repository))
        findings.agents = agents_digests(store, findings.plan.source.commit)
        if workspace is None:
            return
        lease = Lease(paths=findings.plan.lease)
        harvest_patch(folder, workspace, store, findings, lease, when)
    except RoleboxError as error:
        findings.missing.append(f"repository: {error.what}")
