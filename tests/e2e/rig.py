"""A desk for the end-to-end tests: a state folder, a repository, and the real command.

A desk is what one person has before them. Tests that only look at a run share one
desk in a module; tests that change the repository take one of their own. What is
left in the engine is asked of the plain docker command, not of our own adapter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.evidence.store import RunFolder, RunStore
from tests.conftest import ROLEBOX, git

WAIT_S = 60.0

#: The end of a command that a test wants to look at while it runs; `let_go` ends it.
WAIT_FOR_GO = "n=0; until [ -e /tmp/go ] || [ $n -gt 250 ]; do sleep 0.1; n=$((n + 1)); done"

FINDINGS = json.dumps(
    {"summary": "Nothing to say.", "risk": "low", "recommendation": "approve", "findings": []}
)

SAMPLE = {
    "README.md": "# sample\n",
    "AGENTS.md": "Be brief.\n",
    ".gitignore": "*.pyc\n",
    ".github/workflows/ci.yml": "on: push\n",
    "src/app.py": "def answer() -> int:\n    return 41\n",
    "src/keep.txt": "keep\n",
    "docs/guide.md": "guide\n",
    "tests/test_app.py": "from src.app import answer\n\nassert answer() == 42\n",
}


@dataclass(frozen=True)
class Ended:
    """A finished command, in bytes."""

    code: int
    out: bytes
    err: bytes

    @property
    def stdout(self) -> str:
        return self.out.decode()

    @property
    def stderr(self) -> str:
        return self.err.decode()

    def json(self) -> Any:
        """Return stdout as the one JSON document that it must be."""
        return json.loads(self.out)

    def check(self) -> Ended:
        """Return itself if the command succeeded."""
        assert self.code == 0, self.stderr
        return self


@dataclass(frozen=True)
class Desk:
    """A state folder and a repository; `run` is what a person types there."""

    home: Path
    repository: Path

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ROLEBOX_"))}
        return {**clean, "ROLEBOX_HOME": str(self.home), **(extra or {})}

    def run(
        self,
        *args: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Ended:
        done = subprocess.run(
            [*ROLEBOX, *args],
            cwd=cwd or self.repository,
            input=stdin,
            env=self.env(env),
            capture_output=True,
            timeout=120,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def started(
        self, *args: str, env: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command; whatever the test does, it ends, and so does its run."""
        process = subprocess.Popen(
            [*ROLEBOX, *args],
            cwd=self.repository,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env(env),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.terminate()
                process.communicate(timeout=WAIT_S)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def script(self, *turns: Any, name: str = "script.json") -> str:
        """Write a model script beside the state folder and return its path."""
        path = self.home.parent / name
        path.write_text(json.dumps({"turns": list(turns)}))
        return str(path)

    def folder(self, run: str = "last") -> RunFolder:
        return RunStore(self.home).find(run)

    def runs(self) -> list[str]:
        return [folder.id for folder in RunStore(self.home).folders()]

    def provenance(self, run: str = "last") -> dict[str, Any]:
        record = self.folder(run).read_json("provenance.json")
        assert record is not None
        return record

    def text(self, name: str, run: str = "last") -> str:
        return (self.folder(run).path / name).read_text()

    def profile(self, name: str, text: str) -> None:
        """Give the repository a role of its own."""
        folder = self.repository / ".rolebox" / "profiles" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "profile.toml").write_text(text)


def make_desk(place: Path, lock: Path) -> Desk:
    """Make a state folder with the host's image lock, and the sample repository."""
    home, top = place / "home", place / "repository"
    home.mkdir(parents=True)
    if lock.is_file():
        shutil.copy(lock, home / "images.lock")
    for name, content in SAMPLE.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    git(top, "init", "--quiet", "--initial-branch=main")
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--message", "first")
    return Desk(home, top)


def docker(*args: str) -> str:
    """Run the plain docker command."""
    done = subprocess.run(["docker", *args], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def left_in_engine(run: str) -> list[str]:
    """Name every engine object that still carries a run's label."""
    wanted = ["--quiet", "--filter", f"label=rolebox.run={run}"]
    found = docker("ps", "--all", *wanted) + "\n" + docker("volume", "ls", *wanted)
    found += "\n" + docker("network", "ls", *wanted)
    return found.split()


def container(run: str, part: str) -> str:
    """Return the id of one of a run's containers."""
    found = docker(
        "ps", "--all", "--quiet", "--no-trunc",
        "--filter", f"label=rolebox.run={run}",
        "--filter", f"name={part}",
    )  # fmt: skip
    assert len(found.split()) == 1, found
    return found


def let_go(agent: str) -> None:
    """End a command that waits with `WAIT_FOR_GO`."""
    docker("exec", agent, "touch", "/tmp/go")


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait for a condition and return its value."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {WAIT_S:.0f} s for: {what}")


def said(desk: Desk, word: str, name: str = "events.jsonl") -> Callable[[], str | None]:
    """Return a condition: the newest run printed a word. Its value is the run's id."""

    def look() -> str | None:
        for run in desk.runs()[:1]:
            path = desk.folder(run).path / name
            if path.is_file() and word in path.read_text(errors="replace"):
                return run
        return None

    return look


def jsonl(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def repository_facts(top: Path) -> dict[str, Any]:
    """Return everything of a repository that no run may change."""
    return {
        "head": (top / ".git" / "HEAD").read_bytes(),
        "index": (top / ".git" / "index").read_bytes(),
        "status": git(top, "status", "--porcelain=v2", "--ignored"),
        "refs": git(top, "for-each-ref"),
        "worktrees": git(top, "worktree", "list"),
        "config": (top / ".git" / "config").read_bytes(),
        "objects": sorted(p.name for p in (top / ".git" / "objects").rglob("*")),
        "files": {
            str(p.relative_to(top)): p.read_bytes()
            for p in top.rglob("*")
            if p.is_file() and ".git" not in p.relative_to(top).parts[:1]
        },
    }
