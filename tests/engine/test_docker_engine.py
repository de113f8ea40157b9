"""What only the real engine can show: the container as created, the wire, who is refused."""

from __future__ import annotations

import contextlib
import gc
import http.server
import json
import os
import secrets
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.api import RUN_LABEL, Binding, BoundMount
from runner.engine.docker_engine import DockerEngine
from runner.engine.docker_stream import cut
from runner.engine.endpoint import DEFAULT, Endpoint, resolve_endpoint
from runner.model.canonical import sha256
from runner.model.errors import EngineUnavailable, InfrastructureError, UsageError
from runner.model.plan import (
    ContainerSpec,
    Materials,
    MountSpec,
    RunPlan,
    TmpfsSpec,
    UlimitSpec,
)
from runner.session.host import Host
from runner.session.observer import Quiet, Stop
from runner.session.run import run_sealed
from runner.session.task import Request, load_seccomp, prepare_task

SENTINEL = "sk-sentinel-5d41402abc4b2a76"


@pytest.fixture(scope="session")
def api() -> Iterator[docker.APIClient]:
    """The engine, asked directly."""
    client = docker.APIClient(base_url=resolve_endpoint(os.environ).url, version="auto")
    yield client
    client.close()


def planned(home: Path, repository: Path, **asked: Any) -> tuple[RunPlan, Materials]:
    request = Request(role="scaffold", directory=repository, write=("src",), **asked)
    prepared = prepare_task(request, home, os.environ)
    return prepared.planned.plan, prepared.planned.materials


# The container as created.

Inspected = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """Where a field of the spec is found in `inspect`, and what stands there."""

    found: Callable[[Inspected], Any]
    wanted: Callable[[ContainerSpec, Binding], Any]


def host(name: str) -> Callable[[Inspected], Any]:
    return lambda of: of["HostConfig"][name]


def config(name: str) -> Callable[[Inspected], Any]:
    return lambda of: of["Config"].get(name)


def or_empty(found: Callable[[Inspected], Any]) -> Callable[[Inspected], Any]:
    return lambda of: found(of) or type(found(of) or [])()


def nothing(name: str) -> Callable[[Inspected], Any]:
    return lambda of: not of["HostConfig"][name]


def mounts_found(of: Inspected) -> list[tuple[Any, ...]]:
    return sorted(
        (
            m["Type"],
            m["Source"],
            m["Target"],
            m.get("ReadOnly", False),
            m.get("BindOptions", {}).get("Propagation"),
            m.get("VolumeOptions", {}).get("NoCopy", False),
        )
        for m in of["HostConfig"].get("Mounts") or []
    )


def mounts_wanted(binding: Binding) -> list[tuple[Any, ...]]:
    return sorted(
        (
            m.kind,
            m.source,
            m.target,
            m.read_only,
            "rprivate" if m.kind == "bind" else None,
            m.no_copy and m.kind == "volume",
        )
        for m in binding.mounts
    )


def security(prefix: str) -> Callable[[Inspected], Any]:
    return lambda of: [
        item for item in of["HostConfig"]["SecurityOpt"] or [] if item.startswith(prefix)
    ]


