"""Whatever breaks, a run ends in time, says why, leaves evidence, and leaves nothing else."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.engine.fake import Process, Program
from runner.engine.faulty import FaultyEngine
from runner.evidence.store import RunStore
from runner.model.errors import RoleboxError
from runner.session import gateway as gateway_module
from runner.session import run as run_module
from runner.session import watch as watch_module
from tests.session.scene import (
    SENTINEL,
    Record,
    Scene,
    Telling,
    closed,
    gateway,
    gone,
    next_command,
    obliging,
    planned_controls,
    say,
    stubborn,
    summary,
    supervise,
    works,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "CONTROLS_WAIT_S", 1.5)
    monkeypatch.setattr(watch_module, "CONTROLS_WAIT_S", 1.5)
    monkeypatch.setattr(run_module, "_END_WAIT_S", 1.0)
    monkeypatch.setattr(watch_module, "_POLL_S", 0.05)
    monkeypatch.setattr(gateway_module, "_STOP_WAIT_S", 0.5)


@pytest.fixture
def scene(home: Path, repository: Path) -> Scene:
    return Scene.of(home, repository)


def when(event: threading.Event, action: Callable[[], None]) -> None:
    """Do something from another thread once an event is set."""

    def wait() -> None:
        if event.wait(30):
            action()

    threading.Thread(target=wait, daemon=True).start()


# The allowed neighbour of everything below.


def test_a_run_that_meets_no_fault_is_done_and_complete(scene: Scene) -> None:
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("done", 0)
    assert ended.provenance["completeness"]["complete"], ended.missing
    assert ended.text("events.jsonl") == "hello\n"
    assert ended.text("stderr.log") == "aside\n"
    assert gone(engine, ended)


def test_the_commands_own_failure_is_not_the_sandboxs(scene: Scene) -> None:
    scene.agent = lambda process: 3 if supervise(process) else 99
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code, ended.state.exit_code) == ("failed", 1, 3)
    assert ended.provenance["completeness"]["complete"]
    assert gone(engine, ended)


# The engine.

BEFORE_THE_END = [
    ("info", 1),
    ("has_image", 1),
    ("has_image", 2),
    ("create_volume", 1),
    ("create", 1),
    ("create_volume", 2),
    ("create", 2),
    ("attach", 1),
    ("attach", 2),
    ("start", 1),
    ("start", 2),
    ("wait", 1),
]


@pytest.mark.parametrize(("method", "call"), BEFORE_THE_END)
def test_an_engine_that_dies_loses_the_run_and_the_next_command_cleans(
    scene: Scene, method: str, call: int
) -> None:
    engine = FaultyEngine(scene.engine(), die_at=(method, call))
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "the engine did not answer" in ended.told
    assert "collecting: the run broke off while it was" in ended.missing
    assert ended.uncleaned
    engine.revive()
    assert next_command(scene.home, engine) == ()
    assert gone(engine, ended)
    assert not (ended.folder.path / "ws").exists()
    assert list(RunStore(scene.home).orphans()) == []


@pytest.mark.parametrize(("method", "call"), BEFORE_THE_END)
def test_a_call_that_fails_once_loses_the_run_and_leaves_nothing(
    scene: Scene, method: str, call: int
) -> None:
    engine = FaultyEngine(scene.engine(), fail={method: call})
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert f"asked to {method}" in ended.told
    assert ended.missing
    assert not ended.uncleaned
    assert gone(engine, ended)


@pytest.mark.parametrize("start", [1, 2])
def test_an_agent_does_not_outlive_a_gateway_that_did_not_start(scene: Scene, start: int) -> None:
    scene.agent = stubborn
    engine = FaultyEngine(scene.engine(), fail={"start": start})
    ended = scene.run(engine)
    assert ended.state.status == "lost"
    assert "asked to start" in ended.told
    assert gone(engine, ended)


def test_an_engine_that_dies_within_the_stream_keeps_what_came(scene: Scene) -> None:
    def dying(process: Process) -> int:
        supervise(process)
        process.write("stdout", b"so far\n")
        assert isinstance(scene.observer, Telling)
        scene.observer.printed.wait(30)
        engine.die()
        return 0 if process.signals.get() else 1

    scene.agent = dying
    engine = FaultyEngine(scene.engine())
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert ended.text("events.jsonl") == "so far\n"
    assert ended.missing
    engine.revive()
    next_command(scene.home, engine)
    assert gone(engine, ended)


def test_a_stream_that_ends_while_its_container_runs_is_no_end_of_the_run(scene: Scene) -> None:
    def cut(process: Process) -> int:
        supervise(process)
        process.write("stdout", b"half of it\n")
        assert isinstance(scene.observer, Telling)
        scene.observer.printed.wait(30)
        parts = engine.objects().parts
        engine.cut_streams(next(c for c, part in parts.items() if part == "agent"))
        return 0 if process.signals.get() else 1

    scene.agent = cut
    engine = FaultyEngine(scene.engine())
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert ended.state.exit_code is None
    assert "events: the agent's stream ended while its container runs" in ended.missing
    assert gone(engine, ended)


@pytest.mark.parametrize("fault", ["die", "fail"])
@pytest.mark.parametrize(("method", "call"), [("remove", 1), ("objects", 1)])
def test_a_cleaning_that_fails_is_told_and_does_not_undo_the_run(
    scene: Scene, method: str, call: int, fault: str
) -> None:
    dies = {"die_at": (method, call)} if fault == "die" else {"fail": {method: call}}
    engine = FaultyEngine(scene.engine(), **dies)
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("done", 0)
    assert ended.provenance["completeness"]["complete"]
    if fault == "die" or method == "objects":
        assert ended.uncleaned
        assert (scene.home / "live" / ended.state.id).exists()
    engine.revive()
    assert next_command(scene.home, engine) == ()
    assert gone(engine, ended)
    assert not (scene.home / "live" / ended.state.id).exists()
    assert ended.folder.read_state() == ended.state


def test_a_volume_that_stays_is_named(scene: Scene) -> None:
    engine = FaultyEngine(scene.engine(), fail={"remove_volume": 1})
    ended = scene.run(engine)
    assert ended.state.status == "done"
    assert [line for line in ended.uncleaned if line.startswith("cleaning: a volume")]
    assert len(engine.objects(ended.state.id).volumes) == 1
    next_command(scene.home, engine)
    assert gone(engine, ended)


# The gateway.


def test_a_gateway_that_dies_takes_the_run_with_it(scene: Scene) -> None:
    def dies(process: Process) -> int:
        process.stdin.readline()
        say(process, {"kind": "ready"})
        assert isinstance(scene.observer, Telling)
        scene.observer.printed.wait(30)
        return 1

    scene.agent, scene.gateway = obliging, dies
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "gateway ended before the run did" in ended.told
    assert "egress: the gateway did not confirm" in ended.missing
    assert ended.text("events.jsonl") == "working\nSIGINT\n"
    assert gone(engine, ended)


def test_a_gateway_that_dies_at_once_ends_the_run_before_its_command(scene: Scene) -> None:
    scene.gateway = lambda process: 1

    def waiting(process: Process) -> int:
        for record in planned_controls(process):
            say(process, record)
        process.signals.get()
        return 3

    scene.agent = waiting
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "gateway" in ended.told
    assert gone(engine, ended)


def test_a_gateway_that_never_reports_leaves_the_run_incomplete(scene: Scene) -> None:
    def silent(process: Process) -> int:
        process.signals.get()
        return 137

    scene.gateway = silent
    engine = scene.engine()
    ended = scene.run(engine)
    assert ended.state.status == "done"  # the command did its work; that is not hidden either
    assert "egress: the gateway did not confirm its last record" in ended.missing
    assert gone(engine, ended)


def test_a_gateway_that_does_not_read_does_not_hold_the_run(scene: Scene, tmp_path: Path) -> None:
    def deaf(process: Process) -> int:
        process.signals.get()
        return 137

    scene.gateway = deaf
    materials = replace(scene.prepared.planned.materials, script={"turns": ["x" * (4 << 20)]})
    planned = replace(scene.prepared.planned, materials=materials)
    scene = replace(scene, prepared=replace(scene.prepared, planned=planned))
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "gateway" in ended.told
    assert gone(engine, ended)


def test_a_gateways_last_word_is_the_reason(scene: Scene) -> None:
    def fatal(process: Process) -> int:
        process.stdin.readline()
        say(process, {"kind": "fatal", "error": "the socket cannot be made"})
        return 4

    scene.agent, scene.gateway = obliging, fatal
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "the socket cannot be made" in ended.told
    assert gone(engine, ended)


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[1]\n",
        b'{"kind": "egress", "decision": "denied", "count": "many"}\n',
        b'{"kind": "model", "usage": {"input_tokens": ["x"]}}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (2 << 20) + b"\n",
    ],
)
def test_a_line_of_the_gateway_that_is_no_report_is_counted(scene: Scene, line: bytes) -> None:
    def rubbish(process: Process) -> int:
        process.write("stdout", line[: len(line) // 2])
        process.write("stdout", line[len(line) // 2 :])
        return gateway(process)

    scene.gateway = rubbish
    engine = scene.engine()
    ended = scene.run(engine)
    assert ended.state.status == "done", ended.told
    assert "lines were no reports" in ended.missing
    assert gone(engine, ended)


# The supervisor.


def change(name_at: int, **values: Any) -> Callable[[list[Record]], list[Record]]:
    return lambda records: [
        {**record, **values} if at == name_at else record for at, record in enumerate(records)
    ]


TAMPERED: dict[str, Callable[[list[Record]], list[Record]]] = {
    "a failed control": change(0, ok=False, observed="works"),
    "an error": change(1, ok=False, observed="error"),
    "ok, but observed otherwise": change(2, observed="error"),
    "another expectation": change(0, expect="works", observed="works"),
    "ok, but not quite true": change(0, ok="true"),
    "a missing control": lambda records: records[1:],
    "a renamed control": change(0, name="other"),
    "no name": change(0, name=None),
    "a name that is no text": change(0, name=["x"]),
    "failed first, held then": lambda records: [{**records[0], "ok": False}, *records],
    "held first, failed then": lambda records: [*records, {**records[0], "ok": False}],
    "an unknown control that failed": lambda records: [
        *records,
        {**records[0], "name": "surprise", "ok": False},
    ],
    "none at all": lambda records: [],
}


@pytest.mark.parametrize("tamper", TAMPERED)
def test_controls_that_do_not_hold_refuse_the_run(scene: Scene, tamper: str) -> None:
    """The summary says each time that all held."""
    let_go = threading.Event()

    def lying(process: Process) -> int:
        if supervise(process, TAMPERED[tamper]):
            let_go.set()
            process.write("stdout", b"the agent ran\n")
        return 3

    scene.agent = lying
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("refused", 3), ended.told
    assert not let_go.is_set()
    assert ended.text("events.jsonl") == ""
    assert ended.provenance["controls"]["failed"]
    assert ended.provenance["controls"]["passed"] < ended.provenance["controls"]["planned"] or (
        tamper == "an unknown control that failed"
    )
    assert gone(engine, ended)


def test_a_summary_that_counts_a_failure_refuses_the_run(scene: Scene) -> None:
    scene.agent = lambda process: 0 if supervise(process, failed=1) else 3
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("refused", 3)
    assert "the supervisor counts 1 failed" in ended.told
    assert gone(engine, ended)


def test_an_unknown_control_that_held_is_no_reason(scene: Scene) -> None:
    def more(records: list[Record]) -> list[Record]:
        return [{**records[0], "name": "relay"}, *records]

    scene.agent = lambda process: 0 if supervise(process, more) else 3
    ended = scene.run(scene.engine())
    assert ended.state.status == "done"


@pytest.mark.parametrize(
    "said",
    [b"rubbish\n", b"[]\n", b"\xff\xfe\n", b"{" * 100_000 + b"\n", b"x" * (5 << 20), b"\n"],
)
def test_a_supervisor_that_prints_rubbish_gets_no_word_to_go(scene: Scene, said: bytes) -> None:
    def rubbish(process: Process) -> int:
        process.write("stdout", said)
        supervise(process)
        return 0

    scene.agent = rubbish
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "no list of controls" in ended.told
    assert gone(engine, ended)


@pytest.mark.parametrize("end", [True, False])
def test_a_supervisor_that_says_nothing_does_not_hold_the_run(scene: Scene, end: bool) -> None:
    def mute(process: Process) -> int:
        if not end:
            while process.signals.get() != "SIGKILL":
                pass
        return 3

    scene.agent = mute
    engine = scene.engine()
    ended = scene.run(engine)
    if end:  # its stream ended, so its controls are judged as they are
        assert (ended.state.status, ended.exit_code) == ("refused", 3)
    else:
        assert (ended.state.status, ended.exit_code) == ("lost", 4)
        assert "controls were not done in time" in ended.told
    assert gone(engine, ended)


def test_a_supervisor_without_a_summary_gets_no_word_to_go(scene: Scene) -> None:
    def unfinished(process: Process) -> int:
        for record in planned_controls(process):
            say(process, record)
        say(process, {**summary(), "done": False})
        return 3

    scene.agent = unfinished
    ended = scene.run(scene.engine())
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "ended before its controls were done" in ended.told


# The person, the clock, the machine.


@pytest.mark.parametrize(
    ("agent", "asked", "code"), [(obliging, 1, 130), (stubborn, 1, 137), (stubborn, 2, 137)]
)
def test_a_stop_ends_the_run(scene: Scene, agent: Program, asked: int, code: int) -> None:
    scene.agent = agent
    assert isinstance(scene.observer, Telling)
    if asked == 2:  # force does not wait out the grace
        scene = scene.limited(grace_s=1000)

    def press() -> None:
        for _ in range(asked):
            scene.stop.request()

    when(scene.observer.printed, press)  # type: ignore[attr-defined]
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("interrupted", 130)
    assert ended.state.exit_code == code
    assert ended.text("events.jsonl").startswith("working\n")
    assert ("SIGINT" in ended.text("events.jsonl")) is (agent is obliging)
    assert gone(engine, ended)


def test_a_stop_before_the_start_is_kept(scene: Scene) -> None:
    scene.agent = stubborn
    scene.stop.request()
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("interrupted", 130)
    assert gone(engine, ended)


def test_a_stop_after_the_end_comes_too_late(scene: Scene) -> None:
    class Late(Telling):
        def stage(self, name: str) -> None:
            if name == "collecting":
                scene.stop.request()

    scene.observer = Late()
    ended = scene.run(scene.engine())
    assert (ended.state.status, ended.exit_code) == ("done", 0)
    assert ended.provenance["completeness"]["complete"]


def test_an_agent_that_ignores_every_signal_is_killed_when_its_time_is_up(scene: Scene) -> None:
    scene.agent = stubborn
    scene = scene.limited(timeout_s=0.3, grace_s=0.1)
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("timeout", 5)
    assert ended.state.exit_code == 137
    assert ended.text("events.jsonl") == "working\n"
    assert gone(engine, ended)


def test_a_stop_that_fails_does_not_hide_why_it_was_asked(scene: Scene) -> None:
    scene.agent = stubborn
    scene = scene.limited(timeout_s=0.3, grace_s=0.1)
    engine = FaultyEngine(scene.engine(), fail={"signal": 1})
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("timeout", 5)
    assert "broke off while it was running" in ended.missing
    assert gone(engine, ended)


def test_a_command_that_met_its_memory_limit_says_so(scene: Scene) -> None:
    def greedy(process: Process) -> int:
        supervise(process)
        process.oom_killed = True
        return 137

    scene.agent = greedy
    ended = scene.run(scene.engine())
    assert (ended.state.status, ended.exit_code, ended.state.exit_code) == ("failed", 1, 137)
    assert "memory: the container met its limit" in ended.missing


def test_too_little_disk_stops_the_run(scene: Scene) -> None:
    scene.agent = obliging
    scene.min_free_bytes = 1 << 60
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "runs full" in ended.told
    assert gone(engine, ended)


@pytest.fixture
def small_disk(home: Path, tmp_path: Path) -> Iterator[Path]:
    """A state folder on a disk of 16 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    try:
        if (home / "images.lock").is_file():
            shutil.copy(home / "images.lock", place)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("part", ["events", "stderr", "egress"])
