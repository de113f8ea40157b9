"""What a request is for, read from its head alone.

A path is compared byte for byte: nothing is decoded, joined or normalised, so
`%`, `//` and `..` meet no route and are denied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from .wire import Head

MODEL_PATHS: Final = ("/v1/responses", "/responses")
LIST_PATHS: Final = ("/v1/models", "/models")
HEALTH_PATH: Final = "/healthz"

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:/?#@\[\]\\]+)(?::([0-9]{1,5}))?")
_ABSOLUTE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LOOPBACK: Final = ("127.0.0.1", "localhost")


class Service(Enum):
    """What the gateway itself answers; the values are rule names in the audit."""

    RESPONSES = "route.responses"
    MODELS = "route.models"
    HEALTH = "route.healthz"


@dataclass(frozen=True, slots=True)
class Destination:
    """What the client named; None where it named nothing that can be read."""

    host: str | None
    port: int | None
    path: str | None


@dataclass(frozen=True, slots=True)
class Local:
    service: Service
    destination: Destination


@dataclass(frozen=True, slots=True)
class Remote:
    """A request for another host: CONNECT or absolute-form; the policy decides."""

    host: str
    port: int
    path: str | None


@dataclass(frozen=True, slots=True)
class Denied:
    status: int
    rule: str
    reason: str
    destination: Destination


def route(head: Head) -> Local | Remote | Denied:
    if head.method == "CONNECT":
        return _connect(head)
    if head.target.startswith("/"):
        return _origin(head)
    return _absolute(head)


def _split(authority: str) -> tuple[str, int | None] | None:
    match = _AUTHORITY.fullmatch(authority)
    if match is None or (match[2] and not 0 < int(match[2]) < 65_536):
        return None
    return match[1].lower(), int(match[2]) if match[2] else None


def _connect(head: Head) -> Remote | Denied:
    host, port = _split(head.target) or (head.target, None)
    if port is None:
        nowhere = Destination(host, None, None)
        return Denied(400, "http.authority", "CONNECT needs host:port", nowhere)
    claimed = head.first("host")
    if claimed is not None and not _agrees(claimed, host, port):
        there = Destination(host, port, None)
        return Denied(400, "http.host-mismatch", "Host differs from the request target", there)
    return Remote(host, port, None)


def _absolute(head: Head) -> Remote | Denied:
    match = _ABSOLUTE.fullmatch(head.target)
    named = _split(match[2]) if match else None
    default = _DEFAULT_PORTS.get(match[1].lower()) if match else None
    port = named[1] or default if named else None
    if match is None or named is None or port is None:
        nowhere = Destination(None, None, head.target)
        return Denied(400, "http.target", "the request target cannot be read", nowhere)
    host, path = named[0], match[3] or "/"
    if not _agrees(head.first("host") or "", host, port):
        there = Destination(host, port, path)
        return Denied(400, "http.host-mismatch", "Host differs from the request target", there)
    return Remote(host, port, path)


def _agrees(claimed: str, host: str, port: int) -> bool:
    """Whether a Host header names the target; it may leave the port out."""
    named = _split(claimed)
    return named is not None and named[0] == host and named[1] in (None, port)


def _origin(head: Head) -> Local | Denied:
    claimed = head.first("host") or ""
    host, port = _split(claimed) or (claimed, None)
    here = Destination(host, port, head.target)
    if host not in _LOOPBACK:
        return Denied(403, "route.host", "only 127.0.0.1 and localhost are served here", here)
    path, query, _ = head.target.partition("?")
    if path in MODEL_PATHS:
        if query:
            return Denied(404, "route.query", "the model route takes no query", here)
        if (head.first("upgrade") or "").lower() == "websocket":
            return Denied(426, "route.websocket", "no WebSocket here: use POST", here)
        return _only("POST", Service.RESPONSES, head, here)
    if path in LIST_PATHS:
        # Codex's built-in provider asks with ?client_version=…; the answer is the same.
        return _only("GET", Service.MODELS, head, here)
    if head.target == HEALTH_PATH:
        return _only("GET", Service.HEALTH, head, here)
    return Denied(404, "route.unknown-path", "no such route", here)


def _only(method: str, service: Service, head: Head, here: Destination) -> Local | Denied:
    if head.method != method:
        return Denied(405, "route.method", f"this route takes {method}", here)
    return Local(service, here)
