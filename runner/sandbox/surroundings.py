"""Controls of what lies around: files, mounts, devices, sockets, credentials.

Each function returns (observed, detail); see `controls` for what the words mean.
"""

# pathlib would cost milliseconds of every run's start.
# ruff: noqa: PTH108, PTH112, PTH116, PTH118, PTH123, PTH208

from __future__ import annotations

import errno
import os
import re
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

BLOCKED = "blocked"
WORKS = "works"
Observation = tuple[str, str]

_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
# A name of this start alone: a repository that tracks such a file must not stop a run.
_PROBE = f".rolebox-probe-{os.urandom(8).hex()}"

ENGINE_SOCKETS = (
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/buildkit/buildkitd.sock",
)
SOCKET_ROOTS = ("/run", "/tmp", "/var/tmp", "/home")  # noqa: S108
DEVICES = frozenset({"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"})
DEVICE_FOLDERS = frozenset({"pts", "shm", "mqueue"})
# /proc and /sys entries that engines mask or make read-only.
MASKED = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/acpi",
    "/proc/scsi",
    "/sys/firmware",
)
UNWRITABLE = ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches")
# Where the engine itself mounts something writable that leads nowhere.
ENGINE_MOUNTS = ("/proc", "/dev", "/sys/fs/cgroup")

_NAME = re.compile(
    r"(^|_)(API)?(KEYS?|TOKENS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?|AUTH)($|_)|(TOKEN|SECRET|APIKEY)$"
)
_VALUE = re.compile(
    r"sk-[\w-]{16}|gh[pousr]_\w{20}|github_pat_|glpat-|xox[abp]-|A[KS]IA[0-9A-Z]{16}"
    r"|eyJ[\w-]{10,}\.|PRIVATE KEY-----|://[^/@\s:]+:[^/@\s]+@"
)


def write_denied(_spec: dict[str, Any], *, path: str) -> Observation:
    """Threat: a change outside the lease. A probe that could be made is removed again."""
    is_folder = os.path.isdir(path)
    target = os.path.join(path, _PROBE) if is_folder else path
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_NOFOLLOW | (_NEW if is_folder else 0))
    except OSError as error:
        if error.errno in _DENIED:
            return BLOCKED, errno.errorcode[error.errno]
        raise
    os.close(descriptor)
    if is_folder:
        os.unlink(target)
    return WORKS, "opened for writing"


def write_allowed(_spec: dict[str, Any], *, path: str) -> Observation:
    """The allowed neighbour: the lease. A leased file is opened only, and left as it is."""
    if not os.path.isdir(path):
        os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW))
        return WORKS, "opened for reading and writing"
    probe = os.path.join(path, _PROBE)
    descriptor = os.open(probe, os.O_RDWR | os.O_NOFOLLOW | _NEW, 0o600)
    try:
        os.write(descriptor, b"probe")
        same = os.pread(descriptor, 5, 0) == b"probe"
    finally:
        os.close(descriptor)
        os.unlink(probe)
    return (WORKS, "written and read back") if same else (BLOCKED, "read back differs")


def readonly_root(_spec: dict[str, Any], *, writable: list[str] | None = None) -> Observation:
    """Threat: a program or a configuration file of the image replaced for the next command.

    Args:
        _spec: Not used.
        writable: Every mount point that may be writable; None asks about the root alone.
    """
    mounts = list(_mounts())
    root = [options for point, options in mounts if point == "/"][-1]
    if "ro" not in root:
        return WORKS, "/ is mounted " + ",".join(root)
    if writable is not None:
        allowed = tuple(writable) + ENGINE_MOUNTS
        extra = sorted(
            point
            for point, options in mounts
            if "rw" in options and not any(_within(point, folder) for folder in allowed)
        )
        if extra:
            return WORKS, "also writable: " + ", ".join(extra)
    observed, detail = write_denied(_spec, path="/etc/passwd")
    return observed, f"/ is read-only; /etc/passwd: {detail}"


