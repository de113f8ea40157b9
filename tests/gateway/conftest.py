from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from .rig import Call, Gateway, Record, Upstream, config

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

Start = Callable[..., Gateway]
Serve = Callable[..., Upstream]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gw-") as name:
        yield Path(name)


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    running: list[Gateway] = []

    def begin(
        model: Record | None = None, env: dict[str, str] | None = None, **changes: Any
    ) -> Gateway:
        if model is not None:
            changes["model"] = model
        gateway = Gateway(folder, config(folder, **changes), env)
        running.append(gateway)
        return gateway

    yield begin
    for gateway in running:
        gateway.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[Upstream] = []

    def begin(behave: Callable[[Call], None], tls: ssl.SSLContext | None = None) -> Upstream:
        running.append(Upstream(behave, tls))
        return running[-1]

    yield begin
    for upstream in running:
        upstream.close()
