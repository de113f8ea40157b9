"""What a person sees while something works.

On a terminal: one line that changes (what Codex does now, tokens, time). Else:
JSON lines on stderr, few and complete, so that a CI log can be read by a program.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.status import Status as RichStatus

    from runner.engine.api import Stream
    from runner.model.events import Event
    from runner.session.observer import Observer

_STAGES = {
    "starting": "sealing",
    "running": "working",
    "collecting": "collecting evidence",
}


@contextmanager
def observer_for(kind: Literal["codex", "exec"], role: str) -> Iterator[Observer]:
    """Yield the observer that suits the task and the terminal."""
    if kind == "exec":
        yield _PassThrough()
    elif sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        with console.status("", spinner="dots") as status:
            yield _Live(role, status)
    else:
        yield _Lines(role)


@contextmanager
def steps(title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that tells one step of a long work."""
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        with console.status(title, spinner="dots") as status:

            def tell(step: str) -> None:
                console.print(f"  {step}", markup=False)
                status.update(f"{title}: working")

            yield tell
    else:
        yield lambda step: _line({"kind": "step", "work": title, "step": step})


def _line(record: Mapping[str, Any]) -> None:
    click.echo(json.dumps({"_schema": "rolebox.progress/1", **record}), err=True)


class _PassThrough:
    """A plain command: its output is ours."""

    def stage(self, name: str) -> None:
        pass

    def event(self, event: Event) -> None:
        pass

    def gateway(self, report: Mapping[str, Any]) -> None:
        pass

    def output(self, stream: Stream, data: bytes) -> None:
        sink = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
        try:
            sink.write(data)
            sink.flush()
        except (BrokenPipeError, ValueError):
            return  # the reader went away; the evidence has it all


class _Codex:
    """Follows Codex and says in a few words what it does now."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.tokens = 0
        self.denied = 0
        self.begun = time.monotonic()

    def gateway(self, report: Mapping[str, Any]) -> None:
        usage = report.get("usage")
        if isinstance(usage, Mapping):
            self.tokens += int(usage.get("total_tokens") or 0)
        if report.get("decision") == "denied":
            self.denied += int(report.get("count") or 1)

    def output(self, stream: Stream, data: bytes) -> None:
        pass

    @staticmethod
    def words(event: Event) -> str | None:
        """Return what an event says, on one inert line; None if it is not worth a line."""
        from runner.model.events import (
            AgentMessage,
            CommandExecution,
            ErrorEvent,
            FileChange,
            ItemEvent,
            Reasoning,
            TurnFailed,
        )
        from runner.report.text import one_line

        match event:
            case ItemEvent(type="item.started", item=CommandExecution(command=command)):
                return one_line(f"$ {command}", 200)
            case ItemEvent(type="item.completed", item=FileChange(changes=changes)):
                return one_line("edited " + ", ".join(c.path for c in changes), 200)
            case ItemEvent(type="item.completed", item=Reasoning(text=text)):
                return one_line(text, 200)
            case ItemEvent(type="item.completed", item=AgentMessage(text=text)):
                return one_line(text, 200)
            case ErrorEvent(message=message):
                return one_line(f"error: {message}", 200)
            case TurnFailed(error=failure):
                return one_line(f"failed: {failure.message}", 200)
        return None


class _Live(_Codex):
    def __init__(self, role: str, status: RichStatus) -> None:
        super().__init__(role)
        self._status = status
        self._doing = ""

    def stage(self, name: str) -> None:
        self._doing = _STAGES.get(name, name)
        self._draw()

    def event(self, event: Event) -> None:
        if (words := self.words(event)) is not None:
            self._doing = words
            self._draw()

    def gateway(self, report: Mapping[str, Any]) -> None:
        super().gateway(report)
        self._draw()

    def _draw(self) -> None:
        from rich.text import Text

        denied = f" · {self.denied} denied" if self.denied else ""
        seconds = time.monotonic() - self.begun
        line = f"{self.role} {seconds:.0f}s · {self.tokens} tokens{denied} · {self._doing}"
        text = Text(line, no_wrap=True, overflow="ellipsis")
        self._status.update(text)


class _Lines(_Codex):
    def stage(self, name: str) -> None:
        _line({"kind": "stage", "role": self.role, "stage": name})

    def event(self, event: Event) -> None:
        if (words := self.words(event)) is not None:
            _line({"kind": "doing", "role": self.role, "tokens": self.tokens, "doing": words})
