"""Drives a real gateway process over its real stdin, stdout and unix socket."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECRET = "sk-secret-9f8e7d6c5b4a"
PATIENCE = 20.0

Record = dict[str, Any]


def config(folder: Path, **changes: Any) -> Record:
    base: Record = {
        "_schema": "rolebox.gateway-config/1",
        "run": "run-1",
        "socket": str(folder / "g.sock"),
        "model": {"backend": "none", "model": "gpt-5.5"},
        "budget": {},
        "egress": {"mode": "none", "allow": []},
        "limits": {},
    }
    return base | changes


def scripted(*turns: Any) -> Record:
    return {"backend": "script", "model": "gpt-5.5", "script": {"turns": list(turns)}}


def openai(url: str) -> Record:
    headers = {"authorization": f"Bearer {SECRET}"}
    return {"backend": "openai", "model": "gpt-5.5", "base_url": url, "headers": headers}


def ask(**changes: Any) -> bytes:
    """Return the body of a model request."""
    return json.dumps({"model": "gpt-5.5", "stream": True, "input": []} | changes).encode()


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/responses HTTP/1.1", "Host: 127.0.0.1:8080", *headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: bytes, cut: bool) -> None:
        self.status, self.headers, self.body, self.cut = status, headers, body, cut

    @property
    def error(self) -> Record:
        found: Record = json.loads(self.body)["error"]
        return found


class Wire:
    """One connection to the gateway's socket."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self._raw = self.sock.makefile("rb", buffering=0)
        self._file = _Kept(self._raw)
        try:
            self.sock.connect(path)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._raw.close()
        self.sock.close()

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def read(self, method: str = "GET") -> Reply:
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        response.begin()
        cut = False
        try:
            body = response.read()
        except http.client.IncompleteRead as broken:
            body, cut = broken.partial, True
        except ConnectionResetError:
            body, cut = b"", True
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, body, cut)

    def makefile(self, _mode: str) -> _Kept:
        return self._file

    def rest(self) -> bytes:
        try:
            return self._file.read()
        except ConnectionResetError:
            return b""


class _Kept(io.BufferedReader):
    """Stays open when a response is done, and keeps what follows it."""

    def close(self) -> None:
        pass


class Gateway:
    def __init__(self, folder: Path, settings: Record, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.path = settings["socket"]
        self.reports: list[Record] = []
        self.raw_lines: list[bytes] = []
        self._new = threading.Condition()
        self._held = threading.Event()
        self._held.set()
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-m", "runner.gateway"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]} | (env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps(settings).encode() + b"\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        while True:
            self._held.wait()
            try:
                line = self.process.stdout.readline()
            except ValueError:  # a test closed it
                return
            if not line:
                return
            with self._new:
                self.raw_lines.append(line)
                self.reports.append(json.loads(line))
                self._new.notify_all()

    def hold(self) -> None:
        """Stop reading reports (after the next line)."""
        self._held.clear()

    def resume(self) -> None:
        self._held.set()

    def wait_for(self, kind: str, number: int = 1, **fields: Any) -> Record:
        """Return the number-th report line of a kind with these fields, once it is there."""

        def found() -> list[Record]:
            return [
                line
                for line in self.reports
                if line["kind"] == kind and all(line.get(k) == v for k, v in fields.items())
            ]

        with self._new:
            there = self._new.wait_for(lambda: len(found()) >= number, PATIENCE)
            assert there, f"no {kind} {fields} in {self.reports}"
            return found()[number - 1]

    def of(self, kind: str) -> list[Record]:
        return [line for line in self.reports if line["kind"] == kind]

    def ready(self) -> Gateway:
        self.wait_for("ready")
        return self

    def wire(self) -> Wire:
        return Wire(self.path)

    def ask(self, raw: bytes, method: str = "GET") -> Reply:
        with self.wire() as wire:
            wire.send(raw)
            return wire.read(method)

    def healthy(self) -> bool:
        return self.ask(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 200

    def stop(self) -> int:
        assert self.process.stdin
        if self.process.poll() is None and not self.process.stdin.closed:
            try:
                self.process.stdin.write(b'{"stop":true}\n')
                self.process.stdin.flush()
            except BrokenPipeError:
                pass
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(PATIENCE)
        self.resume()
        self._reader.join(PATIENCE)
        return code

    def stderr(self) -> bytes:
        assert self.process.stderr
        return self.process.stderr.read()

    def close(self) -> None:
        self.resume()
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Call(http.server.BaseHTTPRequestHandler):
    """One request at the fake upstream."""

    protocol_version = "HTTP/1.1"
    server: Upstream
    body: bytes

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["content-length"]))
        self.server.calls.append(self)
        self.close_connection = True
        try:
            self.server.behave(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()

    def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        """Start an event stream that ends with the connection."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Upstream(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behave: Callable[[Call], None], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.behave = behave
        self.calls: list[Call] = []
        self.hung_up = threading.Event()
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def handle_error(self, *_: object) -> None:
        pass

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


def completed(**usage: int) -> bytes:
    response = {"id": "resp_up", "model": "gpt-5.5-2026", "usage": usage or None}
    return sse({"type": "response.completed", "response": response})


def sse(event: Record) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
