"""Controls of what the process may do: identity, capabilities, system calls, limits.

Each function returns (observed, detail); see `controls` for what the words mean.
"""

# pathlib would cost milliseconds of every run's start.
# ruff: noqa: PTH110, PTH123, PTH208

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BLOCKED = "blocked"
WORKS = "works"
Observation = tuple[str, str]

INITS = ("docker-init", "tini", "catatonit")
# vsock, packet, alg, rds: reach the hypervisor, the wire, the kernel's crypto, old exploits.
FAMILIES = (40, 17, 38, 21)
_CGROUP_FILES = {
    "pids": ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
    "memory": (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ),
}


def uid(_spec: dict[str, Any], *, uid: int, gid: int) -> Observation:
    """Threat: root, or a group (docker, disk) that opens what ownership closes."""
    uids, gids, groups = set(os.getresuid()), set(os.getresgid()), set(os.getgroups())
    if uids == {uid} and gids == {gid} and groups <= {gid} and uid and gid:
        return BLOCKED, f"{uid}:{gid}, no further groups"
    return WORKS, f"uids {sorted(uids)}, gids {sorted(gids)}, groups {sorted(groups)}"


def capabilities(_spec: dict[str, Any]) -> Observation:
    """Threat: any capability, held or obtainable through a set-uid file."""
    status = _status()
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    held = [f"{name} {status[name]}" for name in names if int(status[name], 16)]
    return (WORKS, ", ".join(held)) if held else (BLOCKED, "all five sets empty")


def no_new_privs(_spec: dict[str, Any]) -> Observation:
    """Threat: set-uid programs and file capabilities in the image."""
    value = _status()["NoNewPrivs"]
    return (BLOCKED if value == "1" else WORKS), f"NoNewPrivs {value}"


def seccomp(_spec: dict[str, Any], *, families: list[int] | None = None) -> Observation:
    """Threat: no filter, the engine's default one, or one that lost its teeth.

    A refused family fails with EPERM. EAFNOSUPPORT would mean that the call passed the
    filter and only this kernel lacks the module: not blocked.
    """
    mode = _status()["Seccomp"]
    if mode != "2":
        return WORKS, f"Seccomp {mode}"
    for family in families or FAMILIES:
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except OSError as error:
            if error.errno == errno.EPERM:
                continue
            return WORKS, f"socket({family}) passed the filter: {errno.errorcode[error.errno or 0]}"
        return WORKS, f"socket({family}) opened"
    return BLOCKED, "filter on, rare socket families refused"


def namespaces(_spec: dict[str, Any], *, max_pids: int = 16) -> Observation:
    """Threat: the host's or another container's processes in sight."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    init = _text("/proc/1/comm")
    if init in INITS and len(pids) <= max_pids:
        return BLOCKED, f"pid 1 is {init}, {len(pids)} processes in sight"
    return WORKS, f"pid 1 is {init}, {len(pids)} processes in sight"


def runs(spec: dict[str, Any], *, argv: list[str], timeout_s: float = 20.0) -> Observation:
    """The allowed neighbour of a wider seal: a program that needs it starts and ends well.

    Codex's own sandbox fails closed where it cannot make its namespaces, and Codex then
    still ends with 0 (facts-codex.md): so it is proven before, never assumed.
    """
    quiet = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, quiet, target) for target in (0, 1, 2)]
    pid = os.posix_spawn(argv[0], argv, spec["env"], file_actions=actions)
    os.close(quiet)
    deadline = time.monotonic() + timeout_s
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return BLOCKED, f"{argv[0]} did not end within {timeout_s:g} s"
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(ended[1])
    return (WORKS if code == 0 else BLOCKED), f"exit code {code}"


def limits(
    _spec: dict[str, Any],
    *,
    core: int = 0,
    fsize: int | None = None,
    nofile: int | None = None,
    pids: int | None = None,
    memory: int | None = None,
) -> Observation:
    """Threat: a full disk, a fork bomb, the host's memory, secrets in core dumps.

    A cgroup file that is not in sight is said in the detail; the host set it and checks it.
    """
    loose, unseen = [], []
    for name, most in (("CORE", core), ("FSIZE", fsize), ("NOFILE", nofile)):
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
        if most is not None and (hard == resource.RLIM_INFINITY or hard > most):
            loose.append(f"{name.lower()} {hard}")
    for name, most in (("pids", pids), ("memory", memory)):
        path = next((path for path in _CGROUP_FILES[name] if os.path.exists(path)), None)
        if most is not None and path is None:
            unseen.append(name)
        elif most is not None and path is not None:
            value = _text(path)
            if value == "max" or int(value) > most:
                loose.append(f"{name} {value}")
    if loose:
        return WORKS, "looser than the plan: " + ", ".join(loose)
    return BLOCKED, "as planned" + (f"; not in sight: {', '.join(unseen)}" if unseen else "")


def _status() -> dict[str, str]:
    lines = _text("/proc/self/status").splitlines()
    return {key: value.strip() for key, _colon, value in (line.partition(":") for line in lines)}


def _text(path: str) -> str:
    with open(path) as stream:
        return stream.read().strip()
