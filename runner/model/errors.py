"""One exception class per exit code.

    RoleboxError                      what, why, the mend
    ├── AgentFailed          exit 1   Codex (or the command) ran and failed
    ├── UsageError           exit 2   wrong usage or configuration
    ├── Refused              exit 3   a policy said no
    │   ├── HardeningRefused          the plan lacks a control
    │   ├── LeaseRefused              outside, overlapping, protected, through a link
    │   ├── ControlRefused            a negative control failed inside the container
    │   └── ImageRefused              an image is not the one that the lock names
    ├── InfrastructureError  exit 4   the engine, the disk or the gateway failed
    │   └── EngineUnavailable         no engine answers, or it is too old
    ├── TimedOut             exit 5
    ├── BudgetSpent          exit 6
    ├── EvidenceError        exit 7   evidence does not verify
    ├── ReplayDiverged       exit 8
    └── Interrupted          exit 130

"The sandbox failed" (4) is never mixed up with "the command failed" (1).
"""

from __future__ import annotations

from typing import ClassVar


class RoleboxError(Exception):
    """An error that a person can act on.

    Args:
        what: What went wrong, one sentence, no full stop needed.
        why: The cause, as far as it is known.
        mend: What to do about it.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, what: str, *, why: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.mend = mend

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.mend:
            parts.append(f"mend: {self.mend}")
        return "\n  ".join(parts)


class AgentFailed(RoleboxError):
    exit_code = 1


class UsageError(RoleboxError):
    exit_code = 2


class Refused(RoleboxError):
    exit_code = 3


class HardeningRefused(Refused):
    pass


class LeaseRefused(Refused):
    pass


class ControlRefused(Refused):
    pass


class ImageRefused(Refused):
    pass


class InfrastructureError(RoleboxError):
    exit_code = 4


class EngineUnavailable(InfrastructureError):
    pass


class TimedOut(RoleboxError):
    exit_code = 5


class BudgetSpent(RoleboxError):
    exit_code = 6


class EvidenceError(RoleboxError):
    exit_code = 7


class ReplayDiverged(RoleboxError):
    exit_code = 8


class Interrupted(RoleboxError):
    exit_code = 130
