"""Where the shipped `profiles/` and `images/` lie: beside the package, or in the wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def profiles_dir() -> Path:
    """Return the folder of the built-in roles."""
    return _data("profiles")


def images_dir() -> Path:
    """Return the folder of pins, lock and Dockerfile."""
    return _data("images")


def package_dir() -> Path:
    """Return the package's own folder: the sources that go into the images."""
    return _PACKAGE


def _data(name: str) -> Path:
    shipped = _PACKAGE / "_data" / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / name
