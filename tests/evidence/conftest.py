"""A disk that is tiny and can be filled, and a record of a run that ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.evidence.store import RunFolder, RunStore
from runner.model.ids import new_run_id, rfc3339
from runner.model.plan import PlannedRun
from runner.model.state import RunState
from runner.planning.attachments import Attachment
from runner.planning.resolve import Task
from tests.evidence.ended import STARTED
from tests.planning.build import SCRIPT, planned

_AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    options = f"size=256k,mode=700,uid={os.geteuid()},gid={os.getegid()}"
    subprocess.run([*_AS_ROOT, "mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*_AS_ROOT, "umount", folder], check=True)


@pytest.fixture
def fill(tiny_disk: Path) -> Callable[[], Path]:
    """Fill the tiny disk to the last byte; the file that does it is returned."""

    def fill_it() -> Path:
        path = tiny_disk / "filler"
        with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(b"x" * 4096)
        return path

    return fill_it


@pytest.fixture
def made() -> PlannedRun:
    log = [Attachment("log", b"x")]
    return planned("reviewer", Task(prompt="p", script=SCRIPT, attachments=log))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = new_run_id(STARTED, b"\1\2\3")
    state = RunState(
        id=run,
        role="reviewer",
        status="planned",
        created=rfc3339(STARTED),
        updated=rfc3339(STARTED),
    )
    created, lock = RunStore(tmp_path / "home").create(
        state, {"plan.json": b"{}", "tape/0001.json": b"[]"}
    )
    lock.release()
    return created
