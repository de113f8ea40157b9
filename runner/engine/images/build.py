"""See to it that the engine has the locked images.

What is built is compared with the lock before it is loaded; lock.py says which
difference is accepted. A first build costs a minute or two, one from the cache
seconds, and `ensure` with nothing to do milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.engine.images import sources
from runner.engine.images.archive import Image, archive
from runner.engine.images.assemble import ImageEngine, Progress, Workshop, assembled, inputs_of
from runner.engine.images.lock import (
    MEND,
    Cause,
    Difference,
    ImageLock,
    LockFiles,
    Origin,
    PlatformLock,
    differences,
    effective_lock,
    is_current,
    read_lock,
    write_lock,
)
from runner.model.errors import ImageRefused


@dataclass(frozen=True)
class Outcome:
    """The lock that rules now, what moved, and whether the images had to be built."""

    lock: ImageLock
    moved: tuple[Difference, ...]
    built: bool


def ensure(
    shop: Workshop,
    files: LockFiles,
    *,
    platform: str,
    present: Callable[[], frozenset[str]],
    engine: Callable[[], ImageEngine],
    progress: Progress,
) -> Outcome:
    """See to it that the engine has the locked images; build them if it has not.

    Args:
        shop: Where things come from.
        files: The locks. The host's is written if only the archive moved.
        platform: The engine's, such as `linux/amd64`.
        present: Returns the ids of the images in the engine; called once.
        engine: Opens the image side of the engine; called only to build.
        progress: Told each step, in a few words.

    Raises:
        ImageRefused: What was built is not what the lock says.
        InfrastructureError: It could not be built.
    """
    pins = shop.pins()
    inputs = inputs_of(pins, platform, sources.collect(shop.sandbox, shop.gateway))
    lock = effective_lock(files, platform)
    if lock is not None and is_current(lock.platform(platform), inputs, present()):
        return Outcome(lock, (), built=False)
    return build(shop, files, engine=engine(), progress=progress)


def build(
    shop: Workshop,
    files: LockFiles,
    *,
    engine: ImageEngine,
    progress: Progress,
    fresh: bool = False,
) -> Outcome:
    """Build, compare with the lock, load. With `fresh` the cached base is made anew."""
    platform = engine.platform()
    with assembled(shop, platform, engine, progress, fresh=fresh) as made:
        lock, moved = settle(effective_lock(files, platform), platform, made.lock)
        for difference in moved:
            progress(difference.text)
        load(made.images, engine, progress)
        if lock.origin == "host":
            lock = _keep(files.host, platform, made.lock, "host")
    return Outcome(lock, moved, built=True)


def accept(
    shop: Workshop,
    target: Path,
    origin: Origin,
    *,
    engine: ImageEngine,
    progress: Progress,
    fresh: bool = False,
) -> Outcome:
    """Build, load, and write the result to a lock, whatever it said before."""
    platform = engine.platform()
    with assembled(shop, platform, engine, progress, fresh=fresh) as made:
        load(made.images, engine, progress)
        before = _platforms(target).get(platform)
        lock = _keep(target, platform, made.lock, origin)
    return Outcome(lock, differences(before, made.lock) if before else (), built=True)


def settle(
    ruling: ImageLock | None, platform: str, made: PlatformLock
) -> tuple[ImageLock, tuple[Difference, ...]]:
    """Return the lock that rules after a build, and what moved.

    Raises:
        ImageRefused: More than the archive moved, or the lock is this host's own.
    """
    fresh = ImageLock(origin="host", platforms={platform: made})
    if ruling is None:
        return fresh, ()
    moved = differences(ruling.platform(platform), made)
    if not moved:
        return ruling, ()
    if ruling.origin == "shipped" and all(item.cause is Cause.ARCHIVE for item in moved):
        return fresh, moved
    raise ImageRefused(
        f"the images built now are not the ones of the {ruling.origin} lock",
        why="; ".join(item.text for item in moved),
        mend=f"if this is meant, {MEND}",
    )


def load(images: Sequence[Image], engine: ImageEngine, progress: Progress) -> None:
    """Load what the engine lacks.

    Raises:
        ImageRefused: The engine knows an image by another id than its bytes have.
    """
    present = engine.present()
    missing = [i for i in images if i.id not in present and i.manifest_digest not in present]
    if not missing:
        return
    progress(f"loading {', '.join(image.kind for image in missing)} into the engine")
    engine.load(archive(missing))
    for image in missing:
        if (found := engine.image_id(image.tag)) not in (image.id, image.manifest_digest):
            raise ImageRefused(
                f"the engine has another {image.kind} image than was loaded",
                why=f"{image.tag} is {found}, and was written as {image.id}",
                mend="run `rolebox images build` again while nothing else tags images",
            )


def _keep(path: Path, platform: str, made: PlatformLock, origin: Origin) -> ImageLock:
    lock = ImageLock(origin=origin, platforms={**_platforms(path), platform: made})
    write_lock(path, lock)
    return lock


def _platforms(path: Path) -> dict[str, PlatformLock]:
    try:
        return read_lock(path).platforms
    except FileNotFoundError:
        return {}
