"""Codex's event stream (`codex exec --json`), typed; facts-codex.md, "Events".

The stream is the agent's own story: useful to look at, never the whole truth
(the gateway's record of the model traffic is). An event or an item that we do
not know is kept and counted, never dropped.
"""

from __future__ import annotations

import functools
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class _Loose(BaseModel):
    """Frozen; keys that a newer Codex adds are left to the file, which is byte for byte."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


#: What the provenance record can say exactly; a larger claim makes its event unknown.
Tokens = Annotated[int, Field(ge=0, lt=1 << 53)]


class Usage(_Loose):
    """Tokens of one turn."""

    input_tokens: Tokens = 0
    cached_input_tokens: Tokens = 0
    cache_write_input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    reasoning_output_tokens: Tokens = 0


class AgentMessage(_Loose):
    type: Literal["agent_message"]
    id: str = ""
    text: str = ""


class Reasoning(_Loose):
    type: Literal["reasoning"]
    id: str = ""
    text: str = ""


class CommandExecution(_Loose):
    """A command; one that still runs at the end has a start and no completion."""

    type: Literal["command_execution"]
    id: str = ""
    command: str = ""
    aggregated_output: str = ""
    exit_code: int | None = None
    status: str = ""


class Change(_Loose):
    path: str
    kind: str = ""


class FileChange(_Loose):
    """An applied patch; it names the paths and carries no diff."""

    type: Literal["file_change"]
    id: str = ""
    changes: tuple[Change, ...] = ()
    status: str = ""


class ErrorItem(_Loose):
    type: Literal["error"]
    id: str = ""
    message: str = ""


class OtherItem(_Loose):
    """An item of a kind that we do not read further."""

    type: str = ""


Item = Annotated[
    AgentMessage | Reasoning | CommandExecution | FileChange | ErrorItem,
    Field(discriminator="type"),
]


class ThreadStarted(_Loose):
    type: Literal["thread.started"]
    thread_id: str = ""


class TurnStarted(_Loose):
    type: Literal["turn.started"]


class ItemEvent(_Loose):
    type: Literal["item.started", "item.updated", "item.completed"]
    item: Item | OtherItem


class TurnCompleted(_Loose):
    type: Literal["turn.completed"]
    usage: Usage = Usage()


class Failure(_Loose):
    message: str = ""


class TurnFailed(_Loose):
    type: Literal["turn.failed"]
    error: Failure = Failure()


class ErrorEvent(_Loose):
    """Often only a retry: trust `turn.failed` and `turn.completed`."""

    type: Literal["error"]
    message: str = ""


class UnknownEvent(_Loose):
    """A line that is JSON but no event that we know, or no JSON at all (`type` empty)."""

    type: str = ""


Event = (
    ThreadStarted | TurnStarted | ItemEvent | TurnCompleted | TurnFailed | ErrorEvent | UnknownEvent
)


class _KnownItemEvent(ItemEvent):
    item: Item


# Two readers: the first knows every tag and is quick (the tag is read by the validator
# itself); what it refuses goes to the second, which keeps what nobody knows.
@functools.cache
def _readers() -> tuple[TypeAdapter[Event], TypeAdapter[Event]]:
    quick: TypeAdapter[Event] = TypeAdapter(
        Annotated[
            ThreadStarted | TurnStarted | _KnownItemEvent | TurnCompleted | TurnFailed | ErrorEvent,
            Field(discriminator="type"),
        ]
    )
    tolerant: TypeAdapter[Event] = TypeAdapter(
        Annotated[ItemEvent | UnknownEvent, Field(union_mode="left_to_right")]
    )
    return quick, tolerant


def parse_event(line: bytes) -> Event:
    """Read one line; never raises: what is no known event comes back as `UnknownEvent`."""
    quick, tolerant = _readers()
    try:
        return quick.validate_json(line)
    except ValidationError:
        pass
    try:
        return tolerant.validate_json(line)
    except ValidationError:
        return UnknownEvent(type="")
