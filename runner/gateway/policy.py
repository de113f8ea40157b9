"""Which hosts may be reached through the gateway.

A policy only decides; dialling is not its job. The one policy so far denies
everything; an allowlist is a second class with the same method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .config import EgressConfig


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` goes into the audit log, `reason` to the agent."""

    allowed: bool
    rule: str
    reason: str


class Policy(Protocol):
    def decide(self, host: str, port: int) -> Decision:
        """Decide about one destination, as the client named it."""
        ...


class DenyAll:
    """No destination at all: `egress.mode = none`."""

    def decide(self, host: str, port: int) -> Decision:
        reason = f"{host}:{port} is not reachable: this run has no egress (egress.mode = none)"
        return Decision(allowed=False, rule="egress.mode = none", reason=reason)


def policy_for(config: EgressConfig) -> Policy:
    match config.mode:
        case "none":
            return DenyAll()
