"""The openai backend: one request to the configured base URL, nothing else.

A connection per request: no state of one answer can reach another. Of the
client's headers only harmless ones go on; the configured ones (the credential)
are set last. Redirects are refused: the credential is for one upstream.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

import h11

from .backend import JSON_BODY, Answer, Broken, Peer, error_body
from .config import BaseUrl, Limits
from .modelrules import ModelRequest

if TYPE_CHECKING:
    import ssl

MAX_ERROR_BODY: Final = 65_536
PASSED_ON: Final = frozenset({"user-agent", "originator", "openai-beta", "session-id", "thread-id"})
_PASSED_BACK: Final = ("content-type", "retry-after", "retry-after-ms")
_CHUNK: Final = 65_536


class OpenAIBackend:
    def __init__(self, base: BaseUrl, headers: tuple[tuple[str, str], ...], limits: Limits) -> None:
        self._base = base
        self._headers = headers
        self._secrets = _secrets(headers)
        self._limits = limits
        self._path = f"{base.prefix}/responses"
        self._tls: ssl.SSLContext | None = None
        self._claimed = 0
        if base.https:
            import ssl

            self._tls = ssl.create_default_context()

    def claim(self) -> int:
        self._claimed += 1
        return self._claimed

    async def open(self, request: ModelRequest, n: int) -> Answer:
        sni = self._base.host if self._tls else None
        peer = Peer(self._base.host, self._base.port, self._path, None, sni)
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                reader, writer = await asyncio.open_connection(
                    self._base.host,
                    self._base.port,
                    ssl=self._tls,
                    server_hostname=sni,
                    limit=_CHUNK,
                )
        except (OSError, TimeoutError) as error:
            return _failed(peer, f"cannot reach the model upstream: {_name(error)}")
        address = writer.get_extra_info("peername")
        peer = Peer(peer.host, peer.port, peer.path, str(address[0]) if address else None, sni)
        exchange = _Exchange(reader, writer, self._limits)
        try:
            response = await exchange.send(self._head(request), request.clean)
        except Broken as error:
            exchange.close()
            return _failed(peer, f"the model upstream failed: {error}")
        except BaseException:
            exchange.close()
            raise
        return await self._answer(response, exchange, peer)

    def _head(self, request: ModelRequest) -> h11.Request:
        headers = {
            name: value for name, value in request.headers if name in PASSED_ON and value.isascii()
        }
        headers |= {
            "host": self._base.authority,
            "content-type": "application/json",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "content-length": str(len(request.clean)),
            "connection": "close",
        }
        headers |= dict(self._headers)
        return h11.Request(method="POST", target=self._path, headers=list(headers.items()))

    async def _answer(self, response: h11.Response, exchange: _Exchange, peer: Peer) -> Answer:
        status = response.status_code
        headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
        if 300 <= status < 400:
            exchange.close()
            return _failed(peer, f"redirect refused: the model upstream answered {status}")
        if headers.get("content-encoding", "identity") != "identity":
            exchange.close()
            return _failed(peer, "the model upstream answered with a content-encoding")
        back = tuple(
            (name, headers[name]) for name in _PASSED_BACK if headers.get(name, "\x80").isascii()
        )
        if status == 200:
            return Answer(status, back, exchange.chunks(), peer, close=exchange.close)
        body = await exchange.read_some(MAX_ERROR_BODY)
        for secret in self._secrets:
            body = body.replace(secret, b"[redacted]")
        return Answer(status, back, _once(body), peer, error=f"upstream: {status}")


class _Exchange:
    """One request and its answer on one connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._idle = limits.idle_timeout_s
        self._sending: asyncio.Task[None] | None = None
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.max_header_bytes)

    async def send(self, head: h11.Request, body: bytes) -> h11.Response:
        """Send the request; return the start of the answer, which may come before all is sent.

        Raises:
            Broken: The upstream hung, hung up, or does not speak HTTP/1.1.
        """
        self._writer.write(self._h11.send(head) or b"")
        data = self._h11.send(h11.Data(data=body)) or b""
        self._h11.send(h11.EndOfMessage())
        self._sending = asyncio.create_task(self._write(data))
        while isinstance(event := await self._next(), h11.InformationalResponse):
            continue
        if not isinstance(event, h11.Response):
            raise Broken("no answer")
        return event

    async def _write(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), _CHUNK):
                self._writer.write(data[start : start + _CHUNK])
                await self._writer.drain()
        except OSError:
            return  # the answer, or its absence, tells

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise Broken("the answer is badly framed")
            yield bytes(event.data)

    async def read_some(self, limit: int) -> bytes:
        """Read an error's body, up to `limit` bytes; what breaks off is left off."""
        body = bytearray()
        try:
            while len(body) < limit and isinstance(event := await self._next(), h11.Data):
                body += event.data
        except Broken:
            pass
        finally:
            self.close()
        return bytes(body[:limit])

    async def _next(self) -> object:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._idle):
                    self._h11.receive_data(await self._reader.read(_CHUNK))
        except TimeoutError:
            raise Broken("nothing came for the idle timeout") from None
        except OSError as error:
            raise Broken(_name(error)) from None
        except h11.RemoteProtocolError:
            raise Broken("it hung up, or does not speak HTTP/1.1") from None
        return event

    def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
        self._writer.transport.abort()


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _failed(peer: Peer, message: str) -> Answer:
    body = error_body(message, "rolebox_upstream", "rolebox_upstream")
    return Answer(502, JSON_BODY, _once(body), peer, error=message)


def _name(error: BaseException) -> str:
    """Name an error by type and code; its text may quote what must stay secret."""
    reason = getattr(error, "verify_message", None)
    if isinstance(reason, str):
        return f"certificate verification failed: {reason}"
    number = getattr(error, "errno", None)
    code = errno.errorcode.get(number) if isinstance(number, int) else None
    return f"{type(error).__name__} {code}" if code else type(error).__name__


def _secrets(headers: tuple[tuple[str, str], ...]) -> list[bytes]:
    """Header values and their credentials (`Bearer X`: also X), longest first."""
    parts = {part for _, value in headers for part in (value, value.rpartition(" ")[2])}
    return sorted((part.encode() for part in parts if len(part) >= 8), key=len, reverse=True)
