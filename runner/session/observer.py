"""Who watches a run, and how a person stops one."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from runner.engine.api import Stream
from runner.model.events import Event

Signal = Literal["agent-ended", "gateway-ended", "stop"]


class Observer(Protocol):
    """Told what happens, from several threads; must be quick and must not raise."""

    def stage(self, name: str) -> None:
        """A stage begins: `starting`, `running`, `collecting`."""

    def event(self, event: Event) -> None:
        """Codex said something."""

    def gateway(self, report: Mapping[str, Any]) -> None:
        """The gateway reported a decision or an exchange."""

    def output(self, stream: Stream, data: bytes) -> None:
        """A plain command printed something."""


class Quiet:
    """An observer that does nothing."""

    def stage(self, name: str) -> None:
        pass

    def event(self, event: Event) -> None:
        pass

    def gateway(self, report: Mapping[str, Any]) -> None:
        pass

    def output(self, stream: Stream, data: bytes) -> None:
        pass


class Stop:
    """A person's wish to stop: once is polite, twice is by force.

    `request` may be called from a signal handler: it only touches a SimpleQueue,
    which is reentrant, and an int.
    """

    def __init__(self) -> None:
        self.level = 0
        self.signals: queue.SimpleQueue[Signal] = queue.SimpleQueue()

    def request(self) -> None:
        """Ask for a stop; asking again asks harder."""
        self.level += 1
        self.signals.put("stop")
