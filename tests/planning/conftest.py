"""A repository with a place for roles of its own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An empty `.rolebox/profiles` of a repository."""
    folder = tmp_path / "repository" / ".rolebox" / "profiles"
    folder.mkdir(parents=True)
    return folder
