"""The run store: `$ROLEBOX_HOME/runs/<id>/` (contract.md, "A run's folder").

A run's folder appears whole, by a rename, with its plan, prompt and state, and
a lock that its rolebox holds while it lives. A folder whose state is no last one
and whose lock is free belongs to a rolebox that died: the next command finishes
it as `lost` (session.py, `recover`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from runner.evidence.files import PRIVATE_DIR, disk_error, write_atomic
from runner.locks import try_lock
from runner.model.errors import EvidenceError, UsageError
from runner.model.ids import is_run_id
from runner.model.state import RunState

#: A marker without a folder may belong to a rolebox that is just making it.
_YOUNG_S = 60.0


@dataclass(frozen=True)
class RunFolder:
    """One run's folder."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id, which is the folder's name."""
        return self.path.name

    def read_state(self) -> RunState:
        """Return the run's state.

        Raises:
            EvidenceError: The file is missing or no state.
        """
        try:
            return RunState.model_validate_json((self.path / "state.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise EvidenceError(
                f"the state of run {self.id} cannot be read", why=type(error).__name__
            ) from None

    def write_state(self, state: RunState) -> None:
        """Replace the run's state."""
        write_atomic(self.path / "state.json", _text(state.to_json()))

    def read_json(self, name: str) -> dict[str, object] | None:
        """Return a JSON object of the folder; None if the file is not there.

        Raises:
            EvidenceError: The file is there and no JSON object.
        """
        try:
            value = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise EvidenceError(f"{name} of run {self.id} cannot be read", why=str(error)) from None
        if not isinstance(value, dict):
            raise EvidenceError(f"{name} of run {self.id} is no JSON object")
        return value

    def write(self, name: str, data: bytes) -> None:
        """Write a file of evidence, whole or not at all."""
        write_atomic(self.path / name, data)

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file of evidence, readable by people."""
        write_atomic(self.path / name, _text(value))


class RunLock:
    """The lock of a live run; the kernel frees it when its process ends, however."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False if another process holds it."""
        self._fd = try_lock(self._path)
        return self._fd is not None

    def release(self) -> None:
        """Free the lock; safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class RunStore:
    """All runs below one ROLEBOX_HOME."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.runs = home / "runs"
        self._live = home / "live"

    def create(self, state: RunState, files: Mapping[str, bytes]) -> tuple[RunFolder, RunLock]:
        """Make a run's folder whole, with its state, and lock it.

        Raises:
            UsageError, InfrastructureError: The disk refuses.
        """
        making = self.runs / f".making-{state.id}"
        lock = RunLock(making / ".lock")
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIR)
            self.runs.mkdir(exist_ok=True, mode=PRIVATE_DIR)
            self._live.mkdir(exist_ok=True, mode=PRIVATE_DIR)
            (self._live / state.id).touch(mode=0o600)
            making.mkdir(mode=PRIVATE_DIR)
            lock.acquire()
            for name, data in files.items():
                target = making / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            (making / "state.json").write_bytes(_text(state.to_json()))
            making.rename(self.runs / state.id)
        except OSError as error:
            lock.release()
            raise disk_error(making, error) from None
        return RunFolder(self.runs / state.id), lock

    def folders(self) -> Iterator[RunFolder]:
        """Yield every run's folder, newest first."""
        try:
            names = [path.name for path in self.runs.iterdir()]
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(
                f"{self.runs} cannot be read", why=error.strerror or "", mend="check its rights"
            ) from None
        for name in sorted(filter(is_run_id, names), reverse=True):
            yield RunFolder(self.runs / name)

    def find(self, reference: str) -> RunFolder:
        """Return the run that an id, a unique prefix of one, or `last` names.

        Raises:
            UsageError: None or more than one.
        """
        if reference == "last":
            for folder in self.folders():
                return folder
            raise UsageError("there is no run yet", mend='start one: rolebox run reviewer "…"')
        found = [f for f in self.folders() if reference and f.id.startswith(reference)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise UsageError(f"there is no run {reference!r}", mend="see: rolebox list")
        raise UsageError(
            f"{reference!r} names {len(found)} runs",
            why=", ".join(f.id for f in found[:5]),
            mend="give more of the id",
        )

    def retire(self, folder: RunFolder, lock: RunLock) -> None:
        """Note that a run is over and everything of it is cleaned; frees its lock."""
        (self._live / folder.id).unlink(missing_ok=True)
        lock.release()

    def live(self) -> Iterator[RunFolder]:
        """Yield the folders of runs that are not over yet, dead roleboxes' included."""
        if self._live.is_dir():
            for name in sorted(filter(is_run_id, (path.name for path in self._live.iterdir()))):
                folder = RunFolder(self.runs / name)
                if folder.path.is_dir():
                    yield folder

    def has_orphans(self) -> bool:
        """Tell cheaply whether any run is marked as live, by us or by another process."""
        return self._live.is_dir() and any(self._live.iterdir())

    def orphans(self) -> Iterator[tuple[RunFolder, RunLock]]:
        """Yield runs whose rolebox is gone before they were over, each locked by us now.

        One marker a live run makes this cheap with any number of ended ones.
        """
        if not self._live.is_dir():
            return
        for name in sorted(filter(is_run_id, (path.name for path in self._live.iterdir()))):
            folder = RunFolder(self.runs / name)
            if not folder.path.is_dir():
                self._forget_unmade(name)
                continue
            lock = RunLock(folder.path / ".lock")
            if lock.acquire():
                yield folder, lock

    def _forget_unmade(self, name: str) -> None:
        """Drop what a rolebox left that died before its run had a folder."""
        try:
            made = (self._live / name).stat().st_mtime
        except FileNotFoundError:  # another process was here first
            return
        if time.time() - made < _YOUNG_S:
            return
        making = self.runs / f".making-{name}"
        if making.is_dir():
            lock = RunLock(making / ".lock")
            if not lock.acquire():
                return
            shutil.rmtree(making)
            lock.release()
        (self._live / name).unlink(missing_ok=True)


def _text(value: object) -> bytes:
    # A lone surrogate has no UTF-8; written as its JSON escape it is read back as it was.
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