ROWS: dict[str, Row] = {
    "image": Row(lambda of: (of["Image"], of["Config"]["Image"]), lambda s, b: (s.image, s.image)),
    "argv": Row(
        lambda of: ((of["Config"]["Entrypoint"] or []), of["Config"]["Cmd"]),
        lambda s, b: ([], list(s.argv)),
    ),
    "env": Row(
        lambda of: sorted(of["Config"]["Env"] or []),
        lambda s, b: sorted(f"{k}={v}" for k, v in s.env),
    ),
    "user": Row(config("User"), lambda s, b: s.user),
    "workdir": Row(config("WorkingDir"), lambda s, b: s.workdir),
    "hostname": Row(config("Hostname"), lambda s, b: s.hostname),
    "network": Row(
        lambda of: (of["Config"].get("NetworkDisabled", False), of["HostConfig"]["NetworkMode"]),
        lambda s, b: (True, "none") if s.network == "disabled" else (False, s.network),
    ),
    "read_only_root": Row(host("ReadonlyRootfs"), lambda s, b: s.read_only_root),
    "privileged": Row(host("Privileged"), lambda s, b: s.privileged),
    "cap_drop": Row(or_empty(host("CapDrop")), lambda s, b: list(s.cap_drop)),
    "cap_add": Row(or_empty(host("CapAdd")), lambda s, b: list(s.cap_add)),
    "no_new_privileges": Row(
        security("no-new-privileges"),
        lambda s, b: ["no-new-privileges:true"] if s.no_new_privileges else [],
    ),
    "seccomp": Row(security("seccomp"), lambda s, b: [f"seccomp={b.seccomp}"]),
    "ipc": Row(host("IpcMode"), lambda s, b: s.ipc),
    "pid": Row(host("PidMode"), lambda s, b: s.pid),
    "uts": Row(host("UTSMode"), lambda s, b: s.uts),
    "userns": Row(host("UsernsMode"), lambda s, b: s.userns),
    "cgroupns": Row(host("CgroupnsMode"), lambda s, b: s.cgroupns),
    "devices": Row(
        lambda of: [
            f"{d['PathOnHost']}:{d['PathInContainer']}:{d['CgroupPermissions']}"
            for d in of["HostConfig"]["Devices"] or []
        ],
        lambda s, b: list(s.devices),
    ),
    "sysctls": Row(lambda of: of["HostConfig"].get("Sysctls") or {}, lambda s, b: dict(s.sysctls)),
    "group_add": Row(or_empty(host("GroupAdd")), lambda s, b: list(s.group_add)),
    "mounts": Row(mounts_found, lambda s, b: mounts_wanted(b)),
    "tmpfs": Row(
        lambda of: of["HostConfig"].get("Tmpfs") or {},
        lambda s, b: {t.target: t.options for t in s.tmpfs},
    ),
    "pids_limit": Row(host("PidsLimit"), lambda s, b: s.pids_limit),
    "memory_bytes": Row(host("Memory"), lambda s, b: s.memory_bytes),
    "memory_swap_bytes": Row(host("MemorySwap"), lambda s, b: s.memory_swap_bytes),
    "shm_bytes": Row(host("ShmSize"), lambda s, b: s.shm_bytes),
    "nano_cpus": Row(host("NanoCpus"), lambda s, b: s.nano_cpus),
    "ulimits": Row(
        lambda of: [(u["Name"], u["Soft"], u["Hard"]) for u in of["HostConfig"]["Ulimits"] or []],
        lambda s, b: [(u.name, u.soft, u.hard) for u in s.ulimits],
    ),
    "log_max_bytes": Row(
        host("LogConfig"),
        lambda s, b: {
            "Type": "json-file",
            "Config": {"max-size": str(s.log_max_bytes), "max-file": "1"},
        },
    ),
    "init": Row(host("Init"), lambda s, b: s.init),
    "stop_signal": Row(config("StopSignal"), lambda s, b: s.stop_signal),
    "open_stdin": Row(
        lambda of: (of["Config"]["OpenStdin"], of["Config"]["StdinOnce"]),
        # StdinOnce: the container's input ends when its rolebox dies.
        lambda s, b: (s.open_stdin, s.open_stdin),
    ),
}

#: What no spec has a word for, and what every container must therefore have.
ALWAYS: dict[str, tuple[Callable[[Inspected], Any], Any]] = {
    "nothing restarts it": (host("RestartPolicy"), {"Name": "no", "MaximumRetryCount": 0}),
    "it stays to be collected": (host("AutoRemove"), False),
    "no port": (nothing("PortBindings"), True),
    "no published port": (host("PublishAllPorts"), False),
    "no bind by its old name": (nothing("Binds"), True),
    "no volume of another container": (nothing("VolumesFrom"), True),
    "no GPU": (nothing("DeviceRequests"), True),
    "no device rule": (nothing("DeviceCgroupRules"), True),
    "no link": (nothing("Links"), True),
    "no name server": (nothing("Dns"), True),
    "no added host": (nothing("ExtraHosts"), True),
    "out of memory kills": (host("OomKillDisable"), False),
    "no terminal": (config("Tty"), False),
    "no health check of the image": (config("Healthcheck"), {"Test": ["NONE"]}),
}

