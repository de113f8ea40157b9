"""What a run leaves: every file, hashed, true, and chained."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jsonschema
import pytest

from runner.evidence.ledger import GENESIS
from runner.model.canonical import canonical, digest, sha256
from tests.e2e.rig import Desk, jsonl

_TURNS = (
    {"think": "Look first.", "shell": "git log --oneline; cat /attachments/*"},
    {"shell": "git push origin HEAD"},
    {"patch": "*** Begin Patch\n*** Update File: src/app.py\n@@\n"
              "-    return 41\n+    return 42\n*** End Patch\n"},
    {"say": "The answer is 42."},
)  # fmt: skip

_FILES = {
    "plan.json", "state.json", "prompt.md", "events.jsonl", "stderr.log", "rollout.jsonl",
    "egress.jsonl", "model.jsonl", "controls.jsonl", "patch.diff", "last-message.md",
    "provenance.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def record(shared: Desk) -> dict[str, Any]:
    """The provenance of one run with everything in it."""
    shared.run("exec", "reviewer", "--", "true").check()  # the ledger has a line already
    note = shared.home.parent / "ci.log"
    note.write_text("a test failed\n")
    script = shared.script(*_TURNS)
    words = ("run", "scaffold", "Fix it.", "--write", "src/", "--attach", str(note))
    shared.run(*words, "--allow-untrusted", "--model-script", script).check()
    return shared.provenance()


def test_every_file_of_the_contract_is_there(record: dict[str, Any], shared: Desk) -> None:
    found = {p.name for p in shared.folder(record["run"]).path.iterdir()}
    assert found >= _FILES
    assert "ws" not in found
    assert ".reserve" not in found


def test_every_hash_and_size_is_the_files(record: dict[str, Any], shared: Desk) -> None:
    folder = shared.folder(record["run"]).path
    assert set(record["files"]) >= _FILES - {"state.json", "provenance.json"}
    for name, noted in record["files"].items():
        data = (folder / name).read_bytes()
        assert noted == {"sha256": sha256(data), "bytes": len(data)}, name


def test_no_file_of_evidence_is_left_out(record: dict[str, Any], shared: Desk) -> None:
    folder = shared.folder(record["run"]).path
    here = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert here - set(record["files"]) <= {"state.json", "provenance.json", ".lock"}


def test_the_record_meets_the_exported_schema(record: dict[str, Any], shared: Desk) -> None:
    schema = shared.run("schema", "provenance").check().json()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(record)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**record, "status": "wonderful"})


def test_the_record_says_what_ran(record: dict[str, Any], shared: Desk) -> None:
    assert record["role"] == "scaffold"
    assert record["lease"] == ["src/"]
    assert record["model"]["asked"] == "gpt-5.5"
    assert record["model"]["requests"] == 4
    assert record["exit_code"] == 0
    assert record["overrides"] == ["untrusted-into-writer"]
    assert [(a["name"], a["trust"]) for a in record["attachments"]] == [("01-ci.log", "untrusted")]
    assert record["attachments"][0]["sha256"] == sha256(b"a test failed\n")
    assert list(record["hashes"]["agents"]) == ["AGENTS.md"]
    assert record["hashes"]["plan"] == sha256(canonical(json.loads(shared.text("plan.json"))))
    assert record["hashes"]["prompt"] == record["files"]["prompt.md"]["sha256"]
    assert record["started"] < record["ended"]


def test_the_events_are_codexs_own_output(record: dict[str, Any], shared: Desk) -> None:
    """Codex's session record, which went another way, tells the same story."""
    events = jsonl(shared.text("events.jsonl", record["run"]))
    assert [e["type"] for e in events][:2] == ["thread.started", "turn.started"]
    assert events[-1]["type"] == "turn.completed"
    rollout = jsonl(shared.text("rollout.jsonl", record["run"]))
    assert rollout[0]["type"] == "session_meta"
    assert events[0]["thread_id"] in json.dumps(rollout[0])
    said = [e["item"]["text"] for e in events if e.get("item", {}).get("type") == "agent_message"]
    assert said == ["The answer is 42."]
    assert "The answer is 42." in json.dumps(rollout[-1])


def test_each_planned_control_is_proven_in_the_record(record: dict[str, Any], shared: Desk) -> None:
    planned = {c["name"]: c["expect"] for c in json.loads(shared.text("plan.json"))["controls"]}
    proven = {
        c["name"]: c["observed"]
        for c in jsonl(shared.text("controls.jsonl", record["run"]))
        if c.get("ok") is True
    }
    assert planned.items() <= proven.items()
    assert record["controls"] == {"planned": len(planned), "passed": len(planned), "failed": []}


def test_a_refused_command_is_in_the_record_with_its_reason(record: dict[str, Any]) -> None:
    assert record["commands"]["refused_total"] == 1
    assert record["commands"]["refused"][0]["command"] == "git push origin HEAD"


def test_the_patch_is_the_one_in_the_record(record: dict[str, Any], shared: Desk) -> None:
    data = (shared.folder(record["run"]).path / "patch.diff").read_bytes()
    assert record["patch"]["sha256"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert (record["patch"]["added"], record["patch"]["removed"]) == (1, 1)


def test_the_gateways_counts_are_its_lines(record: dict[str, Any], shared: Desk) -> None:
    lines = jsonl(shared.text("egress.jsonl", record["run"]))
    assert record["egress"]["allowed"] == sum(r["decision"] == "allowed" for r in lines)
    assert all(r["run"] == record["run"] for r in lines)
    exchanges = [r for r in jsonl(shared.text("model.jsonl")) if r["kind"] == "model"]
    assert record["usage"]["total_tokens"] == sum(e["usage"]["total_tokens"] for e in exchanges)
    reported = record["usage"]["reported_by_codex"]
    assert reported["input_tokens"] == record["usage"]["input_tokens"]


def test_the_ledger_chains_every_run(record: dict[str, Any], shared: Desk) -> None:
    shared.run("exec", "reviewer", "--", "false")
    entries = jsonl((shared.home / "ledger.jsonl").read_text())
    previous = GENESIS
    for number, entry in enumerate(entries, start=1):
        assert (entry["seq"], entry["previous"]) == (number, previous)
        previous = digest(entry)
    assert [e["status"] for e in entries] == ["done", "done", "failed"]
    assert entries[1]["provenance"] == digest(record)
    assert entries[1]["plan"] == record["hashes"]["plan"]


def test_the_states_and_private_files_are_private(record: dict[str, Any], shared: Desk) -> None:
    folder = shared.folder(record["run"]).path
    assert folder.stat().st_mode & 0o077 == 0
    assert (shared.home / "ledger.jsonl").stat().st_mode & 0o077 == 0
    state = json.loads((folder / "state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("done", 0)
