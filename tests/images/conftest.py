"""Images built once per session, from pins of their own, so that no real image is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import docker
import pytest

from runner.engine.images.assemble import Workshop
from runner.engine.images.build import Outcome, build
from runner.engine.images.lock import Kind, LockFiles, PlatformLock
from runner.engine.images.whales import WhalesEngine

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Built:
    shop: Workshop
    files: LockFiles
    engine: WhalesEngine
    outcome: Outcome
    client: docker.DockerClient

    @property
    def platform(self) -> str:
        return next(iter(self.outcome.lock.platforms))

    @property
    def lock(self) -> PlatformLock:
        return self.outcome.lock.platform(self.platform)

    def elsewhere(self, folder: Path) -> Workshop:
        """Return the same inputs with another cache."""
        return replace(self.shop, cache=folder)

    def sh(self, kind: Kind, script: str, user: str = "1000:1000", volume: str = "") -> str:
        """Run a script in a sealed container of an image; `volume` is NAME:PATH."""
        printed = self.client.containers.run(
            self.lock.images[kind].id,
            ["sh", "-euc", script],
            user=user,
            network_disabled=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            read_only=True,
            remove=True,
            use_config_proxy=False,
            labels={"rolebox.tests": "images"},
            volumes=[volume] if volume else [],
        )
        assert isinstance(printed, bytes)
        return printed.decode()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    home = tmp_path_factory.mktemp("images")
    shutil.copytree(ROOT / "images", home / "images")
    pins = home / "images/pins.toml"
    text = pins.read_text()
    epoch = f"source_date_epoch = {1_600_000_000 + os.getpid()}\n"
    head, tail = text.split("source_date_epoch = ")
    pins.write_text(head + epoch + tail.partition("\n")[2])
    for name in ("sandbox", "gateway"):
        shutil.copytree(ROOT / "runner" / name, home / name)
    shop = Workshop(
        home / "images", home / "sandbox", home / "gateway", home / "cache", dict(os.environ)
    )
    files = LockFiles(home / "no-shipped.lock", home / "host.lock")
    engine = WhalesEngine()
    client = docker.from_env()
    outcome = build(shop, files, engine=engine, progress=lambda _: None)
    yield Built(shop, files, engine, outcome, client)
    for image in outcome.lock.platform(engine.platform()).images.values():
        client.images.remove(image.id, force=True)
    client.close()
