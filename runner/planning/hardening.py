"""The hardening checks: an ordered list of small questions about one plan.

A plan that lacks a control is refused, never repaired (guarantee 3): whoever
built it, a profile, a bug or a tampered file, has to be told. The checks look
at the finished value, the very one that the engine adapter translates, so there
is no second place where a control could be lost. Form: runc's configs/validate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from runner.model.errors import HardeningRefused
from runner.model.plan import (
    AGENT_GATEWAY_DIR,
    CODEX_HOME,
    WORKDIR,
    ContainerSpec,
    RunPlan,
)

_SOURCES = frozenset(
    {
        "tree",
        "skeleton",
        "overlay",
        "copy",
        "file",
        "new",
        "git",
        "objects",
        "scratch",
        "scratch-git",
    }
)
#: Sources that the session binds to a place of its own making, by their whole word:
#: anything else behind `config:` could name a path of the host.
_BOUND_SOURCES = frozenset(
    {"volume:home", "volume:gateway", "config:codex", "config:rolebox", "config:attachments"}
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_USER = re.compile(r"([0-9]+):([0-9]+)", re.ASCII)
#: A tmpfs of size 0 has no limit at all, one in percent depends on the host.
_TMPFS_SIZE = re.compile(r"size=[1-9][0-9]*[kmg]?", re.ASCII)


@dataclass(frozen=True)
class Check:
    """One control: its name, what it asks, why it matters."""

    name: str
    ask: Callable[[ContainerSpec], str | None]
    why: str


def _expect(condition: bool, problem: str) -> str | None:
    return None if condition else problem


def _user(c: ContainerSpec) -> str | None:
    user = _USER.fullmatch(c.user)
    if user is None:
        return f"user {c.user!r} is not uid:gid in digits"
    return _expect(int(user[1]) > 0 and int(user[2]) > 0, f"user {c.user} is root")


def _ulimit(name: str) -> Callable[[ContainerSpec], str | None]:
    def ask(c: ContainerSpec) -> str | None:
        found = [u for u in c.ulimits if u.name == name]
        return _expect(len(found) == 1 and 0 <= found[0].soft <= found[0].hard, f"no ulimit {name}")

    return ask


def _no_core(c: ContainerSpec) -> str | None:
    limits = [(u.soft, u.hard) for u in c.ulimits if u.name == "core"]
    return _expect(limits == [(0, 0)], f"core dumps may have {limits} bytes")


def _tmpfs(c: ContainerSpec) -> str | None:
    for mount in c.tmpfs:
        options = mount.options.split(",")
        if not any(_TMPFS_SIZE.fullmatch(o) for o in options):
            return f"tmpfs {mount.target} has no size that limits it"
        if "nosuid" not in options or "nodev" not in options:
            return f"tmpfs {mount.target} is not nosuid,nodev"
    return None


def _mount_sources(c: ContainerSpec) -> str | None:
    for mount in c.mounts:
        word = mount.source.partition(":")[0]
        if word not in _SOURCES and mount.source not in _BOUND_SOURCES:
            return f"{mount.target} is mounted from {mount.source!r}"
        if ".." in mount.target.split("/") or not mount.target.startswith("/"):
            return f"mount target {mount.target!r} is not absolute and plain"
    return None


def _engine_socket(c: ContainerSpec) -> str | None:
    for mount in c.mounts:
        of_the_tree = mount.target.startswith((f"{WORKDIR}/", "/scratch/"))
        if mount.target.endswith((".sock", "/var/run", "/run")) and not of_the_tree:
            return f"a mount at {mount.target}"
        if mount.target == "/":
            return "a mount at /"
    return None


CONTAINER_CHECKS: tuple[Check, ...] = (
    Check(
        "image-by-digest",
        lambda c: _expect(_DIGEST.fullmatch(c.image) is not None, f"image is {c.image!r}"),
        "a tag can be moved to another image between two runs",
    ),
    Check(
        "not-privileged",
        lambda c: _expect(not c.privileged, "the container is privileged"),
        "a privileged container is the host",
    ),
    Check("non-root", _user, "root in the container is one kernel bug away from root outside"),
    Check(
        "no-extra-groups",
        lambda c: _expect(not c.group_add, f"supplementary groups {c.group_add}"),
        "a group may own an engine socket or a device",
    ),
    Check(
        "capabilities-dropped",
        lambda c: _expect(
            c.cap_drop == ("ALL",) and not c.cap_add,
            f"cap_drop {c.cap_drop}, cap_add {c.cap_add}",
        ),
        "each capability is a part of root's power",
    ),
    Check(
        "no-new-privileges",
        lambda c: _expect(c.no_new_privileges, "no_new_privileges is off"),
        "a set-uid file would give back what was dropped",
    ),
    Check(
        "seccomp",
        lambda c: _expect(
            c.seccomp is not None and c.seccomp.startswith("sha256:"),
            f"seccomp profile is {c.seccomp!r}",
        ),
        "the kernel's whole surface would be open",
    ),
    Check(
        "read-only-root",
        lambda c: _expect(c.read_only_root, "the root filesystem is writable"),
        "programs of the image could be replaced",
    ),
    Check("tmpfs-limited", _tmpfs, "a tmpfs without limits fills the host's memory"),
    Check(
        "pids-limited",
        lambda c: _expect(0 < c.pids_limit <= 32768, f"pids limit is {c.pids_limit}"),
        "a fork bomb takes the host down",
    ),
    Check(
        "memory-limited",
        lambda c: _expect(
            c.memory_bytes > 0 and c.memory_swap_bytes == c.memory_bytes,
            f"memory {c.memory_bytes}, with swap {c.memory_swap_bytes}",
        ),
        "one run would take the memory of all",
    ),
    Check(
        "cpu-limited",
        lambda c: _expect(c.nano_cpus > 0, "no CPU limit"),
        "one run would starve the gateway and the others",
    ),
    Check(
        "shm-limited",
        lambda c: _expect(0 < c.shm_bytes <= 1 << 30, f"shared memory is {c.shm_bytes} bytes"),
        "shared memory is the host's memory",
    ),
    Check("file-size-limited", _ulimit("fsize"), "one file would fill the host's disk"),
    Check("no-core-dumps", _no_core, "a core dump is memory written to the host's disk"),
    Check("open-files-limited", _ulimit("nofile"), "file handles are the host's too"),
    Check(
        "log-limited",
        lambda c: _expect(c.log_max_bytes > 0, "the engine's log has no limit"),
        "a chatty command fills the host's disk",
    ),
    Check(
        "no-devices",
        lambda c: _expect(not c.devices, f"devices {c.devices}"),
        "a device is a door to the host's kernel",
    ),
    Check(
        "no-host-namespaces",
        lambda c: _expect(
            c.ipc in ("private", "none")
            and c.pid == ""
            and c.uts == ""
            and c.userns == ""
            and c.cgroupns == "private"
            and c.network != "host",
            f"ipc {c.ipc!r}, pid {c.pid!r}, uts {c.uts!r}, userns {c.userns!r}, "
            f"cgroupns {c.cgroupns!r}, network {c.network!r}",
        ),
        "a shared namespace shows and reaches the host's processes",
    ),
    Check("known-mounts", _mount_sources, "an unknown source could be any host path"),
    Check("no-engine-socket", _engine_socket, "the engine's socket is root on the host"),
    Check(
        "init",
        lambda c: _expect(c.init, "no init"),
        "Codex as PID 1 ignores SIGTERM, and zombies fill the pids limit",
    ),
)


def _agent_checks(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    agent = plan.agent_container
    if agent.network != "disabled":
        yield (
            "agent-no-network",
            f"the agent's network is {agent.network!r}",
            "the gateway's socket is its only way out (guarantee 1)",
        )
    if agent.sysctls:
        yield "agent-no-sysctls", f"sysctls {agent.sysctls}", "kernel settings are the host's"
    by_target = {m.target: m for m in agent.mounts}
    tree = by_target.get(WORKDIR)
    if tree is None:
        yield "tree-mounted", f"nothing is mounted at {WORKDIR}", "the role would see no tree"
    elif not tree.read_only and "." not in plan.lease:
        yield (
            "tree-read-only",
            f"{WORKDIR} is writable without a lease on the whole tree",
            "writing needs a lease (guarantee 4)",
        )
    for mount in agent.mounts:
        if not mount.read_only and not _may_write(plan, mount.target):
            yield (
                "writable-only-leased",
                f"{mount.target} is writable",
                "only leased paths, CODEX_HOME and the scratch copy may be written",
            )
    gateway = by_target.get(AGENT_GATEWAY_DIR)
    if gateway is None or not gateway.read_only:
        yield (
            "gateway-volume-read-only",
            "the gateway's volume is missing or writable in the agent",
            "the agent could replace the socket by its own",
        )
    home = by_target.get(CODEX_HOME)
    if home is None or home.source != "volume:home":
        yield (
            "own-codex-home",
            "CODEX_HOME is not a volume of this run alone",
            "sessions and state would leak between roles",
        )
    for path in ("/etc/codex", "/etc/rolebox"):
        if path not in by_target or not by_target[path].read_only:
            yield (
                "managed-config-read-only",
                f"{path} is missing or writable",
                "the agent could loosen its own rules",
            )
    for path in plan.lease:
        if plan.access != "write":
            yield "lease-needs-write", f"{path} is leased to a read-only role", "guarantee 4"
    if not plan.controls:
        yield "controls", "the plan has no controls", "each run proves its own seal (guarantee 6)"


def _may_write(plan: RunPlan, target: str) -> bool:
    if target in (CODEX_HOME, "/scratch", "/scratch/.git"):
        return target == CODEX_HOME or plan.scratch
    if target == f"{WORKDIR}/.git":
        return bool(plan.lease)
    if not target.startswith(WORKDIR):
        return False
    leased = [WORKDIR if p == "." else f"{WORKDIR}/{p.rstrip('/')}" for p in plan.lease]
    return any(target == p or target.startswith(p + "/") for p in leased)


def _gateway_checks(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    live = plan.gateway.backend == "openai"
    if plan.gateway_container.network == "bridge" and not live:
        yield (
            "gateway-network-only-when-live",
            "the gateway has a network and no live model",
            "what needs no network gets none",
        )
    if live and ("net.ipv4.ip_forward", "0") not in plan.gateway_container.sysctls:
        yield "gateway-no-forwarding", "ip_forward is on", "the gateway would be a router"
    for mount in plan.gateway_container.mounts:
        if mount.source != "volume:gateway":
            yield (
                "gateway-mounts",
                f"the gateway mounts {mount.source}",
                "it needs its socket's volume only",
            )


def problems(plan: RunPlan) -> tuple[tuple[str, str, str], ...]:
    """Return (control, problem, why it matters) for each control that the plan lacks, in order."""
    found: list[tuple[str, str, str]] = []
    for label, container in (
        ("agent", plan.agent_container),
        ("gateway", plan.gateway_container),
    ):
        found += [
            (f"{label}: {check.name}", problem, check.why)
            for check in CONTAINER_CHECKS
            if (problem := check.ask(container))
        ]
    found += _agent_checks(plan)
    found += _gateway_checks(plan)
    return tuple(found)


def check(plan: RunPlan) -> None:
    """Refuse a plan that lacks a control.

    Raises:
        HardeningRefused: Naming the first control that is missing, and how many.
    """
    found = problems(plan)
    if found:
        control, problem, why = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise HardeningRefused(
            f"the plan lacks the control {control!r}{more}: {problem}",
            why=why,
            mend="a plan is never repaired: mend the profile or the code that built it",
        )
