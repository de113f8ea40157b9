"""Where answers come from, and the offline one: a model script.

A backend gives the start of an answer, then its bytes as they come. The exchange
around it (checks, budget, audit) is the same for all of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from . import sse
from .budget import estimate
from .config import Limits, ModelConfig
from .modelrules import ModelDenied, ModelRequest
from .script import Drop, Error, Hang, Item, Patch, Raw, Reply, Say, Script, Shell, Think

EVENT_STREAM = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))
JSON_BODY = (("content-type", "application/json"),)

_DELTA = 256


class Broken(Exception):
    """An answer ended before its end; the text is fit for the audit and holds no secret."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom the gateway talked to; None where it talked to nobody."""

    host: str | None = None
    port: int | None = None
    path: str | None = None
    address: str | None = None
    sni: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The start of an answer. Iterating `chunks` may raise Broken; always call `close`."""

    status: int
    headers: tuple[tuple[str, str], ...]
    chunks: AsyncGenerator[bytes, None]
    peer: Peer = Peer()
    error: str | None = None
    close: Callable[[], None] = lambda: None


class Backend(Protocol):
    def claim(self) -> int:
        """Take the next place; refuse a request that has none.

        Raises:
            ModelDenied: There is no answer for another request.
        """
        ...

    async def open(self, request: ModelRequest, n: int) -> Answer: ...


def error_body(message: str, kind: str, code: str | None) -> bytes:
    """An error as the provider writes it; Codex shows the message."""
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


class NoBackend:
    """A run without a model."""

    def claim(self) -> int:
        raise ModelDenied("rolebox_no_model", "model.none", "this run has no model route")

    async def open(self, request: ModelRequest, n: int) -> Answer:
        raise Broken("no backend")


class ScriptBackend:
    """Answers the n-th request with the n-th turn; ids count requests, so runs are alike."""

    def __init__(self, script: Script) -> None:
        self._turns = script.turns
        self._claimed = 0

    def claim(self) -> int:
        if self._claimed >= len(self._turns):
            said = f"the model script has {len(self._turns)} turns, and all are used"
            raise ModelDenied("rolebox_script_exhausted", "model.script-exhausted", said)
        self._claimed += 1
        return self._claimed

    async def open(self, request: ModelRequest, n: int) -> Answer:
        turn = self._turns[n - 1]
        match turn:
            case Error(status, message):
                body = error_body(message, "script_error", None)
                return Answer(status, JSON_BODY, _each([body]), error="script: error")
            case Raw(text):
                return Answer(200, EVENT_STREAM, _each([text.encode()]))
            case Hang(seconds):
                return Answer(200, EVENT_STREAM, _hang(seconds))
            case Drop():
                return Answer(200, EVENT_STREAM, _drop(request.model, n))
            case Reply():
                size = len(request.raw)
                return Answer(200, EVENT_STREAM, _each(reply_events(turn, request.model, n, size)))


async def _each(chunks: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk


async def _hang(seconds: float) -> AsyncGenerator[bytes, None]:
    await asyncio.sleep(seconds)
    raise Broken("script: hang")
    yield b""


async def _drop(model: str, n: int) -> AsyncGenerator[bytes, None]:
    head = _response(model, n, "in_progress", [], None)
    yield sse.encode({"type": "response.created", "sequence_number": 0, "response": head})
    raise Broken("script: drop")


def reply_events(reply: Reply, model: str, n: int, request_bytes: int) -> Iterator[bytes]:
    """Yield the events of a scripted reply, as the Responses API orders them."""
    sequence = 0
    made = 0
    done: list[dict[str, Any]] = []

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal sequence, made
        data = sse.encode({"type": kind, "sequence_number": sequence, **fields})
        sequence += 1
        made += len(data)
        return data

    yield event("response.created", response=_response(model, n, "in_progress", [], None))
    for index, item in enumerate(reply.items):
        started, full = _item(item, n, index)
        at = {"item_id": full["id"], "output_index": index}
        yield event("response.output_item.added", output_index=index, item=started)
        for kind, fields in _progress(item, full):
            yield event(kind, **at, **fields)
        yield event("response.output_item.done", output_index=index, item=full)
        done.append(full)
    given, output = reply.usage or estimate(request_bytes, made)
    usage = {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + output,
    }
    yield event("response.completed", response=_response(model, n, "completed", done, usage))


def _response(
    model: str, n: int, status: str, output: list[dict[str, Any]], usage: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "id": f"resp_script_{n:04}",
        "object": "response",
        "created_at": 0,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": output,
        "usage": usage,
    }


def _item(item: Item, n: int, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an output item as it starts and as it ends."""
    place = f"script_{n:04}_{index}"
    match item:
        case Think(text):
            base: dict[str, Any] = {"type": "reasoning", "id": f"rs_{place}"}
            return base | {"summary": []}, base | {
                "summary": [{"type": "summary_text", "text": text}]
            }
        case Say(text):
            base = {"type": "message", "id": f"msg_{place}", "role": "assistant"}
            content = [{"type": "output_text", "text": text, "annotations": []}]
            return (
                base | {"status": "in_progress", "content": []},
                base | {"status": "completed", "content": content},
            )
        case Shell(command, wait):
            arguments = {"cmd": command} | ({} if wait is None else {"yield_time_ms": wait})
            base = {"type": "function_call", "id": f"fc_{place}", "call_id": f"call_{place}",
                    "name": "exec_command"}  # fmt: skip
            field, value = "arguments", json.dumps(arguments, ensure_ascii=False)
        case Patch(text):
            base = {"type": "custom_tool_call", "id": f"ctc_{place}", "call_id": f"call_{place}",
                    "name": "apply_patch"}  # fmt: skip
            field, value = "input", text
    return (
        base | {"status": "in_progress", field: ""},
        base | {"status": "completed", field: value},
    )


def _progress(item: Item, full: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what comes between the start and the end of an item."""
    match item:
        case Think(text):
            part: dict[str, Any] = {"type": "summary_text", "text": ""}
            at: dict[str, Any] = {"summary_index": 0}
            yield "response.reasoning_summary_part.added", {**at, "part": part}
            for delta in _pieces(text):
                yield "response.reasoning_summary_text.delta", {**at, "delta": delta}
            yield "response.reasoning_summary_text.done", {**at, "text": text}
            yield "response.reasoning_summary_part.done", {**at, "part": full["summary"][0]}
        case Say(text):
            part = {"type": "output_text", "text": "", "annotations": []}
            at = {"content_index": 0}
            yield "response.content_part.added", {**at, "part": part}
            for delta in _pieces(text):
                yield "response.output_text.delta", {**at, "delta": delta}
            yield "response.output_text.done", {**at, "text": text}
            yield "response.content_part.done", {**at, "part": full["content"][0]}
        case Shell():
            for delta in _pieces(full["arguments"]):
                yield "response.function_call_arguments.delta", {"delta": delta}
            yield "response.function_call_arguments.done", {"arguments": full["arguments"]}
        case Patch(text):
            for delta in _pieces(text):
                yield "response.custom_tool_call_input.delta", {"delta": delta}
            yield "response.custom_tool_call_input.done", {"input": text}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _DELTA):
        yield text[start : start + _DELTA]


def backend_for(config: ModelConfig, limits: Limits) -> Backend:
    """Build the configured backend; TLS is loaded only for one that needs it."""
    if config.script is not None:
        return ScriptBackend(config.script)
    if config.base_url is not None:
        from .upstream import OpenAIBackend

        return OpenAIBackend(config.base_url, config.headers, limits)
    return NoBackend()
