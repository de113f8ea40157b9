"""`rolebox run`, `exec` and `plan`: one role, one seal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runner.cli.wiring import (
    EngineSoon,
    Settings,
    echo_json,
    json_option,
    make_home,
    make_host,
    note,
    pass_settings,
    reader_may_leave,
    recover_lost,
    stoppable,
)

if TYPE_CHECKING:
    from runner.model.state import Failure
    from runner.session.task import Prepared, Request

_F = TypeVar("_F", bound=Callable[..., Any])

_FILE = click.Path(dir_okay=False, path_type=Path)


def _role_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from runner.planning.profiles import role_names
    from runner.resources import profiles_dir

    names = role_names(profiles_dir(), Path(".rolebox/profiles"))
    return [name for name in names if name.startswith(incomplete)]


def _options(*decorators: Callable[[Any], Any]) -> Callable[[_F], _F]:
    def apply(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_role = click.argument("role", shell_complete=_role_names)

_tree_options = _options(
    click.option("--ref", default="HEAD", show_default=True, help="The commit that the run sees."),
    click.option("--after", metavar="ID", help="Build on the patch of this run instead of --ref."),
    click.option(
        "--write",
        multiple=True,
        metavar="PATH",
        help="Lease a path for writing; `DIR/` may be new; `.` is the whole tree. Repeatable.",
    ),
    click.option("--timeout", type=click.FloatRange(min=0.1), metavar="S", help="Seconds."),
    click.option(
        "--model-script",
        type=_FILE,
        metavar="F",
        help="Answer with this script instead of asking the live model.",
    ),
    click.option(
        "--unlocked-image",
        metavar="ID",
        help="Use this agent image (sha256:…) instead of the lock's. The provenance records it.",
    ),
    click.option(
        "--allow-loosened", is_flag=True, help="Run a role that loosens the one it extends."
    ),
)

_codex_options = _options(
    click.argument("prompt", required=False),
    click.option("--prompt-file", type=_FILE, metavar="F", help="Read the prompt from a file."),
    click.option("--model", metavar="M", help="The model (default: the profile's)."),
    click.option(
        "--attach",
        multiple=True,
        type=_FILE,
        metavar="F",
        help="Attach untrusted text as data, never as instructions. Repeatable.",
    ),
    click.option(
        "--max-tokens", type=click.IntRange(min=1), metavar="N", help="The budget in tokens."
    ),
    click.option(
        "--output-schema", type=_FILE, metavar="F", help="The last message must meet this."
    ),
    click.option(
        "--allow-untrusted",
        is_flag=True,
        help="Give attachments to a run that can write. The provenance records it.",
    ),
)


@click.command("run")
@_role
@_codex_options
@_tree_options
@click.option("--dry-run", is_flag=True, help="Print the plan instead (as `rolebox plan`).")
@json_option
@pass_settings
def run_command(
    settings: Settings, /, role: str, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """One sealed run of ROLE with PROMPT.

    PROMPT `-` reads standard input. The tree is read-only unless --write leases
    paths of it. Without --model-script the live model is asked, with OPENAI_API_KEY.

    \b
    Examples:
      rolebox run reviewer "Review the last commit"
      rolebox run scaffold --prompt-file task.md --write src/ --write tests/
      rolebox run fixer "Make the tests pass" --attach ci.log
      rolebox run scaffold "…" --write src/ --model-script script.json
    """
    if dry_run:
        _print_plan(_prepare(settings, role, options), as_json)
        return 0
    engine = EngineSoon(settings)
    return execute(settings, _prepare(settings, role, options), engine, as_json)


@click.command("exec", context_settings={"ignore_unknown_options": False})
@_role
@_tree_options
@click.argument("argv", nargs=-1, required=True, metavar="-- CMD…")
@pass_settings
def exec_command(settings: Settings, /, role: str, argv: tuple[str, ...], **options: Any) -> int:
    """CMD in the same sealed container, with the same controls and evidence.

    Standard output, standard error and the exit code are CMD's.

    \b
    Examples:
      rolebox exec reviewer -- git log --stat
      rolebox exec fixer --write src/ -- python3 -m unittest
    """
    engine = EngineSoon(settings)
    prepared = _prepare(settings, role, {**options, "argv": argv})
    return execute(settings, prepared, engine, as_json=False)


@click.command("plan")
@_role
@_codex_options
@_tree_options
@json_option
@pass_settings
def plan_command(settings: Settings, /, role: str, as_json: bool, **options: Any) -> int:
    """Print the plan that `rolebox run` would execute; start nothing.

    \b
    Examples:
      rolebox plan reviewer "Review HEAD"
      rolebox plan scaffold "Add X" --write src/ --json | jq .digest
    """
    _print_plan(_prepare(settings, role, options), as_json)
    return 0


def _prepare(settings: Settings, role: str, options: dict[str, Any]) -> Prepared:
    from runner.session.task import prepare_task

    request = _request(settings, role, options)
    make_home(settings)
    prepared = prepare_task(request, settings.home, settings.env)
    if prepared.dirty:
        note(
            f"rolebox: {prepared.dirty} changed file(s) here are not committed; "
            f"the run sees {prepared.source.commit[:12]} only"
        )
    if prepared.role.profile.access == "write" and not prepared.lease.paths:
        where = "/scratch is a writable copy" if prepared.workspace.scratch else "nothing is leased"
        note(f"rolebox: the tree is read-only ({where}); --write PATH leases a path of it")
    return prepared


def _request(settings: Settings, role: str, options: dict[str, Any]) -> Request:
    from runner.session.task import Request

    allowed = {
        word
        for flag, word in (
            ("allow_loosened", "loosened-profile"),
            ("allow_untrusted", "untrusted-into-writer"),
        )
        if options.get(flag)
    }
    return Request(
        role=role,
        directory=Path(settings.directory),
        prompt=_prompt(options),
        argv=options.get("argv", ()),
        ref=options["ref"],
        after=options["after"],
        write=options["write"],
        model=options.get("model"),
        model_script=options["model_script"],
        attach=options.get("attach", ()),
        timeout_s=options["timeout"],
        max_tokens=options.get("max_tokens"),
        output_schema=options.get("output_schema"),
        unlocked_image=options["unlocked_image"],
        allowed=frozenset(allowed),
    )


def _prompt(options: dict[str, Any]) -> str | None:
    from runner.model.errors import UsageError

    given, file = options.get("prompt"), options.get("prompt_file")
    if given is not None and file is not None:
        raise UsageError("a prompt and --prompt-file are both given", mend="give one of them")
    try:
        if file is not None:
            return str(file.read_text(encoding="utf-8"))
        if given == "-":
            return sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("the prompt cannot be read", why=str(error)) from None
    return given


def execute(settings: Settings, prepared: Prepared, engine: EngineSoon, as_json: bool) -> int:
    """Run a prepared task and tell about it; returns the exit code."""
    from runner.cli.progress import observer_for
    from runner.model.state import EXIT_CODES
    from runner.session.run import run_sealed

    plan = prepared.planned.plan
    recover_lost(settings)
    host = make_host(settings, plan, engine)
    kind = plan.command.kind
    with stoppable() as stop, observer_for(kind, plan.role) as observer:
        state = run_sealed(prepared, host, observer, stop)
    if state.failure is not None and not (kind == "exec" and state.status == "failed"):
        _tell_failure(state.failure)
    if kind == "exec":
        command_ended = state.status in ("done", "failed") and state.exit_code is not None
        return state.exit_code or 0 if command_ended else EXIT_CODES[state.status]
    from runner.cli.look import run_document, summary_line

    folder = settings.store.find(state.id)
    with reader_may_leave():  # the exit code is the run's all the same
        if as_json:
            echo_json(run_document(folder))
        else:
            message = folder.path / "last-message.md"
            if message.is_file():
                from runner.report.text import inert

                click.echo(inert(message.read_text(encoding="utf-8", errors="replace")))
            note(summary_line(folder))
    return EXIT_CODES[state.status]


def _tell_failure(failure: Failure) -> None:
    from runner.report.text import inert

    note(f"rolebox: {inert(failure.what)}")
    for word, text in (("why", failure.why), ("mend", failure.mend)):
        if text:
            note(f"  {word}: {inert(text)}")


def _print_plan(prepared: Prepared, as_json: bool) -> None:
    plan, origins = prepared.planned.plan, prepared.planned.origins
    if as_json:
        document = {"_schema": "rolebox.planned/1", "digest": plan.digest, "plan": plan.to_json()}
        echo_json({**document, "origins": dict(origins)})
        return
    from runner.report.plan import plan_lines

    for line in plan_lines(plan, origins):
        click.echo(line)
