"""How a run ended, judged once, from everything that is known.

Exit code 0 of Codex does not mean that work was done (facts-codex.md, 2): the
terminal event and the exit status are both demanded, the gateway's word about
the budget outranks Codex's, and what a limit or a rule refused is never `done`.
"""

from __future__ import annotations

import json

from runner.evidence.store import RunFolder
from runner.model.errors import (
    AgentFailed,
    BudgetSpent,
    InfrastructureError,
    Interrupted,
    Refused,
    RoleboxError,
    TimedOut,
)
from runner.model.plan import Materials
from runner.model.state import Status, status_of
from runner.session.record import Findings

_TAIL = 2000


def verdict(
    findings: Findings, failure: RoleboxError | None, folder: RunFolder, materials: Materials
) -> tuple[Status, RoleboxError | None]:
    """Return the last status and why it is not `done`."""
    problem = failure or _agent_problem(findings, folder) or _result_problem(findings, materials)
    if problem is None:
        return "done", None
    if findings.gateway.budget and not isinstance(problem, (Refused, Interrupted, TimedOut)):
        problem = BudgetSpent(
            f"the budget is spent ({findings.gateway.budget})",
            why="the gateway refused the next request",
            mend="give more with --max-tokens, or a smaller task",
        )
    return status_of(problem), problem


def _agent_problem(findings: Findings, folder: RunFolder) -> RoleboxError | None:
    code, events = findings.exit_code, findings.events
    if findings.plan.command.kind == "exec":
        if code == 0:
            return None
        return AgentFailed(f"the command ended with exit code {code}")
    if events.terminal == "turn.failed":
        return AgentFailed(
            "Codex failed",
            why=_why(findings, _plain(events.error or "it gave no reason")),
            mend=_mend(findings),
        )
    if code != 0:
        return AgentFailed(
            f"Codex ended with exit code {code}",
            why=_why(findings, _last_words(folder) or "it said nothing"),
            mend=_mend(findings),
        )
    if events.terminal != "turn.completed":
        return AgentFailed(
            "Codex ended without completing its turn",
            why="exit code 0, but no turn.completed in its events",
        )
    if findings.plan.gateway.backend != "none" and findings.gateway.requests == 0:
        return InfrastructureError(
            "Codex reports a completed turn, but the gateway saw no model request",
            why="the event stream and the gateway's record do not agree",
        )
    return None


def _result_problem(findings: Findings, materials: Materials) -> RoleboxError | None:
    if findings.patch is not None and findings.patch.violations:
        first = findings.patch.violations[0]
        return Refused(
            f"the run changed what it must not: {first.get('path')} ({first.get('kind')})",
            why=first.get("detail", ""),
            mend="the change is not in the patch; see: rolebox show last",
        )
    schema = materials.files.get("rolebox/schema.json")
    if schema is not None:
        return _schema_problem(schema, findings.events.last_message)
    return None


def _schema_problem(schema: bytes, message: str | None) -> RoleboxError | None:
    import jsonschema  # 80 ms: only runs with a schema pay for it
    import referencing
    from jsonschema.validators import validator_for

    try:
        value, demanded = json.loads(message or ""), json.loads(schema)
        kind = validator_for(demanded, default=jsonschema.Draft202012Validator)
        kind.check_schema(demanded)
        # An empty registry: a schema that refers elsewhere never makes the host fetch it.
        kind(demanded, registry=referencing.Registry()).validate(value)
    except referencing.exceptions.Unresolvable as error:
        return AgentFailed("the output schema refers to what it does not hold", why=str(error))
    except (ValueError, RecursionError):
        return AgentFailed("the last message is not the JSON that the output schema demands")
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the top"
        return AgentFailed(
            "the last message does not meet the output schema",
            why=f"{where}: {error.message[:500]}",
        )
    except jsonschema.SchemaError as error:
        return AgentFailed("the output schema itself is not valid", why=error.message)
    return None


def _why(findings: Findings, words: str) -> str:
    error = findings.gateway.last_error
    return f"{words} (the model answered {error})" if error else words


def _plain(words: str) -> str:
    """Return the message of an error that the provider wrote as JSON; other words as they are."""
    try:
        message = json.loads(words)["error"]["message"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return words
    return message if isinstance(message, str) and message else words


def _mend(findings: Findings) -> str:
    """Return what to do about the model's last answer, by its HTTP status."""
    status = (findings.gateway.last_error or "").partition(":")[0]
    if status in ("401", "403"):
        return "check the key and what it may use"
    if status == "429":
        return "wait, or ask the provider for more; the run can be repeated as it is"
    if status.startswith("5"):
        return "the provider failed; the run can be repeated as it is"
    return ""


def _last_words(folder: RunFolder) -> str:
    try:
        data = (folder.path / "stderr.log").read_bytes()[-_TAIL:]
    except OSError:
        return ""
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
