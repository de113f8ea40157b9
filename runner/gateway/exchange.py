"""One model exchange: check, count, ask, stream, record.

The same for every backend. Whatever happens to the client, the upstream or the
process, an admitted exchange leaves one `model` line and one `egress` line.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any

from .audit import Attempt, Audit
from .backend import JSON_BODY, Backend, Broken, Peer, error_body
from .budget import Budget
from .config import GatewayConfig
from .modelrules import ModelDenied, ModelRequest, check, decode
from .routes import Service
from .sse import Observer
from .wire import Client, ClientGone, Head, HttpRefused


@dataclass(slots=True)
class _Record:
    """What is known of a running exchange; becomes its report lines."""

    n: int
    request: ModelRequest
    attempt: Attempt
    status: int | None = None
    peer: Peer = field(default_factory=Peer)
    error: str | None = None
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    observer: Observer = field(default_factory=Observer)

    def saw(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        if self.status == 200:
            self.observer.feed(chunk)


class ModelRoute:
    def __init__(
        self, config: GatewayConfig, backend: Backend, budget: Budget, audit: Audit
    ) -> None:
        self._model = config.model
        self._limits = config.limits
        self._backend = backend
        self._budget = budget
        self._audit = audit
        self._held = 0

    async def serve(self, client: Client, head: Head, attempt: Attempt) -> None:
        """Answer one `POST /v1/responses`.

        Raises:
            HttpRefused: The body is too large, too slow, broken off or badly framed.
            ClientGone: The client hung up before its answer was complete.
        """
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.total_timeout_s):
                    await self._read_body(client, body)
            except TimeoutError:
                raise HttpRefused(408, "limits.total-timeout", "the body is too slow") from None
            except ClientGone:
                raise HttpRefused(400, "http.truncated", "the body is incomplete") from None
            await self._decide(client, head, bytes(body), attempt)
        finally:
            self._held -= len(body)

    async def _read_body(self, client: Client, body: bytearray) -> None:
        while (chunk := await client.body_chunk()) is not None:
            body += chunk
            self._held += len(chunk)
            if len(body) > self._limits.max_body_bytes:
                raise HttpRefused(413, "http.body-size", "the body is too large")
            if self._held > 2 * self._limits.max_body_bytes:
                raise HttpRefused(503, "limits.body-memory", "too many large requests at once")

    async def _decide(self, client: Client, head: Head, raw: bytes, attempt: Attempt) -> None:
        try:
            request = check(decode(raw), raw, head.headers, self._model.model)
            await self._watched(client, self._take_turn(client, request, attempt))
        except ModelDenied as denied:
            # 400 is what Codex takes as final, and it shows the message.
            try:
                denial = error_body(denied.message, "rolebox_denied", denied.code)
                await client.respond(400, JSON_BODY, denial)
            finally:
                attempt.decided(allowed=False, rule=denied.rule, status=400)

    async def _watched(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it is done or the client hangs up."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(client.gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            hung_up = not task.done()
        finally:
            task.cancel("stopped" if not gone.done() else "client gone")
            gone.cancel()
            await asyncio.wait({task, gone})
        if hung_up and task.cancelled():
            raise ClientGone
        task.result()

    async def _take_turn(self, client: Client, request: ModelRequest, attempt: Attempt) -> None:
        async with self._budget.turnstile:
            self._check_budget()
            record = _Record(self._backend.claim(), request, attempt)
            self._budget.admit()
            try:
                async with asyncio.timeout(self._limits.total_timeout_s):
                    await self._stream(client, record)
            except TimeoutError:
                record.error = "total_timeout_s is over"
                client.abort()
            except Broken as broken:
                record.error = str(broken)
                client.abort()
            except ClientGone:
                record.error = "client gone"
                raise
            except asyncio.CancelledError as cancelled:
                record.error = str(cancelled.args[0]) if cancelled.args else "stopped"
                raise
            finally:
                self._charge(record)
                self._report(record)

    def _check_budget(self) -> None:
        excess = self._budget.excess()
        if excess is None:
            return
        if self._budget.first_time(excess):
            self._audit.reports.emit("budget", **asdict(excess))
        raise ModelDenied(
            "rolebox_budget",
            f"budget.{excess.which}",
            f"the budget of this run is spent: {excess.used} of {excess.limit} {excess.which}",
        )

    async def _stream(self, client: Client, record: _Record) -> None:
        answer = await self._backend.open(record.request, record.n)
        record.status, record.peer, record.error = answer.status, answer.peer, answer.error
        try:
            await client.start(answer.status, answer.headers)
            async for chunk in answer.chunks:
                record.saw(chunk)
                await client.write(chunk)
            await client.finish()
        finally:
            answer.close()
            await answer.chunks.aclose()

    def _charge(self, record: _Record) -> None:
        if record.observer.usage is not None:
            self._budget.charge(record.observer.usage)
        elif record.status in (None, 200):
            self._budget.charge_estimate(len(record.request.raw), record.size)

    def _report(self, record: _Record) -> None:
        seen = record.observer
        self._audit.counts.model += 1
        record.attempt.decided(
            allowed=True, rule=Service.RESPONSES.value, status=record.status, peer=record.peer
        )
        self._audit.reports.emit(
            "model",
            n=record.n,
            backend=self._model.backend,
            status=record.status,
            model_asked=record.request.model,
            model_observed=seen.model,
            response_id=seen.response_id,
            usage=asdict(seen.usage) if seen.usage else None,
            complete=seen.terminal is not None and record.error is None,
            request_sha256="sha256:" + hashlib.sha256(record.request.raw).hexdigest(),
            response_sha256="sha256:" + record.digest.hexdigest(),
            duration_ms=record.attempt.duration_ms,
            error=record.error,
        )
