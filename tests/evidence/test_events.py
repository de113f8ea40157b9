"""The event stream on disk is what came, byte for byte, however it was cut."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.evidence import events
from runner.evidence.events import MAX_PARSED_LINE, EventRecorder, EventSummary
from runner.model.events import Event

DONE = b'{"type":"turn.completed","usage":{"output_tokens":3}}\n'


def record(chunks: list[bytes], *, limit: int = 1 << 40, typed: bool = True) -> tuple[bytes, Any]:
    sink = io.BytesIO()
    recorder = EventRecorder(sink, limit=limit, typed=typed)
    for chunk in chunks:
        recorder.feed(chunk)
    return sink.getvalue(), recorder.finish()


def line(**value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


LINES = st.sampled_from(
    [
        DONE,
        b'{"type":"turn.failed","error":{"message":"m"}}\n',
        b'{"type":"item.completed","item":{"type":"agent_message","text":"hello"}}\n',
        b'{"type":"item.completed","item":{"type":"command_execution","exit_code":1}}\n',
        b'{"type":"item.completed","item":{"type":"file_change","changes":[{"path":"a"}]}}\n',
        b'{"type":"item.started","item":{"type":"collab_tool_call"}}\n',
        b'{"type":"thread.started","thread_id":"t"}\n',
        b'{"type":"from.the.future"}\n',
        b"no json\n",
        b"\n",
        b"  \r\n",
        b"\xff\xfe\n",
        b"\n\n\n",
        b'{"type":"turn.sta',
        b"x" * 150 + b"\n",
    ]
)
STREAMS = st.lists(LINES | st.binary(max_size=40), max_size=12).map(b"".join)


@settings(deadline=None)
@given(STREAMS, st.lists(st.integers(min_value=1, max_value=60), max_size=40), st.integers(0, 700))
def test_the_file_is_the_input_and_the_counts_do_not_depend_on_the_cuts(
    stream: bytes, cuts: list[int], limit: int
) -> None:
    chunks, rest = [], stream
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    chunks.append(rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "MAX_PARSED_LINE", 100)
        whole, at_once = record([stream], limit=limit)
        in_parts, counted = record(chunks, limit=limit)
    assert whole == in_parts == stream[:limit]
    assert asdict(counted) == asdict(at_once)
    assert counted.truncated == (len(stream) > limit)
    assert counted.bytes == min(len(stream), limit)


@settings(deadline=None)
@given(STREAMS)
def test_a_plain_command_s_output_is_kept_and_not_read(stream: bytes) -> None:
    kept, summary = record([stream], typed=False)
    assert kept == stream
    assert summary == EventSummary(bytes=len(stream))


def test_a_stream_is_summed_up() -> None:
    stream = (
        line(type="thread.started", thread_id="t-1")
        + line(type="turn.started")
        + line(type="item.started", item={"type": "command_execution", "command": "x"})
        + line(type="item.completed", item={"type": "command_execution", "exit_code": 0})
        + line(type="item.completed", item={"type": "command_execution", "exit_code": 2})
        + line(type="item.completed", item={"type": "command_execution", "exit_code": None})
        + line(type="item.completed", item={"type": "file_change", "changes": [{"path": "a"}] * 2})
        + line(type="item.updated", item={"type": "agent_message", "text": "not yet"})
        + line(type="item.completed", item={"type": "agent_message", "text": "first"})
        + line(type="item.completed", item={"type": "agent_message", "text": "last"})
        + line(type="item.completed", item={"type": "mystery"})
        + line(type="mystery")
        + b"garbage\n"
        + DONE
    )
    _, summary = record([stream])
    assert summary == EventSummary(
        events=14,
        bytes=len(stream),
        unknown=2,
        invalid=1,
        thread_id="t-1",
        terminal="turn.completed",
        last_message="last",
        commands=3,
        failed_commands=2,
        files_changed=2,
        usage=summary.usage,
    )
    assert summary.usage.output_tokens == 3


def test_the_last_terminal_event_counts() -> None:
    failed = line(type="turn.failed", error={"message": "why"})
    assert record([failed + DONE])[1].terminal == "turn.completed"
    _, summary = record([DONE + failed])
    assert (summary.terminal, summary.error) == ("turn.failed", "why")
    assert record([line(type="error", message="retrying")])[1].terminal is None


def test_a_torn_last_line_is_kept_counted_and_still_read() -> None:
    kept, summary = record([DONE, DONE[:-1]])
    assert kept == DONE + DONE[:-1]
    assert (summary.torn, summary.events, summary.terminal) == (True, 2, "turn.completed")
    _, half = record([DONE, DONE[:20]])
    assert (half.torn, half.events, half.invalid) == (True, 2, 1)
    assert record([DONE])[1].torn is False


@pytest.mark.parametrize("size", [1 << 16, 21 << 20])
def test_a_line_of_20_mib_is_kept_whole_counted_and_not_parsed(size: int) -> None:
    text = "x" * (20 << 20)
    big = line(type="item.completed", item={"type": "agent_message", "text": text})
    assert len(big) > MAX_PARSED_LINE
    stream = DONE + big + DONE
    kept, summary = record([stream[i : i + size] for i in range(0, len(stream), size)])
    assert kept == stream
    assert (summary.oversized, summary.events, summary.last_message) == (1, 2, None)
    assert summary.terminal == "turn.completed"
    assert not summary.torn


def test_a_long_line_below_the_cap_is_parsed() -> None:
    text = "x" * (MAX_PARSED_LINE - 200)
    big = line(type="item.completed", item={"type": "agent_message", "text": text})
    _, summary = record([big])
    assert (summary.oversized, summary.last_message) == (0, text)


def test_an_endless_line_is_torn_and_takes_no_memory() -> None:
    kept, summary = record([b"x" * (1 << 20)] * 20)
    assert len(kept) == 20 << 20
    assert (summary.oversized, summary.torn, summary.events) == (1, True, 0)


def test_writing_stops_at_the_limit_and_says_so() -> None:
    kept, summary = record([DONE] * 3, limit=len(DONE) + 5)
    assert kept == DONE + DONE[:5]
    assert (summary.truncated, summary.torn) == (True, True)
    kept, summary = record([DONE] * 3, limit=3 * len(DONE))
    assert kept == DONE * 3
    assert (summary.truncated, summary.torn, summary.events) == (False, False, 3)


def test_the_listener_hears_every_event_in_order() -> None:
    heard: list[Event] = []
    recorder = EventRecorder(io.BytesIO(), limit=1 << 20, listener=heard.append)
    recorder.feed(line(type="turn.started") + b"junk\n" + DONE[:9])
    assert [event.type for event in heard] == ["turn.started", ""]
    recorder.feed(DONE[9:])
    assert [event.type for event in heard] == ["turn.started", "", "turn.completed"]


def test_a_full_disk_is_not_swallowed() -> None:
    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        EventRecorder(Full(), limit=100).feed(b"x")
