"""Every control of the hardening list, taken away one at a time."""

from __future__ import annotations

from typing import Any

import pytest

from runner.model.errors import HardeningRefused
from runner.model.plan import ContainerSpec, MountSpec, RunPlan, TmpfsSpec, UlimitSpec
from runner.planning.hardening import CONTAINER_CHECKS, check, problems
from runner.planning.resolve import Task
from tests.planning.build import ROLES, mount, planned, tree

GOOD_ULIMITS = {"core": 0, "fsize": 1 << 20, "nofile": 1024}
FIELD = {"agent": "agent_container", "gateway": "gateway_container"}


def changed(container: ContainerSpec, **fields: Any) -> ContainerSpec:
    return container.model_copy(update=fields)


def with_container(plan: RunPlan, part: str, **fields: Any) -> RunPlan:
    return plan.model_copy(update={FIELD[part]: changed(getattr(plan, FIELD[part]), **fields)})


def ulimits(**changes: tuple[int, int] | None) -> dict[str, tuple[UlimitSpec, ...]]:
    limits: dict[str, tuple[int, int] | None] = {k: (v, v) for k, v in GOOD_ULIMITS.items()}
    limits |= changes
    return {
        "ulimits": tuple(
            UlimitSpec(name=name, soft=pair[0], hard=pair[1])
            for name, pair in limits.items()
            if pair is not None
        )
    }


def tmpfs(options: str) -> dict[str, tuple[TmpfsSpec, ...]]:
    return {"tmpfs": (TmpfsSpec(target="/tmp", options=options),)}


def one_mount(target: str, source: str) -> dict[str, tuple[MountSpec, ...]]:
    return {"mounts": (mount(target, source),)}


#: (control, what a bad container has instead)
REMOVALS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("image-by-digest", {"image": "rolebox-agent:latest"}),
    ("image-by-digest", {"image": "sha256:abc"}),
    ("image-by-digest", {"image": "sha256:" + "z" * 64}),
    ("not-privileged", {"privileged": True}),
    ("non-root", {"user": ""}),
    ("non-root", {"user": "0:0"}),
    ("non-root", {"user": "1000:0"}),
    ("non-root", {"user": "0:1000"}),
    ("non-root", {"user": "1000"}),
    ("non-root", {"user": "agent:agent"}),
    ("non-root", {"user": "\N{SUPERSCRIPT TWO}:\N{SUPERSCRIPT TWO}"}),
    ("no-extra-groups", {"group_add": ("docker",)}),
    ("capabilities-dropped", {"cap_drop": ()}),
    ("capabilities-dropped", {"cap_drop": ("NET_RAW",)}),
    ("capabilities-dropped", {"cap_add": ("NET_ADMIN",)}),
    ("no-new-privileges", {"no_new_privileges": False}),
    ("seccomp", {"seccomp": None}),
    ("seccomp", {"seccomp": "unconfined"}),
    ("seccomp", {"seccomp": ""}),
    ("read-only-root", {"read_only_root": False}),
    ("tmpfs-limited", tmpfs("rw,nosuid,nodev")),
    ("tmpfs-limited", tmpfs("rw,nosuid,nodev,size=0")),
    ("tmpfs-limited", tmpfs("rw,nosuid,nodev,size=0m")),
    ("tmpfs-limited", tmpfs("rw,nosuid,nodev,size=90%")),
    ("tmpfs-limited", tmpfs("rw,nodev,size=64m")),
    ("tmpfs-limited", tmpfs("rw,nosuid,size=64m")),
    ("pids-limited", {"pids_limit": 0}),
    ("pids-limited", {"pids_limit": -1}),
    ("pids-limited", {"pids_limit": 32769}),
    ("memory-limited", {"memory_bytes": 0, "memory_swap_bytes": 0}),
    ("memory-limited", {"memory_swap_bytes": -1}),
    ("memory-limited", {"memory_swap_bytes": 1 << 40}),
    ("cpu-limited", {"nano_cpus": 0}),
    ("shm-limited", {"shm_bytes": 0}),
    ("shm-limited", {"shm_bytes": (1 << 30) + 1}),
    ("file-size-limited", ulimits(fsize=None)),
    ("file-size-limited", ulimits(fsize=(-1, -1))),
    ("file-size-limited", ulimits(fsize=(2, 1))),
    ("no-core-dumps", ulimits(core=None)),
    ("no-core-dumps", ulimits(core=(0, 1 << 40))),
    ("no-core-dumps", ulimits(core=(1 << 40, 1 << 40))),
    ("open-files-limited", ulimits(nofile=None)),
    ("open-files-limited", ulimits(nofile=(-1, -1))),
    ("log-limited", {"log_max_bytes": 0}),
    ("no-devices", {"devices": ("/dev/kvm",)}),
    ("no-host-namespaces", {"ipc": "host"}),
    ("no-host-namespaces", {"ipc": "shareable"}),
    ("no-host-namespaces", {"ipc": "container:other"}),
    ("no-host-namespaces", {"pid": "host"}),
    ("no-host-namespaces", {"uts": "host"}),
    ("no-host-namespaces", {"userns": "host"}),
    ("no-host-namespaces", {"cgroupns": "host"}),
    ("no-host-namespaces", {"cgroupns": ""}),
    ("no-host-namespaces", {"network": "host"}),
    ("known-mounts", one_mount("/work/x", "/etc")),
    ("known-mounts", one_mount("/work/x", "host:/etc")),
    ("known-mounts", one_mount("/work/x", "config:/etc")),
    ("known-mounts", one_mount("/work/x", "config:../../keys")),
    ("known-mounts", one_mount("/work/x", "volume:other")),
    ("known-mounts", one_mount("work", "tree")),
    ("known-mounts", one_mount("/work/../etc", "tree")),
    ("no-engine-socket", one_mount("/var/run/docker.sock", "tree")),
    ("no-engine-socket", one_mount("/var/run", "tree")),
    ("no-engine-socket", one_mount("/run", "tree")),
    ("no-engine-socket", one_mount("/", "tree")),
    ("init", {"init": False}),
)

