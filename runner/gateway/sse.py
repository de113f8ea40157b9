"""Server-sent events of the Responses API: an encoder and a passive observer.

The observer sees every byte of an answer pass and must survive all of them. It
holds at most one event, up to `max_event` bytes; a longer one is skipped, but
when its name says that it ended the answer, that is still seen.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

MAX_EVENT: Final = 8 * 1024 * 1024

_TERMINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_WATCHED: Final = re.compile(rb'"response\.(?:created|completed|incomplete|failed)"')


def encode(event: dict[str, Any]) -> bytes:
    """Return one event, named after its `type`."""
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {data}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; `input` counts the cached, `output` the reasoning ones too."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_output_tokens: int
    total_tokens: int


class Observer:
    """Reads model, id, usage and end of an answer off the stream, chunk by chunk."""

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self.model: str | None = None
        self.response_id: str | None = None
        self.usage: Usage | None = None
        self.terminal: str | None = None
        self.skipped = 0
        self._max_event = max_event
        self._line = bytearray()
        self._name = b""
        self._data = bytearray()
        self._over = False  # this event is too long
        self._cut = False  # this line is being skipped
        self._after_cr = False
        self._first_line = True

    @property
    def held(self) -> int:
        """Bytes that are waiting for the end of their event."""
        return len(self._line) + len(self._data)

    def feed(self, chunk: bytes) -> None:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        lines = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for part in lines[:-1]:
            self._extend(part)
            self._end_line()
        self._extend(lines[-1])

    def _extend(self, part: bytes) -> None:
        if not part or self._cut:
            return
        if len(part) > self._max_event - self.held:
            self._over = self._cut = True
            self._line.clear()
            self._data.clear()
        else:
            self._line += part

    def _end_line(self) -> None:
        line, cut = bytes(self._line), self._cut
        self._line.clear()
        self._cut = False
        if self._first_line:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first_line = False
        if cut:
            return
        if not line:
            self._dispatch()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value[:256]
        elif name == b"data":
            self._data += (b"\n" if self._data else b"") + value

    def _dispatch(self) -> None:
        name, data, over = self._name.decode("ascii", "replace"), bytes(self._data), self._over
        self._name, self._over = b"", False
        self._data.clear()
        if over:
            self.skipped += 1
            if name in _TERMINAL:
                self.terminal = name
        elif _WATCHED.search(data):
            self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            event = json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        kind, response = event.get("type"), event.get("response")
        if kind in _TERMINAL:
            self.terminal = kind
        elif kind != "response.created":
            return
        if isinstance(response, dict):
            self.model = _text(response.get("model")) or self.model
            self.response_id = _text(response.get("id")) or self.response_id
            self.usage = _usage(response.get("usage")) or self.usage


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(table: object, key: str) -> int | None:
    value = table.get(key) if isinstance(table, dict) else None
    return value if type(value) is int and 0 <= value < 2**53 else None


def _usage(raw: object) -> Usage | None:
    given, made = _count(raw, "input_tokens"), _count(raw, "output_tokens")
    if not isinstance(raw, dict) or given is None or made is None:
        return None
    return Usage(
        input_tokens=given,
        cached_input_tokens=_count(raw.get("input_tokens_details"), "cached_tokens") or 0,
        output_tokens=made,
        reasoning_output_tokens=_count(raw.get("output_tokens_details"), "reasoning_tokens") or 0,
        total_tokens=max(_count(raw, "total_tokens") or 0, given + made),
    )
