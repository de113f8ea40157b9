"""The supervisor and every control in a real container: sealed, and with the seals taken off."""

from __future__ import annotations

import contextlib
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from .conftest import ROOT, control

GATEWAY = """
import os, socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        if self.rfile.readline():
            self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
server = socketserver.ThreadingUnixStreamServer("/run/rolebox/gateway.sock", Handler)
os.chmod("/run/rolebox/gateway.sock", 0o666)
server.serve_forever()
"""
SOCKET = "/run/rolebox/gateway.sock"
LIMITS = {"fsize": 1 << 28, "nofile": 1024, "pids": 64, "memory": 1 << 29}

ESCAPES = {
    "interfaces": control("interfaces", "blocked"),
    "internet": control("tcp", "blocked", address="1.1.1.1", port=443),
    "metadata": control("tcp", "blocked", address="169.254.169.254", port=80),
    "bridge": control("tcp", "blocked", address="172.17.0.1", port=2375),
    "internet, IPv6": control("tcp", "blocked", address="2606:4700:4700::1111", port=443),
    "datagrams": control("udp", "blocked", address="1.1.1.1", port=53),
    "names": control("dns", "blocked", host="example.com"),
    "root": control("uid", "blocked", uid=1000, gid=1000),
    "capabilities": control("capabilities", "blocked"),
    "set-uid": control("no_new_privs", "blocked"),
    "system calls": control("seccomp", "blocked"),
    "limits": control("limits", "blocked", **LIMITS),
    "image": control("readonly_root", "blocked", writable=["/tmp", "/work/lease"]),
    "tree": control("write_denied", "blocked", path="/work"),
    "protected": control("write_denied", "blocked", path="/work/AGENTS.md"),
    "spec": control("write_denied", "blocked", path="/etc/rolebox/sandbox.json"),
    "sockets": control("engine_socket", "blocked", allowed=[SOCKET]),
    "devices": control("devices", "blocked"),
    "environment": control("environment", "blocked"),
    "logins": control("files_absent", "blocked", paths=["/tmp/auth.json", "/root/.ssh", "/work/x"]),
    "kernel": control("masked", "blocked"),
    "processes": control("namespaces", "blocked"),
}
NEIGHBOURS = {
    "gateway": control("gateway", "works"),
    "loopback": control("loopback_works", "works"),
    "lease": control("write_allowed", "works", path="/work/lease"),
    "leased file": control("write_allowed", "works", path="/work/lease/file"),
}
PEER = """
import socketserver, threading
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        pass
threading.Thread(target=socketserver.UDPServer(("", 53), Handler).serve_forever).start()
socketserver.TCPServer(("", 443), Handler).serve_forever()
"""

Api = docker.APIClient


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with contextlib.closing(docker.APIClient(timeout=60)) as client:
        yield client


@pytest.fixture(scope="module")
def volume(api: Api, agent_image: str) -> Iterator[str]:
    """A volume with a gateway's socket on it."""
    name = api.create_volume()["Name"]
    gateway = api.create_container(
        agent_image, ["python3", "-c", GATEWAY], network_disabled=True, user="0:0",
        host_config=api.create_host_config(binds=[f"{name}:/run/rolebox:rw"], init=True),
    )  # fmt: skip
    try:
        api.start(gateway)
        yield name
    finally:
        api.remove_container(gateway, force=True, v=True)
        api.remove_volume(name)


@pytest.fixture(scope="module")
def network(api: Api) -> Iterator[str]:
    """A network of the test's own, with no way out."""
    name = f"rolebox-sandbox-{uuid.uuid4().hex[:8]}"
    made = api.create_network(name, driver="bridge", internal=True)["Id"]
    try:
        yield name
    finally:
        api.remove_network(made)


@pytest.fixture(scope="module")
def peer(api: Api, agent_image: str, network: str) -> Iterator[tuple[str, str]]:
    """A neighbour on that network that listens; its (name, address)."""
    name = f"{network}-peer"
    container = api.create_container(
        agent_image, ["python3", "-c", PEER], name=name, user="0:0",
        host_config=api.create_host_config(network_mode=network, init=True),
    )  # fmt: skip
    try:
        api.start(container)
        networks = api.inspect_container(container)["NetworkSettings"]["Networks"]
        yield name, networks[network]["IPAddress"]
    finally:
        api.remove_container(container, force=True, v=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "work/lease").mkdir(parents=True)
    (tmp_path / "work/lease").chmod(0o777)
    for name in ("work/AGENTS.md", "work/lease/file"):
        (tmp_path / name).write_text("text\n")
        (tmp_path / name).chmod(0o666)
    (tmp_path / "prompt.md").write_bytes(b"the prompt\n")
    return tmp_path


