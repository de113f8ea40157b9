"""Two live runs, and one run against everything around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.rig import Desk, container, docker, left_in_engine, said, until

_NEIGHBOUR = """
import json, os, socket, time
mark = "neighbour-mark-4711"
for path in ("/tmp/mark", "/codex-home/mark", "/work/src/mark"):
    open(path, "w").write(mark)
listening = socket.socket(socket.AF_UNIX)
listening.bind("\\0rolebox-neighbour"); listening.listen()
tcp = socket.socket(); tcp.bind(("127.0.0.1", 4711)); tcp.listen()
spaces = {n: os.readlink("/proc/self/ns/" + n) for n in sorted(os.listdir("/proc/self/ns"))}
print(json.dumps({"spaces": spaces}))
print("neighbour is up", flush=True)
time.sleep(120)
"""

_LOOK = """
import json, os, socket
found = []
for root in ("/tmp", "/codex-home", "/work", "/run", "/dev/shm", "/scratch", "/attachments"):
    for folder, folders, files in os.walk(root):
        for name in files:
            try:
                data = open(os.path.join(folder, name), "rb").read(1 << 20)
            except OSError:
                continue
            if b"neighbour-" + b"mark" in data or "mark" == name:
                found.append(os.path.join(folder, name))
def reached(family, address):
    try:
        socket.socket(family).connect(address)
    except OSError:
        return False
    return True
spaces = {n: os.readlink("/proc/self/ns/" + n) for n in sorted(os.listdir("/proc/self/ns"))}
print(json.dumps({
    "files": found,
    "abstract": reached(socket.AF_UNIX, "\\0rolebox-neighbour"),
    "tcp": reached(socket.AF_INET, ("127.0.0.1", 4711)),
    "relay": reached(socket.AF_INET, ("127.0.0.1", 3128)),
    "commands": [open(f"/proc/{p}/cmdline").read() for p in os.listdir("/proc") if p.isdigit()],
    "sockets": os.listdir("/run/rolebox/gateway"),
    "spaces": spaces,
}))
"""


@dataclass(frozen=True)
class Pair:
    neighbour: str
    its: dict[str, Any]
    run: str
    sees: dict[str, Any]
    inspected: list[dict[str, Any]]


@pytest.fixture(scope="module")
def pair(shared: Desk) -> Iterator[Pair]:
    words = ("exec", "scaffold", "--write", "src/", "--", "python3", "-c", _NEIGHBOUR)
    with shared.started(*words):
        neighbour = until(said(shared, "neighbour is up"), "the neighbour")
        inspected = json.loads(
            docker("inspect", container(neighbour, "agent"), container(neighbour, "gateway"))
        )
        its = json.loads(shared.text("events.jsonl", neighbour).splitlines()[0])
        look = ("exec", "scaffold", "--write", "docs/", "--", "python3", "-c", _LOOK)
        sees = shared.run(*look).check().json()
        yield Pair(neighbour, its, shared.folder().id, sees, inspected)
    assert left_in_engine(neighbour) == []


def test_a_neighbours_files_are_not_seen(pair: Pair) -> None:
    assert pair.sees["files"] == []


def test_a_neighbours_sockets_are_not_reached(pair: Pair) -> None:
    assert pair.sees["abstract"] is False
    assert pair.sees["tcp"] is False
    assert pair.sees["relay"] is True  # its own


def test_a_neighbours_processes_are_not_seen(pair: Pair) -> None:
    assert not [c for c in pair.sees["commands"] if "neighbour is" + " up" in c]
    assert any("gateway" in c or "relay" in c or "python3" in c for c in pair.sees["commands"])


def test_no_namespace_is_shared(pair: Pair) -> None:
    for name in ("net", "pid", "mnt", "ipc", "uts", "cgroup"):
        assert pair.its["spaces"][name] != pair.sees["spaces"][name], name


def test_each_run_has_one_socket_and_its_own_volumes(pair: Pair) -> None:
    assert pair.sees["sockets"] == ["gateway.sock"]
    for part in pair.inspected:
        volumes = [m["Name"] for m in part["Mounts"] if m["Type"] == "volume"]
        assert volumes
        assert all(pair.neighbour in name for name in volumes)


def test_the_engine_confirms_the_seal_of_a_live_run(pair: Pair) -> None:
    agent, gateway = pair.inspected
    for part in (agent, gateway):
        host = part["HostConfig"]
        assert host["Privileged"] is False
        assert host["CapAdd"] is None
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"] is True
        assert host["Devices"] in (None, [])
        assert any(o.startswith("no-new-privileges") for o in host["SecurityOpt"])
        assert any(o.startswith("seccomp=") and len(o) > 100 for o in host["SecurityOpt"])
        assert 0 < host["PidsLimit"] <= 512
        assert 0 < host["Memory"] == host["MemorySwap"]
        assert part["Config"]["User"].split(":")[0] not in ("", "0", "root")
        assert not [m for m in part["Mounts"] if "docker.sock" in m["Source"]]
    assert agent["Config"].get("NetworkDisabled") is True
    assert gateway["Config"].get("NetworkDisabled") is True  # an offline run's gateway, too


_REACH = """
import json, os, socket, urllib.error, urllib.request
target = {target!r}
def attempt(action):
    try:
        return "reached: " + str(action())
    except urllib.error.HTTPError as error:
        return f"denied by the gateway: {{error.code}}"
    except (OSError, urllib.error.URLError) as error:
        return type(getattr(error, "reason", error)).__name__
