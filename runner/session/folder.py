"""What a run's folder holds before anything starts, and how its streams are written.

Decision: a run keeps some room of its own on the disk and frees it for its last
words, so that a run that filled the disk still has its record.
"""

from __future__ import annotations

import io
import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from runner.evidence.files import disk_error
from runner.evidence.store import RunFolder
from runner.model.ids import rfc3339
from runner.model.plan import Materials, PlannedRun, RunPlan
from runner.model.state import RunState
from runner.session.bind import config_files, write_config

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from runner.session.task import Prepared

_RESERVE = ".reserve"
_RESERVE_BYTES = 1 << 20


def first_state(run: str, prepared: Prepared, started: datetime, pid: int) -> RunState:
    """Return the state of a run that has not begun."""
    moment, plan = rfc3339(started), prepared.planned.plan
    prompt = prepared.request.prompt or " ".join(plan.command.argv)
    return RunState(
        id=run,
        role=plan.role,
        status="planned",
        created=moment,
        updated=moment,
        prompt=prompt[:500],
        repository=str(prepared.repository.top or prepared.repository.git_dir),
        repo_id=prepared.repository.repo_id,
        commit=plan.source.commit,
        lease=plan.lease,
        parent=prepared.parent,
        pid=pid,
    )


def reserve_room(folder: RunFolder) -> None:
    """Take the room for the run's record.

    Raises:
        RoleboxError: There is none.
    """
    path = folder.path / _RESERVE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _RESERVE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise disk_error(path, error) from None


def release_room(folder: RunFolder) -> None:
    """Free the room again; safe to call twice."""
    (folder.path / _RESERVE).unlink(missing_ok=True)


class _Whole(io.FileIO):
    """An unbuffered file that writes all of it or raises; a plain one may write a part."""

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            rest = rest[super().write(rest) :]
        return size


def open_whole(path: Path) -> BinaryIO:
    """Open a file of evidence for streaming; what was written is seen at once."""
    return cast(BinaryIO, _Whole(path, "wb"))


def first_files(planned: PlannedRun) -> dict[str, bytes]:
    """Return name to bytes: the plan, where its values came from, the prompt, the script."""
    files = {
        "plan.json": planned.plan.canonical(),
        "origins.json": json.dumps(dict(planned.origins), indent=2).encode() + b"\n",
    }
    if planned.materials.prompt is not None:
        files["prompt.md"] = planned.materials.prompt
    if planned.materials.script is not None:
        files["model-script.json"] = json.dumps(planned.materials.script).encode() + b"\n"
    return files


def write_config_of(folder: RunFolder, plan: RunPlan, materials: Materials) -> Path:
    """Write what the agent's container mounts read-only; returns its folder."""
    config = folder.path / "config"
    write_config(config, config_files(plan, materials))
    return config
