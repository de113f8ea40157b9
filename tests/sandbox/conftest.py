"""A fake gateway, and the real relay and supervisor as processes of their own."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPERVISOR = ROOT / "runner/sandbox/supervisor.py"
PYTHON = [sys.executable, "-I", "-S", "-B"]

Serve = Callable[[socket.socket], None]


def healthy(connection: socket.socket) -> None:
    """Answer every request's head with 200."""
    if connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 5  # smaller than any burst, so that a full backlog is met


@contextlib.contextmanager
def gateway_at(path: Path, serve: Serve = healthy) -> Iterator[None]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                serve(self.request)

    path.unlink(missing_ok=True)
    with _Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    path.unlink()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class RelayProcess:
    port: int
    path: Path
    pid: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def peak_mb(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) // 1024


@pytest.fixture
def relay_process(tmp_path: Path) -> Iterator[RelayProcess]:
    port, path = free_port(), tmp_path / "gateway.sock"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from runner.sandbox import relay\n"
        f"listener = relay.listen({port})\n"
        "print('ready', flush=True)\n"
        f"relay.Relay(listener, {str(path)!r}).serve()"
    )
    with subprocess.Popen([*PYTHON, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield RelayProcess(port, path, process.pid)
        assert process.poll() is None, "the relay died"
        process.kill()


@dataclass(frozen=True)
class Outcome:
    code: int
    controls: list[dict[str, Any]]
    summary: dict[str, Any]
    stdout: bytes
    stderr: bytes


Supervise = Callable[..., Outcome]


@pytest.fixture
def supervise(tmp_path: Path) -> Supervise:
    """Run the real supervisor with a spec and one word on its standard input."""

    def run(
        argv: list[str], *, word: bytes = b"go\n", extra_fds: tuple[int, ...] = (), **changes: Any
    ) -> Outcome:
        spec = {
            "_schema": "rolebox.sandbox/1",
            "argv": argv,
            "cwd": str(tmp_path),
            "stdin": None,
            "env": {"PATH": "/usr/bin:/bin"},
            "relay": None,
            "gateway_timeout_s": 5,
            "controls": [control("loopback_works", "works")],
            "umask": "0022",
        } | changes
        path = tmp_path / "sandbox.json"
        path.write_text(json.dumps(spec))
        done = subprocess.run(
            [*PYTHON, str(SUPERVISOR), str(path)],
            input=word,
            capture_output=True,
            env={"INHERITED": "must not pass"},
            pass_fds=extra_fds,
            timeout=120,
            check=False,
        )
        controls, rest = [], done.stdout
        summary: dict[str, Any] = {}
        while rest and not summary:
            line, _newline, rest = rest.partition(b"\n")
            record = json.loads(line)
            if record["_schema"] == "rolebox.controls/1":
                summary = record
            else:
                controls.append(record)
        return Outcome(done.returncode, controls, summary, rest, done.stderr)

    return run


def control(kind: str, expect: str, **arguments: Any) -> dict[str, Any]:
    return {"name": kind, "category": "test", "kind": kind, "expect": expect, **arguments}
