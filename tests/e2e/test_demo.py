"""`rolebox demo`: three roles, the real Codex CLI, real containers, no key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runner.resources import profiles_dir
from tests.conftest import git
from tests.e2e.rig import Desk, jsonl, left_in_engine


@dataclass(frozen=True)
class Demo:
    desk: Desk
    repository: Path
    runs: list[dict[str, Any]]


@pytest.fixture(scope="module")
def demo(shared: Desk) -> Demo:
    place = shared.home.parent / "kept"
    document = shared.run("demo", "--json", "--keep", str(place)).check().json()
    return Demo(shared, Path(document["repository"]), document["runs"])


def test_three_roles_are_done_in_order_each_on_the_patch_of_the_last(demo: Demo) -> None:
    assert [(r["role"], r["status"]) for r in demo.runs] == [
        ("scaffold", "done"),
        ("fixer", "done"),
        ("reviewer", "done"),
    ]
    scaffold, fixer, reviewer = demo.runs
    assert fixer["parent"] == scaffold["id"]
    assert reviewer["parent"] == fixer["id"]
    assert reviewer["commit"] == fixer["provenance"]["patch"]["commit"]


def test_scaffold_adds_the_feature_and_fixer_repairs_only_its_bug(demo: Demo) -> None:
    scaffold, fixer = (demo.desk.text("patch.diff", run["id"]) for run in demo.runs[:2])
    assert "+++ b/tests/test_top.py" in scaffold
    assert "key=lambda word: (-counts[word], word)" not in scaffold
    assert "+    return sorted(counts, key=lambda word: (-counts[word], word))[:n]" in fixer
    assert fixer.count("diff --git") == 1


def test_both_patches_apply_to_the_repository_in_turn(demo: Demo) -> None:
    for run in demo.runs[:2]:
        git(demo.repository, "apply", str(demo.desk.folder(run["id"]).path / "patch.diff"))
    git(demo.repository, "checkout", "--quiet", ".")
    git(demo.repository, "clean", "--quiet", "--force")


def test_reviewers_findings_meet_the_schema(demo: Demo) -> None:
    schema = json.loads((profiles_dir() / "reviewer" / "findings.schema.json").read_text())
    findings = json.loads(demo.desk.text("last-message.md", demo.runs[2]["id"]))
    jsonschema.validate(findings, schema)
    assert findings["findings"]


def test_a_push_is_denied_by_rule_and_recorded(demo: Demo) -> None:
    refused = demo.runs[0]["provenance"]["commands"]["refused"]
    assert [item["command"] for item in refused] == ["git push origin HEAD"]
    assert "no network" in refused[0]["reason"]


def test_an_unlisted_host_is_denied_by_the_gateway_and_recorded(demo: Demo) -> None:
    records = jsonl(demo.desk.text("egress.jsonl", demo.runs[0]["id"]))
    denied = [r for r in records if r["decision"] == "denied"]
    assert [(r["verb"], r["host"], r["port"]) for r in denied] == [("CONNECT", "example.com", 443)]
    assert denied[0]["rule"] == "egress.mode = none"
    assert demo.runs[0]["provenance"]["egress"]["denied"] == 1


def test_a_write_beside_the_lease_is_denied_by_the_mount(demo: Demo) -> None:
    events = demo.desk.text("events.jsonl", demo.runs[0]["id"])
    assert "README.md: Read-only file system" in events
    assert "README" not in demo.desk.text("patch.diff", demo.runs[0]["id"])


def test_nothing_of_the_demo_is_left_in_the_engine(demo: Demo) -> None:
    assert [left_in_engine(run["id"]) for run in demo.runs] == [[], [], []]


def test_keep_puts_the_repository_there_and_leaves_it_as_committed(demo: Demo) -> None:
    assert demo.repository == demo.desk.home.parent / "kept"
    assert git(demo.repository, "status", "--porcelain") == ""
    assert git(demo.repository, "rev-list", "--count", "--all") == "1"


def test_keep_refuses_a_folder_of_somebody_else(shared: Desk) -> None:
    place = shared.home.parent / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    done = shared.run("demo", "--keep", str(place))
    assert done.code == 2
    assert "is not empty" in done.stderr
    assert [p.name for p in place.iterdir()] == ["thesis.txt"]
