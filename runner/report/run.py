"""One run for people: a line, or the page of `rolebox show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.model.state import RunState
from runner.report.text import inert, one_line

_MARK = {"done": "✓", "failed": "✗", "refused": "⊘", "timeout": "⏱", "lost": "?"}


def summary(state: RunState, provenance: Mapping[str, Any] | None, folder: Path) -> str:
    """Return one line about a run that ended."""
    parts = [
        f"{_MARK.get(state.status, '•')} {state.role} {state.status} in {state.duration_s:.1f} s"
    ]
    if provenance is not None:
        controls = provenance["controls"]
        parts.append(f"controls {controls['passed']}/{controls['planned']}")
        if requests := provenance["model"]["requests"]:
            tokens = provenance["usage"]["total_tokens"]
            parts.append(f"{requests} requests, {tokens} tokens")
        if patch := provenance["patch"]:
            parts.append(f"patch +{patch['added']} -{patch['removed']} in {patch['files']} file(s)")
        parts.append(f"{provenance['egress']['denied']} denied")
        if not provenance["completeness"]["complete"]:
            parts.append("evidence incomplete")
    return " · ".join(parts) + f"\n  {state.id}  {folder}"


def run_lines(state: RunState, provenance: Mapping[str, Any] | None, folder: Path) -> Iterator[str]:
    """Yield the lines of `rolebox show`."""
    yield f"run      {state.id}  {state.status}"
    yield f"role     {state.role}"
    yield f"prompt   {one_line(state.prompt, 90)}"
    yield f"tree     {state.repository} at {state.commit[:12]}"
    yield f"lease    {', '.join(state.lease) or 'none (read-only)'}"
    if state.parent:
        yield f"parent   {state.parent}"
    if state.failure is not None:
        yield f"failure  {inert(state.failure.what)}"
        for word in ("why", "mend"):
            if text := getattr(state.failure, word):
                yield f"  {word}: {inert(text)}"
    yield f"evidence {folder}"
    if provenance is None:
        yield "no provenance yet"
        return
    yield from _provenance_lines(provenance)


def _provenance_lines(record: Mapping[str, Any]) -> Iterator[str]:
    model, usage, controls = record["model"], record["usage"], record["controls"]
    observed = ", ".join(one_line(name, 60) for name in model["observed"]) or "none"
    yield f"model    {model['asked']} (observed: {observed}), {model['requests']} requests"
    yield (
        f"tokens   {usage['total_tokens']} (in {usage['input_tokens']}, "
        f"out {usage['output_tokens']}, cached {usage['cached_input_tokens']})"
    )
    yield f"codex    {record['codex']['version']} in {record['images']['agent'][:19]}…"
    yield f"controls {controls['passed']} of {controls['planned']} passed"
    for failed in controls["failed"]:
        yield f"  FAILED {inert(failed)}"
    yield f"egress   {record['egress']['allowed']} allowed, {record['egress']['denied']} denied"
    if commands := record["commands"]:
        refused = commands["refused_total"]
        yield f"commands {commands['calls']} tool calls, {refused} refused by rules"
        for item in commands["refused"]:
            yield f"  refused: {one_line(item['command'], 60)}: {one_line(item['reason'], 90)}"
    yield from patch_lines(record)
    yield f"plan     {record['hashes']['plan']}"
    for override in record["overrides"]:
        yield f"override {inert(override)}"
    state = "complete" if record["completeness"]["complete"] else "INCOMPLETE"
    yield f"evidence {state}, {len(record['files'])} files"
    for reason in (*record["completeness"]["missing"], *record["completeness"]["uncleaned"]):
        yield f"  {inert(reason)}"


def patch_lines(record: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what is known about a run's patch."""
    patch = record["patch"] if record else None
    if not patch:
        yield "patch    none"
        return
    yield (
        f"patch    {patch['kind']}: +{patch['added']} -{patch['removed']} in "
        f"{patch['files']} file(s), {patch['bytes']} bytes, {patch['sha256'][:19]}…"
    )
    for kind in ("violations", "anomalies"):
        for item in patch[kind]:
            yield f"  left out ({item['kind']}): {inert(item['path'])}  {inert(item['detail'])}"


def denial_line(record: Mapping[str, Any]) -> str:
    """Return one line about a denied request, with the rule that denied it."""
    target = record.get("host") or ""
    port = f":{record['port']}" if record.get("port") else ""
    count = f" (x{record['count']})" if record.get("count") else ""
    verb, path, rule = (str(record.get(key) or "") for key in ("verb", "path", "rule"))
    return "  " + one_line(f"{verb} {target}{port}{path}: {rule}{count}", 160)
