"""What every `Engine` must do, asserted for the fake and for the real one alike."""

from __future__ import annotations

import io
import secrets
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runner.engine.api import RUN_LABEL, Attachment, Binding, BoundMount, Engine, Stream
from runner.engine.docker_engine import DockerEngine
from runner.engine.fake import FakeEngine, Killed, Process
from runner.model.errors import InfrastructureError
from runner.model.plan import ContainerSpec
from runner.session.task import load_pins, load_seccomp

PRESENT = "sha256:" + "1" * 64
ABSENT = "sha256:" + "0" * 64
UNKNOWN = "f" * 64
MIB = 1 << 20


def run_argv(process: Process) -> int:
    """Play a container: the argv as a process of this machine, in a folder of its own."""
    command = subprocess.Popen(
        process.spec.argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=process.spec.workdir,
        start_new_session=True,
    )
    assert command.stdin is not None
    assert command.stdout is not None
    assert command.stderr is not None

    def feed() -> None:
        with command.stdin as sink:  # type: ignore[union-attr]
            while data := process.stdin.raw.read(65536):  # type: ignore[attr-defined]
                sink.write(data)
                sink.flush()

    def copy(stream: Stream, source: io.BufferedReader) -> None:
        try:
            while data := source.read1(65536):
                process.write(stream, data)
        except Killed:
            pass

    def forward() -> None:
        while (name := process.signals.get()) != "ended":
            command.send_signal(getattr(signal, name))

    readers = [
        threading.Thread(target=copy, args=("stdout", command.stdout)),
        threading.Thread(target=copy, args=("stderr", command.stderr)),
    ]
    for thread in readers:
        thread.start()
    threading.Thread(target=feed, daemon=True).start()
    forwarder = threading.Thread(target=forward)
    forwarder.start()
    for thread in readers:
        thread.join()
    code = command.wait()
    process.signals.put("ended")
    forwarder.join()
    command.stdout.close()
    command.stderr.close()
    top = Path(process.spec.workdir)
    process.files.update(
        {
            f"/{path.relative_to(top)}": path.read_bytes()
            for path in top.rglob("*")
            if path.is_file()
        }
    )
    return code if code >= 0 else 128 - code


@dataclass
class Rig:
    """An engine, and what a test makes on it under one label."""

    engine: Engine
    image: str
    workdir: str
    seccomp: str
    run: str
    opened: list[Attachment] = field(default_factory=list)

    def spec(self, *argv: str, image: str | None = None) -> ContainerSpec:
        return ContainerSpec(
            image=image or self.image,
            argv=argv,
            env=(("PATH", "/usr/bin:/bin"),),
            user="0:0",
            workdir=self.workdir,
            network="disabled",
            no_new_privileges=True,
            cgroupns="private",
            memory_bytes=512 * MIB,
            memory_swap_bytes=512 * MIB,
            log_max_bytes=64 * MIB,
            seccomp="agent",
            init=True,
        )

    def binding(self, name: str, run: str | None = None, volume: str | None = None) -> Binding:
        run = run or self.run
        mounts = (BoundMount("/data", "volume", volume, read_only=True),) if volume else ()
        labels = {RUN_LABEL: run, "rolebox.part": name}
        return Binding(f"rolebox-{run}-{name}", labels, mounts, self.seccomp)

    def create(self, *argv: str, name: str = "one") -> str:
        return self.engine.create(self.spec(*argv), self.binding(name))

    def shell(self, script: str, name: str = "one") -> str:
        return self.create("sh", "-c", script, name=name)

    def launch(self, script: str, name: str = "one") -> tuple[str, Attachment]:
        container = self.shell(script, name)
        attachment = self.attach(container)
        self.engine.start(container)
        return container, attachment

    def attach(self, container: str) -> Attachment:
        self.opened.append(self.engine.attach(container))
        return self.opened[-1]

    def ended(self, script: str, name: str = "one") -> str:
        container, attachment = self.launch(script, name)
        drain(attachment)
        assert self.engine.wait(container, 30).code is not None
        return container


def drain(attachment: Attachment) -> dict[Stream, bytes]:
    out: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    for stream, data in attachment.frames():
        out[stream] += data
    attachment.close()
    return {name: bytes(data) for name, data in out.items()}


