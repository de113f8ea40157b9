"""Run ids: they sort by time and are safe in file, container and volume names."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_RUN_ID = re.compile(r"[0-9]{8}t[0-9]{9}-[0-9a-f]{6}")


def new_run_id(now: datetime, entropy: bytes) -> str:
    """Return an id such as `20261122t201501123-3f9a2c`.

    Args:
        now: An aware time; the id holds it in UTC to the millisecond.
        entropy: At least three random bytes; they part runs of one millisecond.
    """
    utc = now.astimezone(UTC)
    return f"{utc:%Y%m%dt%H%M%S}{utc.microsecond // 1000:03d}-{entropy[:3].hex()}"


def is_run_id(text: str) -> bool:
    """Tell whether a text has the form of a run id (a folder's or a label's name)."""
    return _RUN_ID.fullmatch(text) is not None


def rfc3339(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC with microseconds, as every record writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
