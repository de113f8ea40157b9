"""Runs in a container under the profile: tries each thing in a child, prints what came of it.

One JSON object: name -> "ok", an errno's name, or "signal N".
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import pty
import select
import signal
import socket
import stat
import tempfile
import termios
import threading
from collections.abc import Callable
from typing import Any

X86 = platform.machine() == "x86_64"
NR = {
    "bpf": 321 if X86 else 280,
    "clone": 56 if X86 else 220,
    "clone3": 435,
    "ioctl": 16 if X86 else 29,
    "io_uring_setup": 425,
    "keyctl": 250 if X86 else 219,
    "memfd_secret": 447,
    "openat2": 437,
    "perf_event_open": 298 if X86 else 241,
    "userfaultfd": 323 if X86 else 282,
}
CLONE_NEWUSER = 0x10000000
HIGH = 1 << 32

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def call(name: str, *args: int) -> None:
    checked(libc.syscall(*(ctypes.c_long(word) for word in (NR[name], *args))))


def wrapped(name: str, *args: Any) -> None:
    checked(getattr(libc, name)(*args))


def open_socket(family: int, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def raw_clone(flags: int) -> None:
    child = libc.syscall(*(ctypes.c_long(word) for word in (NR["clone"], flags, 0, 0, 0, 0)))
    if child == 0:
        os._exit(0)
    checked(child)
    os.waitpid(child, 0)


def wide_family() -> None:
    """AF_VSOCK with a bit set that the kernel ignores and a sloppy filter trips over."""
    number = 41 if X86 else 198
    checked(libc.syscall(*(ctypes.c_long(word) for word in (number, HIGH | 40, 1, 0))))


def terminal_ioctl(request: int, argument: bytes) -> None:
    """Make a terminal our controlling one, then ask."""
    _master, slave = pty.openpty()
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    buffer = ctypes.create_string_buffer(argument, 64)
    checked(libc.ioctl(slave, ctypes.c_ulong(request), buffer))


def x32_socket() -> None:
    checked(libc.syscall(ctypes.c_long(0x40000000 | 41), 40, 1, 0))


def ia32_call(number: int, first: int, words: tuple[int, ...]) -> None:
    """`int 0x80`: eax = number, ebx = first, ecx = the address of the words."""
    libc.mmap.restype = ctypes.c_void_p
    map_32bit = 0x40
    page = libc.mmap(
        None, ctypes.c_size_t(8192), mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_32bit, -1, ctypes.c_long(0),
    )  # fmt: skip
    packed = b"".join(word.to_bytes(4, "little") for word in words)
    code = (
        b"\x53\xb8" + number.to_bytes(4, "little")  # push rbx; mov eax
        + b"\xbb" + first.to_bytes(4, "little")  # mov ebx
        + b"\xb9" + (page + 4096).to_bytes(4, "little")  # mov ecx
        + b"\xcd\x80\x5b\xc3"  # int 0x80; pop rbx; ret
    )  # fmt: skip
    ctypes.memmove(page, code, len(code))
    ctypes.memmove(page + 4096, packed, len(packed))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(page)()
    if result < 0:
        raise OSError(-result, "")


def use_threads() -> None:
    done: list[int] = []
    threads = [threading.Thread(target=done.append, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4


def use_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def make_pair() -> None:
    for end in socket.socketpair():
        end.close()


def ask_interfaces() -> None:
    assert socket.if_nameindex()


def make_fifo() -> None:
    os.mkfifo(tempfile.mktemp())


def make_whiteout() -> None:
    os.mknod(tempfile.mktemp(), stat.S_IFCHR | 0o600, 0)


def fork_and_wait() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


PROBES: dict[str, Callable[[], None]] = {
    **{
        f"socket {name}": lambda family=family, kind=kind: open_socket(family, kind)  # type: ignore[misc]
        for name, family, kind in (
            ("UNIX", 1, 1), ("INET", 2, 1), ("INET6", 10, 1), ("NETLINK route", 16, 3),
            ("VSOCK", 40, 1), ("PACKET", 17, 3), ("ALG", 38, 5), ("BLUETOOTH", 31, 3),
            ("RDS", 21, 5), ("XDP", 44, 3), ("TIPC", 30, 1), ("CAN", 29, 3), ("SMC", 43, 1),
        )
    },
    "socket INET udp": lambda: open_socket(2, 2, 17),
    "socket INET sctp": lambda: open_socket(2, 1, 132),
    "socket INET mptcp": lambda: open_socket(2, 1, 262),
    "socket NETLINK generic": lambda: open_socket(16, 3, 16),
    "socket NETLINK netfilter": lambda: open_socket(16, 3, 12),
    "socket VSOCK, high bit": wide_family,
    "socketpair UNIX": make_pair,
    "loopback": use_loopback,
    "if_nameindex": ask_interfaces,
    "fork": fork_and_wait,
    "threads": use_threads,
    "clone plain": lambda: raw_clone(signal.SIGCHLD),
    "clone NEWUSER": lambda: raw_clone(CLONE_NEWUSER | signal.SIGCHLD),
    "clone NEWUSER, high bit": lambda: raw_clone(HIGH | CLONE_NEWUSER | signal.SIGCHLD),
    "clone3": lambda: call("clone3", 0, 0),
    "unshare NEWUSER": lambda: wrapped("unshare", CLONE_NEWUSER),
    "unshare nothing": lambda: wrapped("unshare", 0),
    "setns": lambda: wrapped("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0),
    "chroot": lambda: os.chroot("/"),
    "mount": lambda: wrapped("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "io_uring_setup": lambda: call("io_uring_setup", 1, 0),
    "keyctl": lambda: call("keyctl", 0, -3, 0),
    "bpf": lambda: call("bpf", 0, 0, 0),
    "perf_event_open": lambda: call("perf_event_open", 0, 0, -1, -1, 0),
    "userfaultfd": lambda: call("userfaultfd", 1),
    "memfd_secret": lambda: call("memfd_secret", 0),
    "ptrace": lambda: wrapped("ptrace", 0, 0, None, None),
    "process_vm_readv": lambda: wrapped("process_vm_readv", os.getpid(), None, 0, None, 0, 0),
    "personality question": lambda: wrapped("personality", ctypes.c_ulong(0xFFFFFFFF)),
    "personality NO_RANDOMIZE": lambda: wrapped("personality", ctypes.c_ulong(0x40000)),
    "setuid": lambda: os.setuid(os.getuid()),
    "mkfifo": make_fifo,
    "mknod whiteout": make_whiteout,
    "pidfd_open": lambda: os.close(os.pidfd_open(os.getpid())),
    "memfd_create": lambda: os.close(os.memfd_create("probe")),
    "epoll": lambda: select.epoll().close(),
    "ioctl TIOCGWINSZ": lambda: terminal_ioctl(termios.TIOCGWINSZ, b""),
    "ioctl TIOCSTI": lambda: terminal_ioctl(0x5412, b"x"),
    "ioctl TIOCSTI, high bit": lambda: terminal_ioctl(HIGH | 0x5412, b"x"),
    "ioctl TIOCLINUX": lambda: terminal_ioctl(0x541C, b"\x06"),
}  # fmt: skip
if X86:
    PROBES |= {
        "x32 socket": x32_socket,
        "ia32 getpid": lambda: ia32_call(20, 0, ()),
        "ia32 socketcall VSOCK": lambda: ia32_call(102, 1, (40, 1, 0)),
        "ia32 socketcall INET": lambda: ia32_call(102, 1, (2, 1, 0)),
    }


def outcome(probe: Callable[[], None]) -> str:
    child = os.fork()
    if child == 0:
        try:
            probe()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        return f"signal {-status}"
    return errno.errorcode.get(status, str(status)) if status else "ok"


if __name__ == "__main__":
    print(json.dumps({name: outcome(probe) for name, probe in PROBES.items()}))  # noqa: T201
