"""Which controls a run proves inside its own container (guarantee 6).

Derived from the very container spec that the engine is told, so that a control
cannot be forgotten where a mount or a limit was added. What each kind asks, and
the threat behind it, stands in `runner/sandbox/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from runner.model.plan import (
    AGENT_GATEWAY_DIR,
    CODEX_HOME,
    SOCKET_NAME,
    WORKDIR,
    ContainerSpec,
    ControlSpec,
)

_ABSENT = (
    f"{CODEX_HOME}/auth.json",
    "/root/.ssh",
    "/root/.docker",
    "/root/.aws",
    "/tmp/.ssh",  # noqa: S108  HOME of the command is /tmp
    "/tmp/.docker",  # noqa: S108
    "/run/secrets",
    "/var/run/secrets",
    "/var/lib/docker",
    "/host",
)

#: Where a leak would show: a public host by IPv4 and IPv6, the clouds' metadata service,
#: the engine's usual bridge address with the engine's old TCP port.
_TCP = (
    ("internet-v4", "1.1.1.1", 443),
    ("internet-v6", "2606:4700:4700::1111", 443),
    ("metadata", "169.254.169.254", 80),
    ("engine-bridge", "172.17.0.1", 2375),
)


def controls_for(
    agent: ContainerSpec, *, lease: Sequence[str], uid: int, gid: int, inner_sandbox: bool = False
) -> tuple[ControlSpec, ...]:
    """Return the controls of a plan, in the order in which they run."""
    return (
        *_network(),
        *_privileges(agent, uid, gid),
        *_surroundings(agent),
        *_tree(agent, lease),
        *(_inner_sandbox() if inner_sandbox else ()),
    )


def _control(
    name: str, category: str, kind: str, expect: Literal["blocked", "works"], **args: Any
) -> ControlSpec:
    return ControlSpec(name=name, category=category, kind=kind, expect=expect, args=args)


def _network() -> Iterator[ControlSpec]:
    yield _control("only-loopback", "network", "interfaces", "blocked")
    for name, address, port in _TCP:
        yield _control(f"no-{name}", "network", "tcp", "blocked", address=address, port=port)
    yield _control("no-datagrams", "network", "udp", "blocked", address="1.1.1.1", port=53)
    yield _control("no-dns", "dns", "dns", "blocked", host="example.com")
    yield _control("loopback", "network", "loopback_works", "works")
    yield _control("gateway-answers", "gateway", "gateway", "works")


def _privileges(agent: ContainerSpec, uid: int, gid: int) -> Iterator[ControlSpec]:
    limits = {u.name: u.hard for u in agent.ulimits}
    yield _control("non-root", "privileges", "uid", "blocked", uid=uid, gid=gid)
    yield _control("no-capabilities", "privileges", "capabilities", "blocked")
    yield _control("no-new-privileges", "privileges", "no_new_privs", "blocked")
    yield _control("seccomp", "kernel surface", "seccomp", "blocked")
    yield _control("own-processes", "privileges", "namespaces", "blocked")
    yield _control(
        "limits",
        "privileges",
        "limits",
        "blocked",
        core=limits["core"],
        fsize=limits["fsize"],
        nofile=limits["nofile"],
        pids=agent.pids_limit,
        memory=agent.memory_bytes,
    )


def _surroundings(agent: ContainerSpec) -> Iterator[ControlSpec]:
    writable = [m.target for m in agent.mounts if not m.read_only]
    writable += [t.target for t in agent.tmpfs]
    yield _control(
        "read-only-root", "filesystem", "readonly_root", "blocked", writable=sorted(writable)
    )
    yield _control("kernel-files-masked", "kernel surface", "masked", "blocked")
    yield _control("no-devices", "privileges", "devices", "blocked")
    yield _control(
        "no-engine-socket",
        "engine",
        "engine_socket",
        "blocked",
        allowed=[f"{AGENT_GATEWAY_DIR}/{SOCKET_NAME}"],
    )
    yield _control("no-logins", "credentials", "files_absent", "blocked", paths=list(_ABSENT))
    yield _control("no-secret-in-environment", "credentials", "environment", "blocked")


def _inner_sandbox() -> Iterator[ControlSpec]:
    yield _control(
        "inner-sandbox-starts",
        "privileges",
        "runs",
        "works",
        argv=["/opt/codex/bin/codex", "sandbox", "--", "/bin/true"],
    )


def _tree(agent: ContainerSpec, lease: Sequence[str]) -> Iterator[ControlSpec]:
    """A probe for every mount: what is read-only refuses, what is writable accepts."""
    for mount in agent.mounts:
        kind = "write_denied" if mount.read_only else "write_allowed"
        yield _control(
            f"{'read-only' if mount.read_only else 'writable'} {mount.target}",
            "filesystem" if mount.target.startswith((WORKDIR, "/scratch")) else "evidence",
            kind,
            "blocked" if mount.read_only else "works",
            path=mount.target,
        )
    if not lease:
        yield _control("tmp-writable", "filesystem", "write_allowed", "works", path="/tmp")  # noqa: S108
