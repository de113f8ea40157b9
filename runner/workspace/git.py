"""The one place that runs git on the host.

Every call is an argv list with an environment built from nothing and an
explicit `--git-dir`. What could start another program (hooks, fsmonitor,
pagers, ssh, remote helpers, maintenance) is switched off on the command line,
which outranks every configuration file. Git is never pointed at a directory
that an agent could write: callers pass the user's repository, a host-owned
store, or a template that this package built.

Grafts and replace refs are ignored, so that an object id means its bytes.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final

from runner.model.errors import InfrastructureError

SEARCH_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/opt/homebrew/bin:/run/current-system/sw/bin"
ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": SEARCH_PATH,
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
    "LC_ALL": "C",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "false",
    "GIT_SSH_COMMAND": "false",
    "GIT_ASKPASS": "false",
}
OVERRIDES: Final[tuple[str, ...]] = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.sshCommand=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.askPass=false",
    "core.pager=cat",
    "credential.helper=",
    "protocol.allow=never",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "pack.threads=1",
)
TIMEOUT: Final = 900.0


class GitError(InfrastructureError):
    """Git could not be started, failed, or did not end in time."""

    def __init__(self, what: str, *, why: str, status: int | None) -> None:
        super().__init__(what, why=why, mend="run the command with ROLEBOX_LOG=debug to see more")
        self.status = status


def argv(args: Sequence[str], *, git_dir: Path | None, work_tree: Path | None) -> list[str]:
    """Return the full command line of one git call."""
    line = ["git", "--no-pager", "--literal-pathspecs"]
    for override in OVERRIDES:
        line += ["-c", override]
    if git_dir is not None:
        line.append(f"--git-dir={git_dir}")
    if work_tree is not None:
        line.append(f"--work-tree={work_tree}")
    return [*line, *args]


def run_git(
    args: Sequence[str],
    *,
    git_dir: Path | None,
    work_tree: Path | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> bytes:
    """Run git to its end and return its stdout; `env` is added to `ENVIRONMENT`.

    Raises:
        GitError: It could not start, ended with another status than 0, or took too long.
    """
    try:
        done = subprocess.run(
            argv(args, git_dir=git_dir, work_tree=work_tree),
            input=stdin,
            capture_output=True,
            cwd=cwd or "/",
            env={**ENVIRONMENT, **(env or {})},
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise _not_found(args) from error
    except subprocess.TimeoutExpired as error:
        raise GitError(
            f"git {args[0]} did not end", why=f"stopped after {timeout:.0f} s", status=None
        ) from error
    if done.returncode != 0:
        raise _failed(args, done.returncode, done.stderr)
    return done.stdout


@contextmanager
def git_process(
    args: Sequence[str],
    *,
    git_dir: Path,
    stdin: BinaryIO | int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    timeout: float = TIMEOUT,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run git beside the caller, who reads its stdout or writes its stdin.

    stderr goes to a file, so that no full pipe can stop either side, and a
    timer ends a git that does not. Leaving the block waits for git; leaving it
    by an exception kills git.

    Raises:
        GitError: As for `run_git`, when the block is left.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                argv(args, git_dir=git_dir, work_tree=None),
                stdin=stdin,
                stdout=stdout,
                stderr=errors,
                cwd="/",
                env=dict(ENVIRONMENT),
            )
        except FileNotFoundError as error:
            raise _not_found(args) from error
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            yield process
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
        except BrokenPipeError as error:
            process.wait()
            errors.seek(0)
            raise _failed(args, process.returncode, errors.read(4096)) from error
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None and not stream.closed:
                    _close(stream)
        if process.returncode != 0:
            errors.seek(0)
            raise _failed(args, process.returncode, errors.read(4096))


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return


def _not_found(args: Sequence[str]) -> GitError:
    return GitError(f"git {args[0]} could not start", why=f"no git on {SEARCH_PATH}", status=None)


def _failed(args: Sequence[str], status: int, stderr: bytes) -> GitError:
    text = stderr.decode("utf-8", "backslashreplace").strip()
    return GitError(f"git {args[0]} failed", why=f"status {status}: {text[-2000:]}", status=status)
