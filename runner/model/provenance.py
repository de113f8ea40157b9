"""The provenance record of one run (contract.md), and its JSON Schema.

Digests are `sha256:<hex>`, times RFC 3339 in UTC, sizes bytes. A field that
does not apply is null; one that could not be established is null and named in
`completeness.missing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from runner.model.base import Frozen
from runner.model.plan import AttachmentSpec
from runner.model.state import Failure, Status


class FileRecord(Frozen):
    """One file of evidence."""

    sha256: str
    bytes: int


class ModelRecord(Frozen):
    asked: str
    observed: tuple[str, ...]
    backend: Literal["none", "script", "openai"]
    requests: int


class CodexRecord(Frozen):
    version: str
    binary_sha256: str
    inner_sandbox: Literal["off", "codex"]


class ImagesRecord(Frozen):
    agent: str
    gateway: str
    lock_sha256: str


class EngineRecord(Frozen):
    id: str
    name: str
    version: str
    api_version: str
    kernel: str
    os: str
    architecture: str
    cgroup: str
    runtime: str
    rootless: bool
    security: tuple[str, ...]
    root: str


class HashesRecord(Frozen):
    """What steered the agent.

    Attributes:
        agents: Repository path to digest of each AGENTS file that Codex may read.
    """

    plan: str
    profile: str
    config: str | None
    requirements: str | None
    rules: str | None
    agents: Mapping[str, str]
    seccomp: str
    egress_policy: str
    prompt: str | None


class GitRecord(Frozen):
    """The tree that the run saw. `dirty`: files changed on the host that it did not see."""

    commit: str
    tree: str
    dirty: int


class PatchRecord(Frozen):
    """The patch as the host computed it.

    Attributes:
        kind: `leased`: changes inside the lease; `proposed`: from the scratch copy.
        commit: A commit in rolebox's own store, never in the user's repository.
        anomalies: What the agent left that no patch may carry (links out, devices …).
    """

    kind: Literal["leased", "proposed"]
    sha256: str
    bytes: int
    commit: str | None
    tree: str | None
    files: int
    added: int
    removed: int
    anomalies: tuple[Mapping[str, str], ...]
    violations: tuple[Mapping[str, str], ...]


class UsageRecord(Frozen):
    """Tokens as the gateway counted them; Codex's own figure stands beside it."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_output_tokens: int
    total_tokens: int
    reported_by_codex: Mapping[str, int] | None


class EgressRecord(Frozen):
    allowed: int
    denied: int


class ControlsRecord(Frozen):
    planned: int
    passed: int
    failed: tuple[str, ...]


class EventsRecord(Frozen):
    """The event stream as the host read it."""

    events: int
    unknown: int
    invalid: int
    oversized: int
    torn: bool
    truncated: bool
    terminal: str | None


class RefusedCommand(Frozen):
    """A command that Codex's rules refused, with the rule's justification."""

    command: str
    reason: str


class CommandsRecord(Frozen):
    """The model's tool calls by Codex's own session record.

    The event stream leaves refused commands out (facts-codex.md, 1); the session
    record has them. `refused` holds at most the first hundred of `refused_total`.
    """

    calls: int
    refused_total: int
    refused: tuple[RefusedCommand, ...]


class Completeness(Frozen):
    """Whether the evidence is whole; if not, what is missing and why.

    Attributes:
        uncleaned: What of the run could not be removed yet; the next command tries again.
    """

    complete: bool
    missing: tuple[str, ...]
    uncleaned: tuple[str, ...] = ()


class Provenance(Frozen):
    """`provenance.json`."""

    schema_: Literal["rolebox.provenance/1"] = Field(
        default="rolebox.provenance/1", alias="_schema"
    )
    rolebox_version: str
    run: str
    role: str
    kind: Literal["codex", "exec"]
    status: Status
    failure: Failure | None
    started: str
    ended: str
    model: ModelRecord
    codex: CodexRecord
    images: ImagesRecord
    engine: EngineRecord | None
    hashes: HashesRecord
    attachments: tuple[AttachmentSpec, ...]
    git: GitRecord
    access: Literal["read-only", "write"]
    lease: tuple[str, ...]
    patch: PatchRecord | None
    usage: UsageRecord
    egress: EgressRecord
    controls: ControlsRecord
    events: EventsRecord
    commands: CommandsRecord | None
    exit_code: int | None
    parent: str | None
    overrides: tuple[str, ...]
    timings_ms: Mapping[str, float]
    files: Mapping[str, FileRecord]
    completeness: Completeness


def provenance_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `provenance.json`."""
    schema = Provenance.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
