from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from .conftest import Supervise, control, free_port, gateway_at

PY = [sys.executable, "-c"]


def test_go_after_passing_controls_starts_the_command(supervise: Supervise, tmp_path: Path) -> None:
    outcome = supervise(["sh", "-c", "echo started > mark; echo out; echo err >&2; exit 7"])
    assert (outcome.code, outcome.stdout, outcome.stderr) == (7, b"out\n", b"err\n")
    assert outcome.summary == {
        "_schema": "rolebox.controls/1", "done": True, "passed": 1, "failed": 0,
    }  # fmt: skip
    assert (tmp_path / "mark").exists()


def test_failed_control_starts_nothing_though_the_host_says_go(
    supervise: Supervise, tmp_path: Path
) -> None:
    leaky = control("write_denied", "blocked", path=str(tmp_path))
    outcome = supervise(["sh", "-c", "echo started > mark"], controls=[leaky])
    assert outcome.code == 3
    assert outcome.summary["failed"] == 1
    assert [(c["observed"], c["ok"]) for c in outcome.controls] == [("works", False)]
    assert not (tmp_path / "mark").exists()
    assert not list(tmp_path.glob(".rolebox-probe*"))


@pytest.mark.parametrize("word", [b"", b"g", b"go", b"no\n", b"go \n", b"GO\n", b" go\n", b"\n"])
def test_anything_but_go_starts_nothing(supervise: Supervise, tmp_path: Path, word: bytes) -> None:
    outcome = supervise(["sh", "-c", "echo started > mark"], word=word)
    assert (outcome.code, outcome.stdout) == (3, b"")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "broken",
    [
        control("no_such_kind", "works"),
        control("loopback_works", "works", unknown_argument=1),
        control("write_denied", "error", path="/no/such/path"),
    ],
)
def test_control_that_cannot_be_answered_never_passes(
    supervise: Supervise, broken: dict[str, str]
) -> None:
    outcome = supervise(["true"], controls=[broken])
    assert outcome.code == 3
    assert [(c["observed"], c["ok"]) for c in outcome.controls] == [("error", False)]


@pytest.mark.parametrize("changes", [{"_schema": "rolebox.sandbox/2"}, {"extra": 1}, {"argv": []}])
def test_spec_that_is_not_understood_starts_nothing(
    supervise: Supervise, changes: dict[str, object]
) -> None:
    argv = changes.pop("argv", ["true"])
    assert supervise(argv, **changes).code == 3


def test_stdout_is_the_commands_byte_for_byte(supervise: Supervise) -> None:
    code = (
        "import sys; w = sys.stdout.buffer.write\n"
        "w(bytes(range(256)) * 64); w(b'x' * (5 << 20) + b'\\n'); w(b'\\0no newline at the end')"
    )
    expected = bytes(range(256)) * 64 + b"x" * (5 << 20) + b"\n\0no newline at the end"
    assert supervise([*PY, code]).stdout == expected


def test_stdin_is_the_file_or_nothing(supervise: Supervise, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.md"
    prompt.write_bytes(b"do \xff this\n" * 1000)
    assert supervise(["cat"], stdin=str(prompt)).stdout == prompt.read_bytes()
    assert supervise(["cat"], word=b"go\nfor nobody").stdout == b""


def test_environment_directory_and_umask_are_the_specs_and_nothing_more(
    supervise: Supervise, tmp_path: Path
) -> None:
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "EMPTY": ""}
    dump = "import os, sys; sys.stdout.buffer.write(open('/proc/self/environ', 'rb').read())"
    seen = supervise([*PY, dump], env=env).stdout
    assert sorted(seen.rstrip(b"\0").split(b"\0")) == sorted(
        f"{name}={value}".encode() for name, value in env.items()
    )
    assert (
        supervise(["sh", "-c", "pwd; umask"], umask="0077").stdout == f"{tmp_path}\n0077\n".encode()
    )


def test_no_descriptor_and_no_signal_setting_is_inherited(supervise: Supervise) -> None:
    read, write = os.pipe()
    try:
        seen = supervise(["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"], extra_fds=(read, write))
        status = "grep -E 'SigBlk|SigIgn' /proc/self/status | cut -f2 | sort -u"
        signals = supervise(["sh", "-c", status], extra_fds=(read, write))
    finally:
        os.close(read)
        os.close(write)
    assert seen.stdout.split()[:3] == [b"0", b"1", b"2"]
    assert len(seen.stdout.split()) == 4, "one more is the folder that ls reads"
    # 32 and 33 are the C library's own, which it lets nobody set.
    own = 0b11 << 31
    assert {int(line, 16) & ~own for line in signals.stdout.split()} == {0}


def test_command_is_nobodys_parent(supervise: Supervise, tmp_path: Path) -> None:
    path, port = tmp_path / "gateway.sock", free_port()
    code = "import os\ntry: os.waitpid(-1, 0)\nexcept ChildProcessError: print('no child')"
    with gateway_at(path):
        outcome = supervise([*PY, code], relay={"port": port, "socket": str(path)})
    assert outcome.stdout == b"no child\n"


@pytest.mark.parametrize(
    ("argv", "code"), [(["no-such-command"], 127), (["/no/such"], 127), (["/etc/passwd"], 126)]
)
def test_command_that_cannot_start_is_told_as_a_shell_does(
    supervise: Supervise, argv: list[str], code: int
) -> None:
    outcome = supervise(argv)
    assert (outcome.code, outcome.stdout) == (code, b"")
    assert outcome.stderr.startswith(b"rolebox: ")
    assert outcome.stderr.count(b"\n") == 1


def test_gateway_is_reached_through_the_relay(supervise: Supervise, tmp_path: Path) -> None:
    path, port = tmp_path / "gateway.sock", free_port()
    fetch = (
        f"import socket; s = socket.create_connection(('127.0.0.1', {port}))\n"
        "s.sendall(b'GET /x HTTP/1.1\\r\\n\\r\\n'); print(s.recv(99)[:12].decode())"
    )
    with gateway_at(path):
        outcome = supervise(
            [*PY, fetch],
            relay={"port": port, "socket": str(path)},
            controls=[control("gateway", "works")],
        )
    assert [(c["name"], c["ok"]) for c in outcome.controls] == [("relay", True), ("gateway", True)]
    assert outcome.stdout == b"HTTP/1.1 200\n"


def test_gateway_that_never_comes_starts_nothing(supervise: Supervise, tmp_path: Path) -> None:
    outcome = supervise(
        ["true"],
        relay={"port": free_port(), "socket": str(tmp_path / "gateway.sock")},
        gateway_timeout_s=0.2,
        controls=[control("gateway", "works")],
    )
    assert outcome.code == 3
    assert [(c["name"], c["ok"]) for c in outcome.controls] == [("relay", True), ("gateway", False)]


def test_relay_port_that_is_taken_is_a_failed_control(supervise: Supervise, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = {"port": taken.getsockname()[1], "socket": str(tmp_path / "gateway.sock")}
        outcome = supervise(["true"], relay=where)
    assert outcome.code == 3
    assert outcome.controls[0]["name"] == "relay"
    assert outcome.controls[0]["observed"] == "error"


def test_relay_ends_with_the_command(supervise: Supervise, tmp_path: Path) -> None:
    path, port = tmp_path / "gateway.sock", free_port()
    with gateway_at(path):
        supervise(["true"], relay={"port": port, "socket": str(path)})
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except ConnectionRefusedError:
                return
            time.sleep(0.01)
    pytest.fail("the relay still listens")