#: Everything that a plan's containers leave at its default; created, never started.
ODD = ContainerSpec(
    image="",
    argv=("true", "a b"),
    env=(("LANG", "C.UTF-8"), ("ONE", "1"), ("PATH", "/bin")),
    user="7:8",
    workdir="/tmp",
    hostname="odd",
    network="bridge",
    privileged=True,
    cap_add=("CHOWN",),
    ipc="shareable",
    pid="host",
    uts="",
    userns="host",
    cgroupns="host",
    devices=("/dev/null:/dev/odd:r",),
    sysctls=(("kernel.shm_rmid_forced", "1"),),
    group_add=("1234",),
    mounts=(),
    tmpfs=(TmpfsSpec(target="/odd", options="rw,size=1m"),),
    pids_limit=33,
    memory_bytes=64 << 20,
    memory_swap_bytes=96 << 20,
    shm_bytes=2 << 20,
    nano_cpus=250_000_000,
    ulimits=(UlimitSpec(name="nproc", soft=10, hard=20),),
    log_max_bytes=123_456,
    stop_signal="SIGQUIT",
    open_stdin=False,
)


@dataclass
class Made:
    """A container as created, what was asked for, and the plan's materials."""

    spec: ContainerSpec
    binding: Binding
    inspected: Inspected
    image_labels: Mapping[str, str]


@pytest.fixture(params=["agent", "gateway", "live gateway", "odd"])
def made(
    request: pytest.FixtureRequest,
    engine: DockerEngine,
    api: docker.APIClient,
    home: Path,
    repository: Path,
    tmp_path: Path,
) -> Iterator[Made]:
    asked: dict[str, Any] = {"prompt": "x"} if "live" in request.param else {"argv": ("true",)}
    plan, materials = planned(home, repository, **asked)
    spec = {
        "agent": plan.agent_container,
        "gateway": plan.gateway_container,
        "live gateway": plan.gateway_container,
        "odd": ODD.model_copy(update={"image": plan.agent_container.image}),
    }[request.param]
    run = f"inspect-{secrets.token_hex(4)}"
    volume = f"rolebox-{run}"
    binding = Binding(
        name=f"rolebox-{run}",
        labels={RUN_LABEL: run, "rolebox.part": request.param},
        mounts=tuple(_bind(mount, volume, tmp_path) for mount in spec.mounts),
        seccomp=materials.seccomp.get(spec.seccomp or "") or load_seccomp()["agent"],
    )
    engine.create_volume(volume, {RUN_LABEL: run}, {})
    container = engine.create(spec, binding)
    try:
        image = api.inspect_image(spec.image)  # type: ignore[no-untyped-call]
        labels = image["Config"]["Labels"] or {}
        yield Made(spec, binding, api.inspect_container(container), labels)
    finally:
        engine.remove(container)
        engine.remove_volume(volume)


def _bind(mount: MountSpec, volume: str, folder: Path) -> BoundMount:
    if mount.source.startswith("volume:"):
        no_copy = mount.source == "volume:gateway"
        return BoundMount(mount.target, "volume", volume, mount.read_only, no_copy=no_copy)
    return BoundMount(mount.target, "bind", str(folder), mount.read_only)


def test_every_field_of_a_spec_is_compared() -> None:
    assert set(ROWS) == set(ContainerSpec.model_fields)


def test_the_container_as_created_is_the_one_of_the_plan(made: Made) -> None:
    found = {name: row.found(made.inspected) for name, row in ROWS.items()}
    wanted = {name: row.wanted(made.spec, made.binding) for name, row in ROWS.items()}
    assert found == wanted
    assert {k: read(made.inspected) for k, (read, _) in ALWAYS.items()} == {
        k: value for k, (_, value) in ALWAYS.items()
    }
    assert made.inspected["Config"]["Labels"] == {**made.image_labels, **made.binding.labels}
    assert made.inspected["Name"] == f"/{made.binding.name}"


