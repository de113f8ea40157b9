"""The key: given to the gateway over its input, seen by the upstream and by nobody else."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import (
    WAIT_FOR_GO,
    Desk,
    container,
    docker,
    jsonl,
    left_in_engine,
    let_go,
    until,
)

_KEY = "sk-sentinel-3f9a2c-3f9a2c-3f9a2c"
_ENV = {"OPENAI_API_KEY": _KEY}


def _role(desk: Desk, address: str, case: str, limits: str = "") -> str:
    """Give the repository a role whose model is the test's own upstream."""
    url = f"http://{address}:8080/{case}"
    text = f'extends = "scaffold"\n[model]\nbase_url = "{url}"\n{limits}'
    desk.profile(f"live-{case}", text)
    return f"live-{case}"


def _live(role: str, *flags: str) -> tuple[str, ...]:
    return ("run", role, "Do it.", "--write", "src/", "--allow-loosened", *flags)


def _requests(name: str, case: str) -> list[dict[str, Any]]:
    return [r for r in jsonl(docker("logs", name)) if r["path"].startswith(f"/{case}/")]


def _files_with_the_key(folder: Path) -> list[str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files
    return [str(p) for p in files if _KEY.encode() in p.read_bytes()]


@dataclass(frozen=True)
class Seen:
    """What the engine and the process table showed of a run while it lasted."""

    run: str
    code: int
    printed: bytes
    inspected: str
    argv: bytes
    environments: bytes
    files: bytes
    logs: str


def _watch(desk: Desk, *words: str) -> Seen:
    """Run a command with the key in the host's environment and look at it from all sides."""
    known = set(desk.runs())
    with desk.started(*words, env=_ENV) as process:
        run = until(lambda: set(desk.runs()) - known, "the run").pop()
        events = desk.folder(run).path / "events.jsonl"
        until(lambda: events.is_file() and "item.started" in events.read_text(), "a tool call")
        parts = [container(run, "agent"), container(run, "gateway")]
        inspected = docker("inspect", *parts)
        names = docker("volume", "ls", "--quiet", "--filter", f"label=rolebox.run={run}").split()
        inspected += docker("volume", "inspect", *names)
        pids = [pid for part in parts for pid in docker("top", part, "-o", "pid").split()[1:]]
        numbers = [p for p in Path("/proc").iterdir() if p.name.isdigit()]
        seen = Seen(
            run=run,
            code=-1,
            printed=b"",
            inspected=inspected,
            argv=b"".join(_read(p / "cmdline") for p in numbers),
            environments=b"".join(_read(Path("/proc", pid, "environ")) for pid in pids),
            files=_copied(parts[0], "/codex-home") + _copied(parts[1], "/run/rolebox"),
            logs=docker("logs", parts[0]) + docker("logs", parts[1]),
        )
        let_go(parts[0])
        out, err = process.communicate(timeout=60)
        return Seen(**{**vars(seen), "code": process.returncode, "printed": out + err})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _copied(part: str, path: str) -> bytes:
    done = subprocess.run(["docker", "cp", f"{part}:{path}", "-"], capture_output=True, check=False)
    return done.stdout


@pytest.fixture(scope="module")
def offline(shared: Desk) -> Seen:
    env = "cat /proc/*/environ | tr '\\0' '\\n'"
    turn = {"shell": f"{env}; {WAIT_FOR_GO}", "yield_time_ms": 30000}
    script = shared.script(turn, {"say": "Done."})
    return _watch(shared, "run", "scaffold", "Do it.", "--model-script", script)


@pytest.fixture(scope="module")
def live(shared: Desk, upstream: str) -> Seen:
    return _watch(shared, *_live(_role(shared, upstream, "slow")))


@pytest.fixture(params=["offline", "live"])
def seen(request: pytest.FixtureRequest) -> Seen:
    value: Seen = request.getfixturevalue(request.param)
    return value


def test_the_run_with_a_key_on_the_host_ends_well(seen: Seen, shared: Desk) -> None:
    assert seen.code == 0, seen.printed
    assert shared.provenance(seen.run)["status"] == "done"
    assert left_in_engine(seen.run) == []


def test_no_engine_object_shows_the_key(seen: Seen) -> None:
    assert "NetworkDisabled" in seen.inspected  # we looked at the right thing
    assert "Mountpoint" in seen.inspected
    assert _KEY not in seen.inspected
    assert _KEY not in seen.logs


def test_no_command_line_shows_the_key(seen: Seen) -> None:
    assert b"supervisor" in seen.argv or b"runner.gateway" in seen.argv
    assert _KEY.encode() not in seen.argv


def test_no_environment_in_the_containers_holds_the_key(seen: Seen) -> None:
    assert b"CODEX_HOME=" in seen.environments
    assert b"OPENAI_API_KEY" not in seen.environments
    assert _KEY.encode() not in seen.environments


def test_no_volume_holds_the_key(seen: Seen) -> None:
    assert b"rollout-" in seen.files
    assert _KEY.encode() not in seen.files


def test_the_evidence_and_all_of_the_state_folder_are_free_of_the_key(
    seen: Seen, shared: Desk
) -> None:
    assert "CODEX_HOME=" in shared.text("events.jsonl", seen.run)  # the agent did dump it all
    assert _files_with_the_key(shared.home) == []
    assert _KEY.encode() not in seen.printed


def test_the_upstream_gets_the_key_and_nothing_that_the_agent_says_instead(
    live: Seen, upstream_container: str
) -> None:
    requests = _requests(upstream_container, "slow")
    assert len(requests) == 2
    for request in requests:
        headers = {name.lower(): value for name, value in request["headers"].items()}
        assert headers["authorization"] == f"Bearer {_KEY}"
        assert request["path"] == "/slow/responses"
        assert not [name for name in headers if "turn-metadata" in name or "cookie" in name]


def test_the_live_models_work_is_the_patch_and_the_record(live: Seen, shared: Desk) -> None:
    record = shared.provenance(live.run)
    assert record["model"] == {
        "asked": "gpt-5.5",
        "observed": ["gpt-5.5"],
        "backend": "openai",
        "requests": 2,
    }
    assert any("base_url" in override for override in record["overrides"])
    assert "+done" in shared.text("patch.diff", live.run)
    assert shared.text("last-message.md", live.run) == "All done."


def test_an_authorization_of_the_agents_own_is_stripped(
    shared: Desk, upstream: str, upstream_container: str
) -> None:
    """The agent asks the model by hand, as somebody else: the gateway says who it is."""
    shared.run(*_live(_role(shared, upstream, "good")), env=_ENV).check()
    assert "by hand: 200" in shared.text("events.jsonl")
    requests = [r["headers"] for r in _requests(upstream_container, "good")]
    by_hand = [h for h in requests if "asked-by-hand" in json.dumps(h)]
    assert len(by_hand) == 1
    assert "of-the-agent" not in json.dumps(requests)
    assert f"Bearer {_KEY}" in json.dumps(by_hand)


@pytest.mark.parametrize(
    ("case", "flags", "code", "status", "why"),
    [
        ("401", (), 1, "failed", "401"),
        ("429", (), 1, "failed", "429"),
        ("500", (), 1, "failed", "500"),
        ("drop", (), 1, "failed", "stream disconnected"),
        ("rubbish", (), 1, "failed", "stream"),
        ("nothttp", (), 1, "failed", "502"),
        ("hang", ("--timeout", "4"), 5, "timeout", "did not end within 4 s"),
    ],
)
def test_an_upstream_that_fails_ends_the_run_with_its_reason(
    shared: Desk, upstream: str, case: str, flags: tuple[str, ...], code: int, status: str, why: str
) -> None:
    done = shared.run(*_live(_role(shared, upstream, case), *flags), env=_ENV)
    record = shared.provenance()
    assert (done.code, record["status"]) == (code, status)
    told = [line for line in done.stderr.splitlines() if line.startswith("rolebox: ")]
    assert len(told) == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert record["completeness"] == {"complete": True, "missing": [], "uncleaned": []}
    assert record["failure"]["what"] in told[0]
    assert left_in_engine(record["run"]) == []
    assert _KEY not in done.stdout + done.stderr
    assert _files_with_the_key(shared.folder().path) == []


def test_an_upstream_of_ones_own_takes_an_explicit_flag(shared: Desk, upstream: str) -> None:
    role = _role(shared, upstream, "good")
    before = shared.runs()
    done = shared.run("run", role, "Do it.", env=_ENV)
    assert done.code == 3
    assert "base_url" in done.stderr
    assert "--allow-loosened" in done.stderr
    assert shared.runs() == before
    assert shared.run(*_live(role), env=_ENV).code == 0
