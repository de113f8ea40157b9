"""A plan is a value: the same inputs give the same bytes, another input another digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runner.model.canonical import canonical
from runner.model.plan import PlannedRun, RunPlan
from runner.planning.attachments import Attachment
from runner.planning.profiles import load_role
from runner.planning.resolve import Task
from runner.report.plan import plan_lines
from runner.resources import profiles_dir
from tests.planning.build import PINS, ROLES, SCRIPT, SECCOMP, SOURCE, planned, role, tree

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "do it"


def task(**fields: Any) -> Task:
    return Task(**{"prompt": PROMPT, "script": SCRIPT, **fields})


def base() -> PlannedRun:
    return planned("scaffold", task())


def with_pins(**fields: Any) -> PlannedRun:
    return planned("scaffold", task(), pins=PINS.model_copy(update=fields))


def with_role(**fields: Any) -> PlannedRun:
    return planned("scaffold", task(), as_role=dataclasses.replace(role("scaffold"), **fields))


def with_profile(**fields: Any) -> PlannedRun:
    profile = role("scaffold").profile
    changed = profile.model_validate({**profile.model_dump(), **fields})
    return with_role(profile=changed)


def with_source(**fields: Any) -> PlannedRun:
    return planned("scaffold", task(), tree("src/", source=SOURCE.model_copy(update=fields)))


CHANGES: dict[str, Callable[[], PlannedRun]] = {
    "prompt": lambda: planned("scaffold", task(prompt="do something else")),
    "role": lambda: planned("fixer", task(), tree("src/")),
    "model": lambda: planned("scaffold", task(model="gpt-6.1")),
    "lease": lambda: planned("scaffold", task(), tree("lib/")),
    "another lease beside it": lambda: planned("scaffold", task(), tree("lib/", "src/")),
    "commit": lambda: with_source(commit="3" * 40),
    "tree": lambda: with_source(tree="3" * 40),
    "history": lambda: with_source(history=3),
    "agent image": lambda: with_pins(agent_image="sha256:" + "0" * 64),
    "gateway image": lambda: with_pins(gateway_image="sha256:" + "0" * 64),
    "codex version": lambda: with_pins(codex_version="0.170.0"),
    "codex binary": lambda: with_pins(codex_sha256="sha256:" + "0" * 64),
    "image lock": lambda: with_pins(lock_sha256="sha256:" + "0" * 64),
    "time limit": lambda: planned("scaffold", task(timeout_s=5)),
    "token limit": lambda: planned("scaffold", task(max_tokens=5)),
    "memory limit": lambda: with_profile(limits={"memory_mb": 100}),
    "patch limit": lambda: with_profile(limits={"patch_mb": 1}),
    "request budget": lambda: with_profile(budget={"requests": 1}),
    "base url": lambda: planned("scaffold", Task(prompt=PROMPT)),
    "reasoning effort": lambda: with_profile(
        model={"name": "gpt-5.5", "reasoning_effort": "minimal"}
    ),
    "rules": lambda: with_role(rules={"x.rules": 'prefix_rule(pattern=["x"])'}),
    "no rules": lambda: with_role(rules={}, parsed_rules=()),
    "codex configuration": lambda: with_role(config={"approval_policy": "on-request"}),
    "instructions": lambda: with_role(instructions="Be brief."),
    "profile digest": lambda: with_role(digest="sha256:" + "0" * 64),
    "agent seccomp": lambda: planned("scaffold", task(), seccomp={**SECCOMP, "agent": "{}"}),
    "gateway seccomp": lambda: planned("scaffold", task(), seccomp={**SECCOMP, "gateway": "{}"}),
    "output schema": lambda: planned("scaffold", task(schema=b'{"type":"object"}')),
    "script": lambda: planned("scaffold", task(script={"turns": [{"say": "other"}]})),
    "override": lambda: planned("scaffold", task(allowed=frozenset({"untrusted-into-writer"}))),
    "attachment": lambda: planned(
        "scaffold",
        task(attachments=[Attachment("log", b"1")], allowed=frozenset({"untrusted-into-writer"})),
    ),
    "attachment's text": lambda: planned(
        "scaffold",
        task(attachments=[Attachment("log", b"2")], allowed=frozenset({"untrusted-into-writer"})),
    ),
    "attachment's name": lambda: planned(
        "scaffold",
        task(attachments=[Attachment("log2", b"1")], allowed=frozenset({"untrusted-into-writer"})),
    ),
    "command": lambda: planned("scaffold", Task(argv=("true",), script=SCRIPT)),
    "another command": lambda: planned("scaffold", Task(argv=("true", ""), script=SCRIPT)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_changes_the_digest(change: str) -> None:
    assert base().plan.digest == base().plan.digest
    assert CHANGES[change]().plan.digest != base().plan.digest


def test_no_two_of_the_changes_share_a_digest() -> None:
    digests = {name: make().plan.digest for name, make in CHANGES.items()}
    assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize("name", ROLES)
def test_the_same_inputs_give_the_same_bytes_in_another_process(name: str) -> None:
    code = (
        "import sys; from tests.planning.build import planned; "
        f"sys.stdout.buffer.write(planned({name!r}).plan.canonical())"
    )
    here = planned(name).plan.canonical()
    for seed in ("1", "4711"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo"},
            capture_output=True,
            check=True,
        )
        assert there.stdout == here


@pytest.mark.parametrize("name", ROLES)
def test_canonical_form_is_what_an_independent_writer_makes(name: str) -> None:
    """RFC 8785 equals Python's sorted, tight JSON where all is ASCII and no float has a part."""
    plan = planned(name).plan
    value = json.loads(plan.canonical(), parse_float=lambda text: pytest.fail(text))
    again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert plan.canonical() == again.encode()
    assert plan.digest == "sha256:" + hashlib.sha256(again.encode()).hexdigest()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1800.0, "1800"),
        (0.5, "0.5"),
        (1e21, "1e+21"),
        (-0.0, "0"),
        ({"b": 1, "a": None, "\u00e9": True}, '{"a":null,"b":1,"\u00e9":true}'),
        # Keys sort by UTF-16 code units: a surrogate pair comes before U+FB33 (RFC 8785, 3.2.3).
        ({"\ufb33": 1, "\U0001f600": 2}, '{"\U0001f600":2,"\ufb33":1}'),
        ("\u20ac$\x0f\nA'B\"\\", '"\u20ac$\\u000f\\nA\'B\\"\\\\"'),
    ],
)
def test_canonical_form_follows_the_rfc(value: object, text: str) -> None:
    assert canonical(value) == text.encode()


