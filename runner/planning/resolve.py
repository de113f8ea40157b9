"""Resolve a role, a task and pins into a `RunPlan`, each value with its origin.

Pure: everything read from disk, the engine or the environment comes in as a
value, so `plan` and `run` cannot differ.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from runner.model.canonical import digest, sha256
from runner.model.errors import Refused, UsageError
from runner.model.pins import Pins
from runner.model.plan import (
    AttachmentSpec,
    CodexSpec,
    CommandSpec,
    GatewaySpec,
    Materials,
    MountSpec,
    PlannedRun,
    RunPlan,
    SourceSpec,
)
from runner.model.profile import PROTECTED, Budget, Limits, RoleProfile
from runner.planning import codexfiles, hardening
from runner.planning.attachments import Attachment, prompt_with, specify
from runner.planning.containers import agent_container, gateway_container
from runner.planning.controls import controls_for
from runner.planning.profiles import Role

_L = TypeVar("_L", Limits, Budget)

CODEX = "/opt/codex/bin/codex"
PROMPT_FILE = "/etc/rolebox/prompt.md"
SCHEMA_FILE = "/etc/rolebox/schema.json"


@dataclass(frozen=True)
class Task:
    """What a person asked of a role, as values.

    Attributes:
        prompt: For Codex; None for a command.
        argv: A command in Codex's place; empty for Codex.
        script: A checked model script; None asks the live model.
        schema: An output schema that replaces the profile's.
        allowed: Explicit permissions that the provenance records:
            `loosened-profile`, `untrusted-into-writer`, `unlocked-image: ID`.
    """

    prompt: str | None = None
    argv: tuple[str, ...] = ()
    model: str | None = None
    script: Mapping[str, Any] | None = None
    attachments: Sequence[Attachment] = ()
    timeout_s: float | None = None
    max_tokens: int | None = None
    schema: bytes | None = None
    allowed: frozenset[str] = field(default_factory=frozenset)

    @property
    def kind(self) -> Literal["codex", "exec"]:
        """Tell Codex from a command in its place."""
        return "exec" if self.argv else "codex"


@dataclass(frozen=True)
class Tree:
    """The tree as the workspace room describes it: nothing of the host in it."""

    source: SourceSpec
    lease: tuple[str, ...]
    protected: tuple[str, ...]
    mounts: tuple[MountSpec, ...]


def protected_patterns(profile: RoleProfile) -> tuple[str, ...]:
    """Return what no run of this role changes."""
    return tuple(dict.fromkeys((*PROTECTED, *profile.protect)))


def refuse_lease(role: Role, lease: Sequence[str]) -> None:
    """Refuse a lease to a role that may only read.

    Raises:
        Refused: It may.
    """
    if lease and role.profile.access != "write":
        raise Refused(
            f"role {role.name} reads only and can hold no lease",
            why=f"its profile says access = {role.profile.access!r}",
            mend="use a role that may write, such as scaffold or fixer",
        )


def resolve(
    role: Role,
    task: Task,
    tree: Tree,
    pins: Pins,
    *,
    uid: int,
    gid: int,
    seccomp: Mapping[str, str],
) -> PlannedRun:
    """Return the plan of one run.

    The agent runs as `uid` and `gid`, never 0; `seccomp` maps `agent`,
    `agent-userns` and `gateway` to profile JSON text.

    Raises:
        UsageError: An empty prompt, an unknown model, a text that is not UTF-8, a limit
            that limits nothing.
        Refused: A loosened profile, or untrusted text for a writer, without its flag.
        HardeningRefused: The plan lacks a control.
    """
    codexfiles.refuse_managed(role)
    _refuse_unasked(role, task, tree)
    profile = role.profile
    model, model_origin = _model(role, task, pins)
    limits = _limited(profile.limits, "timeout_s", task.timeout_s, "--timeout")
    budget = _limited(profile.budget, "total_tokens", task.max_tokens, "--max-tokens")
    attached = specify(task.attachments)
    prompt = _prompt(task, [spec for spec, _ in attached])
    schema = None if task.kind == "exec" else (task.schema or role.schema)
    files = _files(role, model, schema, prompt, attached)
    profile_name = "agent" if profile.inner_sandbox == "off" else "agent-userns"
    agent_seccomp, gateway_seccomp = seccomp[profile_name], seccomp["gateway"]
    gateway = _gateway(task, profile, model, budget)
    agent = agent_container(
        image=pins.agent_image,
        role=role.name,
        uid=uid,
        gid=gid,
        seccomp=sha256(agent_seccomp.encode()),
        limits=limits,
        tree_mounts=tree.mounts,
        attachments=bool(attached),
    )
    plan = RunPlan(
        role=role.name,
        access=profile.access,
        lease=tree.lease,
        protected=tree.protected,
        scratch=any(m.source == "scratch" for m in tree.mounts),
        source=tree.source,
        command=_command(task, schema),
        prompt_sha256=sha256(prompt) if prompt is not None else None,
        model=model,
        codex=CodexSpec(
            version=pins.codex_version,
            binary_sha256=pins.codex_sha256,
            inner_sandbox=profile.inner_sandbox,
        ),
        gateway=gateway,
        agent_container=agent,
        gateway_container=gateway_container(
            image=pins.gateway_image,
            seccomp=sha256(gateway_seccomp.encode()),
            live=gateway.backend == "openai",
            limits=limits,
        ),
        attachments=tuple(spec for spec, _ in attached),
        files={name: sha256(data) for name, data in sorted(files.items())},
        controls=controls_for(
            agent,
            lease=tree.lease,
            uid=uid,
            gid=gid,
            inner_sandbox=profile.inner_sandbox == "codex",
        ),
        limits=limits,
        profile_sha256=role.digest,
        image_lock_sha256=pins.lock_sha256,
        output_schema=sha256(schema) if schema is not None else None,
        overrides=_overrides(role, task),
    )
    hardening.check(plan)
    materials = Materials(
        files=files,
        prompt=prompt,
        script=task.script,
        seccomp={sha256(text.encode()): text for text in (agent_seccomp, gateway_seccomp)},
    )
    return PlannedRun(plan, materials, _origins(role, task, pins, model_origin))


def _refuse_unasked(role: Role, task: Task, tree: Tree) -> None:
    refuse_lease(role, tree.lease)
    if role.loosened and "loosened-profile" not in task.allowed:
        raise Refused(
            f"role {role.name} allows more than the built-in role that it extends",
            why="; ".join(role.loosened),
            mend="tighten it, or say --allow-loosened (the provenance records it)",
        )
    if task.attachments and tree.lease and "untrusted-into-writer" not in task.allowed:
        raise Refused(
            "an untrusted attachment is not given to a role that can write",
            why="text from outside may hold instructions, and this run holds a lease",
            mend="drop --write, or say --allow-untrusted (the provenance records it)",
        )


def _model(role: Role, task: Task, pins: Pins) -> tuple[str, str]:
    name = task.model or role.profile.model.name
    if name not in pins.models:
        close = difflib.get_close_matches(name, pins.models, n=1)
        raise UsageError(
            f"the pinned Codex {pins.codex_version} knows no model {name!r}",
            why=f"it knows {', '.join(pins.models)}",
            mend=f"did you mean {close[0]!r}?" if close else "choose one of these with --model",
        )
    origin = "--model" if task.model else role.origins.get("model.name", "default")
    return name, origin


def _limited(values: _L, name: str, value: float | None, flag: str) -> _L:
    """Return limits with one replaced, held to the same bounds as a profile's."""
    if value is None:
        return values
    try:
        return type(values).model_validate({**values.to_json(), name: value})
    except ValidationError as error:
        raise UsageError(f"{flag} {value} is no limit", why=error.errors()[0]["msg"]) from None


