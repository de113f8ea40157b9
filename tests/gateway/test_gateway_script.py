from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from runner.gateway.backend import reply_events
from runner.gateway.script import (
    Drop,
    Error,
    Hang,
    Patch,
    Raw,
    Reply,
    Say,
    Script,
    ScriptError,
    Shell,
    Think,
    parse_script,
)
from runner.gateway.sse import Observer

from .conftest import Start
from .rig import ask, post, scripted


def test_a_script_is_read_turn_by_turn() -> None:
    turns = [
        {"say": "s", "shell": "ls", "patch": "p", "think": "t"},
        [{"shell": "a", "yield_time_ms": 250}, {"shell": "b"}],
        {"say": "x", "usage": {"input_tokens": 1, "output_tokens": 2}},
        {"error": {"status": 500, "message": "m"}},
        {"hang": 0.5},
        {"drop": True},
        {"raw": "r"},
    ]
    assert parse_script({"turns": turns}) == Script(
        (
            Reply((Think("t"), Shell("ls"), Patch("p"), Say("s"))),
            Reply((Shell("a", 250), Shell("b"))),
            Reply((Say("x"),), (1, 2)),
            Error(500, "m"),
            Hang(0.5),
            Drop(),
            Raw("r"),
        )
    )


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ([], "turns"),
        ({}, "turns"),
        ({"turns": []}, "turns"),
        ({"turns": [{"say": "x"}], "more": 1}, "turns"),
        ({"turns": [{"say": "x"}, {}]}, "turn 2: needs one of"),
        ({"turns": [[]]}, "turn 1"),
        ({"turns": ["say"]}, "turn 1"),
        ({"turns": [["say"]]}, "turn 1"),
        ({"turns": [{"sing": "x"}]}, "turn 1: unknown key 'sing'"),
        ({"turns": [{"say": 1}]}, "turn 1: 'say'"),
        ({"turns": [{"say": "\ud800"}]}, "surrogate"),
        ({"turns": [{"usage": {"input_tokens": 1, "output_tokens": 1}}]}, "needs one of"),
        ({"turns": [{"say": "x", "usage": {"input_tokens": 1}}]}, "usage"),
        ({"turns": [{"say": "x", "usage": {"input_tokens": -1, "output_tokens": 1}}]}, "usage"),
        ({"turns": [{"say": "x", "yield_time_ms": 250}]}, "beside 'shell'"),
        ({"turns": [{"shell": "x", "yield_time_ms": 1}]}, "yield_time_ms"),
        ({"turns": [{"error": {"status": 200, "message": "m"}}]}, "error.status"),
        ({"turns": [{"error": {"status": 500}}]}, "error"),
        ({"turns": [{"error": {"status": 500, "message": "m"}, "say": "x"}]}, "alone"),
        ({"turns": [[{"say": "x"}, {"drop": True}]]}, "alone"),
        ({"turns": [{"hang": True}]}, "hang"),
        ({"turns": [{"hang": 0}]}, "hang"),
        ({"turns": [{"drop": False}]}, "drop"),
        ({"turns": [{"raw": b"x"}]}, "raw"),
    ],
)
def test_script_errors_name_the_turn_and_the_key(script: object, named: str) -> None:
    with pytest.raises(ScriptError, match=named):
        parse_script(script)


def events(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(part.split(b"data: ", 1)[1]) for part in body.split(b"\n\n") if part]


