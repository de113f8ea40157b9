"""What a run may spend, and what it has spent.

The last answer that fits is delivered, the next one is refused: a limit is
checked before a request and counted after it. Two rules make that hold against
a client that would rather not be counted:

- under a token limit one exchange runs at a time (`turnstile`), so that
  parallel requests cannot all pass the same check;
- a stream that ends without usage, because somebody hung up just before the
  end, is charged an estimate of four bytes a token, while the report says
  `usage: null`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from .config import BudgetConfig
from .sse import Usage

BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class Excess:
    which: str
    limit: int
    used: int


def estimate(request_bytes: int, response_bytes: int) -> tuple[int, int]:
    """Return (input, output) tokens, guessed from sizes."""
    return request_bytes // BYTES_PER_TOKEN, response_bytes // BYTES_PER_TOKEN


class Budget:
    def __init__(self, limits: BudgetConfig) -> None:
        self._limits: dict[str, int | None] = {
            "requests": limits.requests,
            "input_tokens": limits.input_tokens,
            "output_tokens": limits.output_tokens,
            "total_tokens": limits.total_tokens,
        }
        self.used = dict.fromkeys(self._limits, 0)
        self._told: set[str] = set()
        by_tokens = any(
            limit is not None for name, limit in self._limits.items() if name != "requests"
        )
        self.turnstile: contextlib.AbstractAsyncContextManager[object] = (
            asyncio.Lock() if by_tokens else contextlib.nullcontext()
        )

    def excess(self) -> Excess | None:
        """Return the first limit that leaves no room for another request."""
        for name, limit in self._limits.items():
            if limit is not None and self.used[name] >= limit:
                return Excess(name, limit, self.used[name])
        return None

    def first_time(self, excess: Excess) -> bool:
        """Say whether this limit is met for the first time, and remember that it was."""
        new = excess.which not in self._told
        self._told.add(excess.which)
        return new

    def admit(self) -> None:
        self.used["requests"] += 1

    def charge(self, usage: Usage) -> None:
        self._add(usage.input_tokens, usage.output_tokens, usage.total_tokens)

    def charge_estimate(self, request_bytes: int, response_bytes: int) -> None:
        given, made = estimate(request_bytes, response_bytes)
        self._add(given, made, given + made)

    def _add(self, given: int, made: int, total: int) -> None:
        self.used["input_tokens"] += given
        self.used["output_tokens"] += made
        self.used["total_tokens"] += total
