"""A model upstream of the tests: stdlib only, it runs in a container that they make.

    python3 upstream.py FOLDER

`POST /<case>/responses` behaves as the case says; `good` and `slow` answer with
FOLDER's `<case>.sse` and, once the request holds a tool's output, `last.sse`. Every request
goes to stdout as one JSON line. It sits where a provider would: on the other side
of the gateway, never beside the agent.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


class Upstream(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200, b"up\n", "text/plain")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        line = {"path": self.path, "headers": dict(self.headers.items()), "body": body.decode()}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        case = self.path.split("/")[1]
        if case.isdigit():
            self._error(int(case))
        elif case == "hang":
            time.sleep(600)
        elif case == "drop":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", "100000")
            self.end_headers()
            self.wfile.write((FOLDER / "good.sse").read_bytes()[:300])
        elif case == "rubbish":
            self._answer(200, b"\x00\xff<html>not an event stream</html>\r\n\r\n")
        elif case == "nothttp":
            self.wfile.write(b"220 mail.invalid ESMTP\r\n")
        else:
            turn = "last.sse" if b"call_output" in body else f"{case}.sse"
            self._answer(200, (FOLDER / turn).read_bytes())
        self.close_connection = True

    def _error(self, status: int) -> None:
        told = f"upstream says {status} to {self.headers.get('authorization')}"
        error = {"error": {"message": told, "type": "test", "code": None}}
        self._answer(status, json.dumps(error).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str = "text/event-stream") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Upstream).serve_forever()