CASES = [
    pytest.param(part, control, fields, id=f"{part}-{control}-{number}")
    for part in ("agent", "gateway")
    for number, (control, fields) in enumerate(REMOVALS)
]


def names(plan: RunPlan) -> list[str]:
    return [control for control, _, _ in problems(plan)]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("task", [Task(prompt="p"), Task(argv=("true",))], ids=["codex", "exec"])
def test_the_plan_of_every_built_in_role_has_every_control(role: str, task: Task) -> None:
    plan = planned(role, task).plan
    assert problems(plan) == ()
    check(plan)


def test_every_container_check_has_a_case_that_takes_its_control_away() -> None:
    assert [c.name for c in CONTAINER_CHECKS] == list(dict.fromkeys(n for n, _ in REMOVALS))


@pytest.mark.parametrize(("part", "control", "fields"), CASES)
def test_a_container_without_the_control_is_refused_by_its_name(
    part: str, control: str, fields: dict[str, Any]
) -> None:
    plan = planned("scaffold").plan
    assert problems(plan) == ()
    bad = with_container(plan, part, **fields)
    assert f"{part}: {control}" in names(bad)
    with pytest.raises(HardeningRefused) as refused:
        check(bad)
    assert refused.value.exit_code == 3
    assert refused.value.why
    assert refused.value.mend


@pytest.mark.parametrize("name", ["run", "a/run", "var/run", "data/x.sock"])
def test_a_leased_path_that_is_called_like_a_socket_is_no_engine_socket(name: str) -> None:
    assert problems(planned("scaffold", at=tree(name)).plan) == ()


def test_the_refusal_says_how_many_controls_are_missing() -> None:
    plan = with_container(planned().plan, "agent", privileged=True, init=False)
    with pytest.raises(HardeningRefused, match=r"'agent: not-privileged' \(and 1 more\)"):
        check(plan)


def agent_mounts(plan: RunPlan, drop: str, *add: MountSpec) -> RunPlan:
    kept = tuple(m for m in plan.agent_container.mounts if m.target != drop)
    return with_container(plan, "agent", mounts=kept + add)