def test_the_engine_holds_the_seccomp_profile_of_the_plan(made: Made) -> None:
    if made.spec.seccomp is None:
        assert made.spec.privileged  # only the odd one
        return
    [option] = security("seccomp")(made.inspected)
    assert sha256(option.removeprefix("seccomp=").encode()) == made.spec.seccomp


def test_paths_of_the_kernel_stay_masked(made: Made) -> None:
    masked = made.inspected["HostConfig"]["MaskedPaths"] or []
    assert ("/proc/kcore" in masked) is not made.spec.privileged


class _Inspecting(Quiet):
    """Reads every object of the run from the engine once the agent runs."""

    def __init__(self, api: docker.APIClient) -> None:
        self.api = api
        self.seen: list[str] = []

    def stage(self, name: str) -> None:
        if name == "running":
            for container in self.api.containers(all=True, filters={"label": RUN_LABEL}):
                self.seen.append(json.dumps(self.api.inspect_container(container["Id"])))
            self.seen.append(json.dumps(self.api.volumes(filters={"label": RUN_LABEL})))


def test_no_object_of_the_engine_and_no_file_shows_the_key(
    engine: DockerEngine, api: docker.APIClient, home: Path, repository: Path
) -> None:
    prepared = prepare_task(
        Request(role="reviewer", directory=repository, argv=("env",)), home, os.environ
    )
    plan = prepared.planned.plan
    live = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1"}  # only it takes a key
    plan = plan.model_copy(update={"gateway": plan.gateway.model_copy(update=live)})
    prepared = replace(prepared, planned=replace(prepared.planned, plan=plan))
    watcher = _Inspecting(api)
    given = Host(
        home=home,
        engine=engine,
        now=lambda: datetime.now(UTC),
        entropy=os.urandom,
        headers={"authorization": f"Bearer {SENTINEL}"},
        min_free_bytes=1,
    )
    state = run_sealed(prepared, given, watcher, Stop())
    assert state.status == "done", state.failure
    of_this_run = [text for text in watcher.seen if state.id in text]
    assert len(of_this_run) == 3  # both containers, the volumes
    assert not [text for text in watcher.seen if SENTINEL in text]
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10
    assert not [path for path in files if SENTINEL.encode() in path.read_bytes()]


