"""Roles as folders: what loads, what is refused, what counts as loosening."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.model.errors import Refused, UsageError
from runner.model.profile import PROTECTED
from runner.planning.codexfiles import MANAGED
from runner.planning.profiles import load_role, role_names
from runner.planning.resolve import Task, protected_patterns, refuse_lease
from runner.resources import profiles_dir
from tests.planning.build import ROLES, SCRIPT, planned, role, tree
from tests.planning.folders import extend, write


def test_the_built_in_roles_are_these() -> None:
    assert role_names(profiles_dir(), None) == ROLES


@pytest.mark.parametrize(
    ("name", "access", "scratch", "schema"),
    [
        ("scaffold", "write", False, None),
        ("fixer", "write", True, None),
        ("reviewer", "read-only", False, "findings.schema.json"),
    ],
)
def test_a_built_in_role_may_do_what_the_design_s_table_says(
    name: str, access: str, scratch: bool, schema: str | None
) -> None:
    loaded = role(name)
    profile = loaded.profile
    assert (profile.access, profile.scratch, profile.output_schema) == (access, scratch, schema)
    assert (loaded.schema is not None) == (schema is not None)
    assert profile.lease == ()
    assert profile.egress.mode == "none"
    assert profile.inner_sandbox == "off"
    assert loaded.loosened == ()
    assert loaded.instructions
    assert loaded.rules


@pytest.mark.parametrize("name", ROLES)
def test_what_the_design_protects_is_protected_for_every_role(name: str) -> None:
    wanted = {".git", ".codex", ".github", ".rolebox", "AGENTS.md", "*.rules", ".gitmodules"}
    assert wanted <= set(protected_patterns(role(name).profile))


def test_only_a_role_that_writes_may_hold_a_lease() -> None:
    refuse_lease(role("scaffold"), ["src/"])
    refuse_lease(role("reviewer"), [])
    with pytest.raises(Refused):
        refuse_lease(role("reviewer"), ["src/"])


def test_an_unknown_role_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="there is no role 'reviwer'") as refused:
        role("reviwer")
    assert refused.value.mend == "did you mean 'reviewer'?"


@pytest.mark.parametrize(
    "name",
    ["../x", "../reviewer", "/etc", "", ".", "_common", "Reviewer", "r\u00e9viewer", "a" * 41,
     "reviewer\n", "\x1b[31m", "seccomp"],
)  # fmt: skip
def test_a_hostile_role_name_is_refused(name: str, own: Path) -> None:
    (own.parent / "x").mkdir()
    (own.parent / "x" / "profile.toml").write_text('extends = "reviewer"\n')
    with pytest.raises(UsageError):
        load_role(name, profiles_dir(), own)


def test_a_folder_with_a_hostile_name_is_no_role_and_is_never_printed(own: Path) -> None:
    write(own, "\x1b[31mred", 'extends = "reviewer"\n')
    write(own, "mine", 'extends = "reviewer"\n')
    assert role_names(profiles_dir(), own) == ("fixer", "mine", "reviewer", "scaffold")


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("acess = 'write'\n", "acess", "access"),
        ("[limits]\ntimeout = 5\n", "limits.timeout", "timeout_s"),
        ("[model]\nnaem = 'x'\n", "model.naem", "name"),
        ("[egres]\nmode = 'none'\n", "egres", "egress"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(
    own: Path, text: str, key: str, meant: str
) -> None:
    folder = write(own, "mine", 'extends = "reviewer"\n' + text)
    with pytest.raises(UsageError) as refused:
        load_role("mine", profiles_dir(), own)
    assert refused.value.what == f"{folder / 'profile.toml'}: unknown key {key}"
    assert refused.value.mend == f"did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"limits": {"pids": "256"}}, "limits.pids"),
        ({"limits": {"pids": True}}, "limits.pids"),
        ({"limits": {"pids": 1.5}}, "limits.pids"),
        ({"limits": {"pids": 0}}, "limits.pids"),
        ({"limits": {"pids": 1 << 53}}, "limits.pids"),
        ({"limits": {"memory_mb": 1 << 40}}, "limits.memory_mb"),
        ({"limits": {"timeout_s": "60"}}, "limits.timeout_s"),
        ({"limits": {"timeout_s": -1}}, "limits.timeout_s"),
        ({"limits": {"timeout_s": float("inf")}}, "limits.timeout_s"),
        ({"limits": {"timeout_s": float("nan")}}, "limits.timeout_s"),
        ({"limits": {"cpus": float("inf")}}, "limits.cpus"),
        ({"limits": 5}, "limits"),
        ({"scratch": "no"}, "scratch"),
        ({"scratch": 0}, "scratch"),
        ({"protect": "secrets"}, "protect"),
        ({"protect": [1]}, "protect.0"),
        ({"access": "admin"}, "access"),
        ({"description": {"a": 1}}, "description"),
        ({"model": {"base_url": "file:///etc/passwd"}}, "model.base_url"),
        ({"model": {"base_url": "https://user:pass@host/v1"}}, "model.base_url"),
        ({"output_schema": "../../x.json"}, "output_schema"),
        ({"egress": {"mode": "all"}}, "egress.mode"),
        ({"git": {"history": 0}}, "git.history"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_file_and_field(
    own: Path, values: dict[str, Any], field: str
) -> None:
    folder = extend(own, values=values)
    with pytest.raises(UsageError) as refused:
        load_role("mine", profiles_dir(), own)
    assert refused.value.what.startswith(f"{folder / 'profile.toml'}: {field}")


@pytest.mark.parametrize("text", ["extends = ", "[limits\n", "a = 1\na = 2\n", "\x00", "extends"])
def test_malformed_toml_is_refused_by_file(own: Path, text: str) -> None:
    folder = write(own, "mine", text)
    with pytest.raises(UsageError, match="is not valid TOML") as refused:
        load_role("mine", profiles_dir(), own)
    assert str(folder) in refused.value.what


def test_bytes_that_are_not_utf_8_are_refused(own: Path) -> None:
    (write(own, "mine", "") / "profile.toml").write_bytes(b'extends = "reviewer\xff"\n')
    with pytest.raises(UsageError, match="cannot be read"):
        load_role("mine", profiles_dir(), own)


@pytest.mark.parametrize(
    "text", ["", 'extends = "nobody"\n', "extends = 5\n", 'extends = "../reviewer"\n',
             'extends = "mine"\n', 'extends = "_common"\n', 'extends = ["reviewer"]\n'],
)  # fmt: skip
def test_a_role_that_extends_no_built_in_role_is_refused(own: Path, text: str) -> None:
    write(own, "mine", text)
    with pytest.raises(UsageError, match="extends must name a built-in role"):
        load_role("mine", profiles_dir(), own)


def test_a_role_that_tightens_what_it_extends_is_accepted(own: Path) -> None:
    extend(
        own,
        "scaffold",
        {
            "description": "ours",
            "access": "read-only",
            "protect": ["migrations"],
            "output_schema": "out.json",
            "limits": {"timeout_s": 60, "pids": 10},
            "budget": {"total_tokens": 1000, "input_tokens": 500},
            "git": {"history": 1},
            "model": {"name": "gpt-6.1", "reasoning_effort": "low"},
        },
    )
    (own / "mine" / "out.json").write_text('{"type": "object"}')
    loaded = load_role("mine", profiles_dir(), own)
    assert loaded.loosened == ()
    profile = loaded.profile
    assert (profile.access, profile.limits.pids, profile.limits.memory_mb) == (
        "read-only",
        10,
        4096,
    )
    assert "migrations" in protected_patterns(profile)
    assert set(PROTECTED) <= set(protected_patterns(profile))
    assert planned("scaffold", as_role=loaded, at=tree()).plan.overrides == ()


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "{", "[" * 100_000])
def test_an_output_schema_that_is_no_json_object_is_refused(own: Path, text: str) -> None:
    folder = extend(own)
    (folder / "findings.schema.json").write_text(text)
    with pytest.raises(UsageError, match=r"findings\.schema\.json is no"):
        load_role("mine", profiles_dir(), own)


def test_a_missing_output_schema_is_refused(own: Path) -> None:
    extend(own, "scaffold", {"output_schema": "out.json"})
    with pytest.raises(UsageError, match=r"output schema out\.json is missing"):
        load_role("mine", profiles_dir(), own)


def test_the_rules_and_instructions_of_the_base_stay_and_the_role_s_own_come_after(
    own: Path,
) -> None:
    rule = 'prefix_rule(pattern=["make", "deploy"], decision="forbidden")\n'
    folder = extend(own)
    (folder / "extra.rules").write_text(rule)
    (folder / "instructions.md").write_text("Ours.\n")
    base, mine = role("reviewer"), load_role("mine", profiles_dir(), own)
    assert mine.rules == {**base.rules, "own-mine-extra.rules": rule}
    assert mine.parsed_rules[: len(base.parsed_rules)] == base.parsed_rules
    assert mine.instructions == base.instructions + "\n\nOurs."
    assert mine.digest != base.digest


def test_a_role_of_the_base_s_own_name_cannot_put_its_rules_in_place_of_the_base_s(
    own: Path, tmp_path: Path
) -> None:
    builtin = tmp_path / "built-in"
    shutil.copytree(profiles_dir(), builtin)
    theirs, ours = (f'prefix_rule(pattern=["{w}"], decision="forbidden")\n' for w in "ab")
    (builtin / "reviewer" / "extra.rules").write_text(theirs)
    write(own, "reviewer", 'extends = "reviewer"\n', extra__rules=ours)
    texts = list(load_role("reviewer", builtin, own).rules.values())
    assert theirs in texts
    assert ours in texts


@pytest.mark.parametrize("key", sorted(MANAGED))
def test_a_role_that_sets_a_managed_key_is_refused(own: Path, key: str) -> None:
    folder = extend(own)
    (folder / "config.toml").write_text(f"{key} = 'x'\n")
    loaded = load_role("mine", profiles_dir(), own)
    allowed = Task(prompt="p", script=SCRIPT, allowed=frozenset({"loosened-profile"}))
    with pytest.raises(UsageError, match=f"sets {key}, which rolebox manages"):
        planned("reviewer", allowed, as_role=loaded)
    (folder / "config.toml").write_text("model_verbosity = 'low'\n")
    loaded = load_role("mine", profiles_dir(), own)
    assert planned("reviewer", as_role=loaded).materials.files["codex/config.toml"]


@pytest.mark.parametrize("value", ["2020-01-01", "inf", "nan", str(1 << 53)])
def test_a_configuration_value_that_json_cannot_say_is_refused_by_file(
    own: Path, value: str
) -> None:
    folder = extend(own)
    (folder / "config.toml").write_text(f"x = {value}\n")
    with pytest.raises(UsageError, match=r"config\.toml holds a value that JSON cannot say"):
        load_role("mine", profiles_dir(), own)
    (folder / "config.toml").write_text("x = 1.5\n")
    assert load_role("mine", profiles_dir(), own).config["x"] == 1.5


def test_origins_name_the_file_that_set_a_value(own: Path) -> None:
    write(own, "reviewer", 'extends = "reviewer"\n[limits]\npids = 10\n')
    origins = load_role("reviewer", profiles_dir(), own).origins
    assert origins["limits.pids"] == ".rolebox/profiles/reviewer/profile.toml"
    assert origins["limits.memory_mb"] == "profiles/reviewer/profile.toml"
    assert "limits.open_files" not in origins


def test_a_file_over_a_mebibyte_is_refused(own: Path) -> None:
    folder = extend(own)
    (folder / "instructions.md").write_text("x" * (1 << 20))
    assert load_role("mine", profiles_dir(), own)
    (folder / "instructions.md").write_text("x" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        load_role("mine", profiles_dir(), own)


@pytest.mark.parametrize("name", ["instructions.md", "profile.toml", "config.toml", "x.rules"])
def test_a_link_in_a_repository_s_role_is_not_followed(
    own: Path, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text('extends = "reviewer"\n' if name == "profile.toml" else "")
    folder = extend(own)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(UsageError, match="is a link or a special file"):
        load_role("mine", profiles_dir(), own)
    (folder / name).unlink()
    shutil.copy(secret, folder / name)
    assert load_role("mine", profiles_dir(), own)


@pytest.mark.parametrize("part", ["mine", "profiles", ".rolebox"])
def test_a_linked_profile_folder_is_not_followed(own: Path, tmp_path: Path, part: str) -> None:
    path = {"mine": extend(own), "profiles": own, ".rolebox": own.parent}[part]
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(UsageError, match="is a link or a special file"):
        load_role("mine", profiles_dir(), own)
    path.unlink()
    elsewhere.rename(path)
    assert load_role("mine", profiles_dir(), own)


def test_a_pipe_in_a_repository_s_role_is_refused_instead_of_read(own: Path) -> None:
    os.mkfifo(extend(own) / "x.rules")
    with pytest.raises(UsageError, match="is a link or a special file"):
        load_role("mine", profiles_dir(), own)


def test_a_repository_s_role_never_hides_a_built_in_one_without_extending_it(own: Path) -> None:
    write(own, "reviewer", 'access = "write"\n')
    with pytest.raises(UsageError, match="extends must name a built-in role"):
        load_role("reviewer", profiles_dir(), own)
