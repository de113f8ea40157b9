"""How a run ends: the verdict, the provenance record, its schema, the ledger's entry."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jsonschema
import pytest

from runner.evidence.events import EventSummary
from runner.evidence.store import RunFolder
from runner.model.canonical import canonical
from runner.model.errors import (
    AgentFailed,
    BudgetSpent,
    ControlRefused,
    EngineUnavailable,
    EvidenceError,
    HardeningRefused,
    InfrastructureError,
    Interrupted,
    LeaseRefused,
    ReplayDiverged,
    RoleboxError,
    TimedOut,
    UsageError,
)
from runner.model.plan import Materials, PlannedRun
from runner.model.provenance import Provenance, provenance_schema
from runner.model.state import EXIT_CODES, TERMINAL, Status, status_of
from runner.planning.resolve import Task
from runner.session.gateway import GatewayTotals
from runner.session.record import Findings
from runner.session.verdict import verdict
from tests.evidence.ended import REVIEW, STARTED, close, good, patch
from tests.planning.build import planned


def judged(
    made: PlannedRun, folder: RunFolder, failure: RoleboxError | None = None, **changes: Any
) -> tuple[Status, RoleboxError | None]:
    return verdict(good(made.plan, **changes), failure, folder, made.materials)


def said(message: str | None, terminal: str | None = "turn.completed") -> dict[str, Any]:
    return {"events": EventSummary(terminal=terminal, last_message=message)}


SPENT = GatewayTotals(requests=2, budget="total_tokens: 11 of 10")
OUTSIDE = {"kind": "outside", "path": "x", "detail": "not leased"}

Case = tuple[RoleboxError | None, dict[str, Any], Status, str]
CASES: dict[str, Case] = {
    "a turn that completed, exit 0": (None, {}, "done", ""),
    "a budget met exactly at the end": (None, {"gateway": SPENT}, "done", ""),
    "exit 0 without a terminal event": (
        None, said("x", None), "failed", "without completing its turn"),
    "a failed turn, exit 0": (None, said("x", "turn.failed"), "failed", "Codex failed"),
    "a completed turn, exit 1": (None, {"exit_code": 1}, "failed", "exit code 1"),
    "no exit code": (None, {"exit_code": None}, "failed", "exit code None"),
    "a completed turn that the gateway knows nothing of": (
        None, {"gateway": GatewayTotals()}, "lost", "the gateway saw no model request"),
    "a failed turn after the budget was spent": (
        None, {**said("x", "turn.failed"), "gateway": SPENT}, "budget", "11 of 10"),
    "exit 1 after the budget was spent": (
        None, {"exit_code": 1, "gateway": SPENT}, "budget", "budget is spent"),
    "an infrastructure failure after the budget was spent": (
        InfrastructureError("x"), {"gateway": SPENT}, "budget", "budget is spent"),
    "a time-out after the budget was spent": (TimedOut("t"), {"gateway": SPENT}, "timeout", "t"),
    "an interruption after the budget was spent": (
        Interrupted("i"), {"gateway": SPENT}, "interrupted", "i"),
    "a refusal after the budget was spent": (
        ControlRefused("c"), {"gateway": SPENT}, "refused", "c"),
    "a message that is no JSON": (None, said("not json"), "failed", "not the JSON"),
    "no message at all": (None, said(None), "failed", "not the JSON"),
    "a message nested without end": (None, said("[" * 100_000), "failed", "not the JSON"),
    "a message that does not meet the schema": (
        None, said(json.dumps({**REVIEW, "risk": "none"})), "failed", "does not meet"),
    "a message with more than the schema": (
        None, said(json.dumps({**REVIEW, "more": 1})), "failed", "does not meet"),
    "a patch with violations": (
        None, {"patch": patch(OUTSIDE)}, "refused", "changed what it must not: x (outside)"),
    "a patch without violations": (None, {"patch": patch()}, "done", ""),
    "a failed turn with violations": (
        None, {**said("x", "turn.failed"), "patch": patch(OUTSIDE)}, "failed", "Codex failed"),
    "a control that failed": (ControlRefused("c"), {}, "refused", "c"),
    "an engine that is gone": (EngineUnavailable("e"), {}, "lost", "e"),
    "a time-out": (TimedOut("t"), {}, "timeout", "t"),
    "an interruption": (Interrupted("i"), {}, "interrupted", "i"),
    "a replay that diverged": (ReplayDiverged("d"), {}, "diverged", "d"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_judged_by_all_that_is_known(
    made: PlannedRun, folder: RunFolder, case: str
) -> None:
    failure, changes, status, word = CASES[case]
    got, problem = judged(made, folder, failure, **changes)
    assert got == status
    assert (problem is None) == (status == "done")
    assert word in (problem.what if problem else "")


def test_every_last_status_has_a_case_and_an_exit_code() -> None:
    assert {case[2] for case in CASES.values()} == TERMINAL == set(EXIT_CODES)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AgentFailed("x"), "failed"),
        (HardeningRefused("x"), "refused"),
        (LeaseRefused("x"), "refused"),
        (EngineUnavailable("x"), "lost"),
        (BudgetSpent("x"), "budget"),
        (UsageError("x"), "lost"),
        (EvidenceError("x"), "lost"),
    ],
)
def test_every_error_has_a_status(error: RoleboxError, status: Status) -> None:
    assert status_of(error) == status


@pytest.mark.parametrize(("code", "status"), [(0, "done"), (1, "failed"), (137, "failed")])
def test_a_command_is_judged_by_its_exit_code(folder: RunFolder, code: int, status: str) -> None:
    command = planned("reviewer", Task(argv=("true",)))
    got, _ = judged(command, folder, exit_code=code, **said(None, None), gateway=GatewayTotals())
    assert got == status


def test_codex_s_last_words_and_the_model_s_error_are_told(
    made: PlannedRun, folder: RunFolder
) -> None:
    folder.write("stderr.log", b"noise\nError: \xff the last line\n\n")
    totals = GatewayTotals(requests=1, last_error="500: overloaded")
    _, problem = judged(made, folder, exit_code=1, gateway=totals)
    assert problem is not None
    assert problem.why == "Error: \ufffd the last line (the model answered 500: overloaded)"
    assert problem.mend == "the provider failed; the run can be repeated as it is"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ('{"error": {"message": "the budget is spent", "code": "x"}}', "the budget is spent"),
        ('{"error": {"message": 5}}', '{"error": {"message": 5}}'),
        ("plain words", "plain words"),
    ],
)
def test_an_error_in_json_is_told_by_its_message(
    made: PlannedRun, folder: RunFolder, words: str, told: str
) -> None:
    events = EventSummary(terminal="turn.failed", error=words)
    _, problem = judged(made, folder, exit_code=1, events=events)
    assert problem is not None
    assert problem.why == told


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": 5}, "not valid"),
        ({"pattern": "("}, "not valid"),
        ({"$ref": "#/nothing"}, "refers to what it does not hold"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "refers to what it does not hold"),
        ({"$ref": "file:///etc/passwd"}, "refers to what it does not hold"),
    ],
)
def test_a_broken_schema_ends_in_a_verdict_and_fetches_nothing(
    made: PlannedRun,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    schema: dict[str, Any],
    word: str,
) -> None:
    def fetch(*args: object, **kwargs: object) -> None:
        raise AssertionError("the host fetched a schema")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    materials = Materials(files={"rolebox/schema.json": json.dumps(schema).encode()})
    status, problem = verdict(good(made.plan), None, folder, materials)
    assert status == "failed"
    assert problem is not None
    assert word in problem.what


#: contract.md's list, each as a path into the record.
CONTRACT = (
    "_schema",
    "run",
    "role",
    "status",
    "started",
    "ended",
    "model.asked",
    "model.observed",
    "codex.version",
    "codex.binary_sha256",
    "images.agent",
    "images.gateway",
    "engine.version",
    "engine.kernel",
    "hashes.plan",
    "hashes.profile",
    "hashes.config",
    "hashes.rules",
    "hashes.agents",
    "hashes.seccomp",
    "hashes.egress_policy",
    "hashes.prompt",
    "attachments",
    "git.commit",
    "git.tree",
    "lease",
    "patch.sha256",
    "files",
    "usage.total_tokens",
    "usage.input_tokens",
    "usage.output_tokens",
    "egress.allowed",
    "egress.denied",
    "controls.passed",
    "exit_code",
    "parent",
    "completeness.complete",
    "completeness.missing",
)


@pytest.fixture
def record(made: PlannedRun, folder: RunFolder) -> dict[str, Any]:
    return close(folder, good(made.plan, patch=patch(), agents={"AGENTS.md": "sha256:x"}))


@pytest.mark.parametrize("path", CONTRACT)
def test_a_record_holds_every_field_of_the_contract(record: dict[str, Any], path: str) -> None:
    value: Any = record
    for part in path.split("."):
        assert part in value
        value = value[part]


def test_a_record_says_what_is_true(
    record: dict[str, Any], made: PlannedRun, folder: RunFolder
) -> None:
    assert record["hashes"]["plan"] == made.plan.digest
    assert record["started"] == "2026-11-22T20:15:01.000000Z"
    assert record["ended"] == "2026-11-22T20:15:03.500000Z"
    assert record["attachments"][0]["trust"] == "untrusted"
    assert record["completeness"] == {"complete": True, "missing": [], "uncleaned": []}
    assert set(record["files"]) == {"plan.json", "tape/0001.json"}
    for name, entry in record["files"].items():
        data = (folder.path / name).read_bytes()
        assert entry == {
            "sha256": "sha256:" + hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }


def test_a_link_in_a_run_s_folder_is_no_evidence(made: PlannedRun, folder: RunFolder) -> None:
    (folder.path / "link").symlink_to("/etc/passwd")
    assert "link" not in close(folder, good(made.plan))["files"]


def required(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return []
    found = [(*path, key) for key in value]
    return found + [item for key, inner in value.items() for item in required(inner, (*path, key))]


#: Maps whose keys are data.
FREE = {("hashes", "agents"), ("files",), ("timings_ms",), ("usage", "reported_by_codex")}


def test_the_exported_schema_accepts_a_record_and_refuses_one_without_any_of_its_fields(
    record: dict[str, Any],
) -> None:
    schema = provenance_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(record)
    inside_a_map = [p for p in required(record) if any(p[: len(f)] == f and p != f for f in FREE)]
    paths = [p for p in required(record) if p not in inside_a_map]
    assert len(paths) > 80
    for path in paths:
        less = json.loads(json.dumps(record))
        inner = less
        for part in path[:-1]:
            inner = inner[part]
        del inner[path[-1]]
        assert not validator.is_valid(less), path
    assert not validator.is_valid({**record, "more": 1})
    assert not validator.is_valid({**record, "status": "fine"})


def test_a_record_parses_back(record: dict[str, Any]) -> None:
    assert Provenance.model_validate(record).to_json() == record


def test_the_ledger_names_the_record_by_its_digest(
    record: dict[str, Any], folder: RunFolder
) -> None:
    (line,) = (folder.path.parent.parent / "ledger.jsonl").read_bytes().splitlines()
    entry = json.loads(line)
    assert entry["run"] == folder.id
    assert entry["provenance"] == "sha256:" + hashlib.sha256(canonical(record)).hexdigest()
    assert entry["plan"] == record["hashes"]["plan"]


def test_the_last_state_says_why(made: PlannedRun, folder: RunFolder) -> None:
    failure = TimedOut("too slow", why="w", mend="m")
    findings = good(made.plan, missing=["rollout: none"])
    record = close(folder, findings, status="timeout", failure=failure)
    state = folder.read_state()
    assert state.ended
    assert state.failure is not None
    assert (state.status, state.failure.why, state.duration_s) == ("timeout", "w", 2.5)
    assert record["failure"] == {"what": "too slow", "why": "w", "mend": "m"}
    assert record["completeness"]["complete"] is False


def test_a_run_of_which_nothing_is_known_still_has_its_record(
    made: PlannedRun, folder: RunFolder
) -> None:
    findings = Findings(plan=made.plan, started=STARTED)
    record = close(folder, findings, status="lost", failure=InfrastructureError("x"))
    jsonschema.Draft202012Validator(provenance_schema()).validate(record)
    assert record["engine"] is None
    assert record["controls"]["passed"] == 0


def test_words_that_are_no_unicode_do_not_keep_a_run_from_its_record(
    made: PlannedRun, folder: RunFolder
) -> None:
    """A model or an agent can say `\\ud800`; the record must exist whatever they say."""
    totals = GatewayTotals(requests=1, observed=["gpt\ud800"])
    record = close(folder, good(made.plan, gateway=totals), failure=AgentFailed("x\udfff"))
    assert record["model"]["observed"] == ["gpt\\ud800"]
    assert record["failure"]["what"] == "x\\udfff"
    assert folder.read_state().ended
