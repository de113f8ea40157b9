"""Controls of the network: nothing reachable but loopback and the gateway.

Each function returns (observed, detail); see `controls` for what the words mean.
"""

# pathlib would cost milliseconds of every run's start.
# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import errno
import os
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BLOCKED = "blocked"
WORKS = "works"
POLL_S = 0.002
IFF_UP = 1

Observation = tuple[str, str]

# A packet that finds no way out fails with one of these, at once.
_NO_WAY = {
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EPERM,
    errno.EACCES,
}
_DOCKER_RESOLVER = "127.0.0.11"


def interfaces(_spec: dict[str, Any]) -> Observation:
    """Threat: a second interface or a route is a way around the gateway.

    Interfaces that are down do not count: some kernels put tunnel devices into every
    namespace, and raising one takes a capability that is gone.
    """
    up = [name for _index, name in socket.if_nameindex() if name != "lo" and _is_up(name)]
    lines = _lines("/proc/net/route")[1:] + _lines("/proc/net/ipv6_route")
    routed = sorted({_device(line) for line in lines} - {"lo"})
    if up or routed:
        return WORKS, f"interfaces up: {up}, routes through: {routed}"
    return BLOCKED, "lo alone, no route"


def tcp(_spec: dict[str, Any], *, address: str, port: int, timeout_s: float = 0.3) -> Observation:
    """Threat: a direct connection to the internet, the metadata service or the engine's bridge.

    Only "no way there" is blocked: a refusal or a silence means that a packet left.
    """
    return _reach(address, port, socket.SOCK_STREAM, timeout_s)


def udp(_spec: dict[str, Any], *, address: str, port: int) -> Observation:
    """Threat: data carried out in datagrams, DNS or QUIC."""
    return _reach(address, port, socket.SOCK_DGRAM, 0.3)


def dns(_spec: dict[str, Any], *, host: str, timeout_s: float = 0.3) -> Observation:
    """Threat: names carry data out through a resolver (CVE-2024-29018).

    Asks every server of resolv.conf and the engine's own resolver by datagram;
    getaddrinfo would wait seconds for each.
    """
    words = [line.split() for line in _lines("/etc/resolv.conf")]
    servers = [word[1] for word in words if word[:1] == ["nameserver"] and len(word) > 1]
    query = b"\x52\x42\x01\x00\x00\x01" + bytes(6)
    query += b"".join(bytes([len(label)]) + label.encode() for label in host.split("."))
    query += b"\x00\x00\x01\x00\x01"
    for server in dict.fromkeys([*servers, "127.0.0.1", _DOCKER_RESOLVER]):
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.settimeout(timeout_s)
                probe.connect((server, 53))
                probe.send(query)
                probe.recv(512)
        except TimeoutError:
            return WORKS, f"{server} took a query"
        except OSError as error:
            empty = server.startswith("127.") and error.errno == errno.ECONNREFUSED
            if empty or error.errno in _NO_WAY:
                continue
            return WORKS, f"{server}: {error.strerror}"
        return WORKS, f"{server} answered"
    return BLOCKED, "no resolver can be asked"


def loopback_works(_spec: dict[str, Any]) -> Observation:
    """The allowed neighbour: programs and tests talk to themselves over 127.0.0.1."""
    # Not create_connection: its getaddrinfo loads the resolver, 6 ms for a number.
    with socket.socket() as server, socket.socket() as near:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(1)
        near.settimeout(1)
        near.connect(server.getsockname())
        with server.accept()[0] as far:
            near.sendall(b"echo")
            far.sendall(far.recv(4))
            return (WORKS, "echo") if near.recv(4) == b"echo" else (BLOCKED, "the echo differs")


def gateway(spec: dict[str, Any]) -> Observation:
    """The allowed neighbour: the gateway answers, directly and through the relay.

    Waits for the socket up to `gateway_timeout_s`: gateway and agent start side by side.
    """
    path, port = spec["relay"]["socket"], spec["relay"]["port"]
    began = time.monotonic()
    deadline = began + float(spec["gateway_timeout_s"])
    while True:
        try:
            direct = _health(socket.AF_UNIX, path, deadline)
            break
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() > deadline:
                return BLOCKED, f"{path}: {error.strerror}"
            time.sleep(POLL_S)
    waited = time.monotonic() - began
    relayed = _health(socket.AF_INET, ("127.0.0.1", port), deadline)
    if (direct, relayed) != (b"200", b"200"):
        return BLOCKED, f"/healthz says {direct!r}, through the relay {relayed!r}"
    return WORKS, f"200, after {waited * 1000:.0f} ms; 200 through the relay"


def _health(family: int, address: Any, deadline: float) -> bytes:
    """Return the status code of GET /healthz."""
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(max(0.1, deadline - time.monotonic()))
        client.connect(address)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while b"\r\n" not in answer and (data := client.recv(4096)):
            answer += data
    return answer[9:12]


def _reach(address: str, port: int, kind: socket.SocketKind, timeout_s: float) -> Observation:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, kind) as probe:
            probe.settimeout(timeout_s)
            probe.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                probe.send(b"rolebox control")
    except TimeoutError:
        return WORKS, "no answer, but a packet left"
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        return (BLOCKED if error.errno in _NO_WAY else WORKS), name
    return WORKS, "reached"


def _is_up(name: str) -> bool:
    return bool(int(_lines(f"/sys/class/net/{name}/flags")[0], 16) & IFF_UP)


def _device(route: str) -> str:
    """Return the interface of a line of /proc/net/route (first) or ipv6_route (last)."""
    words = route.split()
    return words[-1] if len(words[0]) == 32 else words[0]


def _lines(path: str) -> list[str]:
    if not os.path.exists(path):
        return []
    with open(path) as stream:
        return stream.read().splitlines()
