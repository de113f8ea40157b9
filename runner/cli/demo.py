"""`rolebox demo`: the whole way through, offline, on a sample repository."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.wiring import (
    EngineSoon,
    Settings,
    echo_json,
    json_option,
    make_home,
    make_host,
    pass_settings,
    recover_lost,
    stoppable,
)

if TYPE_CHECKING:
    from runner.model.state import RunState


@dataclass(frozen=True)
class _Step:
    role: str
    prompt: str
    write: tuple[str, ...] = ()


_STEPS = (
    _Step(
        "scaffold",
        "Add top_words(text, n): the n most frequent words, ties in alphabetical order, "
        "with tests.",
        ("wordbox/", "tests/"),
    ),
    _Step("fixer", "Make the tests pass with the smallest fix.", ("wordbox/",)),
    _Step("reviewer", "Review the whole change since HEAD~2."),
)


@click.command("demo")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Put the sample repository here.",
)
@json_option
@pass_settings
def demo_command(settings: Settings, keep: Path | None, as_json: bool) -> int:
    """Scaffold, fixer and reviewer on a bundled sample repository; needs no key.

    The real Codex CLI runs in real containers; the model is a bundled script.
    scaffold adds a feature with tests and leaves a bug, fixer repairs it, reviewer
    reports. scaffold also tries three things that it must not: see what stops it.

    \b
    Examples:
      rolebox demo
      rolebox demo --keep /tmp/wordbox
    """
    from runner.demo.repository import make_repository
    from runner.model.state import EXIT_CODES

    make_home(settings)
    recover_lost(settings)
    begun = time.monotonic()
    engine = EngineSoon(settings)
    repository = make_repository((keep or settings.home / "demo" / "wordbox").absolute())
    states: list[RunState] = []
    for step in _STEPS:
        state = _run(settings, engine, step, repository, states[-1].id if states else None)
        states.append(state)
        if not as_json:
            _tell(settings, state)
        if state.status != "done":
            break
    if as_json:
        from runner.cli.look import run_document

        documents = [run_document(settings.store.find(state.id)) for state in states]
        echo_json({"_schema": "rolebox.demo/1", "repository": str(repository), "runs": documents})
    elif all(state.status == "done" for state in states):
        click.echo(f"\nThree roles in {time.monotonic() - begun:.1f} s. Look further:")
        for words in ("rolebox show last", f"rolebox diff {states[1].id}", "rolebox list"):
            click.echo(f"  {words}")
    return max(EXIT_CODES[state.status] for state in states)


def _run(
    settings: Settings, engine: EngineSoon, step: _Step, repository: Path, after: str | None
) -> RunState:
    from runner.cli.progress import observer_for
    from runner.demo.repository import script
    from runner.session.run import run_sealed
    from runner.session.task import Request, prepare_task

    request = Request(
        role=step.role,
        directory=repository,
        prompt=step.prompt,
        after=after,
        write=step.write,
        model_script=script(step.role),
    )
    prepared = prepare_task(request, settings.home, settings.env)
    host = make_host(settings, prepared.planned.plan, engine)
    with stoppable() as stop, observer_for("codex", step.role) as observer:
        return run_sealed(prepared, host, observer, stop)


def _tell(settings: Settings, state: RunState) -> None:
    from runner.cli.look import denials, summary_line
    from runner.report.text import inert, one_line

    folder = settings.store.find(state.id)
    record = folder.read_json("provenance.json") or {}
    click.echo(summary_line(folder))
    if state.failure is not None:
        click.echo(f"  failed: {inert(state.failure.what)} ({inert(state.failure.why)})")
    message = folder.path / "last-message.md"
    if message.is_file():
        click.echo(f"  said: {one_line(_words(message.read_text('utf-8', 'replace')), 300)}")
    commands: Any = record.get("commands") or {"refused": ()}
    for item in commands["refused"]:
        click.echo(f"  denied by rule: {one_line(item['command'], 60)}: {item['reason']}")
    for line in denials(folder):
        click.echo(f"  denied by gateway:{line.rstrip()}")


def _words(message: str) -> str:
    """Return a reviewer's findings in one sentence; other messages as they are."""
    try:
        value = json.loads(message)
    except ValueError:
        return message
    if not isinstance(value, dict) or "findings" not in value:
        return message
    return (
        f"{value.get('recommendation')} (risk {value.get('risk')}, "
        f"{len(value['findings'])} finding(s)): {value.get('summary')}"
    )
