"""Watch a running agent to its end, and bring the end about where it must.

A person's stop, the time, the gateway's end and a disk that runs full end a run;
Codex is asked politely first, so that it can write its own record.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.engine.api import Engine
from runner.model.errors import InfrastructureError, Interrupted, RoleboxError, TimedOut
from runner.session.agent import AgentProcess
from runner.session.gateway import GatewayProcess
from runner.session.observer import Stop

CONTROLS_WAIT_S = 60.0
_POLL_S = 0.5
_MIB = 1 << 20
_MIN_FILES = 10_000


@dataclass(frozen=True)
class Watch:
    """What is watched.

    Attributes:
        timeout_s: From the word `go` on.
        places: Folders whose disk must keep `min_free_bytes`.
    """

    agent: AgentProcess
    gateway: GatewayProcess
    stop: Stop
    timeout_s: float
    places: Sequence[Path]
    min_free_bytes: int

    def until_end(self) -> RoleboxError | None:
        """Wait; returns why the agent must be stopped, or None if it ended by itself."""
        deadline = time.monotonic() + CONTROLS_WAIT_S
        timed = False
        while True:
            if self.agent.gone and not timed:
                timed, deadline = True, time.monotonic() + self.timeout_s
            left = deadline - time.monotonic()
            if left <= 0:
                return self._too_late(timed)
            try:
                signal = self.stop.signals.get(timeout=min(_POLL_S, left))
            except queue.Empty:
                if (lack := disk_lack(self.places, self.min_free_bytes)) is not None:
                    return lack
                continue
            if signal == "agent-ended":
                return None
            if signal == "stop":
                return Interrupted("the run was interrupted", why="by the person's wish")
            return self._gateway_ended()

    def _too_late(self, started: bool) -> RoleboxError:
        if not started:
            return InfrastructureError(
                "the controls were not done in time", why=f"waited {CONTROLS_WAIT_S:.0f} s"
            )
        return TimedOut(
            f"the run did not end within {self.timeout_s:g} s",
            mend="give it more with --timeout, or a smaller task",
        )

    def _gateway_ended(self) -> RoleboxError:
        if self.gateway.problem is None and not self.agent.gone:
            return InfrastructureError("the run's gateway did not start")
        return InfrastructureError(
            "the run's gateway ended before the run did",
            why=self.gateway.problem or "its container was stopped or killed",
        )


def stop_agent(engine: Engine, agent: AgentProcess, stop: Stop, grace_s: float) -> None:
    """Stop the agent politely, then by force; a second wish of the person skips to force."""
    for name, wait in (("SIGINT", grace_s), ("SIGTERM", grace_s / 2), ("SIGKILL", grace_s)):
        if name != "SIGKILL" and stop.level > 1:
            continue
        engine.signal(agent.container, name)
        end = time.monotonic() + wait
        while time.monotonic() < end and (stop.level < 2 or name == "SIGKILL"):
            if agent.join(0.05):
                return


def disk_lack(places: Sequence[Path], min_free_bytes: int) -> RoleboxError | None:
    """Say which place's disk has too little room or too few free files left, if one has."""
    for place in places:
        try:
            disk = os.statvfs(place)
        except OSError:
            continue  # the engine's data folder may be out of our sight
        free = disk.f_bavail * disk.f_frsize
        if free < min_free_bytes or (disk.f_files and disk.f_favail < _MIN_FILES):
            return InfrastructureError(
                f"the run was stopped: the disk of {place} runs full",
                why=f"{free // _MIB} MiB and {disk.f_favail} files are left",
                mend="free some space there",
            )
    return None
