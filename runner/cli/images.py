"""`rolebox images build|lock|list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from runner.cli.wiring import Settings, connect, echo_json, json_option, note, pass_settings

if TYPE_CHECKING:
    from runner.engine.images.assemble import Workshop
    from runner.engine.images.build import Outcome
    from runner.engine.images.whales import WhalesEngine


@click.group("images")
def images_command() -> None:
    """The images: built here, pinned by digest in images.lock, never pulled by a run.

    \b
    Examples:
      rolebox images build       make sure that the engine has the locked images
      rolebox images list
      rolebox images lock        accept what is built now, e.g. newer Debian packages
    """


@images_command.command("build")
@click.option("--fresh", is_flag=True, help="Make the base anew instead of taking the cached one.")
@json_option
@pass_settings
def build(settings: Settings, fresh: bool, as_json: bool) -> int:
    """See to it that the engine has the locked images; does nothing if it has.

    Refuses what is not the lock's: a newer Debian package is accepted once on a
    new host, then held by that host's own lock.

    \b
    Example:
      rolebox images build
    """
    from runner.cli.progress import steps
    from runner.engine.images.build import build as build_images
    from runner.engine.images.build import ensure
    from runner.session.task import lock_files, machine_platform

    engine = connect(settings)
    files = lock_files(settings.home)
    with steps("images") as tell:
        if fresh:
            outcome = build_images(
                _workshop(settings), files, engine=_whales(settings), progress=tell, fresh=True
            )
        else:
            outcome = ensure(
                _workshop(settings),
                files,
                platform=machine_platform(),
                present=engine.image_ids,
                engine=lambda: _whales(settings),
                progress=tell,
            )
    _tell(outcome, as_json)
    return 0


@images_command.command("lock")
@click.option(
    "--shipped", is_flag=True, help="Write images/images.lock of the checkout, for a commit."
)
@click.option("--fresh", is_flag=True, help="Make the base anew instead of taking the cached one.")
@json_option
@pass_settings
def lock(settings: Settings, shipped: bool, fresh: bool, as_json: bool) -> int:
    """Build, load, and accept the result as this host's lock.

    \b
    Example:
      rolebox images lock --fresh
    """
    from runner.cli.progress import steps
    from runner.engine.images.build import accept
    from runner.session.task import lock_files

    files = lock_files(settings.home)
    if not shipped:
        _refuse_other_sources(settings)
    with steps("images") as tell:
        outcome = accept(
            _workshop(settings),
            files.shipped if shipped else files.host,
            "shipped" if shipped else "host",
            engine=_whales(settings),
            progress=tell,
            fresh=fresh,
        )
    _tell(outcome, as_json)
    return 0


@images_command.command("list")
@json_option
@pass_settings
def list_images(settings: Settings, as_json: bool) -> int:
    """The locked images, and whether the engine holds them.

    \b
    Example:
      rolebox images list --json | jq .complete
    """
    from runner.engine.images.lock import effective_lock
    from runner.model.errors import ImageRefused
    from runner.session.task import lock_files, machine_platform

    platform = machine_platform()
    found = effective_lock(lock_files(settings.home), platform)
    if found is None:
        raise ImageRefused(
            f"no images are locked for {platform}", mend="build them: rolebox images build"
        )
    locked, present = found.platform(platform), connect(settings).image_ids()
    rows = [
        {
            "image": kind,
            "id": image.id,
            "manifest": image.manifest,
            "bytes": image.size,
            "present": any(image.names(item) for item in present),
        }
        for kind, image in sorted(locked.images.items())
    ]
    if as_json:
        echo_json(
            {
                "_schema": "rolebox.images/1",
                "lock": found.origin,
                "platform": platform,
                "codex": locked.codex.version,
                "complete": all(row["present"] for row in rows),
                "images": rows,
            }
        )
        return 0
    click.echo(f"lock: {found.origin}, {platform}, Codex CLI {locked.codex.version}")
    for row in rows:
        there = "in the engine" if row["present"] else "MISSING: rolebox images build"
        click.echo(f"{row['image']:<8} {row['id']}  {there}")
    return 0


def _refuse_other_sources(settings: Settings) -> None:
    """A host's lock is about the inputs that were shipped; other inputs need --shipped."""
    from runner.engine.images import sources
    from runner.engine.images.assemble import inputs_of
    from runner.engine.images.lock import read_lock
    from runner.model.errors import ImageRefused
    from runner.session.task import lock_files, machine_platform

    platform, shop = machine_platform(), _workshop(settings)
    shipped = read_lock(lock_files(settings.home).shipped).platforms.get(platform)
    inputs = inputs_of(shop.pins(), platform, sources.collect(shop.sandbox, shop.gateway))
    if shipped is not None and shipped.inputs != inputs:
        raise ImageRefused(
            "rolebox's own sources or pins differ from its shipped lock",
            why="a host's lock only follows the Debian archive",
            mend="in a checkout: rolebox images lock --shipped; else reinstall rolebox",
        )


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        moved = [difference.text for difference in outcome.moved]
        document = {"built": outcome.built, "lock": outcome.lock.origin, "moved": moved}
        echo_json({"_schema": "rolebox.images-outcome/1", **document})
        return
    for difference in outcome.moved:
        note(f"moved: {difference.text}")
    note(f"images: {'built' if outcome.built else 'current'}, by the {outcome.lock.origin} lock")


def _workshop(settings: Settings) -> Workshop:
    from runner.engine.images.assemble import Workshop
    from runner.resources import images_dir, package_dir

    return Workshop(
        images=images_dir(),
        sandbox=package_dir() / "sandbox",
        gateway=package_dir() / "gateway",
        cache=settings.home / "cache",
        environ=settings.env,
    )


def _whales(settings: Settings) -> WhalesEngine:
    from runner.engine.endpoint import resolve_endpoint
    from runner.engine.images.whales import WhalesEngine

    return WhalesEngine(resolve_endpoint(settings.env).url)
