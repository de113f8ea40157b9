"""What the gateway and the container report, added up and held against the plan."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from runner.evidence.store import RunFolder
from runner.model.errors import (
    ControlRefused,
)
from runner.model.plan import PlannedRun, RunPlan
from runner.session.agent import ControlLedger
from runner.session.gateway import GatewayLog, GatewayTotals, config_line
from tests.evidence.ended import close, good
from tests.planning.build import SCRIPT, planned

# The gateway's reports.


def report(**values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


def test_the_gateway_s_reports_are_added_up() -> None:
    usage = {"input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 2, "total_tokens": 12}
    lines = [
        report(kind="egress", decision="allowed", host="a"),
        report(kind="egress", decision="denied", host="b"),
        report(kind="egress", decision="denied", host="b", count=40),
        report(kind="egress", decision="unheard of", host="c"),
        report(kind="model", model_observed="m1", usage=usage),
        report(kind="model", model_observed="m1", usage=usage),
        report(kind="model", model_observed="m2", usage=None, status=500, error="busy"),
        report(kind="budget", which="requests", used=3, limit=3),
        report(kind="hello"),
        report(kind="stopped"),
    ]
    egress, model = io.BytesIO(), io.BytesIO()
    heard: list[Any] = []
    log = GatewayLog(egress, model, heard.append)
    stream = b"".join(lines)
    for place in range(0, len(stream), 7):
        log.feed(stream[place : place + 7])
    assert log.totals == GatewayTotals(
        allowed=1,
        denied=42,
        requests=3,
        observed=["m1", "m2"],
        input_tokens=20,
        cached_input_tokens=8,
        output_tokens=4,
        total_tokens=24,
        without_usage=1,
        budget="requests: 3 of 3",
        last_error="500: busy",
        stopped=True,
    )
    assert egress.getvalue() == b"".join(lines[:4])
    assert model.getvalue() == b"".join(lines[4:])
    assert len(heard) == len(lines)


@pytest.mark.parametrize(
    "line", [b"\n", b"no json\n", b"[]\n", b"\xff\n", b"[" * 100_000 + b"\n", b"x" * (2 << 20)]
)
def test_a_report_that_is_none_is_counted_and_the_next_is_read(line: bytes) -> None:
    log = GatewayLog(io.BytesIO(), io.BytesIO())
    log.feed(line)
    assert log.invalid == 1
    log.feed(b"\n" if not line.endswith(b"\n") else b"")
    log.feed(report(kind="stopped"))
    assert log.totals.stopped


@pytest.mark.parametrize("tokens", ["x", [], {}, 1e400])
def test_a_count_that_is_no_number_ends_nothing(tokens: Any) -> None:
    log = GatewayLog(io.BytesIO(), io.BytesIO())
    log.feed(report(kind="model", usage={"input_tokens": tokens}))
    log.feed(report(kind="egress", decision="denied", count=tokens))
    log.feed(report(kind="stopped"))
    assert log.totals.stopped


def test_totals_stay_what_the_record_can_say(made: PlannedRun, folder: RunFolder) -> None:
    log = GatewayLog(io.BytesIO(), io.BytesIO())
    for _ in range(3):
        log.feed(report(kind="model", usage={"total_tokens": (1 << 53) - 1}))
    record = close(folder, good(made.plan, gateway=log.totals))
    assert record["usage"]["total_tokens"] == (1 << 53) - 1


def test_the_gateway_s_first_line_is_one_line_and_the_plan_holds_no_header(
    made: PlannedRun,
) -> None:
    secret = "Bearer not-a-real-key"
    line = config_line(made.plan, "run", SCRIPT, {"authorization": secret})
    assert line.count(b"\n") == 1
    config = json.loads(line)
    assert config["model"]["headers"] == {"authorization": secret}
    assert config["model"]["models"] == [made.plan.model]
    assert config["egress"]["mode"] == "none"
    assert secret not in made.plan.canonical().decode()


# The controls that the container reports.


def answers(plan: RunPlan) -> list[dict[str, Any]]:
    return [
        {"name": c.name, "expect": c.expect, "observed": c.expect, "ok": True, "detail": ""}
        for c in plan.controls
    ]


def ledger(plan: RunPlan, records: list[dict[str, Any]]) -> ControlLedger:
    made = ControlLedger(plan.controls)
    for entry in records:
        made.take(entry)
    return made


def test_a_seal_that_holds_passes(made: PlannedRun) -> None:
    held = ledger(made.plan, answers(made.plan))
    held.take({"_schema": "rolebox.controls/1", "done": True, "failed": 0})
    held.judge()
    assert held.finished
    assert held.failures() == ()
    assert held.passed == len(made.plan.controls)


BREACHES: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "not reported": lambda r: None,
    "not ok": lambda r: {**r, "ok": False},
    "ok as a text": lambda r: {**r, "ok": "true"},
    "ok as a number": lambda r: {**r, "ok": 1},
    "the escape worked": lambda r: {**r, "observed": "works", "ok": True},
    "an error": lambda r: {**r, "observed": "error", "ok": True},
    "another expectation": lambda r: {**r, "expect": "works", "observed": "works"},
    "another name": lambda r: {**r, "name": "something else"},
}


@pytest.mark.parametrize("breach", BREACHES)
@pytest.mark.parametrize("number", [0, -1, 9])
def test_a_control_that_does_not_hold_refuses_the_run(
    made: PlannedRun, breach: str, number: int
) -> None:
    records = answers(made.plan)
    changed = BREACHES[breach](records[number])
    name = records[number]["name"]
    expected_works = made.plan.controls[number].expect == "works"
    if breach in ("the escape worked", "another expectation") and expected_works:
        changed = {**records[number], "observed": "blocked", "expect": "blocked"}
    records[number : number + 1 or None] = [changed] if changed else []
    broken = ledger(made.plan, records)
    with pytest.raises(ControlRefused) as refused:
        broken.judge()
    assert name in str(refused.value)
    assert broken.passed == len(made.plan.controls) - 1


def test_a_control_whose_name_holds_a_colon_is_counted_as_failed() -> None:
    from tests.planning.build import tree

    plan = planned("scaffold", at=tree("a:b")).plan
    records = answers(plan)
    for entry in records:
        if entry["name"] == "writable /work/a:b":
            entry["ok"] = False
    broken = ledger(plan, records)
    assert len(broken.failures()) == 1
    assert broken.passed == len(plan.controls) - 1


def test_a_control_that_failed_once_and_passed_once_has_failed(made: PlannedRun) -> None:
    records = answers(made.plan)
    with pytest.raises(ControlRefused):
        ledger(made.plan, [{**records[0], "ok": False}, *records]).judge()
    ledger(made.plan, records).judge()


def test_a_control_that_nobody_planned_refuses_when_it_fails_only(made: PlannedRun) -> None:
    more = {"name": "extra", "ok": True}
    ledger(made.plan, [*answers(made.plan), more]).judge()
    with pytest.raises(ControlRefused):
        ledger(made.plan, [*answers(made.plan), {**more, "ok": False}]).judge()


def test_a_summary_that_counts_failures_refuses_the_run(made: PlannedRun) -> None:
    counted = ledger(made.plan, answers(made.plan))
    counted.take({"_schema": "rolebox.controls/1", "done": True, "failed": 1})
    with pytest.raises(ControlRefused):
        counted.judge()
