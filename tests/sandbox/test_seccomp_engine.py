"""The profile under the real engine: what it refuses, and that real programs live with it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT

PROFILES = ROOT / "profiles/seccomp"
PROBE = Path(__file__).with_name("syscall_probe.py")

ALLOWED = [
    "socket UNIX", "socket INET", "socket INET6", "socket INET udp", "socket NETLINK route",
    "socketpair UNIX", "loopback", "if_nameindex", "fork", "threads", "clone plain",
    "personality question", "mkfifo", "pidfd_open", "memfd_create", "epoll", "ioctl TIOCGWINSZ",
]  # fmt: skip
EPERM = [
    "socket VSOCK", "socket VSOCK, high bit", "socket PACKET", "socket ALG", "socket BLUETOOTH",
    "socket RDS", "socket XDP", "socket TIPC", "socket CAN", "socket SMC", "socket INET sctp",
    "socket INET mptcp", "socket NETLINK generic", "socket NETLINK netfilter", "clone NEWUSER",
    "clone NEWUSER, high bit", "unshare NEWUSER", "unshare nothing", "setns", "chroot", "mount",
    "keyctl", "bpf", "perf_event_open", "userfaultfd", "ptrace", "process_vm_readv",
    "personality NO_RANDOMIZE", "setuid", "mknod whiteout", "ioctl TIOCSTI",
    "ioctl TIOCSTI, high bit", "ioctl TIOCLINUX",
]  # fmt: skip
ENOSYS = ["clone3", "io_uring_setup", "memfd_secret"]
FOREIGN = ["x32 socket", "ia32 getpid", "ia32 socketcall VSOCK", "ia32 socketcall INET"]


def sealed(image: str, profile: str, *command: str, stdin: bytes = b"") -> bytes:
    """Run a command as an agent would, with one seccomp profile; return its output."""
    codex = os.environ.get("ROLEBOX_TEST_CODEX")
    mounts = ["--volume", f"{codex}:/opt/codex:ro"] if codex else []
    done = subprocess.run(
        [
            "docker", "run", "--rm", "--interactive", "--init", "--network", "none",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only",
            "--user", "1000:1000", "--tmpfs", "/tmp:mode=1777,exec", "--workdir", "/tmp",
            "--env", "HOME=/tmp", "--env", "CODEX_HOME=/tmp",
            "--env", "PATH=/opt/codex/bin:/opt/codex/codex-path:/usr/local/bin:/usr/bin:/bin",
            "--security-opt", f"seccomp={profile}", *mounts, image, *command,
        ],
        input=stdin, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def observed(agent_image: str) -> dict[str, str]:
    profile = str(PROFILES / "agent.json")
    found = json.loads(sealed(agent_image, profile, "python3", "-", stdin=PROBE.read_bytes()))
    return {str(name): str(outcome) for name, outcome in found.items()}


@pytest.fixture(scope="module")
def unconfined(agent_image: str) -> dict[str, str]:
    found = json.loads(sealed(agent_image, "unconfined", "python3", "-", stdin=PROBE.read_bytes()))
    return {str(name): str(outcome) for name, outcome in found.items()}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_programs_need_works(observed: dict[str, str], name: str) -> None:
    assert observed[name] == "ok"


@pytest.mark.parametrize("name", EPERM)
def test_what_no_role_needs_is_refused(observed: dict[str, str], name: str) -> None:
    assert observed[name] == "EPERM"


@pytest.mark.parametrize("name", ENOSYS)
def test_what_libraries_probe_looks_absent(observed: dict[str, str], name: str) -> None:
    assert observed[name] == "ENOSYS"


def test_calls_of_another_architecture_kill_the_thread(observed: dict[str, str]) -> None:
    foreign = {observed[name] for name in FOREIGN if name in observed}
    assert foreign <= {"signal 31", "ENOSYS"}


def test_it_is_the_profile_that_refuses(
    unconfined: dict[str, str], observed: dict[str, str]
) -> None:
    """The same probes without a filter get through: the refusals above can fail."""
    for name in ("clone NEWUSER", "unshare NEWUSER", "ptrace", "socket INET mptcp", "keyctl"):
        assert (unconfined[name], observed[name]) == ("ok", "EPERM")


PROGRAMS = {
    "git": "git init -q r && cd r && echo a > f && git add f && "
    "git -c user.name=n -c user.email=e@x commit -qm first && git log --format=%s",
    "pipeline": "printf 'b\\na\\n' | sort | tr -d '\\n' | (cat; wait); mkfifo p; cat p & echo > p",
    "tar and cp": "echo a > f && tar cf t.tar f && tar xf t.tar && cp -a f g && cat g",
    "codex --version": "codex --version",
    "codex debug models": "codex debug models | grep -c slug",
}
PYTHON = """
import asyncio, multiprocessing, sqlite3, subprocess, threading

def square(n): return n * n

with multiprocessing.Pool(2) as pool:
    assert pool.map(square, [2, 3]) == [4, 9]
base = sqlite3.connect("/tmp/base.db")
base.execute("pragma journal_mode = wal")
base.execute("create table t (a)")
base.commit()
thread = threading.Thread(target=square, args=(1,)); thread.start(); thread.join()

async def main():
    child = await asyncio.create_subprocess_exec("true")
    assert await child.wait() == 0
    assert await asyncio.to_thread(square, 4) == 16

asyncio.run(main())
print(subprocess.run(["echo", "done"], capture_output=True, text=True).stdout.strip())
"""


@pytest.mark.parametrize("command", PROGRAMS.values(), ids=PROGRAMS)
def test_real_programs_live_with_the_profile(agent_image: str, command: str) -> None:
    assert sealed(agent_image, str(PROFILES / "agent.json"), "sh", "-c", command).strip()


def test_python_lives_with_the_profile(agent_image: str) -> None:
    profile = str(PROFILES / "agent.json")
    assert sealed(agent_image, profile, "python3", "-", stdin=PYTHON.encode()) == b"done\n"


@pytest.mark.parametrize(("profile", "inner"), [("agent", b"refused"), ("agent-userns", b"inside")])
def test_codex_own_sandbox_starts_only_under_the_wider_profile(
    agent_image: str, profile: str, inner: bytes
) -> None:
    command = "codex sandbox -- echo inside 2> /dev/null || echo refused"
    assert (
        sealed(agent_image, str(PROFILES / f"{profile}.json"), "sh", "-c", command).strip() == inner
    )