def masked(
    _spec: dict[str, Any],
    *,
    unreadable: list[str] | None = None,
    unwritable: list[str] | None = None,
) -> Observation:
    """Threat: kernel memory, keys and firmware read, kernel settings written."""
    for path in unreadable if unreadable is not None else MASKED:
        if _has_content(path):
            return WORKS, f"{path} can be read"
    for path in unwritable if unwritable is not None else UNWRITABLE:
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError:
            continue
        return WORKS, f"{path} can be written"
    return BLOCKED, "masked or read-only"


def devices(_spec: dict[str, Any], *, allowed: list[str] | None = None) -> Observation:
    """Threat: a disk, a GPU, /dev/kvm or /dev/net/tun passed in."""
    names = DEVICES | set(allowed or ())
    extra = [
        entry.name
        for entry in os.scandir("/dev")
        if not entry.is_symlink()
        and entry.name not in (DEVICE_FOLDERS if entry.is_dir() else names)
    ]
    if extra:
        return WORKS, "also there: " + ", ".join(sorted(extra))
    return BLOCKED, "harmless ones"


def engine_socket(
    _spec: dict[str, Any], *, allowed: list[str], roots: list[str] | None = None
) -> Observation:
    """Threat: a socket of the engine or of any other service passed in: it has root behind it."""
    known = [path for path in ENGINE_SOCKETS if _present(path)]
    points = [
        point
        for point, _options in _mounts()
        if point != "/" and not any(_within(point, folder) for folder in ("/proc", "/sys"))
    ]
    mounted = [point for point in points if _is_socket(point)]
    found = [path for root in roots or SOCKET_ROOTS for path in _sockets(root, 3)]
    found += [path for point in points for path in _sockets(point, 0)]
    extra = sorted({os.path.realpath(path) for path in known + mounted + found} - set(allowed))
    if extra:
        return WORKS, "also there: " + ", ".join(extra)
    return BLOCKED, "the gateway's alone"


def files_absent(_spec: dict[str, Any], *, paths: list[str]) -> Observation:
    """Threat: somebody's login (auth.json, ~/.ssh, ~/.aws, /run/secrets) in sight."""
    found = [path for path in paths if _present(path)]
    if found:
        return WORKS, "there: " + ", ".join(found)
    return BLOCKED, f"{len(paths)} paths absent"


def environment(spec: dict[str, Any], *, pids: list[str] | None = None) -> Observation:
    """Threat: a credential in the environment of the init, of this process or of the command.

    Names are said, values never.
    """
    given = dict(spec["env"])
    for pid in ("1", "self") if pids is None else pids:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            for entry in stream.read().split(b"\0"):
                name, _equals, value = os.fsdecode(entry).partition("=")
                given[f"{pid}:{name}"] = value
    found = sorted(
        name
        for name, value in given.items()
        if value and (_NAME.search(name.rpartition(":")[2].upper()) or _VALUE.search(value))
    )
    return (WORKS, "looks secret: " + ", ".join(found)) if found else (BLOCKED, "nothing secret")


_NEW = os.O_CREAT | os.O_EXCL


def _mounts() -> Iterator[tuple[str, list[str]]]:
    r"""Yield (mount point, its options); a space in a mount point comes as \040."""
    with open("/proc/self/mountinfo") as stream:
        for line in stream:
            fields = line.split(" ")
            yield re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields[4]), fields[5].split(",")


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _has_content(path: str) -> bool:
    try:
        if os.path.isdir(path):
            return bool(os.listdir(path))
        with open(path, "rb") as stream:
            return bool(stream.read(1))
    except OSError:
        return False


def _present(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _sockets(folder: str, depth: int) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if depth and entry.is_dir(follow_symlinks=False):
            yield from _sockets(entry.path, depth - 1)
        elif not entry.is_file(follow_symlinks=False) and _is_socket(entry.path):
            yield entry.path