def run(
    api: Api,
    image: str,
    tree: Path,
    volume: str,
    controls: dict[str, dict[str, Any]],
    network: str | None = None,
) -> tuple[int, list[dict[str, Any]], bytes]:
    """Start the supervisor, say go, return (exit code, control records, what came after).

    Sealed, or with a `network` and every seal off.
    """
    seal = network is None
    spec = {
        "_schema": "rolebox.sandbox/1",
        "argv": ["sh", "-c", "cat; echo written > lease/out; id -u"],
        "cwd": "/work",
        "stdin": "/etc/rolebox/prompt.md",
        "env": {"PATH": "/usr/bin:/bin", "HTTP_PROXY": "http://127.0.0.1:3128"},
        "relay": {"port": 3128, "socket": SOCKET},
        "gateway_timeout_s": 10,
        "controls": [{**control, "name": name} for name, control in controls.items()],
        "umask": "0022",
    }
    (tree / "sandbox.json").write_text(json.dumps(spec))
    (tree / "sandbox.json").chmod(0o666)
    mode = "ro" if seal else "rw"
    binds = [
        f"{ROOT}/runner/sandbox:/opt/rolebox/runner/sandbox:ro",
        f"{tree}/sandbox.json:/etc/rolebox/sandbox.json:{mode}",
        f"{tree}/prompt.md:/etc/rolebox/prompt.md:ro",
        f"{tree}/work:/work:{mode}",
        f"{tree}/work/lease:/work/lease:rw",
        f"{volume}:/run/rolebox:ro",
    ]
    profile = (ROOT / "profiles/seccomp/agent.json").read_text()
    sealed: dict[str, Any] = {
        "binds": binds,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", f"seccomp={profile}"],
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777,size=64m"},
        "pids_limit": LIMITS["pids"],
        "mem_limit": LIMITS["memory"],
        "ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": LIMITS["fsize"], "Hard": LIMITS["fsize"]},
            {"Name": "nofile", "Soft": LIMITS["nofile"], "Hard": LIMITS["nofile"]},
        ],
        "init": True,
    }
    opened: dict[str, Any] = {
        "binds": [*binds, f"{volume}:/run/other:ro", f"{tree}/prompt.md:/tmp/auth.json"],
        "security_opt": ["seccomp=unconfined"],
        "devices": ["/dev/zero:/dev/extra:r"],
        "network_mode": network,
    }
    host_config = api.create_host_config(**(sealed if seal else opened))
    if not seal:
        host_config |= {"MaskedPaths": [], "ReadonlyPaths": []}
    container = api.create_container(
        image,
        ["python3", "-I", "-S", "-B", "/opt/rolebox/runner/sandbox/supervisor.py"],
        network_disabled=seal,
        user="1000:1000" if seal else "0:0",
        working_dir="/",
        stdin_open=True,
        environment={} if seal else {"SOME_API_KEY": "planted"},
        host_config=host_config,
    )["Id"]
    try:
        done = subprocess.run(
            ["docker", "start", "--attach", "--interactive", container],
            input=b"go\n", capture_output=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        api.remove_container(container, force=True, v=True)
    lines = done.stdout.split(b"\n")
    records = [json.loads(line) for line in lines if line.startswith(b'{"_schema"')]
    rest = b"\n".join(line for line in lines if not line.startswith(b'{"_schema"'))
    return done.returncode, records, rest


def test_sealed_container_passes_every_control_and_runs_the_command(
    api: Api, agent_image: str, tree: Path, volume: str, peer: tuple[str, str]
) -> None:
    controls = ESCAPES | NEIGHBOURS
    controls["peer"] = control("tcp", "blocked", address=peer[1], port=443)
    code, records, output = run(api, agent_image, tree, volume, controls)
    assert [record for record in records[:-1] if not record["ok"]] == []
    assert records[-1]["passed"] == len(controls) + 1
    assert (code, output) == (0, b"the prompt\n1000\n")
    assert (tree / "work/lease/out").read_text() == "written\n"
    assert (tree / "work/AGENTS.md").read_text() == "text\n"
    assert not list(tree.rglob(".rolebox-probe*"))


def test_each_control_sees_the_seal_that_is_missing_and_nothing_starts(
    api: Api, agent_image: str, tree: Path, volume: str, network: str, peer: tuple[str, str]
) -> None:
    name, address = peer
    controls = {key: value for key, value in ESCAPES.items() if value["kind"] not in ("tcp", "udp")}
    controls |= {
        "peer": control("tcp", "blocked", address=address, port=443),
        "datagrams": control("udp", "blocked", address=address, port=53),
        "names": control("dns", "blocked", host=name),
        "kernel": control("masked", "blocked", unreadable=["/proc/timer_list"], unwritable=[]),
    }
    code, records, output = run(api, agent_image, tree, volume, controls, network)
    observed = {record["name"]: record["observed"] for record in records[1:-1]}
    assert observed == dict.fromkeys(controls, "works")
    assert (code, output) == (3, b"")
    assert not (tree / "work/lease/out").exists()
    assert not list(tree.rglob(".rolebox-probe*"))
