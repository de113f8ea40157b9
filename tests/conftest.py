"""Fixtures that the rooms share: the host's images, a state folder, a sample repository.

Nothing is skipped: a test that needs the engine fails where there is none, because
`make test` starts one and builds the images first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import pytest

from runner.engine.docker_engine import DockerEngine
from runner.engine.endpoint import resolve_endpoint
from runner.session.task import load_pins

ROLEBOX = [str(Path(__file__).parent.parent / ".venv" / "bin" / "rolebox")]


@pytest.fixture(scope="session")
def host_state() -> Path:
    """The state folder in which `make images` left this host's lock."""
    given = os.environ.get("ROLEBOX_HOME")
    return Path(given) if given else platformdirs.user_state_path("rolebox")


@pytest.fixture
def home(tmp_path: Path, host_state: Path) -> Path:
    """A state folder of this test alone, with the host's image lock."""
    folder = tmp_path / "rolebox-home"
    folder.mkdir()
    if (host_state / "images.lock").is_file():
        shutil.copy(host_state / "images.lock", folder / "images.lock")
    return folder


@pytest.fixture(scope="session")
def engine() -> DockerEngine:
    """The real engine."""
    return DockerEngine.connect(resolve_endpoint(os.environ))


@pytest.fixture(scope="session")
def agent_image(host_state: Path) -> str:
    """The locked agent image: Debian, Python, git and the pinned Codex CLI."""
    return load_pins(host_state).agent_image


def git(directory: Path, *args: str) -> str:
    """Run git as a user with an identity would."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    done = subprocess.run(
        ["git", *identity, *args], cwd=directory, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository with one commit: README.md, src/app.py, tests/test_app.py."""
    top = tmp_path / "repository"
    (top / "src").mkdir(parents=True)
    (top / "tests").mkdir()
    (top / "README.md").write_text("# sample\n")
    (top / "AGENTS.md").write_text("Be brief.\n")
    (top / "src" / "app.py").write_text("def answer() -> int:\n    return 41\n")
    (top / "tests" / "test_app.py").write_text(
        "import unittest\n\nfrom src.app import answer\n\n\n"
        "class TestAnswer(unittest.TestCase):\n"
        "    def test_answer(self) -> None:\n        self.assertEqual(answer(), 42)\n"
    )
    git(top, "init", "--quiet", "--initial-branch=main")
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--message", "first")
    return top


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def rolebox(home: Path, repository: Path) -> Callable[..., Done]:
    """Run the command as a user would: in the repository, with a state folder of its own."""

    def run(
        *args: str,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> Done:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
        done = subprocess.run(
            [*ROLEBOX, *args],
            cwd=cwd or repository,
            input=stdin,
            env={**clean, "ROLEBOX_HOME": str(home), **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run
