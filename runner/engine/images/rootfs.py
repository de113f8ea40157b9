"""The base: a Debian root file system, made clean and the same twice.

Two sources, chosen by the pins and never silently one for the other: mmdebstrap
from the archive, or an image of a registry named by digest. Both come as a tar,
and `normalise` makes a layer of it: sorted, set-id bits off, times no newer
than the epoch; without machine ids, resolver, logs, caches, devices, manuals,
locales and documentation (copyright files stay). dpkg's and apt's state stays,
so that users can build on the image.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, ValidationError

from runner.engine.images.layer import Layer, layer_writer, plain_mode
from runner.engine.images.pins import Digest, Pins
from runner.model.base import Frozen
from runner.model.canonical import digest, sha256_file
from runner.model.errors import InfrastructureError

# Folders are kept: maintainer scripts of later packages expect them.
_DROPPED_BELOW = re.compile(
    r"""(dev|proc|sys|run|tmp|var/tmp|var/log|var/cache|var/lib/apt/lists)/
      | usr/share/(man|info|locale|lintian)/
      | usr/share/doc/(?!.*/copyright$)
    """,
    re.VERBOSE,
)
_DROPPED = frozenset(
    {".dockerenv", "etc/hostname", "etc/hosts", "etc/machine-id", "etc/mtab", "etc/resolv.conf"}
    | {f"etc/{name}-" for name in ("group", "gshadow", "passwd", "shadow", "subgid", "subuid")}
    | {"var/lib/dbus/machine-id", "var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old"}
    | {"var/lib/dpkg/statoverride-old", "var/lib/dpkg/available", "var/lib/systemd/random-seed"}
)
_DROPPED_WITH_FOLDERS = (
    *("dev/", "proc/", "sys/"),
    *("var/lib/apt/lists/", "var/cache/apt/archives/"),  # apt makes these anew
)
_STATUS = "var/lib/dpkg/status"
_PYC = re.compile(r".*/__pycache__/[^/]+\.pyc$")


class Packages(Frozen):
    """What the layer beside it holds.

    Attributes:
        layer: The layer's hash.
        versions: Debian package names to versions.
    """

    layer: Digest
    versions: dict[str, Annotated[str, StringConstraints(min_length=1)]]


@dataclass(frozen=True)
class Rootfs:
    layer: Layer
    packages: dict[str, str]


def cached_rootfs(
    folder: Path,
    pins: Pins,
    platform: str,
    recipe: int,
    make: Callable[[Path], None],
    *,
    fresh: bool = False,
) -> Rootfs:
    """Return the base layer of these pins, from the cache when it is whole.

    Args:
        folder: The cache; the layer is kept under the hash of its inputs.
        pins: What the base is made of.
        platform: Such as `linux/amd64`.
        recipe: The version of the rules by which images are made.
        make: Writes the raw root file system to the tar that it is given.
        fresh: Make it anew even so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [recipe, platform, pins.base.to_json(), pins.source_date_epoch]
    path = folder / f"{digest(inputs).removeprefix('sha256:')[:32]}.tar"
    told = path.with_suffix(".json")
    if fresh:
        told.unlink(missing_ok=True)
    try:
        packages = Packages.model_validate_json(told.read_bytes())
        if sha256_file(path) == packages.layer:
            layer = Layer(path, packages.layer, path.stat().st_size)
            return Rootfs(layer, packages.versions)
    except (FileNotFoundError, ValidationError):
        told.unlink(missing_ok=True)
    raw = path.with_suffix(".raw")
    try:
        make(raw)
        rootfs = normalise(raw, path, mtime=pins.source_date_epoch)
    finally:
        raw.unlink(missing_ok=True)
    told.write_text(
        Packages(layer=rootfs.layer.diff_id, versions=rootfs.packages).model_dump_json()
    )
    return rootfs


