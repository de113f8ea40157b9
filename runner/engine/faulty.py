"""Any engine, until a chosen moment: what fails on demand, and what dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from runner.engine.api import (
    Attachment,
    Binding,
    Engine,
    EngineInfo,
    ExitStatus,
    RunObjects,
    Stream,
)
from runner.model.errors import InfrastructureError
from runner.model.plan import ContainerSpec


class FaultyEngine:
    """Another engine, until a moment.

    Args:
        engine: What it stands before.
        fail: Method name to which of its calls (counted from 1) fails, once.
        die_at: A method and the number of its call; from then on the engine is dead:
            every call fails and every stream ends. `die` does it at any moment, and
            `revive` starts the engine again.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        fail: Mapping[str, int] | None = None,
        die_at: tuple[str, int] | None = None,
    ) -> None:
        self._engine = engine
        self._fail = fail or {}
        self._die_at = die_at
        self._attachments: list[tuple[str, Attachment]] = []
        self.calls: Counter[str] = Counter()
        self.dead = False

    def die(self) -> None:
        self.dead = True
        self.cut_streams()

    def revive(self) -> None:
        self.dead = False

    def cut_streams(self, of: str | None = None) -> None:
        """End the streams of one container or of all, as a broken connection does; it runs on."""
        for container, attachment in self._attachments:
            if of in (None, container):
                attachment.close()

    def _to(self, method: str) -> Engine:
        self.calls[method] += 1
        if (method, self.calls[method]) == self._die_at:
            self.die()
        if self.dead or self._fail.get(method) == self.calls[method]:
            raise InfrastructureError(f"the engine did not answer when asked to {method}")
        return self._engine

    def info(self) -> EngineInfo:
        return self._to("info").info()

    def has_image(self, image: str) -> bool:
        return self._to("has_image").has_image(image)

    def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> None:
        self._to("create_volume").create_volume(name, labels, options)

    def remove_volume(self, name: str) -> None:
        self._to("remove_volume").remove_volume(name)

    def create(self, spec: ContainerSpec, binding: Binding) -> str:
        return self._to("create").create(spec, binding)

    def attach(self, container: str) -> Attachment:
        attachment = self._to("attach").attach(container)
        self._attachments.append((container, attachment))
        return attachment

    def start(self, container: str) -> None:
        self._to("start").start(container)

    def status(self, container: str) -> ExitStatus:
        return self._to("status").status(container)

    def wait(self, container: str, timeout_s: float) -> ExitStatus:
        return self._to("wait").wait(container, timeout_s)

    def signal(self, container: str, name: str) -> None:
        self._to("signal").signal(container, name)

    def remove(self, container: str) -> None:
        self._to("remove").remove(container)

    def logs(self, container: str, stream: Stream, limit: int) -> bytes:
        return self._to("logs").logs(container, stream, limit)

    def read_files(self, container: str, path: str) -> Iterator[bytes]:
        return self._to("read_files").read_files(container, path)

    def objects(self, run: str | None = None) -> RunObjects:
        return self._to("objects").objects(run)
