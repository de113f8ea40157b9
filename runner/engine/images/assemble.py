"""From pins and sources to three images on disk.

    rootfs ─▶ base ─┬─ codex ─ catalog, supervisor ─▶ agent
                    └─ gateway, h11 ────────────────▶ gateway

The same inputs give the same ids on any host. The root file system, the Codex
tarball and the model catalog are cached; the rest is written anew each time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runner.engine.images import codex, sources
from runner.engine.images.archive import Image, archive, make_image
from runner.engine.images.codex import CodexLayer
from runner.engine.images.layer import Entry, Layer, folders, write_layer
from runner.engine.images.lock import (
    Inputs,
    Kind,
    LockedCodex,
    LockedDebian,
    LockedImage,
    PlatformLock,
)
from runner.engine.images.pins import Pins, load_pins
from runner.engine.images.rootfs import Rootfs, cached_rootfs, mmdebstrap
from runner.engine.images.sources import Source, Sources
from runner.locks import locked
from runner.model.canonical import digest, sha256
from runner.model.errors import InfrastructureError

RECIPE = 1
"""Raise it when the code of this package starts to make other images of the same inputs."""

Progress = Callable[[str], None]
_MOUNT_POINTS = (
    *("work", "scratch", "attachments"),
    *("etc/codex", "etc/rolebox", "run/rolebox/objects"),
)

#: How long a second build waits for the first.
_BUILD_WAIT_S = 3600.0


class ImageEngine(Protocol):
    """What building needs of an engine; `whales.WhalesEngine` is the real one."""

    def platform(self) -> str: ...
    def present(self) -> frozenset[str]: ...
    def load(self, chunks: Iterator[bytes]) -> None: ...
    def image_id(self, name: str) -> str | None: ...
    def remove(self, name: str) -> None: ...
    def run(self, image: str, command: list[str], env: Mapping[str, str]) -> str: ...
    def export_built(self, context: Path, arguments: Mapping[str, str], target: Path) -> None: ...


@dataclass(frozen=True)
class Workshop:
    """Where things come from and are kept.

    Attributes:
        images: The folder with pins.toml and base.Dockerfile.
        sandbox: The supervisor's sources.
        gateway: The gateway's sources.
        cache: May be removed at any time.
        environ: For npm and mmdebstrap (PATH, proxies, certificates).
    """

    images: Path
    sandbox: Path
    gateway: Path
    cache: Path
    environ: Mapping[str, str]

    def pins(self) -> Pins:
        """Read the pins."""
        return load_pins(self.images / "pins.toml")


@dataclass(frozen=True)
class Assembly:
    """Images on disk, ready to load, and what a lock says of them."""

    images: tuple[Image, ...]
    lock: PlatformLock


@dataclass(frozen=True)
class _Catalog:
    text: bytes
    models: tuple[str, ...]


def inputs_of(pins: Pins, platform: str, code: Sources) -> Inputs:
    """Return the digests of all that decides the images, apart from the archive."""
    return Inputs(
        recipe=RECIPE,
        pins=pins.digest_for(platform),
        sandbox=code.sandbox.digest,
        gateway=code.gateway.digest,
        h11=code.h11.digest,
    )


@contextmanager
def assembled(
    shop: Workshop, platform: str, engine: ImageEngine, progress: Progress, *, fresh: bool
) -> Iterator[Assembly]:
    """Make the images; their layers are on disk until the block ends. One at a time per cache."""
    pins = shop.pins()
    package = pins.codex_for(platform)
    code = sources.collect(shop.sandbox, shop.gateway)
    shop.cache.mkdir(parents=True, exist_ok=True)
    with (
        locked(shop.cache / "lock", _BUILD_WAIT_S),
        tempfile.TemporaryDirectory(dir=shop.cache, prefix="build-") as scratch,
    ):
        base = _base(shop, pins, platform, engine, progress, fresh=fresh)
        progress(f"fetching and checking {package.package}")
        tarball = codex.fetch(package, shop.cache / "codex", shop.environ)
        cli = codex.codex_layer(
            tarball, package, Path(scratch, "codex.tar"), mtime=pins.source_date_epoch
        )
        catalog = _catalog(shop, pins, platform, base.layer, cli, engine, progress)
        agent = _agent_layer(Path(scratch, "agent.tar"), pins, code, catalog)
        gateway = _gateway_layer(Path(scratch, "gateway.tar"), pins, code)
        images = _images(pins, platform, base.layer, cli.layer, agent, gateway)
        yield Assembly(
            tuple(images.values()), _lock(pins, platform, code, base, cli, catalog, images)
        )


def _base(
    shop: Workshop,
    pins: Pins,
    platform: str,
    engine: ImageEngine,
    progress: Progress,
    *,
    fresh: bool,
) -> Rootfs:
    def make(target: Path) -> None:
        if not pins.base.registry:
            progress(f"making the base from the Debian archive ({pins.base.suite}): a minute or so")
            mmdebstrap(target, pins, platform, shop.environ)
            return
        progress(f"making the base from {pins.base.registry}")
        arguments = {"BASE": pins.base.registry, "PACKAGES": " ".join(pins.base.packages)}
        engine.export_built(shop.images, arguments, target)

    return cached_rootfs(shop.cache / "rootfs", pins, platform, RECIPE, make, fresh=fresh)


def _catalog(
    shop: Workshop,
    pins: Pins,
    platform: str,
    base: Layer,
    cli: CodexLayer,
    engine: ImageEngine,
    progress: Progress,
) -> _Catalog:
    """Ask the pinned binary for its catalog, in a container; the answer is kept by its hash."""
    kept = shop.cache / "catalog" / f"{cli.files['bin/codex'].removeprefix('sha256:')}.json"
    if kept.exists():
        return _Catalog(*codex.read_catalog(kept.read_text("utf-8")))
    progress("asking Codex for its model catalog, in a container without network")
    workbench = make_image(
        "workbench",
        [(base, "base"), (cli.layer, "codex")],
        platform=platform,
        created=pins.source_date_epoch,
        user="65534:65534",
        workdir="/",
        labels={"rolebox.build": "1"},
    )
    engine.load(archive([workbench]))
    try:
        if engine.image_id(workbench.tag) not in (workbench.id, workbench.manifest_digest):
            raise InfrastructureError(
                "the engine loaded another image than it was given",
                mend="remove the image and build again: rolebox images build",
            )
        env = {"HOME": "/scratch", "CODEX_HOME": "/scratch"}
        command = ["timeout", "120", *codex.CATALOG_COMMAND]
        catalog = _Catalog(*codex.read_catalog(engine.run(workbench.tag, command, env)))
    finally:
        engine.remove(workbench.tag)
    kept.parent.mkdir(exist_ok=True)
    part = kept.with_suffix(".part")
    part.write_bytes(catalog.text)
    part.replace(kept)
    return catalog


def _agent_layer(path: Path, pins: Pins, code: Sources, catalog: _Catalog) -> Layer:
    entries = [
        *code.sandbox.entries(),
        *folders(
            "work", "scratch", "attachments", "etc/codex", "etc/rolebox", "run/rolebox/objects"
        ),
        Entry("codex-home", None, 0o1777),  # a volume takes this mode; any user may own the run
        Entry(f"{codex.HOME}/model-catalog.json", catalog.text, 0o444),
    ]
    return write_layer(path, entries, mtime=pins.source_date_epoch)


def _gateway_layer(path: Path, pins: Pins, code: Sources) -> Layer:
    uid = pins.uids.gateway
    entries = [
        *Source({**code.gateway.files, **code.h11.files}).entries(),
        Entry("run/rolebox", None, 0o755, uid, uid),
    ]
    return write_layer(path, entries, mtime=pins.source_date_epoch)


def _images(
    pins: Pins, platform: str, base: Layer, cli: Layer, agent: Layer, gateway: Layer
) -> dict[Kind, Image]:
    bottom = (base, f"Debian {pins.base.suite}, cleaned")
    plans: dict[Kind, tuple[list[tuple[Layer, str]], int, str]] = {
        "base": ([bottom], pins.uids.agent, "/"),
        "agent": (
            [
                bottom,
                (cli, f"Codex CLI {pins.codex.version}"),
                (agent, "supervisor, model catalog, mount points"),
            ],
            pins.uids.agent,
            "/work",
        ),
        "gateway": ([bottom, (gateway, "gateway, h11")], pins.uids.gateway, "/"),
    }
    return {
        kind: make_image(
            kind,
            layers,
            platform=platform,
            created=pins.source_date_epoch,
            user=f"{uid}:{uid}",
            workdir=workdir,
            labels={
                "rolebox.image": kind,
                "rolebox.inputs": digest(
                    [RECIPE, pins.digest_for(platform), *(layer.diff_id for layer, _ in layers)]
                ),
            },
        )
        for kind, (layers, uid, workdir) in plans.items()
    }


def _lock(
    pins: Pins,
    platform: str,
    code: Sources,
    base: Rootfs,
    cli: CodexLayer,
    catalog: _Catalog,
    images: Mapping[Kind, Image],
) -> PlatformLock:
    return PlatformLock(
        h11_version=code.h11_version,
        inputs=inputs_of(pins, platform, code),
        images={
            kind: LockedImage(
                id=image.id,
                manifest=image.manifest_digest,
                layers=tuple(layer.diff_id for layer in image.layers),
                size=sum(layer.size for layer in image.layers),
            )
            for kind, image in images.items()
        },
        codex=LockedCodex(
            version=pins.codex.version,
            integrity=pins.codex_for(platform).integrity,
            catalog=sha256(catalog.text),
            models=catalog.models,
            files=cli.files,
        ),
        debian=LockedDebian(
            rootfs=base.layer.diff_id, list_hash=digest(base.packages), packages=base.packages
        ),
    )