@pytest.mark.parametrize("name", ROLES)
def test_a_plan_holds_no_path_of_the_host_no_time_and_no_run_id(name: str, tmp_path: Path) -> None:
    here = shutil.copytree(profiles_dir(), tmp_path / "profiles")
    text = planned(name, as_role=load_role(name, here)).plan.canonical().decode()
    assert text == planned(name).plan.canonical().decode()
    assert str(tmp_path) not in text
    assert not re.search(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}|[0-9]{8}t[0-9]{9}", text)
    assert not re.search(r"sk-[A-Za-z0-9]{8}|OPENAI_API_KEY=", text)


@pytest.mark.parametrize("name", ROLES)
def test_plan_json_parses_back_to_an_equal_plan(name: str) -> None:
    plan = planned(name).plan
    again = RunPlan.model_validate_json(plan.canonical())
    assert again == plan
    assert again.canonical() == plan.canonical()


def test_plan_json_with_an_unknown_key_is_refused() -> None:
    value = json.loads(base().plan.canonical())
    assert RunPlan.model_validate(value) == base().plan
    with pytest.raises(ValueError, match="extra_mount"):
        RunPlan.model_validate({**value, "extra_mount": "/"})


def test_a_plan_meets_its_own_json_schema() -> None:
    schema = RunPlan.model_json_schema(by_alias=True, mode="serialization")
    jsonschema.Draft202012Validator(schema).validate(json.loads(base().plan.canonical()))


@pytest.mark.parametrize("name", ROLES)
def test_every_file_of_the_materials_is_named_by_its_digest(name: str) -> None:
    made = planned(name)
    assert set(made.materials.files) == set(made.plan.files)
    for path, data in made.materials.files.items():
        assert made.plan.files[path] == "sha256:" + hashlib.sha256(data).hexdigest()
    for spec in (made.plan.agent_container, made.plan.gateway_container):
        text = made.materials.seccomp[spec.seccomp or ""]
        assert spec.seccomp == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_a_plan_cannot_be_changed_in_place() -> None:
    plan = base().plan
    with pytest.raises(ValueError, match="frozen"):
        plan.agent_container.privileged = True  # type: ignore[misc]


@pytest.mark.parametrize("name", ROLES)
def test_every_value_of_a_plan_has_an_origin(name: str) -> None:
    made = planned(name)
    covered = {origin.partition(".")[0] for origin in made.origins}
    computed = {"_schema", "command", "attachments", "profile_sha256", "gateway"}
    assert set(made.plan.to_json()) - covered - computed == set()
    assert made.origins["limits.timeout_s"] == f"profiles/{name}/profile.toml"
    assert made.origins["limits.open_files"] == "default"
    flagged = planned(name, task(timeout_s=5, max_tokens=7, model="gpt-6.1")).origins
    assert flagged["limits.timeout_s"] == "--timeout"
    assert flagged["gateway.budget.total_tokens"] == "--max-tokens"
    assert flagged["model"] == "--model"


def test_a_printed_plan_shows_digest_mounts_and_limits() -> None:
    made = base()
    lines = list(plan_lines(made.plan, made.origins))
    assert lines[0] == f"plan {made.plan.digest}"
    assert "  mount RW  /work/src  <- overlay:src" in lines
    assert "  mount ro  /work  <- tree" in lines
    assert any("limits.timeout_s" in line and "3600" in line for line in lines)


def test_a_printed_plan_is_inert_whatever_the_tree_is_called() -> None:
    made = planned("scaffold", task(), tree("src/\u202eexe\x9b31m"))
    text = "\n".join(plan_lines(made.plan, made.origins))
    assert "\u202e" not in text
    assert "\x9b" not in text
    assert "\\u202e" in text
