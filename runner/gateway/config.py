"""The configuration, as it arrives on the first line of stdin.

Unknown keys and wrong types are refused. An error names the key and what was
expected, never the value: the model headers hold the credential.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

from .script import Script, ScriptError, parse_script

SCHEMA: Final = "rolebox.gateway-config/1"

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
_FRAMING_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "te"}
)

BackendName = Literal["none", "script", "openai"]


class ConfigError(ValueError):
    """The configuration is not one that this gateway runs."""


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """Where the model is: `https://host[:port]/prefix`."""

    https: bool
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.https else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model route. `models` is only what `GET /v1/models` lists; `model` is the pin."""

    backend: BackendName
    model: str
    models: tuple[str, ...]
    script: Script | None = None
    base_url: BaseUrl | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """Upper limits of a run; None is no limit."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class EgressConfig:
    mode: Literal["none"] = "none"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost. Times are seconds, sizes bytes."""

    max_connections: int = 64
    max_header_bytes: int = 65_536
    max_headers: int = 200
    max_body_bytes: int = 33_554_432
    header_timeout_s: float = 10
    idle_timeout_s: float = 300
    connect_timeout_s: float = 10
    total_timeout_s: float = 1800


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    run: str
    socket: str
    model: ModelConfig
    budget: BudgetConfig
    egress: EgressConfig
    limits: Limits


def parse_config(line: bytes) -> GatewayConfig:
    """Read the first line of stdin.

    Raises:
        ConfigError: It is not JSON, or a key is unknown, missing or of a wrong type.
    """
    try:
        raw = json.loads(line.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except ConfigError:
        raise
    except (ValueError, RecursionError):
        raise ConfigError("the first line of stdin is not one JSON object") from None
    top = _table(raw, "config", required={"_schema", "run", "socket", "model", "egress"},
                 optional={"budget", "limits"})  # fmt: skip
    if top["_schema"] != SCHEMA:
        raise ConfigError(f"config._schema: expected {SCHEMA!r}")
    return GatewayConfig(
        run=_text(top["run"], "config.run", limit=128),
        socket=_socket_path(top["socket"]),
        model=_model(top["model"]),
        budget=_budget(top.get("budget")),
        egress=_egress(top["egress"]),
        limits=_limits(top.get("limits")),
    )


def _model(raw: object) -> ModelConfig:
    where = "config.model"
    table = _table(raw, where, required={"backend", "model"},
                   optional={"script", "base_url", "headers", "models"})  # fmt: skip
    backend = table["backend"]
    if backend not in ("none", "script", "openai"):
        raise ConfigError(f'{where}.backend: expected "none", "script" or "openai"')
    model = _text(table["model"], f"{where}.model", limit=256)
    models = _text_list(table.get("models") or [], f"{where}.models") or (model,)
    if model not in models:
        raise ConfigError(f"{where}.models: does not list the pinned model")
    given = {key for key in ("script", "base_url") if table.get(key) is not None}
    wanted = {"none": set(), "script": {"script"}, "openai": {"base_url"}}[backend]
    if given != wanted:
        raise ConfigError(f"{where}: backend {backend!r} takes {sorted(wanted) or 'neither'}"
                          " of script and base_url")  # fmt: skip
    headers = _headers(table.get("headers"), f"{where}.headers")
    if headers and backend != "openai":
        raise ConfigError(f"{where}.headers: only the openai backend takes headers")
    return ModelConfig(
        backend=cast(BackendName, backend),
        model=model,
        models=models,
        script=_script(table["script"]) if "script" in wanted else None,
        base_url=_base_url(table["base_url"], f"{where}.base_url")
        if "base_url" in wanted
        else None,
        headers=headers,
    )


def _script(raw: object) -> Script:
    try:
        return parse_script(raw)
    except ScriptError as error:
        raise ConfigError(f"config.model.script: {error}") from None


def _base_url(raw: object, where: str) -> BaseUrl:
    text = _text(raw, where, limit=2048)
    problem = ConfigError(f"{where}: expected http(s)://host[:port]/path and nothing more")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise problem from None
    plain = re.fullmatch(r"[\x21-\x7e]+", text) is not None and "\\" not in text
    extra = parts.username is not None or parts.password is not None or "?" in text or "#" in text
    if parts.scheme not in ("http", "https") or not parts.hostname or extra or not plain:
        raise problem
    https = parts.scheme == "https"
    return BaseUrl(https, parts.hostname, port or (443 if https else 80), parts.path.rstrip("/"))


def _headers(raw: object, where: str) -> tuple[tuple[str, str], ...]:
    if raw is None:
        return ()
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected an object of strings")
    for name, value in raw.items():
        if not _HEADER_NAME.fullmatch(name) or name in _FRAMING_HEADERS:
            raise ConfigError(f"{where}: a name is not a lower-case header that may be set")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise ConfigError(f"{where}: a value is not printable ASCII on one line")
    return tuple(raw.items())


def _budget(raw: object) -> BudgetConfig:
    where = "config.budget"
    table = _table({} if raw is None else raw, where, optional=set(BudgetConfig.__slots__))
    for key, value in table.items():
        if value is not None and (type(value) is not int or value < 0):
            raise ConfigError(f"{where}.{key}: expected null or a whole number from 0")
    return BudgetConfig(**table)


def _egress(raw: object) -> EgressConfig:
    table = _table(raw, "config.egress", required={"mode"}, optional={"allow"})
    if table["mode"] != "none":
        raise ConfigError('config.egress.mode: expected "none"')
    if table.get("allow") not in (None, []):
        raise ConfigError('config.egress.allow: must be empty with mode "none"')
    return EgressConfig()


def _limits(raw: object) -> Limits:
    where = "config.limits"
    table = _table({} if raw is None else raw, where, optional=set(Limits.__slots__))
    for key, value in table.items():
        numbers: tuple[type, ...] = (int, float) if key.endswith("_s") else (int,)
        if type(value) not in numbers or not 0 < value <= 2**40:
            raise ConfigError(f"{where}.{key}: expected a number above 0")
    return Limits(**table)


def _socket_path(raw: object) -> str:
    text = _text(raw, "config.socket", limit=107)  # sun_path of Linux, with its final NUL
    if not text.startswith("/"):
        raise ConfigError("config.socket: expected an absolute path")
    return text


def _table(
    raw: object, where: str, *, required: set[str] | None = None, optional: set[str] | None = None
) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected an object")
    needed = required or set()
    for key in sorted(needed - raw.keys()):
        raise ConfigError(f"{where}.{key}: missing")
    for key in sorted(raw.keys() - needed - (optional or set())):
        raise ConfigError(f"{where}.{ascii(key[:64])[1:-1]}: unknown key")
    return raw


def _text(raw: object, where: str, *, limit: int) -> str:
    if not isinstance(raw, str) or not 0 < len(raw) <= limit or not raw.isprintable():
        raise ConfigError(f"{where}: expected 1 to {limit} printable characters")
    return raw


def _text_list(raw: object, where: str) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ConfigError(f"{where}: expected a list of strings")
    return tuple(_text(item, f"{where}[{n}]", limit=256) for n, item in enumerate(raw))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ConfigError("a JSON object of the configuration names a key twice")
    return table