def _agent_removals() -> dict[str, list[RunPlan]]:
    plan, reader = planned("scaffold").plan, planned("reviewer").plan
    fixer = planned("fixer").plan
    whole = planned("scaffold", at=tree(".")).plan

    def writable(target: str, source: str) -> MountSpec:
        return mount(target, source, read_only=False)

    return {
        "agent-no-network": [with_container(plan, "agent", network="bridge")],
        "agent-no-sysctls": [
            with_container(plan, "agent", sysctls=(("net.ipv4.ip_forward", "1"),))
        ],
        "tree-mounted": [agent_mounts(plan, "/work")],
        "tree-read-only": [
            agent_mounts(plan, "/work", writable("/work", "tree")),
            whole.model_copy(update={"lease": ("src/",)}),
        ],
        "writable-only-leased": [
            agent_mounts(plan, "", writable("/work/docs", "overlay:docs")),
            agent_mounts(plan, "", writable("/work/src-evil", "overlay:src-evil")),
            agent_mounts(plan, "", writable("/workshop", "tree")),
            agent_mounts(plan, "", writable("/scratch", "scratch")),
            agent_mounts(plan, "", writable("/opt/codex", "tree")),
            agent_mounts(reader, "/work/.git", writable("/work/.git", "git")),
            fixer.model_copy(update={"scratch": False}),
            plan.model_copy(update={"lease": ()}),
        ],
        "gateway-volume-read-only": [
            agent_mounts(plan, "/run/rolebox/gateway"),
            agent_mounts(
                plan, "/run/rolebox/gateway", writable("/run/rolebox/gateway", "volume:gateway")
            ),
        ],
        "own-codex-home": [
            agent_mounts(plan, "/codex-home"),
            agent_mounts(plan, "/codex-home", writable("/codex-home", "volume:gateway")),
        ],
        "managed-config-read-only": [
            agent_mounts(plan, "/etc/codex"),
            agent_mounts(plan, "/etc/rolebox"),
            agent_mounts(plan, "/etc/codex", writable("/etc/codex", "config:codex")),
            agent_mounts(plan, "/etc/rolebox", writable("/etc/rolebox", "config:rolebox")),
        ],
        "lease-needs-write": [plan.model_copy(update={"access": "read-only"})],
        "controls": [plan.model_copy(update={"controls": ()})],
    }


def _gateway_removals() -> dict[str, list[RunPlan]]:
    offline, live = planned("reviewer").plan, planned("reviewer", Task(prompt="p")).plan
    return {
        "gateway-network-only-when-live": [with_container(offline, "gateway", network="bridge")],
        "gateway-no-forwarding": [with_container(live, "gateway", sysctls=())],
        "gateway-mounts": [
            with_container(
                offline,
                "gateway",
                mounts=(*offline.gateway_container.mounts, mount("/tree", "tree")),
            )
        ],
    }


ROOM_REMOVALS = {**_agent_removals(), **_gateway_removals()}


@pytest.mark.parametrize(
    ("control", "bad"),
    [
        pytest.param(control, bad, id=f"{control}-{number}")
        for control, plans in ROOM_REMOVALS.items()
        for number, bad in enumerate(plans)
    ],
)
def test_a_plan_without_the_control_is_refused_by_its_name(control: str, bad: RunPlan) -> None:
    assert control in names(bad)
    with pytest.raises(HardeningRefused):
        check(bad)


def test_every_check_of_the_whole_plan_has_a_case_that_takes_its_control_away() -> None:
    import ast
    import inspect

    from runner.planning import hardening

    yielded = {
        node.value.elts[0].value
        for function in (hardening._agent_checks, hardening._gateway_checks)
        for node in ast.walk(ast.parse(inspect.getsource(function)))
        if isinstance(node, ast.Yield)
        and isinstance(node.value, ast.Tuple)
        and isinstance(node.value.elts[0], ast.Constant)
    }
    assert yielded == set(ROOM_REMOVALS)


def test_the_agent_has_no_network_also_with_a_live_model() -> None:
    plan = planned("reviewer", Task(prompt="p")).plan
    assert plan.gateway_container.network == "bridge"
    assert plan.agent_container.network == "disabled"
    assert problems(plan) == ()


def test_a_lease_on_the_whole_tree_may_write_the_tree() -> None:
    assert problems(planned("scaffold", at=tree(".")).plan) == ()


def test_the_default_container_has_next_to_no_control() -> None:
    """What a forgotten field falls back to is refused, not silently safe."""
    bare = ContainerSpec(image="x", argv=("sh",))
    held = {c.name for c in CONTAINER_CHECKS if c.ask(bare) is None}
    assert held == {
        "not-privileged",
        "no-extra-groups",
        "tmpfs-limited",
        "no-devices",
        "known-mounts",
        "no-engine-socket",
    }
