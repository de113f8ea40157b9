"""A run on the fake engine: programs that play the supervisor and the gateway, and what
every closed run must hold whatever happened."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema

from runner.engine.api import Engine
from runner.engine.fake import FakeEngine, Process, Program
from runner.evidence.store import RunFolder, RunStore
from runner.model.canonical import digest
from runner.model.provenance import provenance_schema
from runner.model.state import EXIT_CODES, RunState
from runner.session.host import Host
from runner.session.observer import Quiet, Stop
from runner.session.recover import recover
from runner.session.run import run_sealed
from runner.session.task import Prepared, Request, prepare_task

SENTINEL = "sk-sentinel-7d793037a0760186"

Record = dict[str, Any]
Tamper = Callable[[list[Record]], list[Record]]


def say(process: Process, value: object) -> None:
    process.write("stdout", json.dumps(value).encode() + b"\n")


def planned_controls(process: Process) -> list[Record]:
    [config] = [m.source for m in process.binding.mounts if m.target == "/etc/rolebox"]
    controls = json.loads((Path(config) / "sandbox.json").read_text())["controls"]
    return [
        {
            "_schema": "rolebox.control/1",
            "name": control["name"],
            "category": control["category"],
            "expect": control["expect"],
            "observed": control["expect"],
            "ok": True,
            "detail": "",
            "ms": 0.1,
        }
        for control in controls
    ]


def summary(failed: int = 0) -> Record:
    return {"_schema": "rolebox.controls/1", "done": True, "passed": 1, "failed": failed}


def supervise(process: Process, tamper: Tamper = lambda records: records, failed: int = 0) -> bool:
    """Prove the controls and wait for the word; False if it does not come."""
    for record in tamper(planned_controls(process)):
        say(process, record)
    say(process, summary(failed))
    return process.stdin.readline() == b"go\n"


def works(process: Process) -> int:
    if not supervise(process):
        return 3
    process.write("stdout", b"hello\n")
    process.write("stderr", b"aside\n")
    return 0


def stubborn(process: Process) -> int:
    """Ignore everything but SIGKILL."""
    if not supervise(process):
        return 3
    process.write("stdout", b"working\n")
    while process.signals.get() != "SIGKILL":
        pass
    return 137


def obliging(process: Process) -> int:
    """Work until asked to stop."""
    if not supervise(process):
        return 3
    process.write("stdout", b"working\n")
    name = process.signals.get()
    process.write("stdout", f"{name}\n".encode())
    return 130


def gateway(process: Process) -> int:
    json.loads(process.stdin.readline())
    say(process, {"_schema": "rolebox.gateway-report/1", "kind": "ready"})
    process.stdin.readline()
    say(process, {"_schema": "rolebox.gateway-report/1", "kind": "stopped"})
    return 0


class Telling(Quiet):
    """An observer that sets an event when a stage begins or the agent prints."""

    def __init__(self) -> None:
        self.printed = threading.Event()
        self.reports = threading.Event()

    def output(self, stream: str, data: bytes) -> None:
        self.printed.set()

    def gateway(self, report: Mapping[str, Any]) -> None:
        self.reports.set()


@dataclass
class Scene:
    """A prepared run of the reviewer's `exec`, and the world it will meet."""

    home: Path
    prepared: Prepared
    agent: Program = works
    gateway: Program = gateway
    stop: Stop = field(default_factory=Stop)
    observer: Quiet = field(default_factory=Telling)
    min_free_bytes: int = 0

    @classmethod
    def of(cls, home: Path, repository: Path, **request: Any) -> Scene:
        asked = {"role": "reviewer", "argv": ("work",), **request}
        prepared = prepare_task(Request(directory=repository, **asked), home, os.environ)
        return cls(home, prepared).limited(timeout_s=20, grace_s=0.3)

    def limited(self, **limits: float) -> Scene:
        plan = self.prepared.planned.plan
        plan = plan.model_copy(update={"limits": plan.limits.model_copy(update=limits)})
        return replace(
            self, prepared=replace(self.prepared, planned=replace(self.prepared.planned, plan=plan))
        )

    def engine(self) -> FakeEngine:
        plan = self.prepared.planned.plan
        return FakeEngine(
            {
                plan.agent_container.image: lambda process: self.agent(process),
                plan.gateway_container.image: lambda process: self.gateway(process),
            }
        )

    def run(self, engine: Engine) -> Ended:
        host = Host(
            home=self.home,
            engine=engine,
            now=now,
            entropy=os.urandom,
            headers={"authorization": f"Bearer {SENTINEL}"},
            min_free_bytes=self.min_free_bytes,
        )
        state = run_sealed(self.prepared, host, self.observer, self.stop)
        return closed(self.home, state)


@dataclass(frozen=True)
class Ended:
    """A closed run as its folder shows it."""

    state: RunState
    folder: RunFolder
    provenance: dict[str, Any]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state.status]

    @property
    def missing(self) -> str:
        return "\n".join(self.provenance["completeness"]["missing"])

    @property
    def uncleaned(self) -> list[str]:
        return list(self.provenance["completeness"]["uncleaned"])

    @property
    def told(self) -> str:
        failure = self.state.failure
        return f"{failure.what} | {failure.why}" if failure else ""

    def text(self, name: str) -> str:
        return (self.folder.path / name).read_text()


def now() -> datetime:
    return datetime.now(UTC)


def closed(home: Path, state: RunState) -> Ended:
    """Return a run's end, after asserting what holds for every one of them."""
    folder = RunFolder(home / "runs" / state.id)
    assert folder.read_state() == state
    assert state.ended
    provenance = json.loads((folder.path / "provenance.json").read_text())
    jsonschema.validate(provenance, provenance_schema())
    assert provenance["status"] == state.status
    assert provenance["completeness"]["complete"] is not bool(provenance["completeness"]["missing"])
    assert (state.failure is None) is (state.status == "done")
    ledger = [json.loads(line) for line in (home / "ledger.jsonl").read_text().splitlines()]
    [entry] = [line for line in ledger if line["run"] == state.id]
    assert entry["status"] == state.status
    assert entry["provenance"] == digest(provenance)
    for name, record in provenance["files"].items():
        assert (folder.path / name).stat().st_size == record["bytes"]
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SENTINEL.encode() not in path.read_bytes(), path
    if not provenance["completeness"]["uncleaned"]:
        assert not (folder.path / "ws").exists()
        assert not (home / "live" / state.id).exists()
    return Ended(state, folder, provenance)


def gone(engine: Engine, ended: Ended) -> bool:
    found = engine.objects(ended.state.id)
    return not found.containers and not found.volumes


def next_command(home: Path, engine: Engine) -> tuple[str, ...]:
    """Do what every command does first."""
    return recover(RunStore(home), lambda: engine, now)
