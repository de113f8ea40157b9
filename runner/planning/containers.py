"""The two containers of a run, as the engine will be told.

Decision: one gateway container a run, not one an invocation. A flood, a crash
or a leak in it is that run's own; it has a network only when a live model needs
one. It starts while the agent's container is created, which hides most of its
cost (`make bench` shows the stages).
"""

from __future__ import annotations

from collections.abc import Sequence

from runner.model.plan import (
    AGENT_GATEWAY_DIR,
    CODEX_HOME,
    GATEWAY_DIR,
    RELAY_PORT,
    WORKDIR,
    ContainerSpec,
    MountSpec,
    TmpfsSpec,
    UlimitSpec,
)
from runner.model.profile import Limits

_MIB = 1 << 20

SUPERVISOR = ("python3", "-I", "-S", "-B", "/opt/rolebox/runner/sandbox/supervisor.py")

_GATEWAY_CODE = (
    "import sys; sys.path.insert(0, '/opt/rolebox'); "
    "import runpy; runpy.run_module('runner.gateway', run_name='__main__')"
)
GATEWAY = ("python3", "-I", "-B", "-c", _GATEWAY_CODE)
GATEWAY_USER = "65532:65532"

_PROXY = f"http://127.0.0.1:{RELAY_PORT}"


def agent_env(role: str) -> tuple[tuple[str, str], ...]:
    """Return the whole environment of the agent's command, sorted; nothing else is inherited."""
    proxies = {
        name: _PROXY
        for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        for name in (upper, upper.lower())
    }
    local = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    who = {
        f"GIT_{kind}_{part}": value
        for kind in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", f"rolebox {role}"), ("EMAIL", f"{role}@rolebox.invalid"))
    }
    fixed = {
        "CODEX_HOME": CODEX_HOME,
        "GIT_OPTIONAL_LOCKS": "0",
        "HOME": "/tmp",  # noqa: S108  a tmpfs of this container alone
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SHELL": "/bin/sh",
        "TERM": "dumb",
        "TZ": "UTC",
    }
    return tuple(sorted({**proxies, **local, **who, **fixed}.items()))


def agent_container(
    *,
    image: str,
    role: str,
    uid: int,
    gid: int,
    seccomp: str,
    limits: Limits,
    tree_mounts: Sequence[MountSpec],
    attachments: bool,
) -> ContainerSpec:
    """Return the agent's container: no network, no capability, no writable root."""
    mounts = [
        *tree_mounts,
        MountSpec(target=CODEX_HOME, source="volume:home", read_only=False),
        MountSpec(target=AGENT_GATEWAY_DIR, source="volume:gateway", read_only=True),
        MountSpec(target="/etc/codex", source="config:codex", read_only=True),
        MountSpec(target="/etc/rolebox", source="config:rolebox", read_only=True),
    ]
    if attachments:
        mounts.append(MountSpec(target="/attachments", source="config:attachments", read_only=True))
    return ContainerSpec(
        image=image,
        argv=SUPERVISOR,
        env=agent_env(role),
        user=f"{uid}:{gid}",
        workdir=WORKDIR,
        hostname="sandbox",
        network="disabled",
        read_only_root=True,
        cap_drop=("ALL",),
        no_new_privileges=True,
        seccomp=seccomp,
        ipc="private",
        cgroupns="private",
        mounts=tuple(mounts),
        tmpfs=(
            TmpfsSpec(
                target="/tmp",  # noqa: S108
                options=f"rw,nosuid,nodev,exec,size={limits.tmp_mb}m,mode=1777",
            ),
        ),
        pids_limit=limits.pids,
        memory_bytes=limits.memory_mb * _MIB,
        memory_swap_bytes=limits.memory_mb * _MIB,
        shm_bytes=64 * _MIB,
        nano_cpus=int(limits.cpus * 1_000_000_000),
        ulimits=(
            UlimitSpec(name="core", soft=0, hard=0),
            UlimitSpec(
                name="fsize", soft=limits.file_size_mb * _MIB, hard=limits.file_size_mb * _MIB
            ),
            UlimitSpec(name="nofile", soft=limits.open_files, hard=limits.open_files),
        ),
        log_max_bytes=limits.log_mb * _MIB,
        init=True,
        stop_signal="SIGINT",
    )


def gateway_container(*, image: str, seccomp: str, live: bool, limits: Limits) -> ContainerSpec:
    """Return the gateway's container; it has a network only for a live model."""
    return ContainerSpec(
        image=image,
        argv=GATEWAY,
        env=(("LANG", "C.UTF-8"), ("PATH", "/usr/bin:/bin"), ("TZ", "UTC")),
        user=GATEWAY_USER,
        workdir="/",
        hostname="gateway",
        network="bridge" if live else "disabled",
        read_only_root=True,
        cap_drop=("ALL",),
        no_new_privileges=True,
        seccomp=seccomp,
        ipc="private",
        cgroupns="private",
        sysctls=(("net.ipv4.ip_forward", "0"),) if live else (),
        mounts=(MountSpec(target=GATEWAY_DIR, source="volume:gateway", read_only=False),),
        pids_limit=64,
        memory_bytes=384 * _MIB,
        memory_swap_bytes=384 * _MIB,
        shm_bytes=1 * _MIB,
        nano_cpus=1_000_000_000,
        ulimits=(
            UlimitSpec(name="core", soft=0, hard=0),
            UlimitSpec(name="fsize", soft=16 * _MIB, hard=16 * _MIB),
            UlimitSpec(name="nofile", soft=4096, hard=4096),
        ),
        log_max_bytes=limits.log_mb * _MIB,
        init=True,
    )
