"""What a model request may ask for.

The model provider is itself a machine on the internet that does what a request
says. Without these rules an agent could leave through it: a hosted tool or a
remote MCP server (the provider calls an address of the agent's choice), a remote
image or file URL (the provider fetches it), stored responses, prompts and files
(state of other runs under the same key), background answers (never seen to end,
so never counted). Top-level keys are a list of what Codex 0.169.0 sends and
harmless neighbours; a key that is not on it is refused by name.

`client_metadata` is taken out before a request leaves: Codex writes the git
origin, the commit and the working directory into it, as it does into the header
`x-codex-turn-metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

MAX_VALUES: Final = 1_000_000
"""JSON values of one body; bounds the memory of decoding it (about 100 bytes each)."""

_KEYS: Final = frozenset(
    {
        "client_metadata",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    }
)
_DROPPED: Final = frozenset({"client_metadata"})
_TOOLS: Final = frozenset({"function", "custom", "local_shell", "namespace", "tool_search"})
_REMOTE_URLS: Final = ("image_url", "file_url", "audio_url", "video_url")
_STORED: Final = ("file_id", "vector_store_ids", "container_id", "server_url")


class ModelDenied(Exception):
    """A model request is refused; `code` is what Codex shows, `rule` goes to the audit."""

    def __init__(self, code: str, rule: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.rule = rule
        self.message = message


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that may go to the model: `raw` as received, `clean` as it leaves."""

    model: str
    raw: bytes
    clean: bytes
    headers: tuple[tuple[str, str], ...]


def asked_model(body: dict[str, Any]) -> str | None:
    model = body.get("model")
    return model if isinstance(model, str) else None


def decode(raw: bytes) -> dict[str, Any]:
    """Decode a request's body.

    Raises:
        ModelDenied: It is not one JSON object, names a key twice, or is too intricate.
    """
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ModelDenied("rolebox_body", "model.body", "the request holds too many JSON values")
    try:
        body = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ModelDenied("rolebox_body", "model.body", "the request is not one plain JSON object")
    return body


def check(
    body: dict[str, Any], raw: bytes, headers: tuple[tuple[str, str], ...], pinned: str
) -> ModelRequest:
    """Hold a decoded request against the rules.

    Raises:
        ModelDenied: Names the rule that it breaks.
    """
    model = asked_model(body)
    if model != pinned:
        raise ModelDenied(
            "rolebox_model", "model.pinned", f"this run is pinned to the model {pinned}"
        )
    for key in body.keys() - _KEYS:
        raise ModelDenied(
            "rolebox_key", "model.key", f"the request key {key[:64]!a} is not allowed"
        )
    if body.get("stream") is not True:
        raise ModelDenied("rolebox_stream", "model.stream", "only streamed answers are served")
    _check_tools(body.get("tools"))
    _check_tools([body["tool_choice"]] if isinstance(body.get("tool_choice"), dict) else None)
    for part in _tables(body.get("input")):
        _check_part(part)
    clean = {key: value for key, value in body.items() if key not in _DROPPED}
    try:
        sent = json.dumps(clean, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ModelDenied(
            "rolebox_body", "model.body", "the request holds a number out of range"
        ) from None
    return ModelRequest(pinned, raw, sent, headers)


def _check_tools(tools: object) -> None:
    if tools is None:
        return
    for tool in tools if isinstance(tools, list) else [tools]:
        table: dict[str, Any] = tool if isinstance(tool, dict) else {}
        kind = table.get("type")
        hosted = kind == "tool_search" and table.get("execution") != "client"
        if kind == "allowed_tools":
            _check_tools(table.get("tools"))
        elif not isinstance(kind, str) or kind not in _TOOLS or hosted:
            raise ModelDenied(
                "rolebox_tool",
                "model.hosted-tool",
                f"the tool type {str(kind)[:64]!a} would run at the provider",
            )
        elif kind == "namespace":
            _check_tools(table.get("tools"))


def _check_part(part: dict[str, Any]) -> None:
    if part.get("type") == "item_reference":
        raise ModelDenied("rolebox_stored", "model.stored", "items stored at the provider")
    if isinstance(part.get("tools"), list):
        _check_tools(part["tools"])
    for key in _REMOTE_URLS:
        value = part.get(key)
        url = value.get("url") if isinstance(value, dict) else value
        if isinstance(url, str) and not url.startswith("data:"):
            raise ModelDenied(
                "rolebox_remote", "model.remote-url", f"{key}: the provider would fetch it"
            )
    for key in _STORED:
        if isinstance(part.get(key), str | list):
            raise ModelDenied("rolebox_stored", "model.stored", f"{key}: stored at the provider")


def _tables(value: object) -> Iterator[dict[str, Any]]:
    """Every object anywhere in a JSON value."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is named twice")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(name)
