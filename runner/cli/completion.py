"""`rolebox completion`: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> int:
    """Print the completion script of SHELL.

    \b
    Examples:
      eval "$(rolebox completion bash)"
      rolebox completion fish > ~/.config/fish/completions/rolebox.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    root = ctx.find_root().command
    click.echo(found(root, {}, "rolebox", "_ROLEBOX_COMPLETE").source())
    return 0