def test_a_turn_becomes_a_whole_responses_stream(start: Start) -> None:
    turn = [{"think": "hm"}, {"shell": "ls", "yield_time_ms": 500}, {"patch": "*** P"}]
    gateway = start(scripted(turn, {"say": "é" * 600})).ready()
    first, second = (gateway.ask(post(ask())) for _ in range(2))
    assert first.headers["content-type"] == "text/event-stream"
    seen = events(first.body)
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert [seen[0]["type"], seen[-1]["type"]] == ["response.created", "response.completed"]
    items = seen[-1]["response"]["output"]
    assert [event["item"] for event in seen if event["type"].endswith("item.done")] == items
    assert [item["type"] for item in items] == ["reasoning", "function_call", "custom_tool_call"]
    assert items[1]["name"] == "exec_command"
    assert json.loads(items[1]["arguments"]) == {"cmd": "ls", "yield_time_ms": 500}
    assert (items[2]["name"], items[2]["input"]) == ("apply_patch", "*** P")
    assert seen[-1]["response"]["id"] == "resp_script_0001"
    said = events(second.body)
    deltas = [e["delta"] for e in said if e["type"] == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == "é" * 600
    assert said[-1]["response"]["id"] == "resp_script_0002"


def test_the_same_request_gets_the_same_bytes_in_another_run() -> None:
    reply = Reply((Think("a"), Shell("b"), Patch("c"), Say("d")))
    once, again = (b"".join(reply_events(reply, "m", 3, 400)) for _ in range(2))
    assert once == again
    observer = Observer()
    observer.feed(once)
    assert observer.usage is not None
    assert observer.usage.input_tokens == 100
    assert observer.usage.output_tokens > 0


def test_every_answer_is_recorded_with_its_usage(start: Start) -> None:
    usage = {"input_tokens": 30, "output_tokens": 4}
    gateway = start(scripted({"say": "hi", "usage": usage})).ready()
    assert gateway.ask(post(ask())).status == 200
    model = gateway.wait_for("model")
    assert model["usage"] == usage | {
        "cached_input_tokens": 0, "reasoning_output_tokens": 0, "total_tokens": 34,
    }  # fmt: skip
    assert (model["n"], model["backend"], model["status"]) == (1, "script", 200)
    assert (model["model_asked"], model["model_observed"]) == ("gpt-5.5", "gpt-5.5")
    assert (model["complete"], model["error"]) == (True, None)
    assert model["response_id"] == "resp_script_0001"


def test_hashes_are_of_what_passed(start: Start) -> None:
    gateway = start(scripted({"say": "hi"})).ready()
    body = gateway.ask(post(ask())).body
    model = gateway.wait_for("model")
    assert model["request_sha256"] == "sha256:" + hashlib.sha256(ask()).hexdigest()
    assert model["response_sha256"] == "sha256:" + hashlib.sha256(body).hexdigest()


def test_faults_do_what_they_say_and_each_takes_a_turn(start: Start) -> None:
    gateway = start(
        scripted(
            {"error": {"status": 429, "message": "slow"}},
            {"drop": True},
            {"hang": 0.05},
            {"raw": "\0 rubbish\n\n"},
            {"say": "fine"},
        )
    ).ready()
    refused = gateway.ask(post(ask()))
    assert (refused.status, refused.error["message"]) == (429, "slow")
    dropped, hung, raw, fine = (gateway.ask(post(ask())) for _ in range(4))
    assert (dropped.status, dropped.cut) == (200, True)
    assert (hung.status, hung.cut, hung.body) == (200, True, b"")
    assert (raw.status, raw.cut, raw.body) == (200, False, b"\0 rubbish\n\n")
    assert (fine.status, fine.cut) == (200, False)
    gateway.stop()
    lines = gateway.of("model")
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["complete"] for line in lines] == [False, False, False, False, True]
    assert [line["error"] for line in lines] == [
        "script: error", "script: drop", "script: hang", None, None,
    ]  # fmt: skip
    assert [line["usage"] is None for line in lines] == [True, True, True, True, False]


def test_a_used_up_script_is_a_final_error(start: Start) -> None:
    gateway = start(scripted({"say": "only"})).ready()
    assert gateway.ask(post(ask())).status == 200
    reply = gateway.ask(post(ask()))
    assert (reply.status, reply.error["code"]) == (400, "rolebox_script_exhausted")
    assert reply.error["type"] == "rolebox_denied"
    denied = gateway.wait_for("egress", decision="denied")
    assert denied["rule"] == "model.script-exhausted"
    assert gateway.stop() == 0
    assert gateway.reports[-1]["counts"]["used_requests"] == 1
