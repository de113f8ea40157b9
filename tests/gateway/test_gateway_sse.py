from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runner.gateway.sse import Observer, Usage, encode

from .rig import completed, sse

DONE = completed(input_tokens=7, output_tokens=3)


def observe(*chunks: bytes, max_event: int = 4096) -> Observer:
    observer = Observer(max_event)
    for chunk in chunks:
        observer.feed(chunk)
    return observer


def seen(observer: Observer) -> tuple[object, ...]:
    return (observer.model, observer.response_id, observer.usage, observer.terminal)


def test_details_of_usage_are_read() -> None:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 15,
    }
    event = {"type": "response.incomplete", "response": {"usage": usage}}
    observer = observe(encode(event))
    assert observer.usage == Usage(10, 4, 5, 2, 15)
    assert observer.terminal == "response.incomplete"


def test_line_ends_of_every_kind_are_read() -> None:
    assert seen(observe(DONE)) == seen(observe(DONE.replace(b"\n", b"\r\n")))
    assert seen(observe(DONE)) == seen(observe(DONE.replace(b"\n", b"\r")))
    assert seen(observe(DONE)) == seen(observe(b"\xef\xbb\xbf" + DONE))


def test_data_without_an_event_name_is_read() -> None:
    assert observe(DONE.split(b"\n", 1)[1]).terminal == "response.completed"


def test_an_event_that_was_not_ended_does_not_count() -> None:
    assert observe(DONE[:-1]).terminal is None
    assert observe(DONE).terminal == "response.completed"


def test_text_that_quotes_an_event_is_not_one() -> None:
    quoted = sse({"type": "response.output_text.delta", "delta": '"response.completed"'})
    assert observe(quoted).terminal is None


def test_a_usage_that_makes_no_sense_is_none() -> None:
    senseless: list[object] = [
        {}, [], "x", {"input_tokens": -1, "output_tokens": 1}, {"input_tokens": True},
    ]  # fmt: skip
    for usage in senseless:
        event = {"type": "response.completed", "response": {"usage": usage}}
        assert observe(sse(event)).usage is None


def test_an_event_over_the_cap_is_skipped_and_the_next_one_read() -> None:
    long = sse({"type": "response.output_text.delta", "delta": "x" * 10_000})
    observer = observe(long, DONE)
    assert (observer.skipped, observer.terminal) == (1, "response.completed")
    assert observer.usage is not None


def test_an_end_over_the_cap_is_an_end_without_usage() -> None:
    event = json.loads(DONE.split(b"data: ")[1])
    event["response"]["output"] = "x" * 10_000
    observer = observe(sse(event))
    assert (observer.terminal, observer.usage) == ("response.completed", None)


@given(st.data())
def test_chunk_borders_make_no_difference(data: st.DataObject) -> None:
    newline = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    noise = data.draw(st.binary(max_size=60)) + b"\n\n"
    stream = noise + DONE.replace(b"\n", newline)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    borders = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(borders)]
    assert seen(observe(*chunks)) == seen(observe(stream))
    assert observe(*chunks).terminal == "response.completed"


PARTS = st.sampled_from(
    [b"data:", b"event:", b"response.completed", b"\n", b"\r", b"\n\n", b'{"type":', b'"', b"}"]
)


@given(st.lists(st.one_of(PARTS, st.binary(max_size=200)), max_size=60))
def test_any_bytes_are_survived_within_the_cap(chunks: list[bytes]) -> None:
    observer = Observer(128)
    for chunk in chunks:
        observer.feed(chunk)
        assert observer.held <= 128 + len(chunk)
    observer.feed(b"\n\n" + DONE)
    assert observer.held == 0


def test_a_line_without_end_holds_no_more_than_the_cap() -> None:
    observer = Observer(1000)
    for _ in range(10_000):
        observer.feed(b"data: " + b"x" * 1000)
        assert observer.held <= 1000
    observer.feed(b"\n\n" + sse({"type": "response.completed", "response": {}}))
    assert observer.terminal == "response.completed"
