"""One report line for every decision about a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .backend import Peer
from .report import Reports
from .routes import Destination
from .wire import Client


@dataclass(slots=True)
class Counts:
    allowed: int = 0
    denied: int = 0
    model: int = 0


@dataclass(slots=True)
class Audit:
    """Args: `monotonic` gives seconds of a clock that only goes forward."""

    reports: Reports
    monotonic: Callable[[], float]
    counts: Counts = field(default_factory=Counts)

    def attempt(self, client: Client | None) -> Attempt:
        return Attempt(self, client, self.monotonic())


@dataclass(slots=True)
class Attempt:
    """A request on its way to its one decision; filled in as it becomes known."""

    audit: Audit
    client: Client | None
    started: float
    verb: str | None = None
    asked: Destination = Destination(None, None, None)  # noqa: RUF009 - a frozen value
    is_decided: bool = False

    @property
    def duration_ms(self) -> float:
        return round((self.audit.monotonic() - self.started) * 1000, 3)

    def decided(
        self, *, allowed: bool, rule: str, status: int | None, peer: Peer | None = None
    ) -> None:
        """Report the decision; `peer` says where an allowed request went, if it left."""
        self.is_decided = True
        if allowed:
            self.audit.counts.allowed += 1
        else:
            self.audit.counts.denied += 1
        named = peer if peer is not None and peer.host is not None else self.asked
        self.audit.reports.decision(
            decision="allowed" if allowed else "denied",
            verb=self.verb,
            host=named.host,
            port=named.port,
            path=named.path,
            address=peer.address if peer else None,
            sni=peer.sni if peer else None,
            rule=rule,
            status=status,
            bytes_in=self.client.bytes_in if self.client else 0,
            bytes_out=self.client.bytes_out if self.client else 0,
            duration_ms=self.duration_ms,
        )
