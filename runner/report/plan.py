"""A plan for people: the values that matter, each with where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runner.model.plan import ContainerSpec, RunPlan
from runner.report.text import inert, one_line

_WIDTH = 100


def plan_lines(plan: RunPlan, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of `rolebox plan`."""
    yield f"plan {plan.digest}"
    for name, value in _rows(plan):
        origin = origins.get(name) or origins.get(name.partition(".")[0], "rolebox")
        yield f"  {name:<28} {one_line(value, 60):<60}  {origin}"
    for label, container in (
        ("agent", plan.agent_container),
        ("gateway", plan.gateway_container),
    ):
        yield f"{label} container"
        for name, value in _container_rows(container):
            yield f"  {name:<28} {one_line(value, _WIDTH)}"
        for mount in container.mounts:
            mode = "ro" if mount.read_only else "RW"
            yield f"  mount {mode}  {inert(mount.target)}  <- {inert(mount.source)}"
    yield f"controls ({len(plan.controls)})"
    yield "  " + ", ".join(inert(control.name) for control in plan.controls)
    for name, digest in plan.files.items():
        yield f"file {name}  {digest}"


def _rows(plan: RunPlan) -> Iterator[tuple[str, str]]:
    yield "role", plan.role
    yield "access", plan.access
    yield "lease", ", ".join(plan.lease) or "nothing (read-only)"
    yield "protected", ", ".join(plan.protected)
    yield "scratch", str(plan.scratch).lower()
    yield "source", f"{plan.source.commit} ({plan.source.history} commits of history)"
    yield "command", " ".join(plan.command.argv)
    yield "prompt_sha256", plan.prompt_sha256 or "none"
    yield "model", plan.model
    yield "codex", f"{plan.codex.version}, inner sandbox {plan.codex.inner_sandbox}"
    yield "gateway.backend", f"{plan.gateway.backend} {plan.gateway.base_url or ''}".strip()
    for name, value in plan.gateway.budget.to_json().items():
        yield f"gateway.budget.{name}", _limit(value)
    for name, value in plan.limits.to_json().items():
        yield f"limits.{name}", _limit(value)
    yield "image_lock_sha256", plan.image_lock_sha256
    yield "overrides", ", ".join(plan.overrides) or "none"


def _container_rows(spec: ContainerSpec) -> Iterator[tuple[str, str]]:
    yield "image", spec.image
    yield "user", spec.user
    yield "network", spec.network
    yield "read-only root", str(spec.read_only_root).lower()
    yield "capabilities", f"drop {','.join(spec.cap_drop)}; add {','.join(spec.cap_add) or 'none'}"
    yield "no-new-privileges", str(spec.no_new_privileges).lower()
    yield "seccomp", spec.seccomp or "NONE"
    yield "tmpfs", "; ".join(f"{t.target} {t.options}" for t in spec.tmpfs) or "none"
    cpus = spec.nano_cpus / 1e9
    limits = {u.name: u.hard for u in spec.ulimits}
    yield (
        "limits",
        f"pids {spec.pids_limit}, memory {spec.memory_bytes >> 20} MiB, cpus {cpus:g}, {limits}",
    )


def _limit(value: Any) -> str:
    return "no limit" if value is None else str(value)
