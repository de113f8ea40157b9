"""Report lines on stdout: JSON, ASCII, bounded, and never dropped silently.

A thread writes, so that a slow reader never blocks the event loop. The queue is
bounded by backpressure: a connection waits for `room()` before it reads its next
request, so nothing is decided that cannot be written down. Each request adds a
handful of lines at most, which bounds the queue at the limit plus that handful
for every open connection.

Identical denied decisions within a second become one line with a `count`. While
the queue is full they go on being folded. Allowed decisions are never folded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

SCHEMA: Final = "rolebox.gateway-report/1"
MAX_FIELD: Final = 512
MAX_QUEUED_BYTES: Final = 1024 * 1024
MAX_FOLDED: Final = 256
FOLD_SECONDS: Final = 1.0

_FOLD_KEY: Final = ("verb", "host", "port", "path", "rule")


def clip(value: Any) -> Any:
    """Cut long text anywhere in a JSON value, and mark the cut."""
    if isinstance(value, str) and len(value) > MAX_FIELD:
        return f"{value[:MAX_FIELD]}[+{len(value) - MAX_FIELD} characters]"
    if isinstance(value, dict):
        return {key: clip(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clip(item) for item in value]
    return value


def encode(record: dict[str, Any]) -> bytes:
    return json.dumps(clip(record), ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


class Reports:
    """The one writer of report lines.

    Args:
        fd: Where the lines go.
        run: The run's id, None when the configuration could not be read.
        clock: Gives the time in UTC.
        on_broken: Called once, on the event loop, when nobody can read any more.
    """

    def __init__(
        self,
        fd: int,
        run: str | None,
        clock: Callable[[], datetime],
        on_broken: Callable[[], None],
    ) -> None:
        self._fd = fd
        self._run = run
        self._clock = clock
        self._on_broken = on_broken
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room: asyncio.Event = asyncio.Event()
        self._room.set()
        self._seq = 0
        self._folds: dict[tuple[object, ...], dict[str, Any]] = {}
        self._flusher: asyncio.TimerHandle | None = None
        self._lines: list[bytes] = []
        self._queued = 0
        self._closing = False
        self.broken = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._write_lines, name="reports", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def room(self) -> None:
        """Wait until the queue takes another decision."""
        await self._room.wait()

    def emit(self, kind: str, **fields: Any) -> None:
        self._queue(self._stamp(kind, fields))

    def decision(self, *, decision: str, **fields: Any) -> None:
        """Report one request decision; folds repeats of denied ones."""
        record = self._stamp("egress", {"decision": decision, **fields})
        if decision == "allowed":
            self._queue(record)
            return
        key = tuple(record[name] for name in _FOLD_KEY)
        if first := self._folds.get(key):
            first["count"] += 1
            first["bytes_in"] += record["bytes_in"]
            first["bytes_out"] += record["bytes_out"]
            first["last"] = record["time"]
            return
        if len(self._folds) >= MAX_FOLDED:
            self._flush()
        self._folds[key] = record | {"count": 1, "last": record["time"]}
        if self._flusher is None and self._loop is not None:
            self._flusher = self._loop.call_later(FOLD_SECONDS, self._flush_if_room)

    async def close(self, kind: str, *, patience: float, **fields: Any) -> bool:
        """Write what is folded and a last line; say whether all of it was written."""
        if self._flusher is not None:
            self._flusher.cancel()
        self._flush()
        self.emit(kind, **fields)
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, patience)
        return not self._thread.is_alive() and not self.broken

    def _stamp(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        time = self._clock().isoformat(timespec="microseconds").replace("+00:00", "Z")
        head = {"_schema": SCHEMA, "seq": 0, "time": time, "run": self._run, "kind": kind}
        clipped: dict[str, Any] = clip(fields)
        return head | clipped

    def _flush_if_room(self) -> None:
        if self._room.is_set():
            self._flusher = None
            self._flush()
        elif self._loop is not None:
            self._flusher = self._loop.call_later(FOLD_SECONDS, self._flush_if_room)

    def _flush(self) -> None:
        folds, self._folds = self._folds, {}
        for record in folds.values():
            self._queue(record)

    def _queue(self, record: dict[str, Any]) -> None:
        record["seq"] = self._seq
        self._seq += 1
        line = encode(record)
        with self._wake:
            self._lines.append(line)
            self._queued += len(line)
            full = self._queued >= MAX_QUEUED_BYTES
            self._wake.notify()
        if full and not self.broken:
            self._room.clear()

    def _write_lines(self) -> None:
        while True:
            with self._wake:
                while not self._lines and not self._closing:
                    self._wake.wait()
                if not self._lines:
                    return
                lines, self._lines = self._lines, []
            batch = memoryview(b"".join(lines))
            size = len(batch)
            del lines
            try:
                while batch:
                    batch = batch[os.write(self._fd, batch) :]
            except OSError:
                self.broken = True
                self._tell(self._on_broken)
                return
            with self._wake:
                self._queued -= size
            self._tell(self._make_room)

    def _make_room(self) -> None:
        if self._queued < MAX_QUEUED_BYTES:
            self._room.set()

    def _tell(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                self._loop.call_soon_threadsafe(callback)
