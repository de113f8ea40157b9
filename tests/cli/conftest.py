"""The desks of the end-to-end tests, for the command line's own."""

from __future__ import annotations

from tests.e2e.conftest import desk, shared

__all__ = ["desk", "shared"]
