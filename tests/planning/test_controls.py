"""The controls come from the very container that the engine is told."""

from __future__ import annotations

import inspect
import json

import pytest

from runner.model.plan import ControlSpec, RunPlan
from runner.planning.controls import controls_for
from runner.sandbox.controls import KINDS
from runner.session.bind import sandbox_json
from tests.planning.build import GID, ROLES, UID, mount, planned, tree

#: What design.md and guarantee 6 ask of every run: (name, kind, expectation).
WANTED = {
    ("only-loopback", "interfaces", "blocked"),
    ("no-internet-v4", "tcp", "blocked"),
    ("no-internet-v6", "tcp", "blocked"),
    ("no-metadata", "tcp", "blocked"),
    ("no-engine-bridge", "tcp", "blocked"),
    ("no-datagrams", "udp", "blocked"),
    ("no-dns", "dns", "blocked"),
    ("loopback", "loopback_works", "works"),
    ("gateway-answers", "gateway", "works"),
    ("non-root", "uid", "blocked"),
    ("no-capabilities", "capabilities", "blocked"),
    ("no-new-privileges", "no_new_privs", "blocked"),
    ("seccomp", "seccomp", "blocked"),
    ("own-processes", "namespaces", "blocked"),
    ("limits", "limits", "blocked"),
    ("read-only-root", "readonly_root", "blocked"),
    ("kernel-files-masked", "masked", "blocked"),
    ("no-devices", "devices", "blocked"),
    ("no-engine-socket", "engine_socket", "blocked"),
    ("no-logins", "files_absent", "blocked"),
    ("no-secret-in-environment", "environment", "blocked"),
}


def probes(plan: RunPlan) -> dict[str, ControlSpec]:
    return {
        str(c.args["path"]): c for c in plan.controls if c.kind in ("write_denied", "write_allowed")
    }


@pytest.mark.parametrize("name", ROLES)
def test_every_run_proves_the_whole_seal(name: str) -> None:
    controls = planned(name).plan.controls
    assert {(c.name, c.kind, c.expect) for c in controls} >= WANTED


@pytest.mark.parametrize("name", ROLES)
def test_every_mount_has_a_probe_of_what_it_promises(name: str) -> None:
    plan = planned(name).plan
    found = probes(plan)
    for spec in plan.agent_container.mounts:
        probe = found[spec.target]
        assert probe.kind == ("write_denied" if spec.read_only else "write_allowed")
        assert probe.expect == ("blocked" if spec.read_only else "works")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_new_mount_gets_a_probe(read_only: bool) -> None:
    plan = planned().plan
    agent = plan.agent_container
    more = agent.model_copy(
        update={"mounts": (*agent.mounts, mount("/new", "tree", read_only=read_only))}
    )
    before = {c.name for c in plan.controls}
    after = controls_for(more, lease=plan.lease, uid=UID, gid=GID)
    (new,) = [c for c in after if c.name not in before]
    assert new.args["path"] == "/new"
    assert new.expect == ("blocked" if read_only else "works")


@pytest.mark.parametrize("name", ROLES)
def test_something_is_always_expected_to_work(name: str) -> None:
    """A container in which nothing works must not pass for a sealed one."""
    works = {c.category for c in planned(name).plan.controls if c.expect == "works"}
    assert {"network", "gateway"} <= works
    assert works & {"filesystem", "evidence"}


@pytest.mark.parametrize("name", ROLES)
def test_control_names_are_unique(name: str) -> None:
    names = [c.name for c in planned(name).plan.controls]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("at", [tree(), tree("."), tree("src/", "a b/c"), tree(scratch=True)])
def test_the_sandbox_knows_every_kind_with_exactly_these_arguments(at: object) -> None:
    plan = planned("fixer", at=at).plan  # type: ignore[arg-type]
    for control in plan.controls:
        inspect.signature(KINDS[control.kind]).bind({}, **control.args)


def test_the_limits_probe_asks_for_the_limits_of_the_plan() -> None:
    plan = planned("reviewer").plan
    (limits,) = [c for c in plan.controls if c.name == "limits"]
    assert limits.args == {
        "core": 0,
        "fsize": 1024 << 20,
        "nofile": 8192,
        "pids": 256,
        "memory": 2048 << 20,
    }


def test_only_what_is_writable_is_told_to_the_read_only_probe() -> None:
    plan = planned("scaffold").plan
    (root,) = [c for c in plan.controls if c.name == "read-only-root"]
    assert root.args["writable"] == ["/codex-home", "/tmp", "/work/.git", "/work/src"]


def test_the_supervisor_is_told_the_plan_s_controls_and_nothing_of_the_host() -> None:
    plan = planned("scaffold").plan
    told = json.loads(sandbox_json(plan))
    assert told["controls"] == [c.to_wire() for c in plan.controls]
    assert told["argv"] == list(plan.command.argv)
    assert told["env"] == dict(plan.agent_container.env)
    assert sandbox_json(plan) == sandbox_json(RunPlan.model_validate_json(plan.canonical()))
