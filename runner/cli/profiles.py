"""`rolebox profiles`: the roles."""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli.wiring import Settings, echo_json, json_option, pass_settings


@click.command("profiles")
@json_option
@pass_settings
def profiles_command(settings: Settings, as_json: bool) -> int:
    """The roles of this repository: the built-in ones and its own in .rolebox/profiles/.

    \b
    Examples:
      rolebox profiles
      rolebox profiles --json | jq '.profiles[] | {role, access}'
    """
    from runner.planning.profiles import load_role, role_names
    from runner.report.text import one_line
    from runner.resources import profiles_dir

    own = Path(settings.directory) / ".rolebox" / "profiles"
    roles = [
        load_role(name, profiles_dir(), own if own.is_dir() else None)
        for name in role_names(profiles_dir(), own)
    ]
    if as_json:
        echo_json(
            {
                "_schema": "rolebox.profiles/1",
                "profiles": [
                    {
                        "role": role.name,
                        "digest": role.digest,
                        "loosened": list(role.loosened),
                        "origins": dict(role.origins),
                        **role.profile.to_json(),
                    }
                    for role in roles
                ],
            }
        )
        return 0
    for role in roles:
        profile = role.profile
        may = "may write within a lease" if profile.access == "write" else "reads only"
        what = one_line(f"{profile.model.name:<16} {profile.description}", 100)
        click.echo(f"{role.name:<12} {may:<26} {what}")
        for item in role.loosened:
            click.echo(f"{'':<12} loosens {one_line(item, 100)}")
    return 0
