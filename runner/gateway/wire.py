"""HTTP/1.1 from an untrusted client: h11, behind a stricter reading of the head.

h11 parses and frames. What it tolerates and a chain of two parsers must not, is
refused before it sees the bytes: both body lengths, bare CR or LF, obs-fold,
a repeated Host or Content-Length, HTTP/0.9. A new h11 connection is made for
each request, from the bytes that the last one left over, so that pipelined heads
pass the same checks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import h11

from .config import Limits

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/(1\.[01])")
_HEADER_LINE: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\x21-\x7e\x80-\xff\t ]*)")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_BARE_NEWLINE: Final = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n")
_CHUNK: Final = 65_536
LINGER_SECONDS: Final = 2.0

Headers = Iterable[tuple[str, str]]


class HttpRefused(Exception):
    """A request that is not answered any further; the connection ends with it."""

    def __init__(self, status: int, rule: str, reason: str, head: Head | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.rule = rule
        self.reason = reason
        self.head = head


class ClientGone(Exception):
    """The client closed the connection or stopped reading."""


@dataclass(frozen=True, slots=True)
class Head:
    """A request line and its headers (names in lower case), checked."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def first(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    @property
    def has_body(self) -> bool:
        chunked = self.first("transfer-encoding") is not None
        return chunked or (self.first("content-length") or "0").strip("0") != ""


def parse_head(raw: bytes, limits: Limits) -> Head:
    """Read a head, its final blank line included.

    Raises:
        HttpRefused: It is not the HTTP/1.1 that this gateway speaks.
    """
    if _BARE_NEWLINE.search(raw):
        raise HttpRefused(400, "http.bare-newline", "a bare CR or LF in the head")
    first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise HttpRefused(400, "http.request-line", "the request line is not HTTP/1.1")
    method, target, version = (part.decode("ascii") for part in match.groups())
    bare = Head(method, target, version, ())
    if len(lines) > limits.max_headers:
        raise HttpRefused(431, "http.header-count", "too many headers", bare)
    headers = []
    for line in lines:
        if line.startswith((b" ", b"\t")):
            raise HttpRefused(400, "http.obs-fold", "a folded header", bare)
        field = _HEADER_LINE.fullmatch(line)
        if field is None:
            raise HttpRefused(400, "http.header", "a malformed header", bare)
        name, value = field.groups()
        headers.append((name.decode("ascii").lower(), value.decode("latin-1").strip(" \t")))
    head = Head(method, target, version, tuple(headers))
    _check_framing(head, limits)
    return head


def _check_framing(head: Head, limits: Limits) -> None:
    lengths, codings = head.all("content-length"), head.all("transfer-encoding")
    if lengths and codings:
        raise HttpRefused(400, "http.both-lengths", "Content-Length and Transfer-Encoding", head)
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise HttpRefused(400, "http.content-length", "repeated or bad Content-Length", head)
    if codings and (len(codings) > 1 or codings[0].lower() != "chunked" or head.version == "1.0"):
        raise HttpRefused(400, "http.transfer-encoding", "Transfer-Encoding is not chunked", head)
    hosts = head.all("host")
    # Python's http.client, and so pip, tunnels with `CONNECT host:port HTTP/1.0` and no Host.
    needs_host = not (head.method == "CONNECT" and head.version == "1.0")
    if len(hosts) > 1 or (needs_host and not hosts):
        raise HttpRefused(400, "http.host", "missing or repeated Host", head)
    if head.method == "TRACE":
        raise HttpRefused(405, "http.trace", "TRACE is not answered", head)
    if head.all("expect") not in ([], ["100-continue"]):
        raise HttpRefused(417, "http.expect", "an unknown expectation", head)
    if lengths and int(lengths[0]) > limits.max_body_bytes:
        raise HttpRefused(413, "http.body-size", "the body is too large", head)


