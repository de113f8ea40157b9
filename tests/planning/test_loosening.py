"""Where a role of a repository allows more than the built-in one, and what that takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.model.errors import Refused, UsageError
from runner.model.profile import RoleProfile, loosenings
from runner.planning.profiles import load_role
from runner.planning.resolve import Task
from runner.resources import profiles_dir
from tests.planning.build import SCRIPT, planned, role, tree
from tests.planning.folders import extend, write

#: Field to (the base, what allows more than the base).
LOOSER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "access": ({"access": "read-only"}, {"access": "write"}),
    "lease": ({"lease": ["a"]}, {"lease": ["a", "b"]}),
    "scratch": ({"scratch": False}, {"scratch": True}),
    "inner_sandbox": ({"inner_sandbox": "off"}, {"inner_sandbox": "codex"}),
    "output_schema": ({"output_schema": "a.json"}, {"output_schema": "b.json"}),
    "protect": ({"protect": ["a", "b"]}, {"protect": ["a"]}),
    "model.base_url": ({}, {"model": {"base_url": "https://other.example/v1"}}),
    "git.history": ({"git": {"history": 2}}, {"git": {"history": 3}}),
    **{
        f"limits.{name}": ({"limits": {name: 5}}, {"limits": {name: 6}})
        for name in type(RoleProfile(description="x").limits).model_fields
    },
    **{
        f"budget.{name}": ({"budget": {name: 5}}, {"budget": {name: 6}})
        for name in type(RoleProfile(description="x").budget).model_fields
    },
}
#: Fields in which no value allows more than another.
NEUTRAL = {"description", "model.name", "model.reasoning_effort", "egress.mode"}


def profile_of(values: dict[str, Any]) -> RoleProfile:
    return RoleProfile.model_validate({"description": "x", **values})


@pytest.mark.parametrize("field", LOOSER)
def test_each_kind_of_loosening_is_found_and_its_opposite_is_none(field: str) -> None:
    base, child = (profile_of(values) for values in LOOSER[field])
    assert [item.partition(":")[0] for item in loosenings(base, child)] == [field]
    assert loosenings(base, base) == ()
    if field not in ("inner_sandbox", "output_schema", "model.base_url", "lease"):
        assert loosenings(child, base) == ()


def test_dropping_a_budget_is_a_loosening_and_adding_one_is_none() -> None:
    limited, free = (
        profile_of({"budget": {"requests": 5}}),
        profile_of({"budget": {"requests": None}}),
    )
    assert loosenings(limited, free) == ("budget.requests: 5 -> None",)
    assert loosenings(free, limited) == ()


def test_every_field_of_a_profile_is_either_ordered_or_said_to_be_neutral() -> None:
    fields = set()
    for name, value in profile_of({}):
        groups = type(value).model_fields if hasattr(type(value), "model_fields") else None
        fields |= {f"{name}.{part}" for part in groups} if groups else {name}
    assert fields == set(LOOSER) | NEUTRAL


LOOSE_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "access": ("reviewer", {"access": "write"}),
    "lease": ("scaffold", {"lease": ["src/"]}),
    "scratch": ("reviewer", {"scratch": True}),
    "inner_sandbox": ("reviewer", {"inner_sandbox": "codex"}),
    "limits.timeout_s": ("fixer", {"limits": {"timeout_s": 1801}}),
    "budget.total_tokens": ("fixer", {"budget": {"total_tokens": 2_000_001}}),
    "model.base_url": ("reviewer", {"model": {"base_url": "http://10.0.0.1/v1"}}),
    "git.history": ("reviewer", {"git": {"history": 1000}}),
}


@pytest.mark.parametrize("field", LOOSE_FILES)
def test_a_role_file_that_loosens_takes_a_recorded_flag(own: Path, field: str) -> None:
    base, values = LOOSE_FILES[field]
    extend(own, base, values)
    loaded = load_role("mine", profiles_dir(), own)
    assert [item.partition(":")[0] for item in loaded.loosened] == [field]
    offline = Task(prompt="p", script=SCRIPT)
    with pytest.raises(Refused, match="allows more"):
        planned("mine", offline, tree(), as_role=loaded)
    allowed = Task(prompt="p", script=SCRIPT, allowed=frozenset({"loosened-profile"}))
    plan = planned("mine", allowed, tree(), as_role=loaded).plan
    assert plan.overrides == (f"loosened-profile: {loaded.loosened[0]}",)


def test_another_value_for_codex_s_configuration_counts_as_loosening(own: Path) -> None:
    folder = extend(own)
    (folder / "config.toml").write_text(
        'model_verbosity = "low"\nallow_login_shell = false\n[features]\nhooks = true\n'
    )
    loaded = load_role("mine", profiles_dir(), own)
    assert loaded.loosened == ("config.features.hooks: False -> True",)
    assert loaded.config["features"]["plugins"] is False
    assert loaded.config["model_verbosity"] == "low"


def test_another_text_for_the_base_s_schema_counts_as_loosening(own: Path) -> None:
    folder = extend(own)
    shutil.copy(profiles_dir() / "reviewer" / "findings.schema.json", folder)
    assert load_role("mine", profiles_dir(), own).loosened == ()
    (folder / "findings.schema.json").write_text("{}")
    (loosened,) = load_role("mine", profiles_dir(), own).loosened
    assert loosened.startswith("output_schema:")


def test_a_role_with_a_built_in_name_must_extend_that_very_role(tmp_path: Path) -> None:
    folder = write(tmp_path, "reviewer", 'extends = "scaffold"\ndescription = "its place"\n')
    with pytest.raises(UsageError, match="must extend 'reviewer'"):
        role("reviewer", tmp_path)
    (folder / "profile.toml").write_text('extends = "reviewer"\ndescription = "our words"\n')
    assert role("reviewer", tmp_path).profile.access == "read-only"


def test_a_new_key_of_codex_is_a_loosening(tmp_path: Path) -> None:
    config = '[mcp_servers.own]\ncommand = "./server"\n'
    write(tmp_path, "own", 'extends = "reviewer"\ndescription = "x"\n', config__toml=config)
    assert any("mcp_servers.own.command" in item for item in role("own", tmp_path).loosened)
    write(tmp_path, "plain", 'extends = "reviewer"\ndescription = "x"\n')
    assert role("plain", tmp_path).loosened == ()