def _refuse_other_encodings(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8", mend="pass the bytes in a file") from None


def _prompt(task: Task, attached: Sequence[AttachmentSpec]) -> bytes | None:
    if task.kind == "exec":
        _refuse_other_encodings("".join(task.argv), "the command")
        return None
    if task.prompt is None or not task.prompt.strip():
        raise UsageError(
            "the prompt is empty",
            mend='give one: rolebox run ROLE "what to do", --prompt-file F, or - for stdin',
        )
    _refuse_other_encodings(task.prompt, "the prompt")
    return prompt_with(task.prompt, attached)


def _files(
    role: Role,
    model: str,
    schema: bytes | None,
    prompt: bytes | None,
    attached: Sequence[tuple[AttachmentSpec, bytes]],
) -> dict[str, bytes]:
    files = {f"codex/{name}": data for name, data in codexfiles.render(role, model).items()}
    if schema is not None:
        files["rolebox/schema.json"] = schema
    if prompt is not None:
        files["rolebox/prompt.md"] = prompt
    files |= {f"attachments/{spec.name}": data for spec, data in attached}
    return files


def _command(task: Task, schema: bytes | None) -> CommandSpec:
    if task.kind == "exec":
        return CommandSpec(kind="exec", argv=task.argv)
    argv = [CODEX, "exec", "--json", "--strict-config", "--ignore-user-config"]
    argv += ["--skip-git-repo-check", "--color", "never"]
    if schema is not None:
        argv += ["--output-schema", SCHEMA_FILE]
    return CommandSpec(kind="codex", argv=(*argv, "-"), stdin=PROMPT_FILE)


def _gateway(task: Task, profile: RoleProfile, model: str, budget: Budget) -> GatewaySpec:
    common: dict[str, Any] = {"model": model, "budget": budget, "egress": profile.egress}
    if task.script is not None:
        return GatewaySpec(
            backend="script",
            base_url=None,
            script_sha256=digest(task.script),
            key_source="none",
            **common,
        )
    if task.kind == "exec":
        return GatewaySpec(
            backend="none", base_url=None, script_sha256=None, key_source="none", **common
        )
    return GatewaySpec(
        backend="openai",
        base_url=profile.model.base_url,
        script_sha256=None,
        key_source="env:OPENAI_API_KEY",
        **common,
    )


def _overrides(role: Role, task: Task) -> tuple[str, ...]:
    found = {f"loosened-profile: {item}" for item in role.loosened}
    found |= {item for item in task.allowed if item != "loosened-profile"}
    return tuple(sorted(found))


def _origins(role: Role, task: Task, pins: Pins, model_origin: str) -> dict[str, str]:
    """Say for each value of the plan where it came from."""
    lock = f"images.lock ({pins.origin})"
    origins = {
        "role": "command line",
        "source": "--ref",
        "lease": "--write",
        "prompt_sha256": "command line",
        "model": model_origin,
        "codex": lock,
        "agent_container": "rolebox (hardened)",
        "agent_container.image": lock,
        "gateway_container": "rolebox (hardened)",
        "gateway_container.image": lock,
        "gateway.backend": "--model-script" if task.script is not None else "default",
        "controls": "rolebox",
        "files": "profile",
        "image_lock_sha256": lock,
        "overrides": "command line",
    }
    for field_name in ("access", "scratch", "output_schema"):
        origins[field_name] = role.origins.get(field_name, "default")
    origins["protected"] = role.origins.get("protect", "default")
    for group, model in (("limits", Limits), ("gateway.budget", Budget)):
        key = group.rpartition(".")[2]
        for name in model.model_fields:
            origins[f"{group}.{name}"] = role.origins.get(f"{key}.{name}", "default")
    if task.timeout_s is not None:
        origins["limits.timeout_s"] = "--timeout"
    if task.max_tokens is not None:
        origins["gateway.budget.total_tokens"] = "--max-tokens"
    if task.schema is not None:
        origins["output_schema"] = "--output-schema"
    return origins
