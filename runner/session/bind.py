"""Bind a plan's symbolic sources to one run's directories and volumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.engine.api import PART_LABEL, RUN_LABEL, Binding, BoundMount
from runner.model.errors import InfrastructureError
from runner.model.plan import (
    AGENT_GATEWAY_DIR,
    RELAY_PORT,
    SOCKET_NAME,
    WORKDIR,
    ContainerSpec,
    Materials,
    RunPlan,
)
from runner.workspace.prepare import Bind, Overlay, Workspace


@dataclass(frozen=True)
class Names:
    """The engine's names of one run's objects."""

    run: str

    @property
    def agent(self) -> str:
        return f"rolebox-{self.run}-agent"

    @property
    def gateway(self) -> str:
        return f"rolebox-{self.run}-gateway"

    @property
    def home(self) -> str:
        return f"rolebox-{self.run}-home"

    @property
    def socket(self) -> str:
        return f"rolebox-{self.run}-socket"

    def labels(self, part: str) -> dict[str, str]:
        """Return the labels by which a later command finds and removes an object."""
        return {RUN_LABEL: self.run, PART_LABEL: part}


def sandbox_json(plan: RunPlan) -> bytes:
    """Return what the supervisor in the container is told; all of it stands in the plan."""
    agent = plan.agent_container
    return json.dumps(
        {
            "_schema": "rolebox.sandbox/1",
            "argv": list(plan.command.argv),
            "cwd": WORKDIR,
            "stdin": plan.command.stdin,
            "env": dict(agent.env),
            "relay": {"port": RELAY_PORT, "socket": f"{AGENT_GATEWAY_DIR}/{SOCKET_NAME}"},
            "gateway_timeout_s": 20,
            "controls": [control.to_wire() for control in plan.controls],
            "umask": "0022",
        },
        indent=1,
        sort_keys=True,  # a plan read back from its file gives the same bytes
    ).encode()


def config_files(plan: RunPlan, materials: Materials) -> dict[str, bytes]:
    """Return path below the run's `config/` to bytes: what is mounted read-only in the agent."""
    return {**materials.files, "rolebox/sandbox.json": sandbox_json(plan)}


def write_config(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the run's `config/`, readable for the agent's user whatever the umask is."""
    for name, data in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o644)
    for directory in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        directory.chmod(0o755)


def gateway_binding(plan: RunPlan, materials: Materials, names: Names) -> Binding:
    """Return the gateway's binding: its socket's volume and nothing else."""
    return Binding(
        name=names.gateway,
        labels=names.labels("gateway"),
        mounts=tuple(
            BoundMount(m.target, "volume", names.socket, m.read_only)
            for m in plan.gateway_container.mounts
        ),
        seccomp=_seccomp(plan.gateway_container, materials),
    )


def agent_binding(
    plan: RunPlan, materials: Materials, names: Names, workspace: Workspace, config: Path
) -> Binding:
    """Return the agent's binding.

    Raises:
        InfrastructureError: A planned source has no place, or a place was not planned.
    """
    trees = {mount.target: mount for mount in workspace.mounts}
    mounts: list[BoundMount] = []
    for spec in plan.agent_container.mounts:
        word, _, rest = spec.source.partition(":")
        if word == "volume":
            volume = {"home": names.home, "gateway": names.socket}[rest]
            bound = BoundMount(
                spec.target, "volume", volume, spec.read_only, no_copy=rest == "gateway"
            )
        elif word == "config":
            bound = BoundMount(spec.target, "bind", str(config / rest), spec.read_only)
        else:
            bound = _tree(trees.pop(spec.target, None), spec.target, spec.read_only)
        mounts.append(bound)
    if trees:
        raise InfrastructureError(
            "the workspace has a mount that the plan does not name", why=", ".join(trees)
        )
    return Binding(
        name=names.agent,
        labels=names.labels("agent"),
        mounts=tuple(mounts),
        seccomp=_seccomp(plan.agent_container, materials),
    )


def _tree(mount: Bind | Overlay | None, target: str, read_only: bool) -> BoundMount:
    match mount:
        case Bind(host_path=path, read_only=same) if same == read_only:
            return BoundMount(target, "bind", str(path), read_only)
        case Overlay(name=name, read_only=same) if same == read_only:
            return BoundMount(target, "volume", name, read_only, no_copy=True)
        case _:
            raise InfrastructureError(
                f"the workspace does not give {target} as the plan demands",
                why="this is a fault in rolebox",
            )


def _seccomp(spec: ContainerSpec, materials: Materials) -> str:
    return materials.seccomp[spec.seccomp or ""]
