"""Our own code in the images: the supervisor, the gateway, and h11.

Shipped as source. Precompiled files were measured: they save 15 ms of the 75 ms
that `import h11` takes from a cold interpreter, behind a container start that
takes ten times that; and they would have to be made inside the image.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from runner.engine.images.layer import Entry, folders
from runner.model.canonical import digest, sha256
from runner.model.errors import ImageRefused, InfrastructureError

HOME = "opt/rolebox"


@dataclass(frozen=True)
class Source:
    """Files by their path below /opt/rolebox."""

    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        return digest({name: sha256(data) for name, data in self.files.items()})

    def entries(self) -> list[Entry]:
        """Return the files and their folders, root-owned, not writable by anyone else."""
        paths = {f"{HOME}/{name}".rpartition("/")[0] for name in self.files}
        files = [Entry(f"{HOME}/{name}", data, 0o444) for name, data in self.files.items()]
        return [*folders(*paths), *files]


@dataclass(frozen=True)
class Sources:
    sandbox: Source
    gateway: Source
    h11: Source
    h11_version: str


def collect(sandbox: Path, gateway: Path) -> Sources:
    """Read all that is shipped from this installation."""
    h11, version = installed("h11")
    return Sources(package("sandbox", sandbox), package("gateway", gateway), h11, version)


def package(name: str, folder: Path) -> Source:
    """Return the Python files of a folder as the package `runner.<name>`.

    Raises:
        InfrastructureError: The folder holds none.
    """
    files = {
        f"runner/{name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*.py"))
    }
    if not files:
        raise InfrastructureError(
            f"the sources of the {name} are missing",
            why=f"{folder} holds no Python file",
            mend="install rolebox again",
        )
    return Source({"runner/__init__.py": b"", **files})


def installed(name: str) -> tuple[Source, str]:
    """Return an installed pure-Python distribution and its version.

    Each file is checked against the RECORD that the installer wrote from the
    wheel, whose hash the lock file fixed.

    Raises:
        ImageRefused: A file is not the one that was installed.
        InfrastructureError: It is not installed.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError as error:
        raise InfrastructureError(
            f"the gateway needs {name}, which is not installed", mend="install rolebox again"
        ) from error
    files: dict[str, bytes] = {}
    for path in found.files or ():
        if path.parts[0] != name or path.suffix == ".pyc":
            continue
        data = Path(str(path.locate())).read_bytes()
        hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        if path.hash is None or path.hash.mode != "sha256" or path.hash.value != hashed:
            raise ImageRefused(
                f"{name} was changed after it was installed",
                why=f"{path} is not the file that the installer recorded",
                mend=f"install {name} {found.version} again",
            )
        files[path.as_posix()] = data
    if not files:
        raise InfrastructureError(
            f"the installed {name} lists no files", mend=f"install {name} {found.version} again"
        )
    return Source(dict(sorted(files.items()))), found.version
