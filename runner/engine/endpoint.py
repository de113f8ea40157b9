"""Find the engine as the docker command would: DOCKER_HOST, the context, the default socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.model.errors import UsageError

if TYPE_CHECKING:
    from docker.tls import TLSConfig

DEFAULT = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class Endpoint:
    """Where the engine answers, and who said so.

    Attributes:
        url: `unix://…`, `tcp://…`, `ssh://…`, as docker writes them.
        origin: `DOCKER_HOST`, `context NAME` or `default`.
    """

    url: str
    origin: str
    tls: TLSConfig | None = None


def resolve_endpoint(env: Mapping[str, str]) -> Endpoint:
    """Return the engine's endpoint.

    Raises:
        UsageError: The docker configuration names a context that does not exist.
    """
    if host := env.get("DOCKER_HOST"):
        return Endpoint(host, "DOCKER_HOST")
    name = env.get("DOCKER_CONTEXT") or _configured_context(env)
    if not name or name == "default":
        return Endpoint(DEFAULT, "default")
    from docker.context import ContextAPI

    context = ContextAPI.get_context(name)
    if context is None or not context.Host:
        raise UsageError(
            f"docker context {name!r} does not exist or has no endpoint",
            mend="see: docker context ls",
        )
    return Endpoint(context.Host, f"context {name}", context.TLSConfig)


def _configured_context(env: Mapping[str, str]) -> str:
    folder = env.get("DOCKER_CONFIG") or str(Path(env.get("HOME", "/")) / ".docker")
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    name = config.get("currentContext", "") if isinstance(config, dict) else ""
    return name if isinstance(name, str) else ""
