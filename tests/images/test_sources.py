from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from runner.engine.images import sources
from runner.model.errors import ImageRefused, InfrastructureError


def install(site: Path, data: bytes, recorded: bytes) -> None:
    """Write a distribution `fakelib` as an installer would."""
    (site / "fakelib").mkdir(parents=True)
    (site / "fakelib/__init__.py").write_bytes(data)
    (site / "fakelib/x.pyc").write_bytes(b"noise")
    info = site / "fakelib-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakelib\nVersion: 1.0\n")
    hashed = base64.urlsafe_b64encode(hashlib.sha256(recorded).digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(
        f"fakelib/__init__.py,sha256={hashed},{len(recorded)}\nfakelib/x.pyc,,\n"
        "fakelib-1.0.dist-info/METADATA,,\nfakelib-1.0.dist-info/RECORD,,\n"
    )


def test_an_installed_library_is_taken_without_the_installers_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, b"x = 1\n", b"x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found, version = sources.installed("fakelib")
    assert (found.files, version) == ({"fakelib/__init__.py": b"x = 1\n"}, "1.0")


def test_a_library_changed_after_installation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, b"import evil\n", b"x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImageRefused, match="changed after it was installed"):
        sources.installed("fakelib")


def test_a_library_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(InfrastructureError, match="not installed"):
        sources.installed("no-such-library-here")


def test_h11_of_this_environment_is_whole() -> None:
    found, version = sources.installed("h11")
    assert "h11/__init__.py" in found.files
    assert version >= "0.16"


def test_our_sources_are_shipped_unwritable_and_a_change_shows(tmp_path: Path) -> None:
    (tmp_path / "sub/__pycache__").mkdir(parents=True)
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "sub/b.py").write_text("2")
    (tmp_path / "notes.txt").write_text("no")
    (tmp_path / "sub/__pycache__/b.cpython-311.pyc").write_text("no")
    before = sources.package("gateway", tmp_path)
    assert set(before.files) == {
        "runner/__init__.py",
        "runner/gateway/a.py",
        "runner/gateway/sub/b.py",
    }
    modes = {entry.path: entry.mode for entry in before.entries()}
    assert modes["opt/rolebox/runner/gateway/a.py"] == 0o444
    assert modes["opt/rolebox/runner/gateway/sub"] == 0o755
    (tmp_path / "a.py").write_text("3")
    assert sources.package("gateway", tmp_path).digest != before.digest


def test_missing_sources_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="sources of the gateway are missing"):
        sources.package("gateway", tmp_path)
