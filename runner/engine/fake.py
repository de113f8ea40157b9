"""An engine in memory, for what a real one cannot be made to do on demand.

A container is a Python function in a thread. `FakeEngine` meets the conformance
suite that the Docker adapter meets; `faulty.FaultyEngine` puts a moment of
failure before either.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import queue
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

from runner.engine.api import (
    PART_LABEL,
    RUN_LABEL,
    Attachment,
    Binding,
    EngineInfo,
    ExitStatus,
    RunObjects,
    Stream,
)
from runner.model.errors import InfrastructureError
from runner.model.plan import ContainerSpec

_SIGKILLED = 128 + 9


class Killed(Exception):
    """Raised in a program that prints after its container was killed; it need not be caught."""


@dataclass
class Process:
    """A program's view of its container.

    Attributes:
        signals: Names as they were sent; the last one is `SIGKILL` if it was killed.
        files: Absolute path to content: what `read_files` serves.
        oom_killed: Set it to be told of as out of memory.
    """

    spec: ContainerSpec
    binding: Binding
    stdin: BinaryIO
    write: Callable[[Stream, bytes], None]
    signals: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    files: dict[str, bytes] = field(default_factory=dict)
    oom_killed: bool = False


Program = Callable[[Process], int]


class _Container:
    """One container: its log is the single truth that attachments and `logs` read."""

    def __init__(self, spec: ContainerSpec, binding: Binding, program: Program) -> None:
        self.binding = binding
        self.log: list[tuple[Stream, bytes]] = []
        self.changed = threading.Condition()
        self.code: int | None = None
        self.started = False
        self.input, inside = socket.socketpair()
        self.process = Process(spec, binding, inside.makefile("rb"), self._print)
        self._inside = inside
        self._program = program

    def start(self) -> None:
        self.started = True
        threading.Thread(target=self._run, name=self.binding.name, daemon=True).start()

    def _run(self) -> None:
        code = 1
        try:
            code = self._program(self.process)
        except Killed:
            code = _SIGKILLED
        finally:
            self._end(code)
            self.process.stdin.close()
            self._inside.close()

    def _print(self, stream: Stream, data: bytes) -> None:
        with self.changed:
            if self.code is not None:
                raise Killed
            self.log.append((stream, data))
            self.changed.notify_all()

    def _end(self, code: int) -> None:
        with self.changed:
            self.code = code if self.code is None else self.code
            self.input.close()
            self.changed.notify_all()

    def end_input(self) -> None:
        """Let go whoever reads or writes the input; as the engine's StdinOnce does."""
        with contextlib.suppress(OSError):  # it has ended
            self.input.shutdown(socket.SHUT_RDWR)

    @property
    def running(self) -> bool:
        return self.started and self.code is None

    def kill(self) -> None:
        if self.running:
            self.end_input()
            self._end(_SIGKILLED)
            self.process.signals.put("SIGKILL")
        elif not self.started:
            for end in (self.input, self.process.stdin, self._inside):
                end.close()

    def status(self) -> ExitStatus:
        if self.code is None:
            return ExitStatus(None)
        return ExitStatus(self.code, self.process.oom_killed)


class _FakeAttachment:
    def __init__(self, container: _Container) -> None:
        self._container = container
        self._next = len(container.log)
        self._closed = False

    def write(self, data: bytes) -> None:
        try:
            self._container.input.sendall(data)
        except OSError as error:
            raise InfrastructureError(
                "the container's input is closed", why=type(error).__name__
            ) from None

    def frames(self) -> Iterator[tuple[Stream, bytes]]:
        container = self._container
        while True:
            with container.changed:
                container.changed.wait_for(
                    lambda: (
                        self._closed
                        or container.code is not None
                        or len(container.log) > self._next
                    )
                )
                news = [] if self._closed else container.log[self._next :]
            if not news:
                return
            self._next += len(news)
            yield from news

    def close(self) -> None:
        self._container.end_input()
        with self._container.changed:
            self._closed = True
            self._container.changed.notify_all()


class FakeEngine:
    """`Engine` in memory.

    Args:
        images: Image id to the program that its containers run.
    """

    def __init__(self, images: Mapping[str, Program]) -> None:
        self._images = dict(images)
        self._containers: dict[str, _Container] = {}
        self._volumes: dict[str, Mapping[str, str]] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()

    def info(self) -> EngineInfo:
        return EngineInfo(
            id="fake",
            name="fake",
            version="0",
            api_version="1.41",
            kernel="0",
            os="none",
            architecture="none",
            cgroup="none",
            runtime="thread",
            rootless=True,
            security=(),
        )

    def has_image(self, image: str) -> bool:
        return image in self._images

    def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> None:
        with self._lock:
            self._volumes.setdefault(name, dict(labels))

    def remove_volume(self, name: str) -> None:
        with self._lock:
            used = {m.source for c in self._containers.values() for m in c.binding.mounts}
            if name in self._volumes and name in used:
                raise InfrastructureError(f"the engine refused to remove the volume {name}: in use")
            self._volumes.pop(name, None)

    def create(self, spec: ContainerSpec, binding: Binding) -> str:
        with self._lock:
            if spec.image not in self._images:
                raise InfrastructureError(f"no such image: {spec.image}")
            if any(binding.name == other.binding.name for other in self._containers.values()):
                raise InfrastructureError(f"the name {binding.name} is taken")
            container = f"{next(self._ids):064x}"
            self._containers[container] = _Container(spec, binding, self._images[spec.image])
        return container

    def _find(self, container: str) -> _Container:
        try:
            return self._containers[container]
        except KeyError:
            raise InfrastructureError(f"no such container: {container}") from None

    def attach(self, container: str) -> Attachment:
        return _FakeAttachment(self._find(container))

    def start(self, container: str) -> None:
        self._find(container).start()

    def status(self, container: str) -> ExitStatus:
        return self._find(container).status()

    def wait(self, container: str, timeout_s: float) -> ExitStatus:
        found = self._find(container)
        with found.changed:
            found.changed.wait_for(lambda: found.code is not None, timeout_s)
        return found.status()

    def signal(self, container: str, name: str) -> None:
        found = self._containers.get(container)
        if found is None or not found.running:
            return
        if name == "SIGKILL":
            found.kill()
        else:
            found.process.signals.put(name)

    def remove(self, container: str) -> None:
        with self._lock:
            found = self._containers.pop(container, None)
        if found is not None:
            found.kill()

    def logs(self, container: str, stream: Stream, limit: int) -> bytes:
        return b"".join(d for name, d in self._find(container).log if name == stream)[:limit]

    def read_files(self, container: str, path: str) -> Iterator[bytes]:
        folder, out = PurePosixPath(path), io.BytesIO()
        files = self._find(container).process.files
        below = {
            name: data for name, data in files.items() if folder in PurePosixPath(name).parents
        }
        if not below:
            return
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, data in below.items():
                member = tarfile.TarInfo(str(PurePosixPath(name).relative_to(folder.parent)))
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        yield out.getvalue()

    def objects(self, run: str | None = None) -> RunObjects:
        def ours(labels: Mapping[str, str]) -> bool:
            return RUN_LABEL in labels and run in (None, labels[RUN_LABEL])

        with self._lock:
            labels = {c: found.binding.labels for c, found in self._containers.items()}
            return RunObjects(
                containers={c: of[RUN_LABEL] for c, of in labels.items() if ours(of)},
                parts={c: of.get(PART_LABEL, "") for c, of in labels.items() if ours(of)},
                volumes={v: of[RUN_LABEL] for v, of in self._volumes.items() if ours(of)},
            )