def test_a_full_disk_loses_the_run_but_not_its_record(
    small_disk: Path, repository: Path, part: str
) -> None:
    scene = Scene.of(small_disk, repository)
    line = b"x" * 65535 + b"\n"

    def flooding(process: Process) -> int:
        if not supervise(process):
            return 3
        for _ in range(1024 if part != "egress" else 0):
            process.write("stderr" if part == "stderr" else "stdout", line)
        process.signals.get()
        return 137

    def chatty(process: Process) -> int:
        process.stdin.readline()
        assert isinstance(scene.observer, Telling)
        say(process, {"kind": "ready"})
        for _ in range(1024):
            say(process, {"kind": "egress", "decision": "denied", "host": "x" * 60_000})
        process.signals.get()
        return 137

    scene.agent = flooding
    if part == "egress":
        scene.gateway = chatty
    engine = scene.engine()
    ended = scene.run(engine)
    assert (ended.state.status, ended.exit_code) == ("lost", 4)
    assert "No space left" in ended.told
    assert ended.missing
    assert gone(engine, ended)
    kept = {"events": "events.jsonl", "stderr": "stderr.log", "egress": "egress.jsonl"}[part]
    assert (ended.folder.path / kept).stat().st_size > 1 << 20


# Several at once.


def test_one_run_that_cannot_be_completed_does_not_hold_the_others(
    scene: Scene, repository: Path
) -> None:
    engine = FaultyEngine(scene.engine(), fail={"objects": 1})
    first = scene.run(engine)
    engine = FaultyEngine(scene.engine(), fail={"objects": 1})
    second = scene.run(engine)
    (first.folder.path / "state.json").write_text("no state")
    with pytest.raises(RoleboxError, match=f"state of run {first.state.id}"):
        next_command(scene.home, engine)
    assert gone(engine, second)
    assert not (scene.home / "live" / second.state.id).exists()
    assert (scene.home / "live" / first.state.id).exists()


