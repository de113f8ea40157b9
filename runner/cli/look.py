"""`rolebox list`, `show`, `logs`, `diff`: look at runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from runner.cli.wiring import Settings, echo_json, json_option, pass_settings, recover_lost

if TYPE_CHECKING:
    from runner.evidence.store import RunFolder
    from runner.model.state import RunState

KINDS = {
    "events": "events.jsonl",
    "egress": "egress.jsonl",
    "model": "model.jsonl",
    "stderr": "stderr.log",
    "controls": "controls.jsonl",
}
_BLOCK = 1 << 16
_FOLLOW_S = 0.2
_DENIALS = 20
_SHOWN = 50


@click.command("list")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="At most N (default 50, all as JSON)."
)
@click.option("--role", help="Only runs of this role.")
@json_option
@pass_settings
def list_command(settings: Settings, limit: int | None, role: str | None, as_json: bool) -> int:
    """The runs, newest first.

    \b
    Examples:
      rolebox list
      rolebox list --role fixer --json | jq '.runs[].status'
    """
    recover_lost(settings)
    if limit is None and not as_json:
        limit = _SHOWN
    states = list(_states(settings, limit, role))
    if as_json:
        echo_json({"_schema": "rolebox.runs/1", "runs": [_brief(state) for state in states]})
        return 0
    if not states:
        click.echo('no runs yet; start one: rolebox run reviewer "…", or rolebox demo')
    for state in states:
        click.echo(_row(state))
    return 0


def _states(settings: Settings, limit: int | None, role: str | None) -> Iterator[RunState]:
    from runner.model.errors import EvidenceError

    shown = 0
    for folder in settings.store.folders():
        if limit is not None and shown >= limit:
            return
        try:
            state = folder.read_state()
        except EvidenceError as error:
            click.echo(f"rolebox: {error.what}", err=True)
            continue
        if role is None or state.role == role:
            shown += 1
            yield state


def _row(state: RunState) -> str:
    from runner.report.text import one_line

    return (
        f"{state.id}  {state.role:<12} {state.status:<11} {state.duration_s:>7.1f} s  "
        f"{one_line(state.prompt, 50)}"
    )


def _brief(state: RunState) -> dict[str, Any]:
    value = state.to_json()
    value.pop("_schema")
    return value


@click.command("show")
@click.argument("run", metavar="ID")
@json_option
@pass_settings
def show_command(settings: Settings, run: str, as_json: bool) -> int:
    """One run: what it did, what it left, what was denied, where its evidence is.

    ID may be shortened to a unique prefix; `last` is the newest run.

    \b
    Examples:
      rolebox show last
      rolebox show 20261122t2015 --json | jq .provenance.usage
    """
    recover_lost(settings)
    folder = settings.store.find(run)
    if as_json:
        echo_json(run_document(folder))
        return 0
    from runner.report.run import run_lines

    for line in run_lines(folder.read_state(), folder.read_json("provenance.json"), folder.path):
        click.echo(line)
    if lines := denials(folder):
        click.echo("denied by the gateway")
        for line in lines:
            click.echo(line)
    return 0


def run_document(folder: RunFolder) -> dict[str, Any]:
    """Return the JSON document of one run."""
    return {
        "_schema": "rolebox.run/1",
        **_brief(folder.read_state()),
        "folder": str(folder.path),
        "provenance": folder.read_json("provenance.json"),
    }


def summary_line(folder: RunFolder) -> str:
    """Return one line about a run that ended."""
    from runner.report.run import summary

    return summary(folder.read_state(), folder.read_json("provenance.json"), folder.path)


def denials(folder: RunFolder) -> list[str]:
    """Return a line for each of the first twenty requests that the gateway denied."""
    from runner.report.run import denial_line

    lines = []
    path = folder.path / "egress.jsonl"
    if not path.is_file():
        return []
    with path.open("rb") as stream:
        for raw in stream:
            record = _record(raw)
            if record.get("decision") == "denied":
                lines.append(denial_line(record))
            if len(lines) == _DENIALS:
                break
    return lines


def _record(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@click.command("logs")
@click.argument("run", metavar="ID")
@click.option("--kind", type=click.Choice(list(KINDS)), default="events", show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, stderr's lines wrapped too.")
@pass_settings
def logs_command(settings: Settings, run: str, kind: str, follow: bool, as_json: bool) -> int:
    """A run's log, byte for byte (made inert when stdout is a terminal).

    \b
    Examples:
      rolebox logs last
      rolebox logs last --kind egress | jq 'select(.decision == "denied")'
      rolebox logs last -f
    """
    folder = settings.store.find(run)
    path = folder.path / KINDS[kind]
    out = _Inert() if sys.stdout.isatty() else sys.stdout.buffer
    if as_json and kind == "stderr":
        out = _Wrapped()
    position = 0
    while True:
        ended = not follow or folder.read_state().ended
        position = _copy(path, position, out)
        if ended:
            return 0
        time.sleep(_FOLLOW_S)


class _Inert:
    """Writes bytes to a terminal with everything that could act on it made visible."""

    def write(self, data: bytes) -> None:
        from runner.report.text import inert

        click.echo(inert(data.decode("utf-8", "replace")), nl=False)

    def flush(self) -> None:
        sys.stdout.flush()


class _Wrapped(_Inert):
    """Writes each line of plain text as a JSON object."""

    def __init__(self) -> None:
        self._rest = b""

    def write(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            click.echo(json.dumps({"_schema": "rolebox.line/1", "line": text}))


def _copy(path: Path, position: int, out: BinaryIO | _Inert) -> int:
    try:
        with path.open("rb") as stream:
            stream.seek(position)
            while block := stream.read(_BLOCK):
                out.write(block)
                position += len(block)
    except FileNotFoundError:
        pass
    out.flush()
    return position


@click.command("diff")
@click.argument("run", metavar="ID")
@click.option("--stat", is_flag=True, help="Only its size and the paths that were left out.")
@json_option
@pass_settings
def diff_command(settings: Settings, run: str, stat: bool, as_json: bool) -> int:
    """A run's patch, as the host computed it (git format, binary safe).

    \b
    Examples:
      rolebox diff last
      rolebox diff last | git apply --check
    """
    folder = settings.store.find(run)
    if as_json:
        record = folder.read_json("provenance.json") or {}
        patch = folder.path / "patch.diff"
        text = patch.read_bytes().decode("utf-8", "replace") if patch.is_file() else ""
        diff = None if stat else text
        echo_json(
            {
                "_schema": "rolebox.diff/1",
                "run": folder.id,
                "patch": record.get("patch"),
                "diff": diff,
            }
        )
        return 0
    if stat:
        from runner.report.run import patch_lines

        for line in patch_lines(folder.read_json("provenance.json")):
            click.echo(line)
        return 0
    path = folder.path / "patch.diff"
    if not path.is_file():
        click.echo(f"rolebox: run {folder.id} left no patch", err=True)
        return 0
    out = _Inert() if sys.stdout.isatty() else sys.stdout.buffer
    _copy(path, 0, out)
    return 0
