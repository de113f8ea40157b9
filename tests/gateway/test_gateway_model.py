from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from runner.gateway.modelrules import MAX_VALUES, ModelDenied, check, decode

from .conftest import Start
from .rig import ask, post, scripted

DENIED: list[tuple[dict[str, Any], str]] = [
    ({"model": "gpt-6"}, "model.pinned"),
    ({"model": None}, "model.pinned"),
    ({"model": ["gpt-5.5"]}, "model.pinned"),
    ({"stream": False}, "model.stream"),
    ({"background": True}, "model.key"),
    ({"previous_response_id": "resp_1"}, "model.key"),
    ({"prompt": {"id": "p"}}, "model.key"),
    ({"tools": [{"type": "web_search"}]}, "model.hosted-tool"),
    ({"tools": [{"type": "mcp", "server_url": "https://e.test"}]}, "model.hosted-tool"),
    ({"tools": [{"type": "code_interpreter"}]}, "model.hosted-tool"),
    ({"tools": [{"type": "tool_search", "execution": "server"}]}, "model.hosted-tool"),
    ({"tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]}, "model.hosted-tool"),
    ({"tools": [{}]}, "model.hosted-tool"),
    ({"tools": ["web_search"]}, "model.hosted-tool"),
    ({"tools": {"type": "mcp"}}, "model.hosted-tool"),
    ({"tool_choice": {"type": "web_search"}}, "model.hosted-tool"),
    ({"input": [{"type": "tool_search_output", "tools": [{"type": "mcp"}]}]}, "model.hosted-tool"),
    ({"input": [{"content": [{"image_url": "https://e.test/?secret"}]}]}, "model.remote-url"),
    ({"input": [{"content": [{"image_url": {"url": "http://e"}}]}]}, "model.remote-url"),
    ({"input": [{"output": [{"file_url": "https://e.test"}]}]}, "model.remote-url"),
    ({"input": [{"content": [{"type": "input_file", "file_id": "file-1"}]}]}, "model.stored"),
    ({"input": [{"type": "item_reference", "id": "rs_1"}]}, "model.stored"),
]  # fmt: skip

ALLOWED: list[dict[str, Any]] = [
    {},
    {"tools": [{"type": "function", "name": "f"}, {"type": "custom"}], "tool_choice": "auto"},
    {"tools": [{"type": "tool_search", "execution": "client"}]},
    {"tools": [{"type": "namespace", "tools": [{"type": "function"}]}]},
    {"tool_choice": {"type": "function", "name": "f"}},
    {"input": "hello https://e.test"},
    {"input": [{"content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]}]},
    {"input": [{"type": "tool_search_output", "tools": [{"type": "function", "parameters":
        {"properties": {"image_url": {"type": "string"}, "file_id": {"type": "string"}}}}]}]},
    {"store": False, "include": ["reasoning.encrypted_content"], "client_metadata": {"a": "b"}},
]  # fmt: skip


@pytest.mark.parametrize(("changes", "rule"), DENIED)
def test_what_would_leave_through_the_provider_is_denied(
    changes: dict[str, Any], rule: str
) -> None:
    raw = ask(**changes)
    with pytest.raises(ModelDenied) as caught:
        check(decode(raw), raw, (), "gpt-5.5")
    assert caught.value.rule == rule


@pytest.mark.parametrize("changes", ALLOWED)
def test_what_codex_asks_for_is_allowed(changes: dict[str, Any]) -> None:
    raw = ask(**changes)
    request = check(decode(raw), raw, (), "gpt-5.5")
    assert request.raw == raw
    kept = json.loads(raw)
    kept.pop("client_metadata", None)
    assert json.loads(request.clean) == kept


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[1]",
        b'{"model":"gpt-5.5","model":"gpt-6"}',
        b'{"model":NaN}',
        b"\xff\xfe{\0}\0",
        b"[" * 200_000,
        b'{"n":' + b"9" * 5000 + b"}",
        b"[" + b"{}," * MAX_VALUES + b"0]",
    ],
)
def test_bodies_that_two_parsers_could_read_differently_are_denied(raw: bytes) -> None:
    with pytest.raises(ModelDenied) as caught:
        decode(raw)
    assert caught.value.rule == "model.body"


def test_a_number_out_of_range_is_denied() -> None:
    raw = ask().replace(b"[]", b"1e999")
    with pytest.raises(ModelDenied, match="out of range"):
        check(decode(raw), raw, (), "gpt-5.5")


def test_another_model_is_a_final_error_and_takes_no_turn(start: Start) -> None:
    gateway = start(scripted({"say": "hi"})).ready()
    reply = gateway.ask(post(ask(model="gpt-6")))
    assert (reply.status, reply.error["code"]) == (400, "rolebox_model")
    assert gateway.wait_for("egress")["rule"] == "model.pinned"
    assert gateway.ask(post(ask())).status == 200


def test_a_run_without_a_model_says_so(start: Start) -> None:
    gateway = start().ready()
    reply = gateway.ask(post(ask()))
    assert (reply.status, reply.error["code"]) == (400, "rolebox_no_model")
    assert gateway.of("model") == []


@pytest.mark.parametrize(
    ("budget", "answered", "used"),
    [
        ({"requests": 2}, 2, 2),
        ({"input_tokens": 11}, 2, 20),
        ({"output_tokens": 10}, 2, 10),
        ({"total_tokens": 16}, 2, 30),
        ({"total_tokens": 15}, 1, 15),
        ({"requests": 0}, 0, 0),
    ],
)
def test_the_answer_that_fits_is_delivered_and_the_next_refused(
    start: Start, budget: dict[str, int], answered: int, used: int
) -> None:
    turn = {"say": "hi", "usage": {"input_tokens": 10, "output_tokens": 5}}
    gateway = start(scripted(*[turn] * 9), budget=budget).ready()
    statuses = [gateway.ask(post(ask())).status for _ in range(answered + 2)]
    assert statuses == [200] * answered + [400, 400]
    reply = gateway.ask(post(ask()))
    assert reply.error["code"] == "rolebox_budget"
    gateway.stop()
    which, limit = next(iter(budget.items()))
    lines = gateway.of("budget")
    assert [(line["which"], line["limit"], line["used"]) for line in lines] == [
        (which, limit, used)
    ]
    assert gateway.of("egress")[-1]["rule"] == f"budget.{which}"


def test_parallel_requests_cannot_all_pass_the_same_check(start: Start) -> None:
    turn = {"say": "hi", "usage": {"input_tokens": 10, "output_tokens": 5}}
    gateway = start(scripted(*[turn] * 20), budget={"total_tokens": 16}).ready()
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(gateway.ask(post(ask())).status))
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 2 + [400] * 8


def test_a_dropped_stream_is_still_charged(start: Start) -> None:
    gateway = start(scripted({"drop": True}, {"say": "no"}), budget={"input_tokens": 10}).ready()
    assert gateway.ask(post(ask(instructions="x" * 80))).cut
    assert gateway.wait_for("model")["usage"] is None
    assert gateway.ask(post(ask())).error["code"] == "rolebox_budget"


def test_hanging_up_while_waiting_for_a_turn_is_audited(start: Start) -> None:
    gateway = start(scripted({"hang": 60}, {"say": "x"}), budget={"total_tokens": 10**6}).ready()
    with gateway.wire() as first:
        first.send(post(ask()))
        first.sock.recv(1)
        with gateway.wire() as second:
            second.send(post(ask()))
        assert gateway.wait_for("egress", rule="client.gone")["decision"] == "denied"
    assert gateway.wait_for("model")["error"] == "client gone"
    assert gateway.ask(post(ask())).status == 200