def tcp():
    return socket.create_connection((target, 8080), 3)
def udp():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (target, 53))
def multicast():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("224.0.0.251", 5353))
def direct():
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
    return opener.open(f"http://{{target}}:8080/", timeout=3).status
def proxied(url):
    return lambda: urllib.request.urlopen(url, timeout=3).status
print(json.dumps({{
    "tcp": attempt(tcp), "udp": attempt(udp), "multicast": attempt(multicast),
    "direct": attempt(direct),
    "dns": attempt(lambda: socket.getaddrinfo("example.com", 443)),
    "raw": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)),
    "packet": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "vsock": attempt(lambda: socket.socket(socket.AF_VSOCK)),
    "gateway-http": attempt(proxied(f"http://{{target}}:8080/")),
    "gateway-tls": attempt(proxied("https://example.com/")),
    "health": attempt(proxied("http://127.0.0.1:3128/healthz")),
    "interfaces": os.listdir("/sys/class/net"),
    "routes": open("/proc/net/route").read().count("\\n") - 1,
}}))
"""


@pytest.fixture(scope="module")
def reach(shared: Desk, upstream: str) -> dict[str, Any]:
    """What an agent reaches; `upstream` is a live server of ours on the engine's bridge."""
    code = _REACH.format(target=upstream)
    result: dict[str, Any] = shared.run("exec", "reviewer", "--", "python3", "-c", code).json()
    return result


@pytest.mark.parametrize(
    "way", ["tcp", "udp", "multicast", "direct", "dns", "raw", "packet", "vsock"]
)
def test_no_way_leads_past_the_gateway(reach: dict[str, Any], way: str) -> None:
    assert not reach[way].startswith(("reached", "denied by the gateway"))


def test_the_gateway_denies_both_a_plain_and_a_tunnelled_request(
    reach: dict[str, Any], shared: Desk
) -> None:
    assert reach["gateway-http"].startswith("denied by the gateway: 4")
    assert "reached" not in reach["gateway-tls"]
    assert shared.provenance()["egress"]["denied"] >= 2


def test_the_gateway_itself_answers(reach: dict[str, Any]) -> None:
    assert reach["health"] == "reached: 200"


def test_there_is_only_loopback_and_no_route(reach: dict[str, Any]) -> None:
    assert reach["interfaces"] == ["lo"]
    assert reach["routes"] == 0
