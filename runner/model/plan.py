"""RunPlan: everything that the engine, the gateway and Codex will be told.

A plan holds no run id, no time and no host path: the same role, task and pins
give the same bytes and so the same digest, today, in a replay and on another
machine. What differs from run to run (where the tree lies, the names of the
volumes) is bound to the plan's symbolic sources by `session.py`.

Files (prompt, Codex configuration, rules, schema) stand in the plan by their
digests; their bytes travel beside it as `Materials`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from runner.model.base import Frozen
from runner.model.canonical import canonical, sha256
from runner.model.profile import Access, Budget, Egress, Limits

PLAN_SCHEMA: Literal["rolebox.plan/1"] = "rolebox.plan/1"

WORKDIR = "/work"
CODEX_HOME = "/codex-home"
RELAY_PORT = 3128
#: The gateway's volume as each side mounts it; the agent's side is read-only.
AGENT_GATEWAY_DIR = "/run/rolebox/gateway"
GATEWAY_DIR = "/run/rolebox"
SOCKET_NAME = "gateway.sock"


class MountSpec(Frozen):
    """One mount of a container.

    Attributes:
        source: A symbolic source: `tree`, `tree:PATH`, `overlay:PATH`, `file:PATH`,
            `skeleton`, `git`, `objects`, `scratch`, `scratch-git` (workspace room),
            `volume:home`, `volume:gateway`, `config:NAME` (a directory of materials).
    """

    target: str
    source: str
    read_only: bool


class TmpfsSpec(Frozen):
    target: str
    options: str


class UlimitSpec(Frozen):
    name: str
    soft: int
    hard: int


class ContainerSpec(Frozen):
    """What the engine is told about one container, hardening included.

    The defaults are the unsafe ones of the engine, so that a control that nobody
    set is seen by the hardening checks as missing instead of silently assumed.
    """

    image: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = "/"
    hostname: str = ""
    network: Literal["disabled", "bridge", "host"] = "bridge"
    read_only_root: bool = False
    privileged: bool = False
    cap_drop: tuple[str, ...] = ()
    cap_add: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str | None = None
    ipc: str = "shareable"
    pid: str = ""
    uts: str = ""
    userns: str = ""
    cgroupns: Literal["", "private", "host"] = ""
    devices: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    group_add: tuple[str, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    tmpfs: tuple[TmpfsSpec, ...] = ()
    pids_limit: int = 0
    memory_bytes: int = 0
    memory_swap_bytes: int = -1
    shm_bytes: int = 0
    nano_cpus: int = 0
    ulimits: tuple[UlimitSpec, ...] = ()
    log_max_bytes: int = 0
    init: bool = False
    stop_signal: str = "SIGTERM"
    open_stdin: bool = True


class SourceSpec(Frozen):
    """The tree that the run sees."""

    commit: str
    tree: str
    history: int


class CommandSpec(Frozen):
    """What runs in the seal: Codex with a prompt, or a command in its place."""

    kind: Literal["codex", "exec"]
    argv: tuple[str, ...]
    stdin: str | None = None


class CodexSpec(Frozen):
    version: str
    binary_sha256: str
    inner_sandbox: Literal["off", "codex"]


class GatewaySpec(Frozen):
    """What the gateway will do; the key is named by its source, never held."""

    backend: Literal["none", "script", "openai"]
    base_url: str | None
    script_sha256: str | None
    key_source: Literal["none", "env:OPENAI_API_KEY"]
    model: str
    budget: Budget
    egress: Egress


class AttachmentSpec(Frozen):
    """A text from outside: data, never instructions."""

    name: str
    sha256: str
    bytes: int
    trust: Literal["untrusted"] = "untrusted"


class ControlSpec(Frozen):
    """One control that the container proves before the agent's first instruction."""

    name: str
    category: str
    kind: str
    expect: Literal["blocked", "works"]
    args: Mapping[str, Any] = {}

    def to_wire(self) -> dict[str, Any]:
        """Return the form that the supervisor in the container reads."""
        return {
            "name": self.name,
            "category": self.category,
            "kind": self.kind,
            "expect": self.expect,
            **self.args,
        }


class RunPlan(Frozen):
    """One sealed run. `digest` names it."""

    schema_: Literal["rolebox.plan/1"] = Field(default=PLAN_SCHEMA, alias="_schema")
    role: str
    access: Access
    lease: tuple[str, ...]
    protected: tuple[str, ...]
    scratch: bool
    source: SourceSpec
    command: CommandSpec
    prompt_sha256: str | None
    model: str
    codex: CodexSpec
    gateway: GatewaySpec
    agent_container: ContainerSpec
    gateway_container: ContainerSpec
    attachments: tuple[AttachmentSpec, ...]
    files: Mapping[str, str]
    controls: tuple[ControlSpec, ...]
    limits: Limits
    profile_sha256: str
    image_lock_sha256: str
    output_schema: str | None
    overrides: tuple[str, ...]

    def canonical(self) -> bytes:
        """Return the plan as canonical JSON (RFC 8785)."""
        return canonical(self.to_json())

    @property
    def digest(self) -> str:
        """Return `sha256:<hex>` of the canonical plan."""
        return sha256(self.canonical())


@dataclass(frozen=True)
class Materials:
    """The bytes that a plan names by digest.

    Attributes:
        files: `config:NAME` directory paths, such as `codex/config.toml`, to bytes.
        prompt: The whole prompt as Codex reads it; None for a command.
        script: The model script as JSON value; None with a live model.
        seccomp: Digest to the profile's JSON text.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    prompt: bytes | None = None
    script: Mapping[str, Any] | None = None
    seccomp: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """A plan, the bytes that it names, and where each of its values came from."""

    plan: RunPlan
    materials: Materials
    origins: Mapping[str, str]
