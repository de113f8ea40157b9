from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runner.gateway.report import MAX_FIELD, MAX_FOLDED, Reports, clip, encode

WHEN = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
BASE = {"verb": "GET", "host": "h", "port": 1, "path": "/", "rule": "r",
        "bytes_in": 10, "bytes_out": 2}  # fmt: skip


def written(*decisions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines that these decisions become."""
    read, write = os.pipe()

    async def run() -> bool:
        reports = Reports(write, "run-1", lambda: WHEN, lambda: None)
        reports.start()
        for fields in decisions:
            reports.decision(**{**BASE, **fields})
        return await reports.close("stopped", patience=10, reason="test")

    with ThreadPoolExecutor() as pool, os.fdopen(read, "rb") as stream:
        lines = pool.submit(stream.readlines)
        try:
            assert asyncio.run(run())
        finally:
            os.close(write)
        return [json.loads(line) for line in lines.result()]


def test_repeats_of_a_denial_become_one_line_with_their_count() -> None:
    lines = written(*[{"decision": "denied"}] * 3, {"decision": "denied", "port": 2})
    assert [(line.get("port"), line.get("count")) for line in lines] == [
        (1, 3), (2, 1), (None, None),
    ]  # fmt: skip
    assert lines[0]["bytes_in"] == 30
    assert lines[0]["time"] == "2026-01-02T03:04:05.000006Z"
    assert [line["seq"] for line in lines] == [0, 1, 2]


def test_allowed_decisions_stay_apart() -> None:
    assert len(written(*[{"decision": "allowed"}] * 3)) == 4


def test_many_different_denials_are_all_written() -> None:
    lines = written(*[{"decision": "denied", "path": f"/{n}"} for n in range(3 * MAX_FOLDED)])
    assert len(lines) == 3 * MAX_FOLDED + 1


def test_a_reader_that_never_reads_is_given_up_on_and_not_waited_for_for_ever() -> None:
    read, write = os.pipe()

    async def run() -> bool:
        reports = Reports(write, "run-1", lambda: WHEN, lambda: None)
        reports.start()
        for n in range(1000):
            reports.emit("note", note=f"{n}".ljust(500))
        return await reports.close("stopped", patience=0.2)

    assert not asyncio.run(run())
    os.close(read)
    os.close(write)


def test_a_reader_that_went_away_is_noticed() -> None:
    read, write = os.pipe()
    os.close(read)

    async def run() -> tuple[bool, bool]:
        broken = asyncio.Event()
        reports = Reports(write, "run-1", lambda: WHEN, broken.set)
        reports.start()
        reports.emit("note", note="x")
        await asyncio.wait_for(broken.wait(), 20)
        return broken.is_set(), await reports.close("stopped", patience=10)

    assert asyncio.run(run()) == (True, False)
    os.close(write)


def test_long_text_is_cut_and_marked() -> None:
    cut = clip({"a": ["x" * (MAX_FIELD + 5)], "b": "y" * MAX_FIELD})
    assert cut == {"a": ["x" * MAX_FIELD + "[+5 characters]"], "b": "y" * MAX_FIELD}


@given(st.dictionaries(st.sampled_from(["host", "path", "verb"]), st.text(max_size=2000)))
def test_any_text_is_one_ascii_line(fields: dict[str, str]) -> None:
    line = encode(fields)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line) == clip(fields)
