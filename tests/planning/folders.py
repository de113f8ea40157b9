"""Roles of a repository, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w


def write(own: Path, name: str, profile: str, **files: str) -> Path:
    folder = own / name
    folder.mkdir()
    (folder / "profile.toml").write_text(profile)
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)
    return folder


def extend(own: Path, base: str = "reviewer", values: dict[str, Any] | None = None) -> Path:
    return write(own, "mine", tomli_w.dumps({"extends": base, **(values or {})}))
