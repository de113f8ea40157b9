"""The images themselves, in the engine. The first test of a session builds them (minutes)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest

from runner.engine.images.archive import Image, make_image
from runner.engine.images.assemble import assembled
from runner.engine.images.build import Outcome, build, ensure, load
from runner.engine.images.codex import fetch
from runner.engine.images.layer import Layer
from runner.engine.images.lock import ImageLock, Kind, LockFiles, read_lock, write_lock
from runner.engine.images.rootfs import normalise
from runner.model.errors import ImageRefused, InfrastructureError

from .conftest import Built

pytestmark = pytest.mark.timeout(1800)
KINDS: tuple[Kind, ...] = get_args(Kind)
RUN_MODULE = (
    "import sys; sys.path.insert(0,'/opt/rolebox'); "
    "import runpy; runpy.run_module('runner.gateway', run_name='__main__')"
)
START_GATEWAY = ["python3", "-I", "-B", "-c", RUN_MODULE]


def quiet(_: str) -> None:
    pass


def test_built_twice_from_scratch_the_ids_are_the_same(built: Built, tmp_path: Path) -> None:
    shop = built.elsewhere(tmp_path)
    with assembled(shop, built.platform, built.engine, quiet, fresh=False) as again:
        assert again.lock == built.lock
        assert {image.id for image in again.images} == {
            image.id for image in built.lock.images.values()
        }


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_knows_the_image_by_the_computed_id(built: Built, kind: Kind) -> None:
    locked = built.lock.images[kind]
    attributes = built.client.images.get(locked.id).attrs
    assert locked.names(attributes["Id"])
    assert tuple(attributes["RootFS"]["Layers"]) == locked.layers
    assert attributes["Config"]["Labels"]["rolebox.image"] == kind
    assert not attributes["Config"]["Entrypoint"]
    assert locked.layers[0] == built.lock.images["base"].layers[0]


def test_the_tools_run_as_any_user_read_only_and_without_network(built: Built) -> None:
    printed = built.sh("agent", "pwd; codex --version; rg --version; git --version; python3 -V")
    lines = printed.splitlines()
    assert lines[0] == "/work"
    assert f"codex-cli {built.lock.codex.version}" in lines
    for tool in ("ripgrep", "git version", "Python 3."):
        assert any(line.startswith(tool) for line in lines)


def test_the_whole_standard_library_is_there(built: Built) -> None:
    script = "import asyncio, ctypes, sqlite3, ssl, lzma, bz2, zoneinfo, venv, unittest; print(1)"
    assert built.sh("agent", f'python3 -c "{script}"') == "1\n"


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_gives_rights_and_little_can_be_written(built: Built, kind: Kind) -> None:
    assert built.sh(kind, "find / -xdev -perm /6000", user="0:0") == ""
    scope = r"find / -xdev \( -path /proc -o -path /dev -o -path /sys \) -prune -o"
    writable = built.sh(kind, rf"{scope} ! -type l -perm -0002 -print", user="0:0").split()
    allowed = {"/tmp", "/var/tmp", "/run/lock", "/codex-home"}
    assert {"/tmp"} <= set(writable) <= allowed
    owned = built.sh(kind, rf"{scope} ! -user 0 -print", user="0:0").split()
    assert owned == (["/run/rolebox"] if kind == "gateway" else [])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_building_machine_is_left(built: Built, kind: Kind) -> None:
    printed = built.sh(
        kind,
        "find /var/log /var/cache /var/lib/apt/lists -type f;"
        "for f in /etc/machine-id /etc/passwd- /.dockerenv.bak; do [ ! -e $f ] || echo $f; done;"
        "find / -xdev -newermt @1700000000 -type f"
        " ! -path '/etc/host*' ! -path /etc/resolv.conf ! -path /.dockerenv"
        " ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*'",
        user="0:0",
    )
    assert printed == ""


def test_mount_points_and_users_are_as_the_plan_needs_them(built: Built) -> None:
    places = "/work /scratch /attachments /etc/codex /etc/rolebox /run/rolebox /run/rolebox/objects"
    for line in built.sh("agent", f"stat -c '%u:%g %a' {places}").splitlines():
        assert line == "0:0 755"
    assert built.sh("agent", "stat -c %a /codex-home") == "1777\n"
    assert built.sh("gateway", "stat -c '%u:%g %a' /run/rolebox") == "65532:65532 755\n"
    users = {
        kind: built.client.images.get(built.lock.images[kind].id).attrs["Config"]["User"]
        for kind in KINDS
    }
    assert users == {"base": "65534:65534", "agent": "65534:65534", "gateway": "65532:65532"}


@pytest.mark.parametrize(
    ("kind", "mount", "user"), [("agent", "/codex-home", "1234"), ("gateway", "/run/rolebox", "")]
)
def test_a_new_volume_can_be_written_by_the_user_it_is_for(
    built: Built, kind: Kind, mount: str, user: str
) -> None:
    volume = built.client.volumes.create(labels={"rolebox.tests": "images"})
    try:
        script = f"echo ok > {mount}/x; cat {mount}/x"
        assert built.sh(kind, script, user=user, volume=f"{volume.name}:{mount}") == "ok\n"
    finally:
        volume.remove(force=True)


def test_the_supervisor_and_the_catalog_are_there_and_cannot_be_written(built: Built) -> None:
    names = built.sh("agent", "ls -l /opt/rolebox/runner/sandbox /opt/codex/model-catalog.json")
    shipped = {path.name for path in built.shop.sandbox.glob("*.py")}
    assert shipped <= set(names.split())
    files = [line for line in names.splitlines() if line.startswith("-")]
    assert files
    assert all(line.startswith("-r--r--r--") for line in files)
    program = (
        "import json; models = json.load(open('/opt/codex/model-catalog.json'))['models'];"
        "print(json.dumps([[m['slug'], 'multi_agent_version' in m] for m in models]))"
    )
    models = json.loads(built.sh("agent", f'python3 -c "{program}"'))
    assert models == [[slug, False] for slug in built.lock.codex.models]


def test_the_binary_in_the_image_is_the_one_of_the_lock(built: Built) -> None:
    for name, sha256 in built.lock.codex.files.items():
        assert built.sh("agent", f"sha256sum /opt/codex/{name}").split()[0] in sha256


def test_a_gateway_without_its_orders_says_so_and_ends(built: Built) -> None:
    container = built.client.containers.create(
        built.lock.images["gateway"].id,
        START_GATEWAY,
        network_disabled=True,
        cap_drop=["ALL"],
        read_only=True,
        use_config_proxy=False,
        labels={"rolebox.tests": "images"},
    )
    try:
        container.start()
        assert container.wait(timeout=60)["StatusCode"] != 0
        printed = container.logs().decode()
        assert "fatal" in printed
        assert "Traceback" not in printed
    finally:
        container.remove(force=True)


def test_with_nothing_to_do_no_engine_is_opened(built: Built) -> None:
    def opened() -> Built:
        raise AssertionError("the builder was opened")

    outcome = ensure(
        built.shop,
        built.files,
        platform=built.platform,
        present=built.engine.present,
        engine=opened,  # type: ignore[arg-type]  # never called
        progress=quiet,
    )
    assert outcome == Outcome(read_lock(built.files.host), (), built=False)


def test_a_missing_image_is_loaded_again_from_the_cache(built: Built) -> None:
    built.client.images.remove(built.lock.images["gateway"].id, force=True)
    outcome = ensure(
        built.shop,
        built.files,
        platform=built.platform,
        present=built.engine.present,
        engine=lambda: built.engine,
        progress=quiet,
    )
    assert (outcome.built, outcome.moved) == (True, ())
    assert built.lock.images["gateway"].id in built.engine.present()


def test_edited_sources_are_refused_before_anything_is_loaded(built: Built, tmp_path: Path) -> None:
    (tmp_path / "edited.py").write_text("x = 1\n")
    before = built.engine.present()
    with pytest.raises(ImageRefused) as caught:
        build(
            replace(built.shop, gateway=tmp_path),
            built.files,
            engine=built.engine,
            progress=quiet,
        )
    assert "the gateway's sources" in caught.value.why
    assert built.engine.present() - before == frozenset()


def test_an_archive_that_moved_since_the_release_makes_this_hosts_lock(
    built: Built, tmp_path: Path
) -> None:
    old = built.lock.debian.model_copy(
        update={"packages": {**built.lock.debian.packages, "git": "1:1.0"}}
    )
    files = LockFiles(tmp_path / "shipped.lock", tmp_path / "host.lock")
    platforms = {built.platform: built.lock.model_copy(update={"debian": old})}
    write_lock(files.shipped, ImageLock(origin="shipped", platforms=platforms))
    told: list[str] = []
    outcome = build(built.shop, files, engine=built.engine, progress=told.append)
    assert [item.text for item in outcome.moved] == [
        f"git 1:1.0 → {built.lock.debian.packages['git']}"
    ]
    assert outcome.moved[0].text in told
    assert read_lock(files.host).platform(built.platform) == built.lock


def test_a_tampered_tarball_in_the_cache_is_refused_at_the_next_build(
    built: Built, tmp_path: Path
) -> None:
    package = built.shop.pins().codex_for(built.platform)
    true = fetch(package, built.shop.cache / "codex", built.shop.environ)
    false = tmp_path / true.name
    false.write_bytes(true.read_bytes())
    assert fetch(package, tmp_path, {"PATH": ""}) == false
    with false.open("r+b") as stream:
        stream.seek(-1000, 2)
        stream.write(b"tampered")
    with pytest.raises(ImageRefused, match="not the pinned one"):
        fetch(package, tmp_path, {"PATH": ""})


def test_an_image_retagged_under_our_hands_is_refused(built: Built) -> None:
    class Retagging:
        """An engine in which someone else tags faster."""

        def __getattr__(self, name: str) -> object:
            return getattr(built.engine, name)

        def present(self) -> frozenset[str]:
            return frozenset()

        def image_id(self, name: str) -> str | None:
            return "sha256:" + "0" * 64

    with assembled(built.shop, built.platform, built.engine, quiet, fresh=False) as made:
        with pytest.raises(ImageRefused, match="another base image"):
            load(made.images[:1], Retagging(), quiet)  # type: ignore[arg-type]  # by __getattr__
        load(made.images[:1], built.engine, quiet)


@contextmanager
def registry(image: Image) -> Iterator[str]:
    """Serve one image on loopback, to be pulled by digest."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            digest = self.path.rsplit("/", 1)[-1]
            small = {image.id: image.config, image.manifest_digest: image.manifest}
            layers = {layer.diff_id: layer for layer in image.layers}
            size = layers[digest].size if digest in layers else len(small.get(digest, b""))
            known = digest in layers or digest in small
            self.send_response(200 if known or self.path == "/v2/" else 404)
            kind = "application/octet-stream"
            if "/manifests/" in self.path:
                kind = "application/vnd.oci.image.manifest.v1+json"
            self.send_header("Content-Type", kind)
            self.send_header("Docker-Content-Digest", digest)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if body and digest in small:
                self.wfile.write(small[digest])
            elif body and digest in layers:
                with layers[digest].path.open("rb") as stream:
                    while chunk := stream.read(1 << 20):
                        self.wfile.write(chunk)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}/images-tests/debian"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_base_from_a_registry_by_digest_gives_the_same_layer(
    built: Built, tmp_path: Path
) -> None:
    diff_id = built.lock.debian.rootfs
    path = next((built.shop.cache / "rootfs").glob("*.tar"))
    image = make_image(
        "registry",
        [(Layer(path, diff_id, path.stat().st_size), "a company's own Debian")],
        platform=built.platform,
        created=0,
        user="65534",
        workdir="/",
        labels={},
    )
    pins = built.shop.pins()
    raw = tmp_path / "raw.tar"
    with registry(image) as name:
        good = {
            "BASE": f"{name}@{image.manifest_digest}",
            "PACKAGES": " ".join(pins.base.packages),
        }
        bad = {**good, "BASE": f"{name}@sha256:{'1' * 64}"}
        with pytest.raises(InfrastructureError, match="base image cannot be built"):
            built.engine.export_built(built.shop.images, bad, raw)
        try:
            built.engine.export_built(built.shop.images, good, raw)
        finally:
            built.client.images.remove(good["BASE"], force=True)
    again = normalise(raw, tmp_path / "out.tar", mtime=pins.source_date_epoch)
    assert again.packages == built.lock.debian.packages
    assert again.layer.diff_id == diff_id
