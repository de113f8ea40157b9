"""The states of a run (contract.md, "States") and the record that `state.json` holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runner.model.base import Frozen
from runner.model.errors import (
    AgentFailed,
    BudgetSpent,
    InfrastructureError,
    Interrupted,
    Refused,
    ReplayDiverged,
    RoleboxError,
    TimedOut,
)

Status = Literal[
    "planned",
    "starting",
    "running",
    "collecting",
    "done",
    "failed",
    "refused",
    "timeout",
    "budget",
    "interrupted",
    "lost",
    "diverged",
]

TERMINAL: frozenset[Status] = frozenset(
    {"done", "failed", "refused", "timeout", "budget", "interrupted", "lost", "diverged"}
)

#: `lost`: infrastructure took the run (the engine, the gateway, rolebox itself).
EXIT_CODES: dict[Status, int] = {
    "done": 0,
    "failed": AgentFailed.exit_code,
    "refused": Refused.exit_code,
    "lost": InfrastructureError.exit_code,
    "timeout": TimedOut.exit_code,
    "budget": BudgetSpent.exit_code,
    "diverged": ReplayDiverged.exit_code,
    "interrupted": Interrupted.exit_code,
}


def status_of(error: RoleboxError) -> Status:
    """Return the state in which an error leaves a run."""
    for status, code in EXIT_CODES.items():
        if code == error.exit_code:
            return status
    return "lost"


class Failure(Frozen):
    """Why a run did not end as `done`, in the words of every error."""

    what: str
    why: str = ""
    mend: str = ""


class RunState(Frozen):
    """`state.json`: the only file of a run that changes while it lasts."""

    schema_: Literal["rolebox.state/1"] = Field(default="rolebox.state/1", alias="_schema")
    id: str
    role: str
    status: Status
    created: str
    updated: str
    prompt: str = ""
    repository: str = ""
    repo_id: str = ""
    commit: str = ""
    lease: tuple[str, ...] = ()
    parent: str | None = None
    pid: int = 0
    exit_code: int | None = None
    failure: Failure | None = None
    patch_bytes: int = 0
    total_tokens: int = 0
    denied: int = 0
    duration_s: float = 0.0

    @property
    def ended(self) -> bool:
        """Tell whether the state is a last one."""
        return self.status in TERMINAL
