"""The pinned Codex CLI: fetched by npm, checked by us, unpacked by name.

The tarball is hashed against the pins at every build, cached or not, and only
the members named here leave it. It is never run on this machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from runner.engine.images.layer import Entry, Layer, folders, write_layer
from runner.engine.images.pins import CodexPackage
from runner.model.canonical import canonical, sha256_file
from runner.model.errors import ImageRefused, InfrastructureError

HOME = "opt/codex"
CATALOG_COMMAND = ["/opt/codex/bin/codex", "debug", "models", "--bundled"]
_MODES = {
    "bin/codex": 0o755,
    "bin/codex-code-mode-host": 0o755,
    "codex-path/rg": 0o755,
    "codex-resources/bwrap": 0o755,
    "codex-package.json": 0o644,
}
_FETCH_SECONDS = 1800


@dataclass(frozen=True)
class CodexLayer:
    """The layer, and the sha256 of each file that it ships, by its path below /opt/codex."""

    layer: Layer
    files: dict[str, str]


def fetch(package: CodexPackage, folder: Path, environ: Mapping[str, str]) -> Path:
    """Return the package's tarball, checked; from the cache if it is there.

    Raises:
        ImageRefused: Its hash is not the pinned one. A cached file is removed.
        InfrastructureError: npm is missing or failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (package.package.lstrip("@").replace("/", "-") + ".tgz")
    if not path.exists():
        _npm_pack(package.package, path, environ)
    try:
        check_integrity(path, package)
    except ImageRefused:
        path.unlink()
        raise
    return path


def check_integrity(path: Path, package: CodexPackage) -> None:
    """Refuse a tarball whose SHA-512 is not the pinned one."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha512").digest()
    integrity = "sha512-" + base64.b64encode(found).decode()
    if integrity != package.integrity:
        raise ImageRefused(
            f"the Codex package {package.package} is not the pinned one",
            why=f"its integrity is {integrity}, images/pins.toml says {package.integrity}",
            mend="run this again to fetch it anew; if it stays so, do not use that registry",
        )


def codex_layer(tarball: Path, package: CodexPackage, target: Path, *, mtime: int) -> CodexLayer:
    """Unpack the named files and make the layer of /opt/codex.

    Raises:
        ImageRefused: A member is missing, is no regular file, is named oddly,
            or bin/codex is not the pinned one.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        files = _unpack(tarball, package, Path(scratch))
        hashes = {name: sha256_file(path) for name, path in sorted(files.items())}
        if hashes["bin/codex"] != package.sha256:
            raise ImageRefused(
                "the Codex binary is not the pinned one",
                why=f"it is {hashes['bin/codex']}, images/pins.toml says {package.sha256}",
                mend="check where the change of images/pins.toml came from",
            )
        entries = [Entry(f"{HOME}/{name}", files[name], mode) for name, mode in _MODES.items()]
        parents = [f"{HOME}/bin", f"{HOME}/codex-path", f"{HOME}/codex-resources"]
        entries += folders(*parents, "usr/local/bin")
        entries += [
            Entry("usr/local/bin/codex", "/opt/codex/bin/codex"),
            Entry("usr/local/bin/rg", "/opt/codex/codex-path/rg"),
        ]
        return CodexLayer(write_layer(target, entries, mtime=mtime), hashes)


def read_catalog(text: str) -> tuple[bytes, tuple[str, ...]]:
    """Return the catalog to ship, canonical, and its model slugs, in its order.

    `multi_agent_version` is taken out of each model: without it Codex offers no
    subagents, whose commands and usage its event stream does not show.

    Raises:
        ImageRefused: It is not a catalog as the pinned version prints it.
    """
    try:
        catalog: dict[str, Any] = json.loads(text)
        models: list[dict[str, Any]] = catalog["models"]
        kept = [{k: v for k, v in m.items() if k != "multi_agent_version"} for m in models]
        slugs = tuple(str(model["slug"]) for model in models)
        if not slugs:
            raise ValueError("it names no model")
        return canonical({**catalog, "models": kept}), slugs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageRefused(
            "Codex printed no model catalog",
            why=f"{type(error).__name__}: {error}",
            mend="pin a Codex version that this release of rolebox knows",
        ) from error


def _unpack(tarball: Path, package: CodexPackage, folder: Path) -> dict[str, Path]:
    prefix = f"package/vendor/{package.triple}/"
    files: dict[str, Path] = {}
    try:
        with tarfile.open(tarball, "r|gz") as tar:
            for member in tar:
                _check_member(member)
                name = member.name.removeprefix(prefix)
                if name not in _MODES or not member.name.startswith(prefix):
                    continue
                if name in files:
                    raise _odd(member.name, "it is there twice")
                stream = tar.extractfile(member)
                assert stream is not None
                files[name] = folder / name.replace("/", "-")
                with stream, files[name].open("wb") as out:
                    shutil.copyfileobj(stream, out, 1 << 20)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _odd(tarball.name, f"it cannot be read: {error}") from error
    if missing := sorted(_MODES.keys() - files.keys()):
        raise _odd(tarball.name, f"it lacks {', '.join(missing)}")
    return files


def _check_member(member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name).parts
    if not parts or parts[0] != "package" or ".." in parts or "\\" in member.name:
        raise _odd(member.name, "its name leads out of the package")
    if not member.isreg() and not member.isdir():
        raise _odd(member.name, "it is neither a file nor a folder")


def _odd(name: str, why: str) -> ImageRefused:
    return ImageRefused(
        f"the Codex package holds something unexpected: {name}",
        why=why,
        mend="pin a Codex version that this release of rolebox knows",
    )


def _npm_pack(spec: str, target: Path, environ: Mapping[str, str]) -> None:
    npm = shutil.which("npm", path=environ.get("PATH", os.defpath))
    if npm is None:
        raise InfrastructureError(
            "the Codex CLI cannot be fetched",
            why="npm is not installed",
            mend=f"install npm (Debian: apt-get install npm), or put the tarball at {target}",
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [npm, "pack", "--ignore-scripts", "--silent", spec]
        try:
            done = subprocess.run(
                command,
                cwd=scratch,  # no project's .npmrc
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_FETCH_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise InfrastructureError(
                f"npm did not fetch {spec} within {_FETCH_SECONDS} s",
                mend="check that the package registry can be reached, then run this again",
            ) from error
        found = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or len(found) != 1:
            raise InfrastructureError(
                f"npm could not fetch {spec}",
                why=done.stderr.decode(errors="replace")[-2000:].strip(),
                mend="check that the package registry can be reached, then run this again",
            )
        found[0].replace(target)
