"""From what a person asked to a `PlannedRun`: the reading half of a run.

Everything here reads (profiles, the image lock, the repository) and nothing
starts. `plan`, `run` and `exec` share it, so they cannot disagree. The one thing
it writes is rolebox's own store for the repository, on first use.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.engine.images.lock import LockFiles, effective_lock, plan_pins
from runner.evidence.store import RunFolder, RunStore
from runner.gateway.script import ScriptError, parse_script
from runner.model.errors import ImageRefused, UsageError
from runner.model.pins import Pins
from runner.model.plan import MountSpec, PlannedRun, SourceSpec
from runner.planning.attachments import Attachment
from runner.planning.profiles import Role, load_role
from runner.planning.resolve import (
    Task,
    Tree,
    protected_patterns,
    refuse_lease,
    resolve,
)
from runner.resources import images_dir, profiles_dir
from runner.workspace.facts import TreeFacts, tree_facts
from runner.workspace.instructions import agents_digests
from runner.workspace.lease import Lease, parse_lease
from runner.workspace.mounts import Mode, WorkspaceSpec, choose_mode, plan_mounts
from runner.workspace.repository import (
    Repository,
    Source,
    dirty_count,
    open_repository,
)
from runner.workspace.repository import (
    resolve as resolve_rev,
)
from runner.workspace.store import Store, open_store

_AGENT_UID_FOR_ROOT = 1000


@dataclass(frozen=True)
class Request:
    """A task in the person's own words; see the command line's help for each."""

    role: str
    directory: Path
    prompt: str | None = None
    argv: tuple[str, ...] = ()
    ref: str = "HEAD"
    after: str | None = None
    write: tuple[str, ...] = ()
    model: str | None = None
    model_script: Path | None = None
    attach: tuple[Path, ...] = ()
    timeout_s: float | None = None
    max_tokens: int | None = None
    output_schema: Path | None = None
    unlocked_image: str | None = None
    allowed: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Prepared:
    """A plan and the host's side of it."""

    request: Request
    role: Role
    planned: PlannedRun
    repository: Repository
    store: Store
    source: Source
    facts: TreeFacts
    lease: Lease
    workspace: WorkspaceSpec
    dirty: int
    parent: str | None
    agents: Mapping[str, str]


def prepare_task(request: Request, home: Path, env: Mapping[str, str]) -> Prepared:
    """Return the plan of a request.

    Args:
        request: What was asked.
        home: ROLEBOX_HOME.
        env: The environment, for HOME only.

    Raises:
        UsageError, Refused, InfrastructureError: As each reader says.
    """
    own = request.directory / ".rolebox" / "profiles"
    repository = open_repository(request.directory, user_home=Path(env.get("HOME", "/")))
    if repository.top is not None:
        own = repository.top / ".rolebox" / "profiles"
    role = load_role(request.role, profiles_dir(), own if own.is_dir() else None)
    lease = parse_lease(request.write or role.profile.lease)
    refuse_lease(role, lease.paths)
    pins = load_pins(home)
    if request.unlocked_image is not None:
        pins = pins.model_copy(update={"agent_image": request.unlocked_image})
    task = _task(request)
    store = open_store(home, repository)
    parent = RunStore(home).find(request.after) if request.after else None
    source = _source(request, repository, store, parent)
    patterns = protected_patterns(role.profile)
    facts = tree_facts(store, source.commit, protected_patterns=patterns, lease=lease)
    spec = WorkspaceSpec(
        mode=_mode(home),
        access="write" if lease.paths else "read-only",
        scratch=role.profile.scratch and not lease.paths,
    )
    tree = Tree(
        source=SourceSpec(commit=source.commit, tree=source.tree, history=role.profile.git.history),
        lease=lease.paths,
        protected=patterns,
        mounts=tuple(
            MountSpec(target=m.target, source=m.source, read_only=m.read_only)
            for m in plan_mounts(facts, spec)
        ),
    )
    uid, gid = agent_user(os.getuid(), os.getgid())
    planned = resolve(role, task, tree, pins, uid=uid, gid=gid, seccomp=load_seccomp())
    return Prepared(
        request=request,
        role=role,
        planned=planned,
        repository=repository,
        store=store,
        source=source,
        facts=facts,
        lease=lease,
        workspace=spec,
        dirty=dirty_count(repository, store.git_dir, source.commit)
        if request.ref == "HEAD" and not request.after
        else 0,
        parent=parent.id if parent else None,
        agents=agents_digests(store, source.commit),
    )


