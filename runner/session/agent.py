"""One run's agent container: controls, the word to go, the stream to its end.

The supervisor in the container prints the controls first and then waits. What
it prints before `go` cannot be the agent's, because no instruction of the agent
has run; what comes after is the command's, byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from runner.engine.api import Attachment, Engine, Stream
from runner.evidence.events import EventRecorder
from runner.model.errors import ControlRefused, InfrastructureError
from runner.model.plan import ControlSpec

GO = b"go\n"
_CONTROLS_LIMIT = 4 << 20


@dataclass
class ControlLedger:
    """What the container proved, held against what the plan demands."""

    planned: tuple[ControlSpec, ...]
    records: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    def take(self, record: dict[str, Any]) -> None:
        """Add one line of the supervisor."""
        if record.get("_schema") != "rolebox.controls/1":
            self.records.append(record)
            return
        self.finished = record.get("done") is True
        if record.get("failed") != 0:
            told = f"the supervisor counts {record.get('failed')} failed"
            self.records.append({"name": "summary", "ok": False, "detail": told})

    @property
    def passed(self) -> int:
        """Count the planned controls that held."""
        return sum(1 for control in self.planned if not self._failures_of(control))

    def failures(self) -> tuple[str, ...]:
        """Name every planned control that did not prove what the plan demands, with its detail."""
        found = [item for control in self.planned for item in self._failures_of(control)]
        planned = {control.name for control in self.planned}
        found += [
            f"{record.get('name')}: {record.get('detail', '')}"
            for record in self.records
            if record.get("ok") is not True and str(record.get("name")) not in planned
        ]
        return tuple(found)

    def _failures_of(self, control: ControlSpec) -> list[str]:
        records = [r for r in self.records if r.get("name") == control.name]
        if not records:
            return [f"{control.name}: not reported"]
        return [
            f"{control.name}: expected {control.expect}, "
            f"observed {record.get('observed')} ({record.get('detail', '')})"
            for record in records
            if record.get("ok") is not True
            or record.get("observed") != control.expect
            or record.get("expect") != control.expect
        ]

    def judge(self) -> None:
        """Refuse the run unless every planned control held.

        Raises:
            ControlRefused: Naming each that did not.
        """
        if failed := self.failures():
            raise ControlRefused(
                f"{len(failed)} of {len(self.planned)} controls failed inside the container: "
                + failed[0],
                why="; ".join(failed[1:6]) or "the seal is not what the plan says",
                mend="nothing of the agent has run; see: rolebox logs last --kind controls",
            )


class AgentProcess:
    """The agent's container from attach to the end of its streams.

    Args:
        recorder: Takes the command's stdout.
        stderr: Takes its stderr, up to `stderr_limit` bytes.
        controls_file: Takes the supervisor's control lines.
        ended: Called once when the streams end, for whatever reason.
        started: Called when the controls held and the command was let go.
    """

    def __init__(
        self,
        engine: Engine,
        container: str,
        controls: ControlLedger,
        *,
        recorder: EventRecorder,
        stderr: BinaryIO,
        controls_file: BinaryIO,
        stderr_limit: int,
        output: Callable[[Stream, bytes], None],
        started: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.container = container
        self.controls = controls
        self.failure: Exception | None = None
        self.gone = False
        self._engine = engine
        self._recorder = recorder
        self._stderr = stderr
        self._stderr_room = stderr_limit
        self._stderr_cut = False
        self._controls_file = controls_file
        self._output = output
        self._started = started
        self._ended = ended
        self._early = b""
        self._attachment: Attachment | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Attach and start; the reader thread does the rest."""
        self._attachment = self._engine.attach(self.container)
        self._engine.start(self.container)
        self._reader = threading.Thread(target=self._read, name="agent-reader", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._attachment is not None
        try:
            for stream, data in self._attachment.frames():
                if stream == "stderr":
                    self._take_stderr(data)
                elif self.gone:
                    self._recorder.feed(data)
                    self._output(stream, data)
                else:
                    self._take_controls(data)
            if not self.gone:
                self.controls.judge()
                raise InfrastructureError(
                    "the agent's container ended before its controls were done",
                    why="its supervisor printed no verdict",
                )
        except (OSError, InfrastructureError, ControlRefused) as error:
            self.failure = error
            with contextlib.suppress(InfrastructureError):
                self._engine.signal(self.container, "SIGKILL")
        finally:
            self._ended()

    def _take_stderr(self, data: bytes) -> None:
        kept = data[: max(self._stderr_room, 0)]
        self._stderr.write(kept)
        self._stderr_room -= len(kept)
        self._stderr_cut = self._stderr_cut or len(kept) < len(data)
        if self.gone:
            self._output("stderr", data)

    def _take_controls(self, data: bytes) -> None:
        *lines, self._early = (self._early + data).split(b"\n")
        if len(self._early) > _CONTROLS_LIMIT:
            raise InfrastructureError("the supervisor's output is no list of controls")
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise InfrastructureError(
                    "the supervisor's output is no list of controls", why=repr(line[:120])
                )
            self._controls_file.write(line + b"\n")
            self.controls.take(record)
        self._controls_file.flush()
        if self.controls.finished:
            self._let_go()

    def _let_go(self) -> None:
        self.controls.judge()
        assert self._attachment is not None
        self.gone = True
        self._started()
        self._attachment.write(GO)

    @property
    def stderr_truncated(self) -> bool:
        """Tell whether more came on stderr than was kept."""
        return self._stderr_cut

    def join(self, timeout_s: float) -> bool:
        """Wait for the reader; False if it still reads."""
        if self._reader is None:
            return True
        self._reader.join(timeout_s)
        return not self._reader.is_alive()

    def close(self) -> None:
        """Close the streams; safe at any time."""
        if self._attachment is not None:
            self._attachment.close()
