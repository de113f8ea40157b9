"""After the container ended: session files, the patch, and the cleaning.

Shared by a run's own end and by the recovery of a run whose rolebox died.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.engine.api import Engine
from runner.evidence.collect import collect_rollouts
from runner.evidence.rollout import read_commands
from runner.evidence.store import RunFolder
from runner.model.errors import InfrastructureError, RoleboxError
from runner.model.plan import CODEX_HOME
from runner.model.provenance import PatchRecord
from runner.session.bind import Names
from runner.session.record import Findings
from runner.workspace.changes import PatchLimits
from runner.workspace.files import remove_tree
from runner.workspace.lease import Lease
from runner.workspace.patch import PatchResult, collect_patch
from runner.workspace.prepare import Area, Workspace
from runner.workspace.store import Store

_MIB = 1 << 20
_AREAS = "workspace.json"


def harvest_session(engine: Engine, container: str, folder: RunFolder, findings: Findings) -> None:
    """Take Codex's own session records out of the ended container."""
    try:
        taken = collect_rollouts(
            engine.read_files(container, f"{CODEX_HOME}/sessions"),
            folder.path / "rollout.jsonl",
            limit=findings.plan.limits.evidence_mb * _MIB,
        )
    except InfrastructureError as error:
        findings.missing.append(f"rollout: {error.what}")
        return
    findings.missing += taken.problems
    if taken.files == 0:
        findings.missing.append("rollout: Codex left no session file")
    else:
        findings.commands = read_commands(folder.path / "rollout.jsonl")
    if findings.events.last_message is not None:
        folder.write("last-message.md", findings.events.last_message.encode())


def empty_overlays(engine: Engine, container: str) -> None:
    """Let the kernel clear the work directories of an ended container's overlays.

    It keeps spare whiteouts there, which belong to root, so that a host user could
    not delete them, and clears them at the next mount. Reading any file of the
    container makes the engine mount all its volumes once more.
    """
    for _ in engine.read_files(container, "/etc/rolebox/sandbox.json"):
        pass


def remember_areas(folder: RunFolder, workspace: Workspace) -> None:
    """Note where the agent may write, so that a later process can compute the patch."""

    def note(area: Area) -> dict[str, str]:
        return {"path": area.path.hex(), "kind": area.kind, "host": str(area.host)}

    folder.write_json(
        _AREAS,
        {
            "commit": workspace.commit,
            "areas": [note(area) for area in workspace.areas],
            "scratch": note(workspace.scratch) if workspace.scratch else None,
        },
    )


def recall_areas(folder: RunFolder) -> Workspace | None:
    """Return the workspace of a run that another process prepared, without its mounts."""
    noted: Mapping[str, Any] | None = folder.read_json(_AREAS)
    if noted is None:
        return None

    def area(value: Mapping[str, str]) -> Area:
        return Area(bytes.fromhex(value["path"]), value["kind"], Path(value["host"]))  # type: ignore[arg-type]

    return Workspace(
        root=folder.path / "ws",
        commit=str(noted["commit"]),
        plan=(),
        mounts=(),
        areas=tuple(area(item) for item in noted["areas"]),
        scratch=area(noted["scratch"]) if noted["scratch"] else None,
    )


def harvest_patch(
    folder: RunFolder,
    workspace: Workspace,
    store: Store,
    findings: Findings,
    lease: Lease,
    when: datetime,
) -> None:
    """Compute the patch on the host, in the store's own git directory."""
    plan = findings.plan
    proposed = workspace.scratch is not None and not lease.paths
    if not (workspace.areas or proposed):
        return
    try:
        result = collect_patch(
            workspace,
            store,
            lease=lease,
            protected=plan.protected,
            limits=PatchLimits(patch_bytes=plan.limits.patch_mb * _MIB),
            run_id=folder.id,
            when=when,
            out=folder.path / "patch.diff",
            scratch=proposed,
        )
    except RoleboxError as error:
        findings.missing.append(f"patch: {error.what} ({error.why})")
        return
    except FileNotFoundError:
        findings.missing.append("patch: the workspace is gone")
        return
    if not result.complete:
        findings.missing.append("patch: a limit was met, so no patch was made of a part")
    if result.omitted:
        findings.missing.append(f"patch: {result.omitted} more reports were left out")
    findings.patch = _record(result, proposed)


def _record(result: PatchResult, proposed: bool) -> PatchRecord:
    return PatchRecord(
        kind="proposed" if proposed else "leased",
        sha256=result.sha256,
        bytes=result.size,
        commit=result.commit,
        tree=result.tree,
        files=len(result.files),
        added=sum(change.added or 0 for change in result.files),
        removed=sum(change.removed or 0 for change in result.files),
        anomalies=tuple(item.to_json() for item in result.anomalies),
        violations=tuple(item.to_json() for item in result.violations),
    )


def remove_containers(engine: Engine, containers: Iterable[str]) -> None:
    """Remove containers side by side: the engine takes as long for two as for one."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        for future in [pool.submit(engine.remove, container) for container in containers]:
            future.result()


def clean(engine: Engine, names: Names, folder: RunFolder) -> list[str]:
    """Remove a run's containers, volumes and workspace; returns what could not be."""
    left: list[str] = []

    def attempt(what: str, action: Any, *args: Any) -> None:
        try:
            action(*args)
        except (RoleboxError, OSError) as error:
            left.append(f"cleaning: {what}: {error}")

    try:
        found = engine.objects(names.run)
    except InfrastructureError as error:
        return [f"cleaning: {error.what}; the next rolebox command tries again"]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for container in found.containers:
            pool.submit(attempt, "a container", engine.remove, container)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for volume in found.volumes:
            pool.submit(attempt, "a volume", engine.remove_volume, volume)
    attempt("the workspace", remove_tree, folder.path / "ws")
    return left
