"""Codex's events: the known are typed, the unknown kept, nothing raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.model.events import (
    AgentMessage,
    Change,
    CommandExecution,
    ErrorEvent,
    ErrorItem,
    Event,
    Failure,
    FileChange,
    ItemEvent,
    OtherItem,
    Reasoning,
    ThreadStarted,
    TurnCompleted,
    TurnFailed,
    TurnStarted,
    UnknownEvent,
    Usage,
    parse_event,
)


def item(kind: str, value: dict[str, object]) -> bytes:
    return json.dumps({"type": kind, "item": value}).encode()


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (
            b'{"type":"thread.started","thread_id":"t"}',
            ThreadStarted(type="thread.started", thread_id="t"),
        ),
        (b'{"type":"turn.started"}', TurnStarted(type="turn.started")),
        (
            json.dumps(
                {
                    "type": "turn.completed",
                    "usage": {
                        "input_tokens": 5,
                        "cached_input_tokens": 4,
                        "cache_write_input_tokens": 3,
                        "output_tokens": 2,
                        "reasoning_output_tokens": 1,
                    },
                }
            ).encode(),
            TurnCompleted(
                type="turn.completed",
                usage=Usage(
                    input_tokens=5,
                    cached_input_tokens=4,
                    cache_write_input_tokens=3,
                    output_tokens=2,
                    reasoning_output_tokens=1,
                ),
            ),
        ),
        (b'{"type":"turn.completed"}', TurnCompleted(type="turn.completed")),
        (
            b'{"type":"turn.failed","error":{"message":"m"}}',
            TurnFailed(type="turn.failed", error=Failure(message="m")),
        ),
        (b'{"type":"error","message":"m"}', ErrorEvent(type="error", message="m")),
        (
            item("item.completed", {"type": "agent_message", "id": "i", "text": "t"}),
            ItemEvent(
                type="item.completed", item=AgentMessage(type="agent_message", id="i", text="t")
            ),
        ),
        (
            item("item.updated", {"type": "reasoning", "text": "t"}),
            ItemEvent(type="item.updated", item=Reasoning(type="reasoning", text="t")),
        ),
        (
            item(
                "item.started",
                {"type": "command_execution", "command": "ls", "exit_code": None, "status": "s"},
            ),
            ItemEvent(
                type="item.started",
                item=CommandExecution(type="command_execution", command="ls", status="s"),
            ),
        ),
        (
            item(
                "item.completed",
                {"type": "file_change", "changes": [{"path": "a", "kind": "add"}]},
            ),
            ItemEvent(
                type="item.completed",
                item=FileChange(type="file_change", changes=(Change(path="a", kind="add"),)),
            ),
        ),
        (
            item("item.completed", {"type": "error", "message": "m"}),
            ItemEvent(type="item.completed", item=ErrorItem(type="error", message="m")),
        ),
        (
            item("item.completed", {"type": "todo_list", "items": []}),
            ItemEvent(type="item.completed", item=OtherItem(type="todo_list")),
        ),
        # Codex writes the key `id` twice here (facts-codex.md).
        (
            b'{"type":"item.completed","item":{"id":"a","type":"web_search","id":"b","query":"q"}}',
            ItemEvent(type="item.completed", item=OtherItem(type="web_search")),
        ),
        # A known kind in a shape that we do not know.
        (
            item("item.completed", {"type": "agent_message", "text": 5}),
            ItemEvent(type="item.completed", item=OtherItem(type="agent_message")),
        ),
        (b'{"type":"turn.paused","x":1}', UnknownEvent(type="turn.paused")),
        (b'{"type":"item.completed"}', UnknownEvent(type="item.completed")),
        (b'{"type":"turn.completed","usage":5}', UnknownEvent(type="turn.completed")),
        (b'{"type":"turn.started","newer":true}', TurnStarted(type="turn.started")),
    ],
)
def test_an_event_is_read_as_what_it_is(line: bytes, event: Event) -> None:
    read = parse_event(line)
    assert isinstance(read, type(event))
    assert read.model_dump() == event.model_dump()


@pytest.mark.parametrize(
    "line",
    [b"", b"hello", b"[]", b"5", b'{"type":5}', b'{"no":"type"}', b"\xff\xfe", b'{"type":"turn.st',
     b"[" * 100_000, b'{"a":' * 100_000, b'"\xed\xa0\x80"', b"null"],
)  # fmt: skip
def test_what_is_no_event_is_counted_as_such_and_never_raises(line: bytes) -> None:
    assert parse_event(line) == UnknownEvent(type="")


@pytest.mark.parametrize("tokens", ["9007199254740992", "9" * 30, "9" * 5000, "-1", "1e400", "0.5"])
def test_a_claim_of_impossible_tokens_never_becomes_a_number_of_the_record(tokens: str) -> None:
    """JSON's canonical form cannot say it, so the record could not be written (guarantee 7)."""
    fine = b'{"type":"turn.completed","usage":{"output_tokens":9007199254740991}}'
    assert isinstance(parse_event(fine), TurnCompleted)
    line = f'{{"type":"turn.completed","usage":{{"output_tokens":{tokens}}}}}'.encode()
    assert isinstance(parse_event(line), UnknownEvent)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise(line: bytes) -> None:
    parse_event(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(
    ["item.completed", "item.started", "turn.completed", "turn.failed", "error", "thread.started"]
)


@settings(deadline=None)
@given(KINDS, JSON, JSON, st.sampled_from(["agent_message", "command_execution", "file_change"]))
def test_no_shape_of_a_known_event_raises(kind: str, one: object, two: object, word: str) -> None:
    value = {
        "type": kind,
        "item": {"type": word, "text": one, "changes": two, "exit_code": one},
        "usage": two,
        "error": one,
        "message": two,
        "thread_id": one,
    }
    parse_event(json.dumps(value).encode())
    parse_event(json.dumps({**value, "item": one}).encode())
