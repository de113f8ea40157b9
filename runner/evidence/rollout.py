"""Read Codex's session record (rollout) for what its event stream leaves out.

It comes from the agent's CODEX_HOME, so it is a statement of the agent's, read
with care and shown as such: bounded, tolerant, no line trusted to be whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.model.provenance import CommandsRecord, RefusedCommand

_MAX_LINE = 4 << 20
_KEPT = 100
_MARK = "rejected: "


def read_commands(path: Path) -> CommandsRecord:
    """Count the tool calls of a rollout and name those that the rules refused."""
    asked: dict[str, str] = {}
    calls = total = 0
    refused: list[RefusedCommand] = []
    with path.open("rb") as stream:
        for line in iter(lambda: stream.readline(_MAX_LINE), b""):
            payload = _response_item(line)
            kind, call = payload.get("type"), str(payload.get("call_id", ""))
            if kind in ("function_call", "custom_tool_call"):
                calls += 1
                asked[call] = _command(payload)
            elif kind in ("function_call_output", "custom_tool_call_output"):
                reason = _refusal(payload.get("output"))
                if reason is not None:
                    total += 1
                    if len(refused) < _KEPT:
                        command = asked.get(call, "")
                        refused.append(RefusedCommand(command=command[:500], reason=reason[:500]))
    return CommandsRecord(calls=calls, refused_total=total, refused=tuple(refused))


def _response_item(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or record.get("type") != "response_item":
        return {}
    payload = record.get("payload")
    return payload if isinstance(payload, dict) else {}


def _command(payload: dict[str, Any]) -> str:
    arguments = payload.get("arguments", payload.get("input", ""))
    try:
        value = json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return str(arguments)
    command = value.get("cmd") if isinstance(value, dict) else None
    return command if isinstance(command, str) else str(arguments)


def _refusal(output: Any) -> str | None:
    """Return the rule's words from `exec_command failed: … Rejected("… rejected: WORDS")`."""
    if not isinstance(output, str) or not output.startswith("exec_command failed"):
        return None
    if "Rejected(" not in output or _MARK not in output:
        return None
    return output.rpartition(_MARK)[2].rstrip('") }\n').rstrip("\\")