def test_two_runs_side_by_side_do_not_clean_each_other(scene: Scene) -> None:
    engine = scene.engine()
    again = replace(scene, agent=obliging)
    other_engine = again.engine()
    assert isinstance(again.observer, Telling)
    done: list[str] = []

    def first() -> None:
        assert isinstance(again.observer, Telling)
        again.observer.printed.wait(30)
        done.append(scene.run(engine).state.status)
        again.stop.request()

    scene = replace(scene, observer=Telling(), agent=works)
    scene.stop = type(scene.stop)()
    thread = threading.Thread(target=first)
    thread.start()
    ended = again.run(other_engine)
    thread.join(30)
    assert done == ["done"]
    assert ended.state.status == "interrupted"
    assert ended.text("events.jsonl") == "working\nSIGINT\n"


def test_a_fault_of_ours_closes_the_run_and_is_not_hidden(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise TypeError("a fault of ours")

    monkeypatch.setattr(run_module, "agent_binding", broken)
    engine = scene.engine()
    with pytest.raises(TypeError, match="a fault of ours"):
        scene.run(engine)
    [folder] = RunStore(scene.home).folders()
    ended = closed(scene.home, folder.read_state())
    assert ended.state.status == "lost"
    assert "a fault of ours" in ended.told
    assert gone(engine, ended)


def test_a_gateway_that_echoes_its_input_leaves_no_credential(scene: Scene) -> None:
    def echoing(process: Process) -> int:
        process.write("stderr", process.stdin.readline() + SENTINEL.encode() + b"\nand words\n")
        say(process, {"_schema": "rolebox.gateway-report/1", "kind": "ready"})
        process.stdin.readline()
        say(process, {"_schema": "rolebox.gateway-report/1", "kind": "stopped"})
        return 0

    scene.gateway = echoing
    engine = scene.engine()
    ended = scene.run(engine)
    assert "and words" in ended.text("gateway.log")
    assert SENTINEL not in ended.text("gateway.log")
    assert gone(engine, ended)
