"""What a model does wrong, through the real Codex: the status, the code, one message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.rig import FINDINGS, Desk, jsonl, left_in_engine


def _error(status: int) -> dict[str, Any]:
    return {"error": {"status": status, "message": f"scripted {status}"}}


@pytest.mark.parametrize(
    ("turns", "flags", "code", "status", "why"),
    [
        ([_error(401)] * 6, (), 1, "failed", "401 Unauthorized: scripted 401"),
        ([_error(429)] * 3, (), 1, "failed", "429 Too Many Requests"),
        ([_error(500)] * 12, (), 1, "failed", "500"),
        ([{"drop": True}] * 6, (), 1, "failed", "stream disconnected before completion"),
        ([{"raw": "data: {rubbish\n\n"}] * 6, (), 1, "failed", "stream closed before"),
        ([{"shell": "true"}], (), 1, "failed", "the model script has 1 turns, and all are used"),
        ([{"hang": 60}], ("--timeout", "5"), 5, "timeout", "did not end within 5 s"),
    ],
    ids=["401", "429", "500", "drop", "rubbish", "exhausted", "hang"],
)
def test_a_failing_model_ends_the_run_with_its_reason(
    shared: Desk,
    turns: list[Any],
    flags: tuple[str, ...],
    code: int,
    status: str,
    why: str,
) -> None:
    done = shared.run("run", "scaffold", "Go.", *flags, "--model-script", shared.script(*turns))
    record = shared.provenance()
    assert (done.code, record["status"]) == (code, status)
    assert why in done.stderr
    assert (
        len(
            [
                x
                for x in done.stderr.splitlines()
                if x.startswith("rolebox: ") and "--write" not in x
            ]
        )
        == 1
    )
    assert record["failure"]["what"] in done.stderr
    assert record["completeness"]["complete"], record["completeness"]
    assert record["model"]["requests"] >= 1
    assert left_in_engine(record["run"]) == []


@pytest.mark.parametrize(
    "turns",
    [
        [{"drop": True}, {"say": "At last."}],
        [_error(500), {"say": "At last."}],
        [{"raw": "data: {rubbish\n\n"}, {"say": "At last."}],
    ],
    ids=["drop", "500", "rubbish"],
)
def test_a_model_that_recovers_is_retried(shared: Desk, turns: list[Any]) -> None:
    done = shared.run("run", "scaffold", "Go.", "--model-script", shared.script(*turns)).check()
    assert done.stdout == "At last.\n"
    assert shared.provenance()["model"]["requests"] == 2


def test_a_budget_delivers_the_last_answer_that_fits_and_refuses_the_next(shared: Desk) -> None:
    turns = [
        {"shell": "echo delivered", "usage": {"input_tokens": 90, "output_tokens": 20}},
        {"shell": "echo never"},
    ]
    words = ("run", "scaffold", "Go.", "--max-tokens", "100", "--model-script")
    done = shared.run(*words, shared.script(*turns))
    record = shared.provenance()
    assert (done.code, record["status"]) == (6, "budget")
    assert "the budget is spent (total_tokens: 110 of 100)" in done.stderr
    assert "--max-tokens" in done.stderr
    events = shared.text("events.jsonl")
    assert '"aggregated_output":"delivered\\n"' in events
    assert "never" not in events
    assert record["usage"]["total_tokens"] == 110
    assert record["completeness"]["complete"]


def test_a_budget_that_is_not_met_is_no_matter(shared: Desk) -> None:
    turn = {"say": "Done.", "usage": {"input_tokens": 90, "output_tokens": 10}}
    words = ("run", "scaffold", "Go.", "--max-tokens", "100", "--model-script")
    shared.run(*words, shared.script(turn)).check()
    assert shared.provenance()["usage"]["total_tokens"] == 100


def _finding(**changes: Any) -> str:
    return json.dumps({**json.loads(FINDINGS), **changes})


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("All fine, I think.", "not the JSON that the output schema demands"),
        (_finding(risk="terrible"), "risk: 'terrible' is not one of"),
        (_finding(findings=[{"title": "x"}]), "findings/0: "),
        (_finding(extra=1), "'extra' was unexpected"),
    ],
)
def test_a_reviewer_whose_last_message_breaks_the_schema_failed(
    shared: Desk, message: str, why: str
) -> None:
    script = shared.script({"say": message})
    done = shared.run("run", "reviewer", "Look.", "--model-script", script)
    assert (done.code, shared.provenance()["status"]) == (1, "failed")
    assert why in done.stderr
    assert shared.text("last-message.md") == message  # kept as evidence all the same


def test_a_reviewer_whose_last_message_meets_the_schema_is_done(shared: Desk) -> None:
    script = shared.script({"shell": "git log --oneline"}, {"say": FINDINGS})
    done = shared.run("run", "reviewer", "Look.", "--model-script", script).check()
    assert json.loads(done.stdout) == json.loads(FINDINGS)


def test_an_output_schema_of_ones_own_is_demanded(shared: Desk) -> None:
    schema = shared.home.parent / "schema.json"
    schema.write_text('{"type": "object", "required": ["answer"]}')
    words = ("run", "scaffold", "Go.", "--output-schema", str(schema), "--model-script")
    assert shared.run(*words, shared.script({"say": '{"answer": 42}'})).code == 0
    bad = shared.run(*words, shared.script({"say": '{"no": 42}'}))
    assert bad.code == 1
    assert "'answer' is a required property" in bad.stderr


def test_another_model_than_the_planned_one_is_denied(shared: Desk) -> None:
    ask = (
        "import json, urllib.request as u, urllib.error as e\n"
        "b = {'model': 'gpt-4o', 'stream': True, 'store': False, 'input': []}\n"
        "r = u.Request('http://127.0.0.1:3128/v1/responses', json.dumps(b).encode(),"
        " {'content-type': 'application/json'})\n"
        "try: print('asked', u.urlopen(r).status)\n"
        "except e.HTTPError as x: print('denied', x.code, x.read().decode())\n"
    )
    command = f"cat > /tmp/a.py <<'X'\n{ask}X\npython3 /tmp/a.py"
    script = shared.script({"shell": command}, {"say": "Done."})
    shared.run("run", "scaffold", "Go.", "--model-script", script).check()
    assert "denied 400" in shared.text("events.jsonl")
    denied = [r for r in jsonl(shared.text("egress.jsonl")) if r["decision"] == "denied"]
    assert [r["rule"] for r in denied] == ["model.pinned"]
