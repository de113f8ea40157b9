"""What a run asks of a container engine: the small interface both engines meet.

`docker_engine.DockerEngine` talks to a real one, `fake.FakeEngine` is for what
a real one cannot be made to do. One conformance suite runs against both.
Every call raises `InfrastructureError` when the engine fails, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from runner.model.plan import ContainerSpec

RUN_LABEL = "rolebox.run"
PART_LABEL = "rolebox.part"

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class EngineInfo:
    """Facts about the engine, as far as a record needs them; `root` is its data folder."""

    id: str
    name: str
    version: str
    api_version: str
    kernel: str
    os: str
    architecture: str
    cgroup: str
    runtime: str
    rootless: bool
    security: tuple[str, ...]
    root: str = ""


@dataclass(frozen=True)
class BoundMount:
    """A plan's symbolic mount, bound to this run's path or volume."""

    target: str
    kind: Literal["bind", "volume"]
    source: str
    read_only: bool
    no_copy: bool = False


@dataclass(frozen=True)
class Binding:
    """What of a container differs from run to run.

    Attributes:
        seccomp: The profile's JSON text; its digest stands in the plan.
    """

    name: str
    labels: Mapping[str, str]
    mounts: tuple[BoundMount, ...]
    seccomp: str


@dataclass(frozen=True)
class ExitStatus:
    """How a container ended; `code` is None while it runs."""

    code: int | None
    oom_killed: bool = False
    error: str = ""


@dataclass(frozen=True)
class RunObjects:
    """The engine's objects that carry a run's label.

    Attributes:
        containers: Container id to run id.
        parts: Container id to the part that it plays, `agent` or `gateway`.
        volumes: Volume name to run id.
    """

    containers: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)


class Attachment(Protocol):
    """The open streams of one container; made before it starts, so that no byte is missed."""

    def write(self, data: bytes) -> None:
        """Write to the container's standard input."""

    def frames(self) -> Iterator[tuple[Stream, bytes]]:
        """Yield what the container prints until its streams end.

        A normal end says nothing about how the container ended: ask `status`.
        """

    def close(self) -> None:
        """Close both directions; safe to call twice and from another thread."""


class Engine(Protocol):
    """A container engine."""

    def info(self) -> EngineInfo:
        """Return facts about the engine."""

    def has_image(self, image: str) -> bool:
        """Tell whether the engine holds the image of this id; never pulls."""

    def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> None:
        """Create a volume of the `local` driver with its mount options (may be empty)."""

    def remove_volume(self, name: str) -> None:
        """Remove a volume; one that is gone already is no error."""

    def create(self, spec: ContainerSpec, binding: Binding) -> str:
        """Create a container and return its id."""

    def attach(self, container: str) -> Attachment:
        """Attach to a created container's three streams."""

    def start(self, container: str) -> None:
        """Start a created container."""

    def status(self, container: str) -> ExitStatus:
        """Return how the container stands now."""

    def wait(self, container: str, timeout_s: float) -> ExitStatus:
        """Wait for the end; `code` is None if it still runs after `timeout_s` seconds."""

    def signal(self, container: str, name: str) -> None:
        """Send a signal to the container's init; an ended container is no error."""

    def remove(self, container: str) -> None:
        """Kill and remove a container with its anonymous volumes; gone already is no error."""

    def logs(self, container: str, stream: Stream, limit: int) -> bytes:
        """Return the engine's own copy of what was printed, at most `limit` bytes."""

    def read_files(self, container: str, path: str) -> Iterator[bytes]:
        """Yield the tar stream of a folder, also of an ended container; nothing if absent."""

    def objects(self, run: str | None = None) -> RunObjects:
        """Return what carries the label of one run, or of any: id or name to run id."""
