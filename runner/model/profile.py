"""RoleProfile: what a role may be given at the most.

A run never gets more than its profile says; flags of one run choose within it
(a lease, a model, a shorter time). `strictness` orders two profiles field by
field, so that a user's role that extends a built-in one can be told where it
loosens it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from runner.model.base import Frozen

Access = Literal["read-only", "write"]

RoleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]

# Limits limit: nothing infinite, and nothing that canonical JSON cannot say exactly
# (RFC 8785 numbers are doubles: whole up to 2**53 - 1, also when MiB become bytes).
Count = Annotated[int, Field(ge=1, lt=1 << 53)]
MiB = Annotated[int, Field(ge=1, lt=1 << 33)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86_400)]

#: Paths that no role changes, not even inside a lease (design.md, "Roles").
PROTECTED: tuple[str, ...] = (
    ".git",
    ".codex",
    ".github",
    ".gitlab",
    ".gitlab-ci.yml",
    ".gitea",
    ".forgejo",
    ".circleci",
    ".woodpecker",
    ".woodpecker.yml",
    ".buildkite",
    ".ci",
    ".cirrus.yml",
    ".drone.yml",
    ".travis.yml",
    ".appveyor.yml",
    "appveyor.yml",
    "azure-pipelines.yml",
    "bitbucket-pipelines.yml",
    "cloudbuild.yaml",
    "Jenkinsfile",
    ".rolebox",
    ".gitmodules",
    ".gitattributes",
    "CODEOWNERS",
    ".githooks",
    ".husky",
    "lefthook.yml",
    ".pre-commit-config.yaml",
    "AGENTS.md",
    "AGENTS.override.md",
    "*.rules",
)


class ModelChoice(Frozen):
    """The model a role asks for; the gateway refuses a request for any other."""

    name: str = "gpt-5.5"
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")] = (
        "https://api.openai.com/v1"
    )
    reasoning_effort: Literal["minimal", "low", "medium", "high", "xhigh"] = "medium"


class Limits(Frozen):
    """Hard limits of one run. Sizes are MiB, times seconds."""

    timeout_s: Seconds = 1800
    grace_s: Seconds = 10
    pids: Count = 512
    memory_mb: MiB = 4096
    cpus: Annotated[float, Field(ge=0.01, le=4096)] = 2
    file_size_mb: MiB = 1024
    tmp_mb: MiB = 1024
    open_files: Count = 8192
    log_mb: MiB = 256
    evidence_mb: MiB = 512
    patch_mb: MiB = 64


class Budget(Frozen):
    """What a run may spend on the model; None is no limit of that kind."""

    total_tokens: Count | None = 2_000_000
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    requests: Count | None = 400


class Egress(Frozen):
    """What may leave beside the model route; default nothing (contract.md, "Egress policy")."""

    mode: Literal["none"] = "none"


class GitView(Frozen):
    """How much of the history the agent's private repository holds, in commits."""

    history: Annotated[int, Field(ge=1, le=1000)] = 2


class RoleProfile(Frozen):
    """One role, as `profile.toml` writes it.

    Attributes:
        access: `read-only`, or `write`: may be given a lease.
        lease: Paths leased when the run names none.
        scratch: A read-only role gets a writable copy of the tree at /scratch,
            thrown away after the run; what changed there is kept as a proposal.
        inner_sandbox: `off`: the container is the boundary; `codex`: Codex's own
            sandbox within it, at the price of user namespaces (facts-codex.md).
        output_schema: A JSON Schema file beside the profile that the last message
            must meet; the host validates it.
        protect: Patterns added to `PROTECTED`.
    """

    description: str
    access: Access = "read-only"
    lease: tuple[str, ...] = ()
    scratch: bool = False
    inner_sandbox: Literal["off", "codex"] = "off"
    output_schema: str | None = None
    protect: tuple[str, ...] = ()
    model: ModelChoice = ModelChoice()
    limits: Limits = Limits()
    budget: Budget = Budget()
    egress: Egress = Egress()
    git: GitView = GitView()

    @field_validator("output_schema")
    @classmethod
    def _schema_is_a_plain_name(cls, value: str | None) -> str | None:
        if value is not None and ("/" in value or value.startswith(".")):
            raise ValueError("must be the name of a file beside profile.toml")
        return value


def loosenings(base: RoleProfile, child: RoleProfile) -> tuple[str, ...]:
    """Name every field in which `child` allows more than `base`, as `field: old -> new`."""
    found: list[str] = []

    def note(field: str, old: object, new: object) -> None:
        found.append(f"{field}: {old} -> {new}")

    if base.access == "read-only" and child.access == "write":
        note("access", base.access, child.access)
    if child.lease != base.lease and child.lease:
        note("lease", list(base.lease), list(child.lease))
    if child.scratch and not base.scratch:
        note("scratch", base.scratch, child.scratch)
    if child.inner_sandbox != base.inner_sandbox:
        note("inner_sandbox", base.inner_sandbox, child.inner_sandbox)
    if base.output_schema and child.output_schema != base.output_schema:
        note("output_schema", base.output_schema, child.output_schema)
    if missing := set(base.protect) - set(child.protect):
        note("protect", sorted(missing), "absent")
    for group in ("limits", "budget"):
        old_group, new_group = getattr(base, group), getattr(child, group)
        for name in type(old_group).model_fields:
            old, new = getattr(old_group, name), getattr(new_group, name)
            if old is not None and (new is None or new > old):
                note(f"{group}.{name}", old, new)
    if child.model.base_url != base.model.base_url:
        note("model.base_url", base.model.base_url, child.model.base_url)
    if child.git.history > base.git.history:
        note("git.history", base.git.history, child.git.history)
    return tuple(found)
