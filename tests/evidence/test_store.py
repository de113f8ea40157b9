"""The run store: whole folders, honest orphans, errors that a person can act on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.evidence.files import write_atomic
from runner.evidence.store import RunFolder, RunLock, RunStore
from runner.model.errors import EvidenceError, InfrastructureError, RoleboxError, UsageError
from runner.model.ids import is_run_id, new_run_id, rfc3339
from runner.model.state import RunState

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 22, 20, 15, 1, 123_456, tzinfo=UTC)
FILES = {"plan.json": b"{}", "tape/0001.json": b"[]"}


def state(number: int = 0) -> RunState:
    moment = NOW + timedelta(seconds=number)
    return RunState(
        id=new_run_id(moment, number.to_bytes(3, "big")),
        role="reviewer",
        status="planned",
        created=rfc3339(moment),
        updated=rfc3339(moment),
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "home")


def age(store: RunStore, run: str) -> None:
    """Make a live marker look older than the grace for one that is just being made."""
    os.utime(store.home / "live" / run, (time.time() - 3600,) * 2)


def test_a_run_s_folder_appears_whole_private_and_locked(store: RunStore) -> None:
    folder, lock = store.create(state(), FILES)
    assert folder.read_state() == state()
    assert {p.name for p in folder.path.iterdir()} == {"plan.json", "tape", "state.json", ".lock"}
    assert (folder.path / "tape" / "0001.json").read_bytes() == b"[]"
    assert not RunLock(folder.path / ".lock").acquire()
    for path in (store.home, store.runs, folder.path):
        assert path.stat().st_mode & 0o077 == 0
    lock.release()
    lock.release()
    assert RunLock(folder.path / ".lock").acquire()


def test_no_reader_ever_sees_a_run_without_its_state(store: RunStore) -> None:
    """A second process lists while this one makes runs: each folder it sees is readable."""
    code = (
        "import sys; from pathlib import Path; from runner.evidence.store import RunStore\n"
        "store, seen = RunStore(Path(sys.argv[1])), 0\n"
        "while seen < 60:\n"
        "    found = [f.read_state().id for f in store.folders()]\n"
        "    seen = len(found)\n"
        "print(seen)\n"
    )
    store.create(state(0), FILES)
    reader = subprocess.Popen(
        [sys.executable, "-c", code, store.home], cwd=ROOT, stdout=subprocess.PIPE
    )
    for number in range(1, 60):
        store.create(state(number), {**FILES, "big": b"x" * 100_000})
    assert reader.communicate(timeout=60)[0] == b"60\n"
    assert reader.returncode == 0


def test_the_same_id_twice_is_refused_and_the_first_stays(store: RunStore) -> None:
    folder, _ = store.create(state(), FILES)
    with pytest.raises(RoleboxError):
        store.create(state(), {"plan.json": b"other"})
    assert (folder.path / "plan.json").read_bytes() == b"{}"


def test_a_state_is_replaced_whole(store: RunStore) -> None:
    folder, _ = store.create(state(), FILES)
    folder.write_state(state().model_copy(update={"status": "running"}))
    assert folder.read_state().status == "running"
    assert not list(folder.path.glob("*.tmp"))
    assert not list(folder.path.glob(".*.tmp"))


def test_a_run_is_found_by_its_id_a_prefix_and_last(store: RunStore) -> None:
    ids = [store.create(state(n), {})[0].id for n in range(3)]
    assert store.find(ids[1]).id == ids[1]
    assert store.find(ids[1][:-3]).id == ids[1]
    assert store.find("last").id == ids[2]


@pytest.mark.parametrize("reference", ["", "x", "..", "../runs", "/", "LAST", ".making"])
def test_a_reference_to_no_run_is_refused(store: RunStore, reference: str) -> None:
    store.create(state(), {})
    with pytest.raises(UsageError, match="there is no run"):
        store.find(reference)


def test_a_prefix_of_two_runs_is_refused_and_both_are_named(store: RunStore) -> None:
    ids = [store.create(state(n), {})[0].id for n in range(2)]
    with pytest.raises(UsageError, match="names 2 runs") as refused:
        store.find("20261122")
    assert all(run in refused.value.why for run in ids)


def test_last_of_no_run_is_refused(store: RunStore) -> None:
    assert list(store.folders()) == []
    with pytest.raises(UsageError, match="there is no run yet"):
        store.find("last")


def test_two_thousand_runs_are_listed_newest_first(store: RunStore) -> None:
    store.runs.mkdir(parents=True)
    ids = [state(number * 7919 % 100_000).id for number in range(2000)]
    for run in ids:
        (store.runs / run).mkdir()
    for stray in (".making-x", "notes", "20261122t201501123"):
        (store.runs / stray).mkdir()
    assert [folder.id for folder in store.folders()] == sorted(ids, reverse=True)
    assert store.find("last").id == max(ids)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"id":5}', b"\xff", b"{}"])
def test_an_unreadable_state_is_said_to_be_so(store: RunStore, text: bytes) -> None:
    folder, _ = store.create(state(), {})
    (folder.path / "state.json").write_bytes(text)
    with pytest.raises(EvidenceError, match="cannot be read"):
        folder.read_state()


def test_a_state_of_a_newer_schema_is_not_guessed_at(store: RunStore) -> None:
    folder, _ = store.create(state(), {})
    value = state().to_json()
    folder.write_json("state.json", {**value, "_schema": "rolebox.state/2"})
    with pytest.raises(EvidenceError):
        folder.read_state()
    folder.write_json("state.json", value)
    assert folder.read_state() == state()


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_json_object_is_an_error_and_a_missing_one_is_none(
    store: RunStore, text: bytes
) -> None:
    folder, _ = store.create(state(), {})
    assert folder.read_json("provenance.json") is None
    (folder.path / "provenance.json").write_bytes(text)
    with pytest.raises(EvidenceError, match=r"provenance\.json of run"):
        folder.read_json("provenance.json")
    folder.write_json("provenance.json", {"a": 1})
    assert folder.read_json("provenance.json") == {"a": 1}


HOLDER = (
    "import sys; from pathlib import Path\n"
    "from runner.evidence.store import RunStore\n"
    "from runner.model.state import RunState\n"
    "state = RunState.model_validate_json(sys.argv[2])\n"
    "kept = RunStore(Path(sys.argv[1])).create(state, {})\n"
    "print('made', flush=True); sys.stdin.read()\n"
)


def test_a_run_is_an_orphan_only_when_its_process_is_gone(store: RunStore) -> None:
    text = json.dumps(state().to_json())
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.home, text],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"made\n"
    assert list(store.orphans()) == []
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    ((folder, lock),) = store.orphans()
    assert folder.id == state().id
    assert list(store.orphans()) == []  # we hold it now
    store.retire(folder, lock)
    assert list(store.orphans()) == []
    assert folder.read_state() == state()


def test_an_ended_run_is_no_orphan(store: RunStore) -> None:
    folder, lock = store.create(state(), {})
    assert store.has_orphans()
    store.retire(folder, lock)
    assert not store.has_orphans()
    assert list(store.orphans()) == []


def test_what_a_rolebox_left_that_died_before_the_rename_is_dropped(store: RunStore) -> None:
    folder, lock = store.create(state(), FILES)
    making = store.runs / f".making-{folder.id}"
    folder.path.rename(making)
    assert list(store.folders()) == []
    age(store, folder.id)
    assert list(store.orphans()) == []  # its process lives: it is just making it
    assert making.is_dir()
    lock.release()
    assert list(store.orphans()) == []
    assert not making.exists()
    assert not store.has_orphans()


def test_a_marker_without_a_folder_is_left_alone_while_it_is_young(store: RunStore) -> None:
    """Its rolebox may be between the marker, the folder and the lock."""
    folder, lock = store.create(state(), {})
    making = store.runs / f".making-{folder.id}"
    folder.path.rename(making)
    lock.release()
    assert list(store.orphans()) == []
    assert making.is_dir()
    (making / ".lock").unlink()
    (making / "state.json").unlink()
    making.rmdir()
    assert list(store.orphans()) == []
    assert store.has_orphans()
    age(store, folder.id)
    assert list(store.orphans()) == []
    assert not store.has_orphans()


def test_strangers_in_the_live_folder_are_ignored(store: RunStore) -> None:
    folder, lock = store.create(state(), {})
    lock.release()
    (store.home / "live" / "..notes").touch()
    found = list(store.orphans())
    assert [f.id for f, _ in found] == [folder.id]


@pytest.mark.parametrize("part", ["home", "home/runs", "home/live"])
def test_a_file_in_a_folder_s_place_is_an_error_with_a_mend(tmp_path: Path, part: str) -> None:
    store = RunStore(tmp_path / "home")
    path = tmp_path / part
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(RoleboxError) as refused:
        store.create(state(), {})
    assert refused.value.mend
    assert list(store.orphans()) == []
    if part != "home/live":
        with pytest.raises(RoleboxError):
            list(store.folders())
    path.unlink()
    assert store.create(state(), {})[0].read_state() == state()


def test_a_full_disk_makes_no_run_and_holds_nothing(
    tiny_disk: Path, fill: Callable[[], Path]
) -> None:
    store = RunStore(tiny_disk)
    first, lock = store.create(state(0), {})
    store.retire(first, lock)
    filler = fill()
    with pytest.raises(InfrastructureError, match="cannot be written") as refused:
        store.create(state(1), {"prompt.md": b"x" * 100_000})
    assert "No space" in refused.value.why
    assert [folder.id for folder in store.folders()] == [first.id]
    filler.unlink()
    age(store, state(1).id)
    assert list(store.orphans()) == []
    assert not list(store.runs.glob(".making-*"))
    again, lock = store.create(state(1), {})
    lock.release()
    assert again.read_state() == state(1)


def test_a_full_disk_leaves_the_old_file_whole(tiny_disk: Path, fill: Callable[[], Path]) -> None:
    path = tiny_disk / "state.json"
    write_atomic(path, b"old")
    filler = fill()
    with pytest.raises(InfrastructureError, match="cannot be written"):
        write_atomic(path, b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert {p.name for p in tiny_disk.iterdir()} == {"state.json", "filler"}
    filler.unlink()
    write_atomic(path, b"new", durable=True)
    assert path.read_bytes() == b"new"


def test_an_atomic_write_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("untouched")
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert target.read_text() == "untouched"
    assert link.read_bytes() == b"new"
    assert not link.is_symlink()


def test_text_of_an_agent_that_is_no_unicode_can_be_written(store: RunStore) -> None:
    """A lone surrogate comes out of JSON as `\\ud800`; the record must exist whatever it holds."""
    folder, _ = store.create(state(), {})
    folder.write_json("provenance.json", {"why": "a\ud800b", "fine": "\u00e4\U0001f600"})
    read = folder.read_json("provenance.json")
    assert read is not None
    assert read["why"] == "a\ud800b"
    assert read["fine"] == "\u00e4\U0001f600"


def test_run_ids_sort_by_time_and_are_safe_names() -> None:
    later = new_run_id(NOW + timedelta(milliseconds=1), b"\0\0\0")
    first = new_run_id(NOW, b"\xff\xff\xff")
    assert first < later
    assert first == "20261122t201501123-ffffff"
    assert is_run_id(first)
    east = NOW.astimezone(datetime.fromisoformat("2026-01-01T00:00:00+09:00").tzinfo)
    assert new_run_id(east, b"\xff\xff\xff") == first
    for bad in ("", "..", first + "\n", first.upper(), first[:-1], "x" + first):
        assert not is_run_id(bad)


def test_a_folder_knows_its_run(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "20261122t201501123-ffffff").id == "20261122t201501123-ffffff"
