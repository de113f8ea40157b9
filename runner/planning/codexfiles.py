"""Render what Codex reads: config.toml, requirements.toml, rules, all read-only in /etc/codex.

`requirements.toml` is Codex's managed file: it wins over flags, CODEX_HOME and
the repository, so nothing that the agent can write loosens a run. Codex ignores
typos in it silently (facts-codex.md, 6), so it is rendered here from values
that were checked, never taken from a user's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from runner.model.errors import UsageError
from runner.model.plan import RELAY_PORT, WORKDIR
from runner.planning.profiles import Role
from runner.planning.rules import PrefixRule

CATALOG = "/opt/codex/model-catalog.json"

#: Keys that the planner sets itself; a profile that sets one is refused.
MANAGED = frozenset(
    {
        "model",
        "model_provider",
        "model_providers",
        "model_catalog_json",
        "model_reasoning_effort",
        "openai_base_url",
        "sandbox_mode",
        "sandbox_workspace_write",
        "projects",
        "developer_instructions",
        "default_permissions",
        "permissions",
        "profile",
        "profiles",
    }
)


def refuse_managed(role: Role) -> None:
    """Refuse a role that sets what rolebox manages.

    Raises:
        UsageError: Its config.toml sets a managed key.
    """
    if taken := sorted(MANAGED & set(role.config)):
        raise UsageError(
            f"role {role.name}: config.toml sets {taken[0]}, which rolebox manages",
            mend="choose the model in profile.toml or with --model; drop the key here",
        )


def render(role: Role, model: str) -> dict[str, bytes]:
    """Return path below /etc/codex to bytes."""
    files = {
        "config.toml": tomli_w.dumps(_config(role, model)).encode(),
        "requirements.toml": tomli_w.dumps(_requirements(role)).encode(),
    }
    files |= {f"rules/{name}": text.encode() for name, text in role.rules.items()}
    return files


def sandbox_mode(role: Role) -> str:
    """Return Codex's own sandbox mode within the container."""
    if role.profile.inner_sandbox == "off":
        return "danger-full-access"
    return "workspace-write" if role.profile.access == "write" else "read-only"


def _config(role: Role, model: str) -> dict[str, Any]:
    managed: dict[str, Any] = {
        "model": model,
        "model_provider": "gateway",
        "model_catalog_json": CATALOG,
        "model_reasoning_effort": role.profile.model.reasoning_effort,
        "sandbox_mode": sandbox_mode(role),
        "developer_instructions": role.instructions,
    }
    tables: dict[str, Any] = {
        "model_providers": {
            "gateway": {
                "name": "gateway",
                "base_url": f"http://127.0.0.1:{RELAY_PORT}/v1",
                "wire_api": "responses",
                "request_max_retries": 2,
                "stream_max_retries": 2,
            }
        },
        "projects": {WORKDIR: {"trust_level": "untrusted"}},
    }
    return {**managed, **_plain_before_tables(role.config), **tables}


def _requirements(role: Role) -> dict[str, Any]:
    return {
        "allowed_approval_policies": ["never"],
        "allowed_sandbox_modes": sorted({"read-only", sandbox_mode(role)}),
        "allowed_web_search_modes": ["disabled"],
        "rules": {"prefix_rules": _forbidden(role.parsed_rules)},
    }


def _forbidden(rules: Sequence[PrefixRule]) -> list[dict[str, Any]]:
    return [rule.as_requirement() for rule in rules if rule.decision == "forbidden"]


def _plain_before_tables(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in config.items() if not isinstance(v, dict)}
    return plain | {k: v for k, v in config.items() if isinstance(v, dict)}
