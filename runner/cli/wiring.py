"""What commands share: settings, the engine, the host of a run, output."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from runner.engine.docker_engine import DockerEngine
    from runner.evidence.store import RunStore
    from runner.model.plan import RunPlan
    from runner.session.host import Host
    from runner.session.observer import Stop


@dataclass(frozen=True)
class Settings:
    """The global options and the environment, read once."""

    directory: str
    debug: bool
    env: Mapping[str, str]

    @property
    def home(self) -> Path:
        """ROLEBOX_HOME, by default the platform's state folder."""
        if given := self.env.get("ROLEBOX_HOME"):
            return Path(given).absolute()
        import platformdirs

        return platformdirs.user_state_path("rolebox")

    @property
    def store(self) -> RunStore:
        from runner.evidence.store import RunStore

        return RunStore(self.home)


pass_settings = click.make_pass_decorator(Settings)


def make_home(settings: Settings) -> None:
    """Make ROLEBOX_HOME, if it is not there.

    Raises:
        UsageError: It cannot be made, is no folder, or cannot be written.
    """
    from runner.model.errors import UsageError

    home, why = settings.home, "it is not writable"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(home, os.W_OK | os.X_OK):
            return
    except OSError as error:
        why = error.strerror or str(error)
    raise UsageError(
        f"the state folder {home} cannot be used",
        why=why,
        mend="set ROLEBOX_HOME to a folder of your own",
    )


json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, all else on stderr."
)


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def echo_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Tell a person something beside the result."""
    click.echo(text, err=True)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print while somebody reads; a reader that went away (`… | head`) is not our error."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def connect(settings: Settings) -> DockerEngine:
    """Connect to the engine that the environment names."""
    from runner.engine.docker_engine import DockerEngine
    from runner.engine.endpoint import resolve_endpoint

    return DockerEngine.connect(resolve_endpoint(settings.env))


class EngineSoon:
    """The engine, connected to in the background while the plan is made.

    docker-py takes as long to load as the rest of a short run takes to plan; a
    failure waits until somebody asks for the engine.
    """

    def __init__(self, settings: Settings) -> None:
        self._engine: DockerEngine | None = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._connect, args=(settings,), daemon=True)
        self._thread.start()

    def _connect(self, settings: Settings) -> None:
        try:
            self._engine = connect(settings)
            self._engine.info()
        except BaseException as error:  # noqa: BLE001  raised again by `get`
            self._problem = error

    def get(self) -> DockerEngine:
        """Return the engine, or raise what kept it from answering."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        assert self._engine is not None
        return self._engine


def recover_lost(settings: Settings) -> None:
    """Finish runs whose rolebox died; an absent engine is told about, and not fatal."""
    if not settings.store.has_orphans():
        return
    from runner.model.errors import RoleboxError
    from runner.session.recover import recover

    try:
        for run in recover(settings.store, lambda: connect(settings), now):
            note(f"rolebox: run {run} was lost and is completed from what it left")
    except RoleboxError as error:
        note(f"rolebox: lost runs wait to be completed: {error.what}")


def make_host(settings: Settings, plan: RunPlan, engine: EngineSoon) -> Host:
    """Return the world for one run; the key goes no further than the gateway's input.

    Raises:
        UsageError: The plan asks the live model and there is no key.
    """
    from runner.session.host import Host

    headers = _headers(plan, settings.env)
    return Host(
        home=settings.home,
        engine=engine.get(),
        now=now,
        entropy=os.urandom,
        headers=headers,
    )


def _headers(plan: RunPlan, env: Mapping[str, str]) -> dict[str, str]:
    from runner.model.errors import UsageError

    if plan.gateway.key_source == "none":
        return {}
    key = env.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise UsageError(
            "there is no key for the model",
            why="OPENAI_API_KEY is not set",
            mend="set it, or run offline with --model-script F (rolebox demo shows how)",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError("OPENAI_API_KEY is no key", why="it holds blanks or control characters")
    return {"authorization": f"Bearer {key}"}


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a polite stop, and a second one into a stop by force."""
    from runner.session.observer import Stop

    stop = Stop()
    gc.freeze()  # all that is loaded by now stays; from here on garbage is a run's own
    gc.enable()

    def handle(number: int, frame: object) -> None:
        stop.request()

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
