"""`images/pins.toml`: the inputs that people edit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from runner.model.base import Frozen
from runner.model.canonical import digest
from runner.model.errors import UsageError

PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Uid = Annotated[int, Field(ge=1, le=2**31 - 1)]


class BasePins(Frozen):
    suite: PackageName
    packages: Annotated[tuple[PackageName, ...], Field(min_length=1)]
    registry: Annotated[
        str, StringConstraints(pattern=r"^$|^[a-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$")
    ] = ""
    mirrors: tuple[Annotated[str, StringConstraints(pattern=r"^deb ")], ...] = ()


class CodexPackage(Frozen):
    """One platform's npm package.

    Attributes:
        package: `name@version`, exact.
        triple: The folder below `vendor/` in the tarball.
        integrity: `sha512-<base64>` of the tarball, as npm writes it.
        sha256: Of `bin/codex` in it.
    """

    package: Annotated[
        str, StringConstraints(pattern=r"^@[a-z0-9-]+/[a-z0-9-]+@[0-9]+\.[0-9A-Za-z.-]+$")
    ]
    triple: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+$")]
    integrity: Annotated[str, StringConstraints(pattern=r"^sha512-[A-Za-z0-9+/]{86}==$")]
    sha256: Digest


class CodexPins(Frozen):
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]
    platforms: dict[str, CodexPackage]


class Uids(Frozen):
    agent: Uid
    gateway: Uid


class Pins(Frozen):
    source_date_epoch: Annotated[int, Field(ge=0)]
    base: BasePins
    codex: CodexPins
    uids: Uids

    def digest_for(self, platform: str) -> str:
        """Return the digest of all that bears on one platform's images."""
        value = self.to_json()
        value["codex"]["platforms"] = self.codex_for(platform).to_json()
        return digest(value)

    def codex_for(self, platform: str) -> CodexPackage:
        """Return the Codex package of a platform such as `linux/amd64`.

        Raises:
            UsageError: The pins name none for it.
        """
        try:
            return self.codex.platforms[platform]
        except KeyError:
            raise UsageError(
                f"no Codex package is pinned for {platform}",
                why=f"pinned are: {', '.join(sorted(self.codex.platforms))}",
                mend="use an engine of one of these, or add the package to images/pins.toml",
            ) from None


def load_pins(path: Path) -> Pins:
    """Read and check the pins.

    Raises:
        UsageError: They cannot be read, or say something that is not known.
    """
    try:
        return Pins.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        why = str(error)
        if isinstance(error, ValidationError):
            why = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
            )
        raise UsageError(
            f"the image pins {path} cannot be used", why=why, mend="restore the file"
        ) from error