def normalise(source: Path, target: Path, *, mtime: int) -> Rootfs:
    """Make a layer of a root file system's tar.

    Raises:
        InfrastructureError: The tar holds no dpkg status.
    """
    with tarfile.open(source) as tar, layer_writer(target) as out:
        members = {_clean(member.name): member for member in tar.getmembers()}
        kept = {name: member for name, member in members.items() if _keep(name, member)}
        homes: dict[str, str] = {}
        packages: dict[str, str] = {}
        for name in sorted(kept):
            member = kept[name]
            data = members[_clean(member.linkname)] if member.islnk() else member
            home = homes.setdefault(_clean(data.name), name) if data.isfile() else name
            written = _member(name, data, mtime)
            if home != name:  # another name of a file that is written already
                written.type, written.linkname, written.size = tarfile.LNKTYPE, home, 0
            if not written.isreg():
                out.tar.addfile(written)
                continue
            stream = tar.extractfile(data)
            assert stream is not None
            with stream:
                if _PYC.fullmatch(name):
                    out.tar.addfile(written, io.BytesIO(_clamp_pyc(stream.read(), mtime)))
                elif name == _STATUS:
                    status = stream.read()
                    packages = _versions(status.decode())
                    out.tar.addfile(written, io.BytesIO(status))
                else:
                    out.tar.addfile(written, stream)
    if not packages:
        target.unlink()
        raise InfrastructureError(
            "the base is no Debian root file system",
            why=f"it has no packages in /{_STATUS}",
            mend="name a Debian image in images/pins.toml (base.registry), or leave it empty",
        )
    return Rootfs(out.layer(), packages)


def mmdebstrap(target: Path, pins: Pins, platform: str, environ: Mapping[str, str]) -> None:
    """Write a root file system from the Debian archive.

    Raises:
        InfrastructureError: mmdebstrap is missing or failed.
    """
    program = shutil.which("mmdebstrap", path=environ.get("PATH", os.defpath))
    if program is None:
        raise InfrastructureError(
            "the base image cannot be made",
            why="mmdebstrap is not installed, and images/pins.toml names no image of a registry",
            mend="apt-get install mmdebstrap, or set base.registry in images/pins.toml",
        )
    command = [
        program,
        "--quiet",
        "--variant=apt",
        "--format=tar",
        f"--architectures={platform.removeprefix('linux/')}",
        f"--include={','.join(pins.base.packages)}",
        pins.base.suite,
        str(target),
        *pins.base.mirrors,
    ]
    env = {**environ, "SOURCE_DATE_EPOCH": str(pins.source_date_epoch), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise InfrastructureError(
            f"mmdebstrap failed with {done.returncode}",
            why=done.stderr.decode(errors="replace")[-2000:].strip(),
            mend="check that the Debian archive can be reached, then run this again",
        )


def _clean(name: str) -> str:
    return name.removeprefix("/").removeprefix("./").rstrip("/")


def _keep(name: str, member: tarfile.TarInfo) -> bool:
    if not name or name == "." or member.isdev() or name in _DROPPED:
        return False
    if name.startswith(_DROPPED_WITH_FOLDERS):
        return False
    return member.isdir() or not _DROPPED_BELOW.match(name)


def _member(name: str, source: tarfile.TarInfo, mtime: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = source.type, source.linkname
    member.size = source.size if source.isreg() else 0
    member.uid, member.gid = source.uid, source.gid
    member.mode = 0o777 if source.issym() else plain_mode(source.mode)
    # A folder's time tells when an engine last put a mount point into it.
    member.mtime = mtime if source.isdir() else min(int(source.mtime), mtime)
    return member


def _clamp_pyc(data: bytes, mtime: int) -> bytes:
    """Clamp the source's time in a .pyc (PEP 552) as the source's own was, or Python ignores it."""
    flags, stamp = struct.unpack_from("<II", data, 4)
    if flags != 0 or stamp <= mtime:
        return data
    return data[:8] + struct.pack("<I", mtime) + data[12:]


def _versions(status: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return dict(sorted(found.items()))
