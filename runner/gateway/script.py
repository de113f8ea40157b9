"""A model script: the offline model, parsed and checked.

    {"turns": [TURN, ...]}

The n-th model request gets the n-th turn, whatever the request says. A request
that the client retries (after an `error`, `hang` or `drop`) consumes the next
turn: write the turn that the retry shall get behind it.

A TURN is an object, or a list of them that makes one response of several items:

    think: text                 a reasoning item with that summary
    shell: command              a call of `exec_command`
      yield_time_ms: 250-30000  beside shell: how long Codex waits for its output
    patch: text                 a call of `apply_patch`
    say: text                   a message; without a call beside it, the turn ends
    usage: {input_tokens, output_tokens}   beside any of these: not the estimate

Several of them in one object keep the order above, so that canonical JSON, which
sorts keys, means the same. Faults stand alone in a turn:

    error: {status, message}    an HTTP error with a body as the provider writes it
    hang: seconds               the headers, silence, then a closed connection
    drop: true                  the start of a stream, then a closed connection
    raw: text                   this text as the whole event stream

Both sides call `parse_script`: the host when it plans, the gateway when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

MAX_TURNS: Final = 10_000
MAX_TEXT: Final = 8 * 1024 * 1024

_ITEM_KEYS: Final = ("think", "shell", "patch", "say")
_FAULT_KEYS: Final = ("error", "hang", "drop", "raw")


class ScriptError(ValueError):
    """A model script says something that it cannot mean; names the turn and the key."""


@dataclass(frozen=True, slots=True)
class Think:
    text: str


@dataclass(frozen=True, slots=True)
class Shell:
    command: str
    yield_time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    text: str


@dataclass(frozen=True, slots=True)
class Say:
    text: str


Item = Think | Shell | Patch | Say


@dataclass(frozen=True, slots=True)
class Reply:
    """Items of one response; `usage` is (input, output) tokens or None for the estimate."""

    items: tuple[Item, ...]
    usage: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Error:
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Hang:
    seconds: float


@dataclass(frozen=True, slots=True)
class Drop:
    pass


@dataclass(frozen=True, slots=True)
class Raw:
    text: str


Turn = Reply | Error | Hang | Drop | Raw


@dataclass(frozen=True, slots=True)
class Script:
    turns: tuple[Turn, ...]


def parse_script(raw: object) -> Script:
    """Check a decoded model script.

    Raises:
        ScriptError: Names the turn (counted from 1) and the key.
    """
    if not isinstance(raw, dict) or raw.keys() != {"turns"} or not isinstance(raw["turns"], list):
        raise ScriptError('expected an object with the one key "turns", a list')
    if not 0 < len(raw["turns"]) <= MAX_TURNS:
        raise ScriptError(f"turns: expected 1 to {MAX_TURNS} turns")
    return Script(tuple(_turn(turn, f"turn {n}") for n, turn in enumerate(raw["turns"], start=1)))


def _turn(raw: object, where: str) -> Turn:
    if isinstance(raw, dict):
        faults = [key for key in _FAULT_KEYS if key in raw]
        if faults:
            if len(raw) > 1:
                raise ScriptError(f"{where}: {faults[0]!r} must stand alone in its turn")
            return _fault(faults[0], raw[faults[0]], where)
        return _reply([raw], where)
    if isinstance(raw, list) and raw:
        return _reply(raw, where)
    raise ScriptError(f"{where}: expected an object, or a list of one or more objects")


def _reply(parts: list[object], where: str) -> Reply:
    items: list[Item] = []
    usage: tuple[int, int] | None = None
    for part in parts:
        if not isinstance(part, dict):
            raise ScriptError(f"{where}: expected an object in the list")
        if fault := next((key for key in _FAULT_KEYS if key in part), None):
            raise ScriptError(f"{where}: {fault!r} must stand alone in its turn, not in a list")
        for key in part:
            if key not in (*_ITEM_KEYS, "yield_time_ms", "usage"):
                raise ScriptError(f"{where}: unknown key {key[:64]!r}")
        found = [_item(key, part, where) for key in _ITEM_KEYS if key in part]
        if not found:
            raise ScriptError(f"{where}: needs one of {', '.join(_ITEM_KEYS + _FAULT_KEYS)}")
        if "yield_time_ms" in part and "shell" not in part:
            raise ScriptError(f"{where}: 'yield_time_ms' goes beside 'shell' only")
        if "usage" in part:
            if usage is not None:
                raise ScriptError(f"{where}: 'usage' is given twice")
            usage = _usage(part["usage"], where)
        items += found
    return Reply(tuple(items), usage)


def _item(key: str, part: dict[str, Any], where: str) -> Item:
    text = _text(part[key], where, key)
    if key == "think":
        return Think(text)
    if key == "patch":
        return Patch(text)
    if key == "say":
        return Say(text)
    if "yield_time_ms" not in part:
        return Shell(text)
    return Shell(text, _whole(part["yield_time_ms"], where, "yield_time_ms", 250, 30_000))


def _fault(key: str, value: object, where: str) -> Turn:
    if key == "error":
        if not isinstance(value, dict) or value.keys() != {"status", "message"}:
            raise ScriptError(f"{where}: 'error' needs exactly 'status' and 'message'")
        status = _whole(value["status"], where, "error.status", 400, 599)
        return Error(status, _text(value["message"], where, "error.message"))
    if key == "hang":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
            raise ScriptError(f"{where}: 'hang' needs seconds, above 0 and up to 3600")
        return Hang(value)
    if key == "drop":
        if value is not True:
            raise ScriptError(f"{where}: 'drop' takes only true")
        return Drop()
    return Raw(_text(value, where, "raw"))


def _usage(raw: object, where: str) -> tuple[int, int]:
    if not isinstance(raw, dict) or raw.keys() != {"input_tokens", "output_tokens"}:
        raise ScriptError(f"{where}: 'usage' needs exactly 'input_tokens' and 'output_tokens'")
    return (
        _whole(raw["input_tokens"], where, "usage.input_tokens", 0, 10**9),
        _whole(raw["output_tokens"], where, "usage.output_tokens", 0, 10**9),
    )


def _whole(raw: object, where: str, key: str, low: int, high: int) -> int:
    if type(raw) is not int or not low <= raw <= high:
        raise ScriptError(f"{where}: {key!r} needs a whole number from {low} to {high}")
    return raw


def _text(raw: object, where: str, key: str) -> str:
    if not isinstance(raw, str) or len(raw) > MAX_TEXT:
        raise ScriptError(f"{where}: {key!r} needs text of up to {MAX_TEXT} characters")
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise ScriptError(f"{where}: {key!r} holds a lone surrogate") from None
    return raw