class Client:
    """One accepted connection: checked requests in, framed answers out.

    Any write to a client that is gone, or that does not read for `idle_timeout_s`,
    raises ClientGone.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._left = bytearray()
        self._h11 = h11.Connection(h11.SERVER)
        self._fresh = True
        self._answered = False
        self.bytes_in = 0
        self.bytes_out = 0

    async def next_head(self) -> Head | None:
        """Return the next request's head, or None when the client is done.

        Raises:
            HttpRefused: The head breaks a rule, or came too slowly.
            ClientGone: The connection ended within a head.
        """
        self._answered = False
        self.bytes_in = self.bytes_out = 0
        if not self._left and not self._fresh:
            try:
                async with asyncio.timeout(self._limits.idle_timeout_s):
                    self._left += await self._read()
            except TimeoutError:
                return None
            if not self._left:
                return None
        self._fresh = False
        try:
            async with asyncio.timeout(self._limits.header_timeout_s):
                raw = await self._read_head()
        except TimeoutError:
            raise HttpRefused(408, "http.header-timeout", "the head came too slowly") from None
        if raw is None:
            return None
        self.bytes_in = len(raw)
        head = parse_head(raw, self._limits)
        self._h11 = h11.Connection(
            h11.SERVER, max_incomplete_event_size=self._limits.max_header_bytes + 1024
        )
        try:
            self._h11.receive_data(raw + bytes(self._left))
            self.bytes_in += len(self._left)
            self._left.clear()
            self._h11.next_event()
        except h11.RemoteProtocolError:
            raise HttpRefused(400, "http.h11", "not valid HTTP/1.1", head) from None
        if not head.has_body:
            await self.body_chunk()
        return head

    async def _read_head(self) -> bytes | None:
        seen = 0
        while True:
            end = self._left.find(b"\r\n\r\n", max(seen - 3, 0))
            size = end + 4 if end >= 0 else len(self._left)
            if size > self._limits.max_header_bytes:
                self.bytes_in = size
                raise HttpRefused(431, "http.header-size", "the head is too large")
            if end >= 0:
                raw = bytes(self._left[:size])
                del self._left[:size]
                return raw
            if _BARE_NEWLINE.search(self._left, max(seen - 1, 0)):
                self.bytes_in = size
                raise HttpRefused(400, "http.bare-newline", "a bare CR or LF in the head")
            seen = len(self._left)
            data = await self._read()
            if not data and not self._left:
                return None
            if not data:
                self.bytes_in = seen
                raise HttpRefused(400, "http.truncated", "the connection ended within a head")
            self._left += data

    async def body_chunk(self) -> bytes | None:
        """Return the next piece of the request's body, None at its end.

        Raises:
            HttpRefused: Bad framing, trailers, or nothing for `idle_timeout_s`.
            ClientGone: The connection ended within the body.
        """
        while True:
            try:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    if self._h11.they_are_waiting_for_100_continue:
                        go = h11.InformationalResponse(status_code=100, headers=[])
                        await self._send(self._h11.send(go) or b"")
                    async with asyncio.timeout(self._limits.idle_timeout_s):
                        data = await self._read()
                    self.bytes_in += len(data)
                    if not data:
                        raise ClientGone
                    self._h11.receive_data(data)
                    continue
            except h11.RemoteProtocolError:
                raise HttpRefused(400, "http.body", "the body is badly framed") from None
            except TimeoutError:
                raise HttpRefused(408, "http.body-timeout", "the body came too slowly") from None
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage) and event.headers:
                raise HttpRefused(400, "http.trailers", "trailers are not accepted")
            rest = self._h11.trailing_data[0]
            self.bytes_in -= len(rest)
            self._left += rest
            return None

    async def gone(self) -> None:
        """Return when the client hangs up; keeps what it pipelines meanwhile."""
        while len(self._left) <= self._limits.max_header_bytes:
            data = await self._read()
            if not data:
                return
            self._left += data
        await asyncio.Event().wait()

    @property
    def reusable(self) -> bool:
        """Whether the exchange ended cleanly and another request may follow."""
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        length = ("content-length", str(len(body)))
        await self.start(status, [*headers, length])
        await self.write(body)
        await self.finish()

    async def refuse(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer whatever state the request is in, and close."""
        if self._answered:
            return
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or self._h11.their_state in (
            h11.IDLE,
            h11.ERROR,
        ):
            self._h11 = h11.Connection(h11.SERVER)
        await self.respond(status, [*headers, ("connection", "close")], body)

    async def start(self, status: int, headers: Headers) -> None:
        self._answered = True
        response = h11.Response(status_code=status, headers=list(headers))
        await self._send(self._h11.send(response) or b"")

    async def write(self, data: bytes) -> None:
        if data:
            await self._send(self._h11.send(h11.Data(data=data)) or b"")

    async def finish(self) -> None:
        await self._send(self._h11.send(h11.EndOfMessage()) or b"")

    def abort(self) -> None:
        """Cut the connection, so that a stream's end cannot be taken for its success."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close; read for a moment what the client is still sending, or it misses the answer."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._writer.drain()
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                left = self._limits.max_body_bytes
                while left > 0 and (data := await self._reader.read(_CHUNK)):
                    left -= len(data)
        except (OSError, TimeoutError):
            pass
        self.abort()

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_CHUNK)
        except OSError:
            return b""

    async def _send(self, data: bytes) -> None:
        if not data:
            return
        self.bytes_out += len(data)
        try:
            self._writer.write(data)
            async with asyncio.timeout(self._limits.idle_timeout_s):
                await self._writer.drain()
        except (OSError, TimeoutError):
            raise ClientGone from None
