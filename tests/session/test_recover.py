"""A rolebox that is killed, at whatever moment: the next command completes its run.

Real processes on the real engine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest

from runner.engine.docker_engine import DockerEngine
from runner.model.canonical import digest
from runner.model.ids import is_run_id
from runner.model.provenance import provenance_schema
from tests.conftest import ROLEBOX, Done

SENTINEL = "sk-sentinel-eccbc87e4b5ce2fe"
Rolebox = Callable[..., Done]


def folder_of(home: Path) -> Path | None:
    runs = home / "runs"
    found = [p for p in runs.iterdir() if is_run_id(p.name)] if runs.is_dir() else []
    return found[0] if found else None


def status(folder: Path) -> str:
    return str(json.loads((folder / "state.json").read_text())["status"])


def parts(engine: DockerEngine, run: str) -> set[str]:
    return set(engine.objects(run).parts.values())


@contextmanager
def started(home: Path, repository: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A rolebox process of its own, killed at the latest when the test is over."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
    process = subprocess.Popen(
        [*ROLEBOX, *args],
        cwd=repository,
        env={**clean, "ROLEBOX_HOME": str(home), "OPENAI_API_KEY": SENTINEL},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    while not ready():
        assert process.poll() is None, "rolebox ended before the moment came"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def completed(home: Path, engine: DockerEngine, folder: Path) -> dict[str, object]:
    """Return the record of a run that was completed afterwards, and assert what must hold."""
    run = folder.name
    record = json.loads((folder / "provenance.json").read_text())
    jsonschema.validate(record, provenance_schema())
    assert record["status"] == "lost"
    assert not record["completeness"]["complete"]
    assert "completed afterwards" in record["completeness"]["missing"][0]
    assert record["completeness"]["uncleaned"] == []
    assert record["hashes"]["agents"] != {}
    ledger = [json.loads(line) for line in (home / "ledger.jsonl").read_text().splitlines()]
    assert [(e["run"], e["status"]) for e in ledger] == [(run, "lost")]
    assert ledger[0]["provenance"] == digest(record)
    found = engine.objects(run)
    assert not found.containers
    assert not found.volumes
    assert not (folder / "ws").exists()
    assert list((home / "live").iterdir()) == []
    assert not list((home / "runs").glob(".making-*"))
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SENTINEL.encode() not in path.read_bytes()
    assert isinstance(record, dict)
    return record


SAY_AND_SLEEP = ("exec", "reviewer", "--", "sh", "-c", "echo so far; echo aside >&2; sleep 60")


def _planned(folder: Path, engine: DockerEngine) -> bool:
    return True


def _starting(folder: Path, engine: DockerEngine) -> bool:
    return status(folder) == "starting"


def _with_gateway(folder: Path, engine: DockerEngine) -> bool:
    return "gateway" in parts(engine, folder.name)


def _with_agent(folder: Path, engine: DockerEngine) -> bool:
    return "agent" in parts(engine, folder.name)


def _running(folder: Path, engine: DockerEngine) -> bool:
    return (folder / "events.jsonl").is_file() and bool((folder / "events.jsonl").read_bytes())


MOMENTS = {
    "the folder is there": _planned,
    "it is starting": _starting,
    "the gateway is created": _with_gateway,
    "the agent is created": _with_agent,
    "the command runs": _running,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_whose_rolebox_was_killed_is_completed_as_lost(
    home: Path, repository: Path, rolebox: Rolebox, engine: DockerEngine, moment: str
) -> None:
    def ready() -> bool:
        folder = folder_of(home)
        return folder is not None and MOMENTS[moment](folder, engine)

    with started(home, repository, *SAY_AND_SLEEP) as process:
        kill_when(process, ready)
    folder = folder_of(home)
    assert folder is not None
    before = status(folder)
    listed = rolebox("list", "--json")
    assert listed.code == 0, listed.stderr
    assert f"run {folder.name} was lost" in listed.stderr
    [run] = json.loads(listed.stdout)["runs"]
    assert (run["id"], run["status"]) == (folder.name, "lost")
    record = completed(home, engine, folder)
    if moment == "the command runs":
        assert before == "running"
        assert (folder / "events.jsonl").read_bytes() == b"so far\n"
        assert (folder / "stderr.log").read_bytes() == b"aside\n"
        controls = record["controls"]
        assert isinstance(controls, dict)
        assert controls["passed"] == controls["planned"] > 0
        assert controls["failed"] == []
    again = rolebox("list", "--json")
    assert "was lost" not in again.stderr
    assert json.loads(again.stdout) == json.loads(listed.stdout)


@pytest.mark.parametrize("after_removal", [False, True])
def test_a_run_killed_while_collecting_keeps_its_output_and_its_patch(
    home: Path, repository: Path, rolebox: Rolebox, engine: DockerEngine, after_removal: bool
) -> None:
    def ready() -> bool:
        folder = folder_of(home)
        if folder is None or status(folder) != "collecting":
            return False
        return not after_removal or "agent" not in parts(engine, folder.name)

    script = "echo made; i=0; while [ $i -lt 4000 ]; do echo $i > src/f$i; i=$((i+1)); done"
    argv = ("exec", "scaffold", "--write", "src/", "--", "sh", "-c", script)
    with started(home, repository, *argv) as process:
        kill_when(process, ready)
    folder = folder_of(home)
    assert folder is not None
    assert rolebox("list").code == 0
    record = completed(home, engine, folder)
    assert (folder / "events.jsonl").read_bytes() == b"made\n"
    patch, controls = record["patch"], record["controls"]
    assert isinstance(patch, dict)
    assert patch["files"] == 4000
    assert isinstance(controls, dict)
    assert controls["passed"] == controls["planned"] > 0
    if after_removal:
        assert "exit: the container was gone" in str(record["completeness"])
    else:
        assert record["exit_code"] == 0


def test_a_live_run_is_left_alone(
    home: Path, repository: Path, rolebox: Rolebox, engine: DockerEngine
) -> None:
    def ready() -> bool:
        folder = folder_of(home)
        return folder is not None and _running(folder, engine)

    with started(home, repository, *SAY_AND_SLEEP) as process:
        while not ready():
            assert process.poll() is None
            time.sleep(0.01)
        listed = rolebox("list", "--json")
        [run] = json.loads(listed.stdout)["runs"]
        assert run["status"] == "running"
        assert parts(engine, run["id"]) == {"agent", "gateway"}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    [run] = json.loads(rolebox("list", "--json").stdout)["runs"]
    assert run["status"] == "interrupted"
    assert parts(engine, run["id"]) == set()