# The stream's frames.


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=12),
    cuts=st.lists(st.integers(min_value=1, max_value=50), min_size=1, max_size=60),
)
def test_frames_are_the_same_however_the_wire_cuts_them(
    frames: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    wire = b"".join(frame(kind, payload) for kind, payload in frames)
    buffer, got, turn = bytearray(), {"stdout": b"", "stderr": b""}, 0
    order: list[str] = []
    while wire:
        size = cuts[turn % len(cuts)]
        turn += 1
        buffer += wire[:size]
        wire = wire[size:]
        for stream, data in cut(buffer):
            got[stream] += data
            order += [stream] * bool(data)
    assert buffer == b""
    assert got["stdout"] == b"".join(p for kind, p in frames if kind == 1)
    assert got["stderr"] == b"".join(p for kind, p in frames if kind == 2)
    wanted = ["stdout" if kind == 1 else "stderr" for kind, p in frames if p]
    assert _runs(order) == _runs(wanted)


def _runs(order: list[str]) -> list[str]:
    return [name for at, name in enumerate(order) if at == 0 or order[at - 1] != name]


def test_half_a_frame_is_kept_until_its_rest_comes() -> None:
    buffer = bytearray(frame(1, b"whole") + frame(2, b"torn")[:-1])
    assert list(cut(buffer)) == [("stdout", b"whole")]
    buffer += b"n"
    assert list(cut(buffer)) == [("stderr", b"torn")]


# Where the engine is.


@pytest.fixture
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker configuration with the contexts `near` and, by TLS, `far`."""
    folder = tmp_path / "docker-config"
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    for variable in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    meta = folder / "contexts" / "meta" / sha256(b"near").removeprefix("sha256:")
    meta.mkdir(parents=True)
    endpoint = {"Host": "unix:///near.sock", "SkipTLSVerify": False}
    (meta / "meta.json").write_text(
        json.dumps({"Name": "near", "Metadata": {}, "Endpoints": {"docker": endpoint}})
    )
    return folder


def test_docker_host_wins_over_every_context(docker_config: Path) -> None:
    (docker_config / "config.json").write_text('{"currentContext": "near"}')
    env = {
        "DOCKER_HOST": "unix:///told.sock",
        "DOCKER_CONTEXT": "near",
        "DOCKER_CONFIG": str(docker_config),
    }
    assert resolve_endpoint(env) == Endpoint("unix:///told.sock", "DOCKER_HOST")


def test_docker_context_wins_over_the_configured_one(docker_config: Path) -> None:
    (docker_config / "config.json").write_text('{"currentContext": "other"}')
    found = resolve_endpoint({"DOCKER_CONTEXT": "near", "DOCKER_CONFIG": str(docker_config)})
    assert (found.url, found.origin) == ("unix:///near.sock", "context near")


def test_the_configured_context_is_used(docker_config: Path) -> None:
    (docker_config / "config.json").write_text('{"currentContext": "near"}')
    found = resolve_endpoint({"DOCKER_CONFIG": str(docker_config)})
    assert (found.url, found.origin) == ("unix:///near.sock", "context near")


@pytest.mark.parametrize("text", [None, "{}", "not json", "[]", '{"currentContext": "default"}'])
def test_without_a_context_it_is_the_default_socket(docker_config: Path, text: str | None) -> None:
    if text is not None:
        (docker_config / "config.json").write_text(text)
    assert resolve_endpoint({"DOCKER_CONFIG": str(docker_config)}) == Endpoint(DEFAULT, "default")


def test_an_unknown_context_is_refused(docker_config: Path) -> None:
    env = {"DOCKER_CONTEXT": "nowhere", "DOCKER_CONFIG": str(docker_config)}
    with pytest.raises(UsageError, match="'nowhere' does not exist") as refusal:
        resolve_endpoint(env)
    assert "docker context ls" in refusal.value.mend


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # docker-py's, of a failed connect
@pytest.mark.parametrize("url", ["unix:///nonexistent/docker.sock", "nonsense://x", "tcp://:1:2"])
def test_an_absent_engine_is_told_with_its_mend(url: str) -> None:
    with pytest.raises(EngineUnavailable) as refusal:
        DockerEngine.connect(Endpoint(url, "DOCKER_HOST"))
    assert refusal.value.exit_code == 4
    assert url in refusal.value.what
    assert "DOCKER_HOST" in refusal.value.mend
    gc.collect()


class _Versions(http.server.BaseHTTPRequestHandler):
    api_version = ""

    def do_GET(self) -> None:
        body = json.dumps({"ApiVersion": self.api_version, "message": "no"}).encode()
        self.send_response(200 if self.path.endswith("/version") else 500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def engine_of_version(socket: Path, version: str) -> Iterator[Endpoint]:
    handler = type("Handler", (_Versions,), {"api_version": version})
    with socketserver.ThreadingUnixStreamServer(str(socket), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Endpoint(f"unix://{socket}", "test")
        finally:
            server.shutdown()
            thread.join()


def test_an_engine_that_drops_hardening_flags_is_refused(tmp_path: Path) -> None:
    with (
        engine_of_version(tmp_path / "old.sock", "1.40") as old,
        pytest.raises(EngineUnavailable, match=r"too old: API 1\.40") as refusal,
    ):
        DockerEngine.connect(old)
    assert "20.10" in refusal.value.mend


@pytest.mark.parametrize("version", ["1.41", "1.43"])
def test_the_oldest_engine_that_is_good_enough_is_taken(tmp_path: Path, version: str) -> None:
    with engine_of_version(tmp_path / "new.sock", version) as endpoint:
        connected = DockerEngine.connect(endpoint)
        with pytest.raises(InfrastructureError):  # it can say its version and nothing else
            connected.image_ids()
