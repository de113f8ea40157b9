"""Follow a JSONL stream while it is written to disk byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

from runner.model.events import (
    AgentMessage,
    CommandExecution,
    Event,
    FileChange,
    ItemEvent,
    OtherItem,
    ThreadStarted,
    TurnCompleted,
    TurnFailed,
    UnknownEvent,
    Usage,
    parse_event,
)

#: A longer line is kept on disk whole, and counted, but not parsed.
MAX_PARSED_LINE = 16 << 20


@dataclass
class EventSummary:
    """What the stream said, as far as rolebox judges by it.

    Attributes:
        terminal: `turn.completed` or `turn.failed`, the last one seen; None without.
        torn: The stream ended within a line.
    """

    events: int = 0
    bytes: int = 0
    unknown: int = 0
    invalid: int = 0
    oversized: int = 0
    torn: bool = False
    truncated: bool = False
    thread_id: str | None = None
    terminal: str | None = None
    error: str | None = None
    last_message: str | None = None
    commands: int = 0
    failed_commands: int = 0
    files_changed: int = 0
    usage: Usage = field(default_factory=Usage)

    def take(self, event: Event) -> None:
        """Add one event."""
        self.events += 1
        if isinstance(event, ItemEvent):
            self._take_item(event)
            return
        match event:
            case TurnCompleted(usage=usage):
                self.terminal, self.usage = event.type, usage
            case TurnFailed(error=failure):
                self.terminal, self.error = event.type, failure.message
            case ThreadStarted(thread_id=thread):
                self.thread_id = thread
            case UnknownEvent(type=""):
                self.invalid += 1
            case UnknownEvent():
                self.unknown += 1
            case _:
                pass

    def _take_item(self, event: ItemEvent) -> None:
        item = event.item
        if isinstance(item, OtherItem):
            self.unknown += 1
        elif event.type != "item.completed":
            return
        elif isinstance(item, CommandExecution):
            self.commands += 1
            self.failed_commands += item.exit_code != 0
        elif isinstance(item, FileChange):
            self.files_changed += len(item.changes)
        elif isinstance(item, AgentMessage):
            self.last_message = item.text


class EventRecorder:
    """Writes what arrives to a file, unchanged, and reads the lines that it completes.

    Args:
        sink: Where the bytes go, unbuffered or not; the caller closes it.
        limit: Bytes after which no more is written (the summary says `truncated`).
        listener: Called with each event, in order.
        typed: Off for a plain command, whose output is no event stream.
    """

    def __init__(
        self,
        sink: BinaryIO,
        *,
        limit: int,
        listener: Callable[[Event], None] | None = None,
        typed: bool = True,
    ) -> None:
        self.summary = EventSummary()
        self._sink = sink
        self._limit = limit
        self._listener = listener
        self._typed = typed
        self._rest = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream, however they are cut."""
        room = self._limit - self.summary.bytes
        if len(chunk) > room:
            chunk = chunk[: max(room, 0)]
            self.summary.truncated = True
        if not chunk:
            return
        self._sink.write(chunk)
        self.summary.bytes += len(chunk)
        if self._typed:
            self._read(chunk)

    def finish(self) -> EventSummary:
        """End the stream; a line without its end is counted as torn and still read."""
        if self._rest or self._skipping:
            self.summary.torn = True
            if self._rest:
                self._lines([bytes(self._rest)])
            self._rest.clear()
        return self.summary

    def _read(self, chunk: bytes) -> None:
        head, newline, tail = chunk.partition(b"\n")
        if not newline:
            self._hold(head)
            return
        if self._skipping:
            self._skipping = False
        else:
            self._rest += head
            self._lines([bytes(self._rest)])
        self._rest.clear()
        *lines, rest = tail.split(b"\n")
        self._lines(lines)
        self._hold(rest)

    def _hold(self, part: bytes) -> None:
        if self._skipping:
            return
        self._rest += part
        if len(self._rest) > MAX_PARSED_LINE:
            self._rest.clear()
            self._skipping = True
            self.summary.oversized += 1

    def _lines(self, lines: Iterable[bytes]) -> None:
        """Read whole lines; the hot loop, a hundred thousand and more a second."""
        take, listener = self.summary.take, self._listener
        for line in lines:
            if len(line) > MAX_PARSED_LINE:
                self.summary.oversized += 1
            elif line and not line.isspace():
                event = parse_event(line)
                take(event)
                if listener is not None:
                    listener(event)
