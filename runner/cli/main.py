"""`rolebox`: the entry point, the table of commands, and how errors end."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

import runner

#: Command to (module, one-line help): enough for `--help` without importing a command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "scaffold, fixer and reviewer on a sample repository; needs no key"),
    "run": ("run", "one sealed run of a role"),
    "exec": ("run", "a command in Codex's place, in the same seal"),
    "plan": ("run", "the plan that `run` would execute, and where each value comes from"),
    "list": ("look", "the runs, newest first"),
    "show": ("look", "one run: what it did, what it left, what was denied"),
    "logs": ("look", "a run's events, egress, model traffic, stderr or controls"),
    "diff": ("look", "a run's patch"),
    "profiles": ("profiles", "the roles and what each may do"),
    "images": ("images", "build, lock and list the images"),
    "schema": ("schema", "the JSON Schemas of what rolebox writes"),
    "completion": ("completion", "the completion script of a shell"),
}


class _Lazy(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        module = import_module(f"runner.cli.{found[0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        # Here, because click itself ends with 1 when it sees a broken pipe.
        from runner.cli.wiring import reader_may_leave

        with reader_may_leave():
            return super().invoke(ctx)
        return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 the agent failed, 2 usage, 3 refused by policy, 4 engine or "
    "infrastructure, 5 timed out, 6 budget spent, 7 evidence does not verify, 8 replay diverged, "
    "130 interrupted.",
)
@click.option(
    "-C",
    "directory",
    metavar="DIR",
    default=".",
    help="The repository (default: the current directory).",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and debug logs.")
@click.version_option(runner.__version__, prog_name="rolebox", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, directory: str, debug: bool) -> None:
    """Run Codex CLI roles, each sealed in its own container, with evidence for everything.

    \b
    Examples:
      rolebox demo                                    the whole way, offline, no key
      rolebox run reviewer "Review HEAD"              read-only, findings as JSON
      rolebox run scaffold "Add X" --write src/       may write src/ and nothing else
      rolebox exec fixer -- python3 -m unittest       a command in the same seal
      rolebox show last
    """
    from runner.cli.wiring import Settings

    if debug or os.environ.get("ROLEBOX_LOG", "").lower() == "debug":
        from runner import log

        log.enable()
    ctx.obj = Settings(directory=directory, debug=debug, env=dict(os.environ))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    What it loads lives until the end, so collecting garbage while loading, and
    taking the interpreter apart afterwards, is work for nothing: together a
    fifth of a short command.
    """
    gc.disable()
    # Plugins of pydantic are other people's code in this process, and a search of all packages.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    code = _run(argv)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(argv: Sequence[str] | None) -> int:
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        result = cli.main(args=argv, prog_name="rolebox", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  the last line of defence: one message
        return _tell(error, debug)


def _tell(error: Exception, debug: bool) -> int:
    from runner.model.errors import RoleboxError
    from runner.report.text import inert

    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, RoleboxError):
        click.echo(f"rolebox: {inert(str(error))}", err=True)
        return error.exit_code
    click.echo(
        f"rolebox: an unexpected error ({type(error).__name__}: {inert(str(error))})\n"
        "  mend: run it again with --debug and report what it prints",
        err=True,
    )
    return 4
