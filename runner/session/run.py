"""One sealed run, from a plan to its evidence.

    folder ▸ gateway ∥ workspace ▸ agent ▸ controls ▸ go ▸ stream ▸ stop ▸ collect ▸ close

Whatever fails, the run is closed: evidence up to that moment, the record, the
ledger's entry; and its engine objects are removed. A failure of the cleaning is
noted beside the first failure and never hides it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from runner.evidence.events import EventRecorder
from runner.evidence.files import disk_error
from runner.evidence.store import RunStore
from runner.log import debug
from runner.model.errors import (
    ImageRefused,
    InfrastructureError,
    RoleboxError,
)
from runner.model.ids import new_run_id, rfc3339
from runner.model.state import RunState, Status
from runner.session.agent import AgentProcess, ControlLedger
from runner.session.bind import Names, agent_binding, gateway_binding
from runner.session.folder import (
    first_files,
    first_state,
    open_whole,
    release_room,
    reserve_room,
    write_config_of,
)
from runner.session.gateway import GatewayLog, GatewayProcess, config_line, without
from runner.session.harvest import (
    clean,
    empty_overlays,
    harvest_patch,
    harvest_session,
    remember_areas,
    remove_containers,
)
from runner.session.host import Host
from runner.session.leases import exclusive
from runner.session.observer import Observer, Stop
from runner.session.record import Findings, close_run
from runner.session.task import Prepared
from runner.session.verdict import verdict
from runner.session.watch import CONTROLS_WAIT_S, Watch, stop_agent
from runner.workspace.prepare import Overlay, Workspace, prepare
from runner.workspace.store import checkout

_END_WAIT_S = 15.0
_MIB = 1 << 20


def run_sealed(prepared: Prepared, host: Host, observer: Observer, stop: Stop) -> RunState:
    """Run a plan in its seal; returns the last state, whatever it is.

    Raises:
        RoleboxError: Only what keeps a run from having a folder at all, or the
            disk refusing its last record.
    """
    run = _Run(prepared, host, observer, stop)
    failure: RoleboxError | None = None
    try:
        run.execute()
    except RoleboxError as error:
        failure = run.failure or error  # a stop that fails does not hide why it was asked
    except OSError as error:
        failure = run.failure or disk_error(run.folder.path, error)
    except BaseException as error:
        # A fault of ours: the run is closed like any other, and the fault is not hidden.
        run.close(InfrastructureError("an unexpected error ended the run", why=repr(error)[:500]))
        raise
    return run.close(failure)


class _Run:
    """The parts of one run while it lasts; `execute` and `close` tell its story."""

    def __init__(self, prepared: Prepared, host: Host, observer: Observer, stop: Stop) -> None:
        self.prepared, self.host, self.observer, self.stop = prepared, host, observer, stop
        self.plan, self.materials = prepared.planned.plan, prepared.planned.materials
        started = host.now()
        self.names = Names(new_run_id(started, host.entropy(3)))
        self.findings = Findings(
            plan=self.plan,
            started=started,
            dirty=prepared.dirty,
            parent=prepared.parent,
            agents=prepared.agents,
        )
        self.state = first_state(self.names.run, prepared, started, os.getpid())
        self.store = RunStore(host.home)
        with exclusive(self.store, prepared.store, prepared.lease):
            self.folder, self.lock = self.store.create(self.state, first_files(prepared.planned))
        self.collected = False
        self.workspace: Workspace | None = None
        self.gateway: GatewayProcess | None = None
        self.agent: AgentProcess | None = None
        self.failure: RoleboxError | None = None
        self.begun = time.monotonic()

    def execute(self) -> None:
        """Go the whole way; raises the first thing that went wrong."""
        reserve_room(self.folder)
        self._enter("starting")
        with ExitStack() as files:
            with self._timed("engine"):
                self.findings.engine = self.host.engine.info()
                self._require_images()
            gateway_started = self._start_gateway(files)
            try:
                with self._timed("workspace"):
                    self.workspace = self._prepare_workspace()
                with self._timed("agent"):
                    self._start_agent(files)
            finally:
                gateway_started()
            self._watch()
            self._enter("collecting")
            with self._timed("stop"):
                self._settle()
        with self._timed("collect"):
            self._collect()
        self.collected = True
        if self.failure is not None:
            raise self.failure

    def close(self, failure: RoleboxError | None) -> RunState:
        """Remove what the engine holds, judge, and write the record."""
        release_room(self.folder)
        self._note_missing()
        with self._timed("clean"):
            for process in (self.agent, self.gateway):
                if process is not None:
                    process.close()
            self.findings.uncleaned = clean(self.host.engine, self.names, self.folder)
        self.findings.timings_ms["total"] = (time.monotonic() - self.begun) * 1000
        status, told = verdict(self.findings, failure, self.folder, self.materials)
        state = close_run(self.folder, self.state, self.findings, status, told, self.host.now())
        if self.findings.uncleaned:
            self.lock.release()  # the next command cleans, also while this process lives on
        else:
            self.store.retire(self.folder, self.lock)
        return state

    def _require_images(self) -> None:
        for image in (self.plan.agent_container.image, self.plan.gateway_container.image):
            if not self.host.engine.has_image(image):
                raise ImageRefused(
                    f"the engine does not hold the image {image[:19]}…",
                    why="a run uses the lock's images only, and never pulls",
                    mend="build them: rolebox images build",
                )

    def _start_gateway(self, files: ExitStack) -> Callable[[], None]:
        """Create the gateway, start it beside the rest; the result waits for the start."""
        engine, names = self.host.engine, self.names
        with self._timed("gateway-create"):
            engine.create_volume(names.socket, names.labels("socket"), {})
            container = engine.create(
                self.plan.gateway_container, gateway_binding(self.plan, self.materials, names)
            )
        log = GatewayLog(
            files.enter_context(self._open("egress.jsonl")),
            files.enter_context(self._open("model.jsonl")),
            self.observer.gateway,
            limit=self.plan.limits.evidence_mb * _MIB,
        )
        self.findings.gateway = log.totals
        signals = self.stop.signals
        gateway = GatewayProcess(engine, container, log, lambda: signals.put("gateway-ended"))
        self.gateway = gateway
        config = config_line(self.plan, names.run, self.materials.script, self.host.headers)
        problem: list[RoleboxError] = []

        def start() -> None:
            try:
                with self._timed("gateway-start"):
                    gateway.start(config)
            except RoleboxError as error:
                problem.append(error)
                signals.put("gateway-ended")

        files.callback(self._end_gateway)
        thread = threading.Thread(target=start, name="gateway-start", daemon=True)
        thread.start()

        def wait() -> None:
            thread.join(CONTROLS_WAIT_S)
            if thread.is_alive():  # it does not read its configuration
                problem.append(InfrastructureError("the run's gateway does not read"))
                signals.put("gateway-ended")
                gateway.close()
            if problem and self.failure is None:
                self.failure = problem[0]

        return wait

    def _prepare_workspace(self) -> Workspace:
        prepared, engine = self.prepared, self.host.engine
        uid, gid = (int(part) for part in self.plan.agent_container.user.split(":"))
        tree = checkout(
            prepared.store,
            prepared.source.commit,
            uid=uid,
            gid=gid,
            history=self.plan.source.history,
        )
        workspace = prepare(
            tree,
            prepared.facts,
            prepared.workspace,
            run_id=self.names.run,
            root=self.folder.path / "ws",
            uid=uid,
            gid=gid,
        )
        remember_areas(self.folder, workspace)
        for mount in workspace.mounts:
            if isinstance(mount, Overlay):
                options = {"type": "overlay", "device": "overlay", "o": mount.options}
                engine.create_volume(mount.name, self.names.labels("tree"), options)
        engine.create_volume(self.names.home, self.names.labels("home"), {})
        return workspace

    def _start_agent(self, files: ExitStack) -> None:
        assert self.workspace is not None
        config = write_config_of(self.folder, self.plan, self.materials)
        container = self.host.engine.create(
            self.plan.agent_container,
            agent_binding(self.plan, self.materials, self.names, self.workspace, config),
        )
        limits, typed = self.plan.limits, self.plan.command.kind == "codex"
        recorder = EventRecorder(
            files.enter_context(self._open("events.jsonl")),
            limit=limits.evidence_mb * _MIB,
            listener=self.observer.event,
            typed=typed,
        )
        self.findings.events = recorder.summary
        self.findings.controls = ControlLedger(self.plan.controls)
        files.callback(recorder.finish)
        signals = self.stop.signals
        self.agent = AgentProcess(
            self.host.engine,
            container,
            self.findings.controls,
            recorder=recorder,
            stderr=files.enter_context(self._open("stderr.log")),
            controls_file=files.enter_context(self._open("controls.jsonl")),
            stderr_limit=limits.evidence_mb * _MIB,
            output=self.observer.output if not typed else lambda stream, data: None,
            started=lambda: self._enter("running"),
            ended=lambda: signals.put("agent-ended"),
        )
        files.callback(self._end_agent)
        self.agent.start()

    def _watch(self) -> None:
        assert self.agent is not None
        assert self.gateway is not None
        assert self.findings.engine is not None
        root = self.findings.engine.root
        failure = Watch(
            self.agent,
            self.gateway,
            self.stop,
            self.plan.limits.timeout_s,
            (self.folder.path, *((Path(root),) if root else ())),
            self.host.min_free_bytes,
        ).until_end()
        if failure is not None:
            self.failure = self.failure or failure
            debug("stopping the agent", run=self.names.run, why=failure.what)
            stop_agent(self.host.engine, self.agent, self.stop, self.plan.limits.grace_s)

    def _settle(self) -> None:
        """Wait for the exit status and for the gateway's last words."""
        agent, gateway = self.agent, self.gateway
        assert agent is not None
        assert gateway is not None
        gateway.ask_to_stop()
        try:
            ended = self.host.engine.wait(agent.container, _END_WAIT_S)
            agent.join(_END_WAIT_S)
        finally:
            self._take_failure(agent.failure)
        self.findings.exit_code = ended.code
        if ended.code is None:
            broken = InfrastructureError(
                "the agent's stream ended while its container runs",
                why="the connection to the engine broke",
            )
            self.findings.missing.append(f"events: {broken.what}")
            self.failure = self.failure or broken
        if ended.oom_killed:
            self.findings.missing.append(
                f"memory: the container met its limit of {self.plan.limits.memory_mb} MiB"
            )
        gateway.await_stop()
        if gateway.problem is not None and self.failure is None:
            self.failure = InfrastructureError("the gateway failed", why=gateway.problem)
        if gateway.stderr:
            self.folder.write("gateway.log", without(gateway.stderr, self.host.headers.values()))

    def _take_failure(self, failure: Exception | None) -> None:
        if isinstance(failure, OSError):
            failure = disk_error(self.folder.path, failure)
        if isinstance(failure, RoleboxError):
            self.failure = self.failure or failure

    def _end_agent(self) -> None:
        """Let the reader go before its files are closed, however the run ends."""
        if self.agent is not None:
            self.agent.close()
            self.agent.join(_END_WAIT_S)

    def _end_gateway(self) -> None:
        """Take the gateway's last words also when the run did not come to `_settle`."""
        if self.gateway is not None and not self.findings.gateway.stopped:
            with suppress(InfrastructureError):
                self.gateway.ask_to_stop()
                self.gateway.await_stop()

    def _note_missing(self) -> None:
        missing = self.findings.missing
        if not self.collected:
            missing.append(f"collecting: the run broke off while it was {self.state.status}")
        if not self.findings.gateway.stopped:
            missing.append("egress: the gateway did not confirm its last record")
        if self.gateway is not None and self.gateway.log.invalid:
            missing.append(f"egress: {self.gateway.log.invalid} lines were no reports")
        if self.findings.events.truncated:
            missing.append("events: more was printed than the limit keeps")
        if self.agent is not None and self.agent.stderr_truncated:
            missing.append("stderr: more was printed than the limit keeps")

    def _collect(self) -> None:
        assert self.agent is not None
        assert self.gateway is not None
        assert self.workspace is not None
        engine, findings = self.host.engine, self.findings
        if self.plan.command.kind == "codex":
            harvest_session(engine, self.agent.container, self.folder, findings)
        elif os.getuid() != 0:
            empty_overlays(engine, self.agent.container)
        try:
            remove_containers(engine, [self.agent.container, self.gateway.container])
        except InfrastructureError:
            if findings.exit_code is None:  # it may still be writing
                raise
        harvest_patch(
            self.folder,
            self.workspace,
            self.prepared.store,
            findings,
            self.prepared.lease,
            self.host.now(),
        )

    # Small things.

    def _enter(self, status: Status) -> None:
        self.state = self.state.model_copy(
            update={"status": status, "updated": rfc3339(self.host.now())}
        )
        self.folder.write_state(self.state)
        self.observer.stage(status)

    def _open(self, name: str) -> BinaryIO:
        return open_whole(self.folder.path / name)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            spent = self.findings.timings_ms[stage] = (time.monotonic() - begun) * 1000
            debug("stage ended", run=self.names.run, stage=stage, ms=round(spent, 1))
