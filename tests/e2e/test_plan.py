"""`rolebox plan` prints what `run` executes, with the same digest, and changes nothing."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tests.e2e.rig import FINDINGS, Desk, repository_facts


def _flags(desk: Desk, role: str) -> list[str]:
    script = desk.script({"say": FINDINGS})
    flags = [role, "Do it.", "--model-script", script, "--timeout", "60", "--max-tokens", "50000"]
    return [*flags, "--write", "src/"] if role == "scaffold" else flags


@pytest.mark.parametrize("role", ["scaffold", "reviewer"])
def test_the_plan_is_the_one_that_the_run_executes(shared: Desk, role: str) -> None:
    flags = _flags(shared, role)
    planned = shared.run("plan", *flags, "--json").check().json()
    shared.run("run", *flags).check()
    assert shared.provenance()["hashes"]["plan"] == planned["digest"]
    assert json.loads(shared.text("plan.json")) == planned["plan"]
    assert json.loads(shared.text("origins.json")) == planned["origins"]


def test_another_flag_gives_another_plan(shared: Desk) -> None:
    flags = _flags(shared, "scaffold")
    one = shared.run("plan", *flags, "--json").check().json()
    other = shared.run("plan", *flags, "--write", "docs/", "--json").check().json()
    again = shared.run("plan", *flags, "--json").check().json()
    assert one["digest"] == again["digest"]
    assert one["digest"] != other["digest"]


@pytest.mark.parametrize("words", [("plan",), ("run", "--dry-run")])
def test_planning_starts_nothing_and_changes_nothing(desk: Desk, words: tuple[str, ...]) -> None:
    """It cannot have touched the engine: there is none where it looks."""
    before = repository_facts(desk.repository)
    nowhere = {"DOCKER_HOST": f"unix://{desk.home}/no.sock"}
    document = desk.run(*words, *_flags(desk, "scaffold"), "--json", env=nowhere).check().json()
    assert document["_schema"] == "rolebox.planned/1"
    assert document["plan"]["lease"] == ["src/"]
    assert desk.runs() == []
    assert not (desk.home / "runs").exists()
    assert not (desk.home / "ledger.jsonl").exists()
    assert repository_facts(desk.repository) == before
    assert desk.run("run", *_flags(desk, "scaffold"), env=nowhere).code == 4


def test_each_value_has_an_origin(shared: Desk) -> None:
    origins = shared.run("plan", *_flags(shared, "scaffold"), "--json").check().json()["origins"]
    assert origins["limits.timeout_s"] == "--timeout"
    assert origins["lease"] == "--write"
    assert "profiles/scaffold/profile.toml" in origins["limits.memory_mb"]


def test_the_plan_for_people_names_digest_mounts_and_controls(shared: Desk) -> None:
    flags = _flags(shared, "scaffold")
    text = shared.run("plan", *flags).check().stdout
    assert text.startswith("plan " + shared.run("plan", *flags, "--json").json()["digest"])
    assert "mount RW  /work/src  <- overlay:src" in text
    assert "mount ro  /work  <- tree" in text
    assert "no-internet-v4" in text


def test_the_plan_meets_its_schema(shared: Desk) -> None:
    plan = shared.run("plan", *_flags(shared, "reviewer"), "--json").check().json()["plan"]
    schema = shared.run("schema", "plan").check().json()
    jsonschema.validate(plan, schema)


def test_a_plan_holds_nothing_of_this_host(shared: Desk) -> None:
    text = shared.run("plan", *_flags(shared, "scaffold"), "--json").check().stdout
    assert str(shared.home) not in text
    assert str(shared.repository) not in text


def test_planning_the_live_model_needs_no_key_and_starts_no_run(shared: Desk) -> None:
    document = shared.run("plan", "reviewer", "Look.", "--json").check().json()
    assert document["plan"]["gateway"]["key_source"] == "env:OPENAI_API_KEY"
    assert document["plan"]["agent_container"]["network"] == "disabled"
