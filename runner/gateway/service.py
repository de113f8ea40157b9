"""The running gateway: wiring, signals, the way it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from .audit import Audit
from .backend import backend_for
from .budget import Budget
from .config import GatewayConfig
from .exchange import ModelRoute
from .policy import policy_for
from .report import Reports
from .server import Gateway, SocketError, bind
from .source import Input

LAST_WORDS_SECONDS: Final = 10.0


def now() -> datetime:
    return datetime.now(UTC)


def watch(source: Input, stop: Callable[[str], None]) -> None:
    """Call `stop` when asked to, or when the orchestrator is gone. Runs in a thread."""
    while (line := source.line(65_536)) is not None:
        try:
            asked = json.loads(line) == {"stop": True}
        except (ValueError, RecursionError):
            asked = False
        stop("stop" if asked else "unknown command")
    stop("eof")


def run(config: GatewayConfig, source: Input) -> int:
    return asyncio.run(serve(config, source))


async def serve(config: GatewayConfig, source: Input) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    reasons: list[str] = []

    def stop(reason: str) -> None:
        reasons.append(reason)
        stopped.set()

    reports = Reports(1, config.run, now, partial(stop, "no reader"))
    loop.set_exception_handler(partial(_note, reports))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    reports.start()
    try:
        sock = bind(config.socket)
    except SocketError as error:
        await reports.close("fatal", patience=LAST_WORDS_SECONDS, error=str(error))
        return 4
    audit = Audit(reports, time.monotonic)
    budget = Budget(config.budget)
    model = ModelRoute(config, backend_for(config.model, config.limits), budget, audit)
    gateway = Gateway(config, policy_for(config.egress), model, audit)

    def tell(reason: str) -> None:
        loop.call_soon_threadsafe(stop, reason)

    threading.Thread(target=watch, args=(source, tell), daemon=True).start()
    reports.emit(
        "ready", socket=config.socket, backend=config.model.backend, model=config.model.model,
        egress=config.egress.mode,
    )  # fmt: skip
    await gateway.run(sock, stopped)
    counts = {
        "allowed": audit.counts.allowed,
        "denied": audit.counts.denied,
        "model": audit.counts.model,
        **{f"used_{name}": used for name, used in budget.used.items()},
    }
    written = await reports.close(
        "stopped", patience=LAST_WORDS_SECONDS, reason=reasons[0], counts=counts
    )
    return 0 if written else 4


def _note(reports: Reports, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    name = type(error).__name__ if error is not None else "unknown"
    reports.emit("note", note="event loop", error=name)
