"""Read Codex execpolicy `.rules` files as data.

Codex reads them as Starlark. We accept the literal subset, `prefix_rule(...)`
calls with literal keyword arguments, which is also Python's grammar: so one
file serves Codex's own rules folder, the managed requirements file and our
checks, and a rule that computes something is refused instead of guessed at.

Rules are a guard-rail, not a boundary: `sh -c`, `env` and others walk around
them (facts-codex.md). The container is the boundary.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, Literal, get_args

from runner.model.errors import UsageError

Decision = Literal["allow", "prompt", "forbidden"]
_KEYS = {"pattern", "decision", "justification", "match", "not_match"}


@dataclass(frozen=True)
class PrefixRule:
    """One rule: a command whose tokens begin with `pattern` gets `decision`.

    Attributes:
        pattern: A tuple a token; more than one entry are alternatives.
        match: Example commands that the rule must catch.
        not_match: Example commands that it must leave alone.
    """

    pattern: tuple[tuple[str, ...], ...]
    decision: Decision
    justification: str
    match: tuple[str, ...]
    not_match: tuple[str, ...]

    def as_requirement(self) -> dict[str, Any]:
        """Return the form of `requirements.toml`'s `[rules] prefix_rules`."""
        pattern: list[dict[str, Any]] = [
            {"token": token[0]} if len(token) == 1 else {"any_of": list(token)}
            for token in self.pattern
        ]
        return {
            "pattern": pattern,
            "decision": self.decision,
            "justification": self.justification,
        }


def parse_rules(text: str, origin: str) -> tuple[PrefixRule, ...]:
    """Return the rules of one file.

    Raises:
        UsageError: Not the literal subset, with the line.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{origin} is not a rules file", why=str(error)) from None
    return tuple(_rule(node, origin) for node in module.body)


def _rule(node: ast.stmt, origin: str) -> PrefixRule:
    where = f"{origin}:{node.lineno}"
    if not (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "prefix_rule"
        and not node.value.args
    ):
        raise UsageError(
            f"{where}: only prefix_rule(name = literal, …) calls are read",
            mend="write the rule out with literal arguments",
        )
    values: dict[str, Any] = {}
    for keyword in node.value.keywords:
        if keyword.arg in values:
            raise UsageError(f"{where}: {keyword.arg} is given twice")
        try:
            values[keyword.arg or "**"] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise UsageError(f"{where}: {keyword.arg} is not a literal") from None
    if unknown := set(values) - _KEYS:
        raise UsageError(f"{where}: unknown argument {sorted(unknown)[0]!r}")
    decision = values.get("decision", "allow")
    if decision not in get_args(Decision):
        raise UsageError(f"{where}: decision {decision!r} is none of {get_args(Decision)}")
    justification = values.get("justification", "")
    if not isinstance(justification, str):
        raise UsageError(f"{where}: justification is a text")
    pattern = values.get("pattern")
    if not isinstance(pattern, list) or not pattern:
        raise UsageError(f"{where}: pattern must be a list of tokens")
    return PrefixRule(
        pattern=tuple(_token(item, where) for item in pattern),
        decision=decision,
        justification=justification,
        match=_examples(values.get("match", []), where),
        not_match=_examples(values.get("not_match", []), where),
    )


def _token(item: Any, where: str) -> tuple[str, ...]:
    token = [item] if isinstance(item, str) else item
    if not isinstance(token, list) or not token or not all(isinstance(t, str) for t in token):
        raise UsageError(f"{where}: a pattern holds texts or lists of texts")
    return tuple(token)


def _examples(items: Any, where: str) -> tuple[str, ...]:
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UsageError(f"{where}: match and not_match are lists of texts")
    return tuple(items)