def until(attachment: Attachment, word: bytes) -> None:
    seen = b""
    for _, data in attachment.frames():
        seen += data
        if word in seen:
            return
    raise AssertionError(f"the stream ended without {word!r}: {seen!r}")


@pytest.fixture(params=["fake", "docker"])
def rig(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[Rig]:
    run = f"conformance-{secrets.token_hex(4)}"
    if request.param == "fake":
        folder = tmp_path / "root"
        folder.mkdir()
        made = Rig(FakeEngine({PRESENT: run_argv}), PRESENT, str(folder), "{}", run)
    else:
        real: DockerEngine = request.getfixturevalue("engine")
        made = Rig(real, load_pins(home).agent_image, "/", load_seccomp()["agent"], run)
    yield made
    for attachment in made.opened:
        attachment.close()
    for which in (run, f"{run}-other"):
        found = made.engine.objects(which)
        for container in found.containers:
            made.engine.remove(container)
        for volume in found.volumes:
            made.engine.remove_volume(volume)


# Streams.


def test_no_byte_is_missed_when_attached_before_the_start(rig: Rig) -> None:
    for turn in range(5):
        _, attachment = rig.launch("printf first; printf second", name=f"turn{turn}")
        assert drain(attachment)["stdout"] == b"firstsecond"


def test_input_reaches_the_command_and_its_answer_comes_back(rig: Rig) -> None:
    container, attachment = rig.launch('while read -r line; do echo "<$line>"; done; echo end')
    attachment.write(b"one\n")
    until(attachment, b"<one>\n")
    attachment.write(b"two\n")
    until(attachment, b"<two>\n")
    rig.engine.signal(container, "SIGKILL")


def test_stdout_and_stderr_are_kept_apart_and_in_order(rig: Rig) -> None:
    _, attachment = rig.launch("for i in 1 2 3 4 5 6 7 8; do echo out$i; echo err$i >&2; done")
    got = drain(attachment)
    assert got["stdout"] == b"".join(b"out%d\n" % i for i in range(1, 9))
    assert got["stderr"] == b"".join(b"err%d\n" % i for i in range(1, 9))


def test_twenty_megabytes_arrive_unchanged(rig: Rig) -> None:
    script = "import sys\nfor i in range(20 * 1024):\n sys.stdout.write('%08d' % i * 128)"
    container = rig.create("python3", "-c", script)
    attachment = rig.attach(container)
    rig.engine.start(container)
    got = drain(attachment)["stdout"]
    assert len(got) == 20 * MIB
    assert got == b"".join(b"%08d" % i * 128 for i in range(20 * 1024))


def test_two_attachments_side_by_side_see_the_same(rig: Rig) -> None:
    container = rig.shell("echo shared; echo apart >&2")
    first, second = rig.attach(container), rig.attach(container)
    rig.engine.start(container)
    assert drain(first) == drain(second) == {"stdout": b"shared\n", "stderr": b"apart\n"}


def test_two_containers_side_by_side_do_not_mix(rig: Rig) -> None:
    _, first = rig.launch("read x; echo first $x", name="first")
    _, second = rig.launch("read x; echo second $x", name="second")
    second.write(b"b\n")
    first.write(b"a\n")
    assert drain(first)["stdout"] == b"first a\n"
    assert drain(second)["stdout"] == b"second b\n"


def test_close_from_another_thread_ends_the_frames(rig: Rig) -> None:
    container, attachment = rig.launch("echo up; sleep 60")
    seen: list[bytes] = []
    up = threading.Event()

    def read() -> None:
        for _, data in attachment.frames():
            seen.append(data)
            up.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert up.wait(30)
    attachment.close()
    reader.join(30)
    assert not reader.is_alive()
    assert b"".join(seen) == b"up\n"
    assert rig.engine.status(container).code is None
    attachment.close()


# The end of a container.


@pytest.mark.parametrize("code", [0, 1, 3, 127])
def test_the_exit_code_is_the_commands(rig: Rig, code: int) -> None:
    container = rig.ended(f"exit {code}")
    assert rig.engine.wait(container, 30).code == code
    assert rig.engine.status(container).code == code
    assert not rig.engine.status(container).oom_killed


def test_waiting_for_a_running_container_gives_no_code(rig: Rig) -> None:
    container, attachment = rig.launch("echo up; read x; exit 4")
    until(attachment, b"up")
    assert rig.engine.wait(container, 0.2).code is None
    assert rig.engine.status(container).code is None
    attachment.write(b"\n")
    assert rig.engine.wait(container, 30).code == 4


def test_waiting_no_time_at_all_is_asking(rig: Rig) -> None:
    container, attachment = rig.launch("echo up; read x; exit 4")
    until(attachment, b"up")
    assert rig.engine.wait(container, 0).code is None


def test_a_created_container_has_not_ended(rig: Rig) -> None:
    assert rig.engine.status(rig.shell("true")).code is None


def test_a_signal_reaches_the_commands_trap(rig: Rig) -> None:
    script = "trap 'echo trapped; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    container, attachment = rig.launch(script)
    until(attachment, b"ready")
    rig.engine.signal(container, "SIGTERM")
    until(attachment, b"trapped")
    assert rig.engine.wait(container, 30).code == 7


def test_kill_ends_what_ignores_every_other_signal(rig: Rig) -> None:
    script = "trap '' TERM INT; echo ready; while :; do sleep 0.05; done"
    container, attachment = rig.launch(script)
    until(attachment, b"ready")
    rig.engine.signal(container, "SIGTERM")
    assert rig.engine.wait(container, 0.3).code is None
    rig.engine.signal(container, "SIGKILL")
    assert rig.engine.wait(container, 30).code == 137
    assert list(attachment.frames()) == []


def test_a_signal_to_an_ended_or_removed_container_is_no_error(rig: Rig) -> None:
    container = rig.ended("true")
    rig.engine.signal(container, "SIGTERM")
    assert rig.engine.status(container).code == 0
    rig.engine.remove(container)
    rig.engine.signal(container, "SIGKILL")


def test_a_running_container_is_removed_and_its_streams_end(rig: Rig) -> None:
    container, attachment = rig.launch("echo up; sleep 60")
    until(attachment, b"up")
    rig.engine.remove(container)
    assert list(attachment.frames()) == []
    assert container not in rig.engine.objects(rig.run).containers


def test_removing_twice_is_no_error(rig: Rig) -> None:
    container = rig.ended("true")
    rig.engine.remove(container)
    rig.engine.remove(container)
    with pytest.raises(InfrastructureError):
        rig.engine.status(container)


# The engine's own copy.


def test_logs_are_the_engines_copy_by_stream(rig: Rig) -> None:
    container = rig.ended("echo out; echo err >&2; echo more")
    assert rig.engine.logs(container, "stdout", MIB) == b"out\nmore\n"
    assert rig.engine.logs(container, "stderr", MIB) == b"err\n"


def test_logs_stop_at_the_limit(rig: Rig) -> None:
    container = rig.ended("for i in 1 2 3; do printf 0123456789; done")
    assert rig.engine.logs(container, "stdout", 15) == b"012345678901234"
    assert rig.engine.logs(container, "stdout", 30) == b"0123456789" * 3
    assert rig.engine.logs(container, "stdout", 0) == b""


def test_logs_of_a_running_container_do_not_wait_for_its_end(rig: Rig) -> None:
    container, attachment = rig.launch("echo sofar; sleep 60")
    until(attachment, b"sofar")
    assert rig.engine.logs(container, "stdout", MIB) == b"sofar\n"
    assert rig.engine.status(container).code is None


def test_files_of_an_ended_container_are_read(rig: Rig) -> None:
    container = rig.ended("mkdir -p out/sub; printf one >out/a; printf two >out/sub/b; echo x >not")
    data = b"".join(rig.engine.read_files(container, "/out"))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {
            member.name: (archive.extractfile(member) or io.BytesIO()).read()
            for member in archive
            if member.isreg()
        }
    assert found == {"out/a": b"one", "out/sub/b": b"two"}


def test_a_path_that_is_not_there_gives_nothing(rig: Rig) -> None:
    assert list(rig.engine.read_files(rig.ended("true"), "/nothing/here")) == []


# What the engine holds.


def test_an_image_is_there_or_is_not(rig: Rig) -> None:
    assert rig.engine.has_image(rig.image)
    assert not rig.engine.has_image(ABSENT)


def test_an_unknown_image_is_refused_and_never_pulled(rig: Rig) -> None:
    with pytest.raises(InfrastructureError):
        rig.engine.create(rig.spec("true", image=ABSENT), rig.binding("one"))
    with pytest.raises(InfrastructureError):
        rig.engine.create(rig.spec("true", image="rolebox-nowhere:latest"), rig.binding("two"))
    assert rig.engine.objects(rig.run).containers == {}
    assert not rig.engine.has_image("rolebox-nowhere:latest")


def test_a_name_is_given_once(rig: Rig) -> None:
    rig.shell("true")
    with pytest.raises(InfrastructureError):
        rig.shell("true")


def test_objects_are_found_by_the_label_of_one_run_and_of_all(rig: Rig) -> None:
    other = f"{rig.run}-other"
    mine = rig.shell("true", name="agent")
    theirs = rig.engine.create(rig.spec("true"), rig.binding("gateway", run=other))
    rig.engine.create_volume(f"{rig.run}-v", {RUN_LABEL: rig.run}, {})
    rig.engine.create_volume(f"{other}-v", {RUN_LABEL: other}, {})
    one = rig.engine.objects(rig.run)
    assert one.containers == {mine: rig.run}
    assert one.parts == {mine: "agent"}
    assert one.volumes == {f"{rig.run}-v": rig.run}
    both = rig.engine.objects()
    assert {mine: rig.run, theirs: other}.items() <= both.containers.items()
    assert {mine: "agent", theirs: "gateway"}.items() <= both.parts.items()
    assert {f"{rig.run}-v": rig.run, f"{other}-v": other}.items() <= both.volumes.items()


def test_what_carries_no_label_is_nobodys(rig: Rig) -> None:
    name = f"{rig.run}-unlabelled"
    rig.engine.create_volume(name, {}, {})
    try:
        assert name not in rig.engine.objects().volumes
    finally:
        rig.engine.remove_volume(name)


def test_volumes_come_and_go_and_going_twice_is_no_error(rig: Rig) -> None:
    name = f"{rig.run}-v"
    rig.engine.create_volume(name, {RUN_LABEL: rig.run}, {})
    assert name in rig.engine.objects(rig.run).volumes
    rig.engine.remove_volume(name)
    assert name not in rig.engine.objects(rig.run).volumes
    rig.engine.remove_volume(name)


def test_a_volume_in_use_is_not_removed(rig: Rig) -> None:
    name = f"{rig.run}-v"
    rig.engine.create_volume(name, {RUN_LABEL: rig.run}, {})
    container = rig.engine.create(rig.spec("true"), rig.binding("one", volume=name))
    with pytest.raises(InfrastructureError):
        rig.engine.remove_volume(name)
    rig.engine.remove(container)
    rig.engine.remove_volume(name)
    assert rig.engine.objects(rig.run).volumes == {}


def test_the_engine_describes_itself(rig: Rig) -> None:
    info = rig.engine.info()
    assert info.id
    assert tuple(map(int, info.api_version.split("."))) >= (1, 41)


_ON_UNKNOWN: dict[str, Callable[[Engine], object]] = {
    "attach": lambda engine: engine.attach(UNKNOWN),
    "start": lambda engine: engine.start(UNKNOWN),
    "status": lambda engine: engine.status(UNKNOWN),
    "wait": lambda engine: engine.wait(UNKNOWN, 1),
    "logs": lambda engine: engine.logs(UNKNOWN, "stdout", 10),
    "read_files": lambda engine: list(engine.read_files(UNKNOWN, "/out")),
}


@pytest.mark.parametrize("call", _ON_UNKNOWN)
def test_an_unknown_container_is_an_infrastructure_error(rig: Rig, call: str) -> None:
    with pytest.raises(InfrastructureError):
        _ON_UNKNOWN[call](rig.engine)
