"""The raw stream of an attached container: frames of stdout and stderr on one socket.

docker-py's own reader turns a broken stream into a normal end, and costs half the
throughput. The form: a header of eight bytes (stream, three zeros, big-endian size),
then so many bytes (Docker Engine API, "Attach to a container").
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

from runner.engine.api import Stream
from runner.model.errors import InfrastructureError

_HEADER = struct.Struct(">BxxxL")
_RECEIVE = 1 << 18


class DockerAttachment:
    """The hijacked connection of one attach call."""

    def __init__(self, holder: Any) -> None:
        self._holder = holder  # keeps the HTTP response, and so the socket, alive
        self._socket: socket.socket = getattr(holder, "_sock", holder)
        self._socket.settimeout(None)

    def write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise InfrastructureError(
                "the container's input is closed", why=type(error).__name__
            ) from None

    def frames(self) -> Iterator[tuple[Stream, bytes]]:
        buffer = bytearray()
        while True:
            try:
                chunk = self._socket.recv(_RECEIVE)
            except OSError:
                return
            if not chunk:
                return
            buffer += chunk
            yield from cut(buffer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._holder.close()
            self._socket.close()


def cut(buffer: bytearray) -> Iterator[tuple[Stream, bytes]]:
    """Yield the payloads of whole frames, joined by runs of one stream; keep the rest."""
    at, end, kind = 0, len(buffer), 0
    parts: list[bytes] = []
    view = memoryview(buffer)
    try:
        while end - at >= _HEADER.size:
            this, size = _HEADER.unpack_from(view, at)
            if end - at - _HEADER.size < size:
                break
            if this != kind and parts:
                yield _name(kind), b"".join(parts)
                parts = []
            kind = this
            parts.append(bytes(view[at + _HEADER.size : at + _HEADER.size + size]))
            at += _HEADER.size + size
        if parts:
            yield _name(kind), b"".join(parts)
    finally:
        view.release()
        del buffer[:at]


def _name(kind: int) -> Stream:
    return "stderr" if kind == 2 else "stdout"
