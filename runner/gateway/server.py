"""The unix socket, its connections, and what each request is answered with."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

from .audit import Attempt, Audit
from .backend import JSON_BODY, error_body
from .config import GatewayConfig
from .exchange import ModelRoute
from .policy import Policy
from .routes import Denied, Destination, Remote, Service, route
from .wire import Client, ClientGone, Head, HttpRefused

BACKLOG = 128
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\n"
)


class SocketError(Exception):
    """The socket cannot be made."""


def bind(path: str) -> socket.socket:
    """Make the socket, open to every user: the directory decides who comes near it.

    Raises:
        SocketError: Something is there already, or the directory cannot be written.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode comes with the name: a client that waits for it never meets another.
        previous = os.umask(0o111)
        try:
            sock.bind(path)
        finally:
            os.umask(previous)
        sock.listen(BACKLOG)  # from here on a client may come: "ready" is true
    except OSError as error:
        sock.close()
        raise SocketError(f"the socket cannot be made: {error.strerror}") from None
    return sock


def remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


class Gateway:
    def __init__(
        self, config: GatewayConfig, policy: Policy, model: ModelRoute, audit: Audit
    ) -> None:
        self._config = config
        self._policy = policy
        self._model = model
        self._audit = audit
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, sock: socket.socket, stop: asyncio.Event) -> None:
        """Serve until `stop`; then cut what still runs and wait for its audit lines."""
        server = await asyncio.start_unix_server(self._accept, sock=sock, backlog=BACKLOG)
        try:
            await stop.wait()
        finally:
            server.close()
            remove(self._config.socket)
            for task in self._tasks:
                task.cancel("stopped")
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._config.limits.max_connections:
            writer.write(_FULL)
            writer.close()
            full = self._audit.attempt(None)
            full.decided(allowed=False, rule="limits.max_connections", status=503)
            return
        task = asyncio.create_task(self._connection(Client(reader, writer, self._config.limits)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._audit.reports.emit("note", note="a connection failed", error=type(error).__name__)

    async def _connection(self, client: Client) -> None:
        try:
            while await self._request(client):
                pass
            await client.close()
        except ClientGone:
            pass
        finally:
            client.abort()

    async def _request(self, client: Client) -> bool:
        """Answer one request; say whether the connection takes another."""
        await self._audit.reports.room()
        attempt = self._audit.attempt(client)
        head: Head | None = None
        rule = "client.gone"
        try:
            head = await client.next_head()
            if head is None:
                return False
            attempt.started = self._audit.monotonic()
            await self._serve(client, head, attempt)
        except HttpRefused as refused:
            await self._refuse(client, refused, head or refused.head, attempt)
            return False
        except asyncio.CancelledError:
            rule = "gateway.stopped"
            raise
        finally:
            if head is not None and not attempt.is_decided:
                attempt.decided(allowed=False, rule=rule, status=None)
        return client.reusable

    async def _serve(self, client: Client, head: Head, attempt: Attempt) -> None:
        attempt.verb = head.method
        found = route(head)
        if isinstance(found, Remote):
            there = Destination(found.host, found.port, found.path)
            decision = self._policy.decide(found.host, found.port)
            found = Denied(403, decision.rule, decision.reason, there)
        attempt.asked = found.destination
        if isinstance(found, Denied):
            raise HttpRefused(found.status, found.rule, found.reason, head)
        if found.service is Service.RESPONSES:
            await self._model.serve(client, head, attempt)
            return
        if head.has_body:
            raise HttpRefused(400, "route.body", "this route takes no body", head)
        if found.service is Service.HEALTH:
            body: object = {"ok": True, "run": self._config.run}
        else:
            models = self._config.model.models
            body = {"object": "list", "data": [{"id": m, "object": "model"} for m in models]}
        try:
            await client.respond(200, JSON_BODY, json.dumps(body).encode())
        finally:
            attempt.decided(allowed=True, rule=found.service.value, status=200)

    async def _refuse(
        self, client: Client, refused: HttpRefused, head: Head | None, attempt: Attempt
    ) -> None:
        if head is not None and attempt.verb is None:  # refused before it was routed
            attempt.verb = head.method
            attempt.asked = Destination(head.first("host"), None, head.target)
        headers = list(JSON_BODY)
        if refused.status == 426:
            headers.append(("upgrade", "HTTP/1.1"))
        try:
            body = error_body(refused.reason, "rolebox_denied", refused.rule)
            await client.refuse(refused.status, headers, body)
        finally:
            attempt.decided(allowed=False, rule=refused.rule, status=refused.status)
