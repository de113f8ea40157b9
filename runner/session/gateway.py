"""One run's gateway: started, told what to do over its input, read to the end."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from runner.engine.api import Attachment, Engine
from runner.model.errors import InfrastructureError
from runner.model.plan import GATEWAY_DIR, SOCKET_NAME, RunPlan

_STOP = b'{"stop":true}\n'
_STOP_WAIT_S = 5.0
_LINE_LIMIT = 1 << 20
#: The largest number that canonical JSON says exactly (RFC 8785).
_LARGEST = (1 << 53) - 1


def config_line(
    plan: RunPlan, run: str, script: Mapping[str, Any] | None, headers: Mapping[str, str]
) -> bytes:
    """Return the gateway's first line of input; the only place where the key travels."""
    gateway = plan.gateway
    config = {
        "_schema": "rolebox.gateway-config/1",
        "run": run,
        "socket": f"{GATEWAY_DIR}/{SOCKET_NAME}",
        "model": {
            "backend": gateway.backend,
            "script": script,
            "base_url": gateway.base_url,
            "headers": dict(headers),
            "model": gateway.model,
            "models": [gateway.model],
        },
        "budget": gateway.budget.to_json(),
        "egress": {"mode": gateway.egress.mode, "allow": []},
        "limits": {},
    }
    return json.dumps(config, separators=(",", ":")).encode() + b"\n"


def without(text: bytes, secrets: Iterable[str]) -> bytes:
    """Return text in which no credential stands, whole header values and their last words."""
    for secret in secrets:
        for part in filter(None, (secret, secret.rpartition(" ")[2])):
            text = text.replace(part.encode(), b"[credential]")
    return text


@dataclass
class GatewayTotals:
    """What the gateway reported, added up."""

    allowed: int = 0
    denied: int = 0
    requests: int = 0
    observed: list[str] = field(default_factory=list)
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_output_tokens: int = 0
    total_tokens: int = 0
    without_usage: int = 0
    budget: str | None = None
    last_error: str | None = None
    fatal: str | None = None
    stopped: bool = False

    def take(self, report: Mapping[str, Any]) -> None:
        """Add one report."""
        match report.get("kind"):
            case "egress":
                count = int(report.get("count") or 1)
                if report.get("decision") == "allowed":
                    self.allowed += count
                else:
                    self.denied += count
            case "model":
                self._exchange(report)
            case "budget":
                self.budget = (
                    f"{report.get('which')}: {report.get('used')} of {report.get('limit')}"
                )
            case "fatal":
                self.fatal = str(report.get("message") or report.get("error") or "unknown")
            case "stopped":
                self.stopped = True
            case _:
                pass

    def _exchange(self, report: Mapping[str, Any]) -> None:
        self.requests += 1
        observed = report.get("model_observed")
        if isinstance(observed, str) and observed not in self.observed:
            self.observed.append(observed)
        if report.get("error"):
            self.last_error = f"{report.get('status')}: {report['error']}"
        usage = report.get("usage")
        if not isinstance(usage, dict):
            self.without_usage += 1
            return
        for name in (
            "input_tokens",
            "cached_input_tokens",
            "output_tokens",
            "reasoning_output_tokens",
            "total_tokens",
        ):
            tokens = getattr(self, name) + int(usage.get(name) or 0)
            setattr(self, name, min(max(tokens, 0), _LARGEST))


class GatewayLog:
    """Sorts the gateway's report lines into the run's files, byte for byte.

    Args:
        egress: Decisions; one line each.
        model: Exchanges and everything else that it said.
        listener: Called with each report.
        limit: Bytes of audit that are kept; an agent that asks for more ends its run.
    """

    def __init__(
        self,
        egress: BinaryIO,
        model: BinaryIO,
        listener: Callable[[Mapping[str, Any]], None] = lambda report: None,
        *,
        limit: int = 1 << 40,
    ) -> None:
        self.totals = GatewayTotals()
        self.invalid = 0
        self._egress = egress
        self._model = model
        self._listener = listener
        self._rest = b""
        self._room = limit

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the gateway's output."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest
        if len(rest) > _LINE_LIMIT:
            self._rest = b""
            self.invalid += 1
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        try:
            report = json.loads(line)
        except (ValueError, RecursionError):
            report = None
        if not isinstance(report, dict):
            self.invalid += 1
            return
        sink = self._egress if report.get("kind") == "egress" else self._model
        self._room -= len(line)
        if self._room < 0:
            raise InfrastructureError("its audit is larger than the limit keeps")
        sink.write(line + b"\n")
        sink.flush()
        try:
            self.totals.take(report)
        except (TypeError, ValueError, OverflowError):  # a count that is no number
            self.invalid += 1
            return
        self._listener(report)


class GatewayProcess:
    """The running gateway of one run. `start` may be called from another thread."""

    def __init__(
        self, engine: Engine, container: str, log: GatewayLog, ended: Callable[[], None]
    ) -> None:
        self.container = container
        self.log = log
        self._engine = engine
        self._ended = ended
        self._attachment: Attachment | None = None
        self._reader: threading.Thread | None = None
        self._stderr = bytearray()
        self._reading_failed: BaseException | None = None

    def start(self, config: bytes) -> None:
        """Attach, start and hand over the configuration."""
        self._attachment = self._engine.attach(self.container)
        self._engine.start(self.container)
        self._reader = threading.Thread(target=self._read, name="gateway-reader", daemon=True)
        self._reader.start()
        try:
            self._attachment.write(config)
        except InfrastructureError as error:
            raise InfrastructureError(
                "the run's gateway did not take its configuration", why=self.problem or error.what
            ) from None

    def _read(self) -> None:
        assert self._attachment is not None
        try:
            for stream, data in self._attachment.frames():
                if stream == "stdout":
                    self.log.feed(data)
                elif len(self._stderr) < _LINE_LIMIT:
                    self._stderr += data
        except (OSError, InfrastructureError) as error:  # a full disk under the audit log
            self._reading_failed = error
        finally:
            self._ended()

    @property
    def problem(self) -> str | None:
        """Say what went wrong with it, if something did."""
        if self._reading_failed is not None:
            return f"its audit could not be written: {self._reading_failed}"
        if self.log.totals.fatal:
            return self.log.totals.fatal
        return None

    @property
    def stderr(self) -> bytes:
        """Return what it printed to its error output."""
        return bytes(self._stderr)

    def ask_to_stop(self) -> None:
        """Ask it to finish its audit and end; returns at once."""
        if self._attachment is not None:
            with contextlib.suppress(InfrastructureError):
                self._attachment.write(_STOP)

    def await_stop(self) -> None:
        """Wait until it ended, after `ask_to_stop`; by force after a while."""
        if self._attachment is None:
            return
        if self._reader is not None:
            self._reader.join(_STOP_WAIT_S)
            if self._reader.is_alive():
                self._engine.signal(self.container, "SIGKILL")
                self._reader.join(_STOP_WAIT_S)
        self._attachment.close()

    def close(self) -> None:
        """Close the streams; safe at any time."""
        if self._attachment is not None:
            self._attachment.close()