def agent_user(uid: int, gid: int) -> tuple[int, int]:
    """Return the agent's uid and gid: the host user's own, so that they own the results.

    Root gets 1000 instead: nothing in the container is ever root.
    """
    if uid == 0:
        return _AGENT_UID_FOR_ROOT, _AGENT_UID_FOR_ROOT
    return uid, gid or _AGENT_UID_FOR_ROOT


def machine_platform() -> str:
    """Return the platform in OCI's words, such as `linux/amd64`."""
    machine = platform.machine().lower()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def lock_files(home: Path) -> LockFiles:
    """Return where image locks may lie."""
    return LockFiles(shipped=images_dir() / "images.lock", host=home / "images.lock")


def load_pins(home: Path) -> Pins:
    """Return what the effective image lock pins for this machine.

    Raises:
        ImageRefused: No images are locked for it yet.
    """
    name = machine_platform()
    lock = effective_lock(lock_files(home), name)
    if lock is None:
        raise ImageRefused(
            f"no images are locked for {name}", mend="build them: rolebox images build"
        )
    return plan_pins(lock, name)


def load_seccomp() -> dict[str, str]:
    """Return the seccomp profiles by the name that planning uses."""
    folder = profiles_dir() / "seccomp"
    texts = {
        name: json.dumps(json.loads((folder / f"{name}.json").read_text()), separators=(",", ":"))
        for name in ("agent", "agent-userns")
    }
    return {**texts, "gateway": texts["agent"]}


def _mode(home: Path) -> Mode:
    return choose_mode(home.resolve(), "overlay")


def _source(
    request: Request, repository: Repository, store: Store, parent: RunFolder | None
) -> Source:
    if parent is None:
        return resolve_rev(repository, request.ref)
    provenance = parent.read_json("provenance.json") or {}
    patch = provenance.get("patch")
    commit = patch.get("commit") if isinstance(patch, dict) else None
    if not isinstance(commit, str):
        raise UsageError(
            f"run {parent.id} left no patch to build on",
            mend="name a run that changed something, or a --ref",
        )
    bare = Repository(
        top=None,
        git_dir=store.git_dir,
        head_dir=store.git_dir,
        object_format=store.object_format,
        repo_id=store.repo_id,
    )
    return resolve_rev(bare, commit)


def _task(request: Request) -> Task:
    return Task(
        prompt=request.prompt,
        argv=request.argv,
        model=request.model,
        script=_script(request.model_script),
        attachments=tuple(
            Attachment(path.name, _read(path, "the attachment")) for path in request.attach
        ),
        timeout_s=request.timeout_s,
        max_tokens=request.max_tokens,
        schema=_schema(request.output_schema),
        allowed=request.allowed | _image_override(request),
    )


def _image_override(request: Request) -> frozenset[str]:
    if request.unlocked_image is None:
        return frozenset()
    return frozenset({f"unlocked-image: {request.unlocked_image}"})


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read", why=error.strerror or "") from None


def _json(path: Path, what: str) -> Any:
    try:
        return json.loads(_read(path, what))
    except ValueError as error:
        raise UsageError(f"{what} {path} is not JSON", why=str(error)) from None


def _script(path: Path | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    value = _json(path, "the model script")
    try:
        parse_script(value)
    except ScriptError as error:
        raise UsageError(f"the model script {path} is malformed", why=str(error)) from None
    assert isinstance(value, dict)
    return value


def _schema(path: Path | None) -> bytes | None:
    if path is None:
        return None
    if not isinstance(_json(path, "the output schema"), dict):
        raise UsageError(f"the output schema {path} is no JSON object")
    return _read(path, "the output schema")
