"""The docker command line, through python-on-whales: for images only, never for a role.

The one module that imports python_on_whales. It puts values on argv and in the
text of exceptions, so nothing secret may come here; an error is told by its exit
code and the engine's own message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from python_on_whales import DockerClient
from python_on_whales.client_config import ClientNotFoundError
from python_on_whales.exceptions import DockerException, NoSuchImage

from runner.model.errors import EngineUnavailable, InfrastructureError

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class WhalesEngine:
    """The image side of one engine.

    Args:
        host: The endpoint, as `DOCKER_HOST` writes it; None is the docker CLI's own choice.
    """

    def __init__(self, host: str | None = None) -> None:
        self._docker = DockerClient(host=host)

    def platform(self) -> str:
        """Return the engine's platform, such as `linux/amd64`.

        Raises:
            EngineUnavailable: No engine answers, or none that is known.
        """
        with _told("no engine answers"):
            info = self._docker.system.info()
        machine = info.architecture or ""
        if info.os_type != "linux" or machine not in _ARCHITECTURES:
            raise EngineUnavailable(
                f"the engine runs {info.os_type} on {machine or 'an unknown machine'}",
                mend="use an engine for Linux on x86_64 or aarch64",
            )
        return f"linux/{_ARCHITECTURES[machine]}"

    def present(self) -> frozenset[str]:
        """Return the ids of all images of rolebox in the engine."""
        with _told("the engine does not list its images"):
            images = self._docker.image.list(filters=[("label", "rolebox.image")])
        return frozenset(image.id for image in images)

    def load(self, chunks: Iterator[bytes]) -> None:
        """Load an archive."""
        with _told("the engine does not load the images"):
            self._docker.image.load(chunks, quiet=True)

    def image_id(self, name: str) -> str | None:
        """Return the id by which the engine knows an image, None if it does not."""
        try:
            with _told("the engine does not show an image"):
                return str(self._docker.image.inspect(name).id)
        except InfrastructureError as error:
            if isinstance(error.__cause__, NoSuchImage):
                return None
            raise

    def remove(self, name: str) -> None:
        """Remove an image's name, and the image if it has no other."""
        with _told("the engine does not remove an image"):
            self._docker.image.remove(name)

    def run(self, image: str, command: list[str], env: Mapping[str, str]) -> str:
        """Return what a command prints in a throwaway container: no network, no rights.

        Writable is only /scratch, in memory.
        """
        with _told(f"{command[0]} failed while an image was made"):
            printed = self._docker.container.run(
                image,
                command,
                envs=dict(env),
                pull="never",
                networks=["none"],
                cap_drop=["ALL"],
                security_options=["no-new-privileges"],
                read_only=True,
                tmpfs=["/scratch:rw,noexec,nosuid,nodev,size=64m,mode=1777"],
                user="65534:65534",
                pids_limit=128,
                memory="1g",
                labels={"rolebox.build": "1"},
                remove=True,
            )
        assert isinstance(printed, str)
        return printed

    def export_built(self, context: Path, arguments: Mapping[str, str], target: Path) -> None:
        """Build `base.Dockerfile` and write the root file system of the result as a tar."""
        with _told("the base image cannot be built"):
            image = self._docker.image.legacy_build(
                context, file=context / "base.Dockerfile", build_args=arguments
            )
            try:
                container = self._docker.container.create(
                    image, ["/bin/true"], networks=["none"], labels={"rolebox.build": "1"}
                )
                try:
                    self._docker.container.export(container, target)
                finally:
                    container.remove(force=True, volumes=True)
            finally:
                image.remove(force=True)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn the library's errors into ours, without the command line that they quote."""
    try:
        yield
    except ClientNotFoundError as error:
        raise InfrastructureError(
            what,
            why="the docker command is not installed",
            mend="install the docker client (Debian: apt-get install docker.io)",
        ) from error
    except DockerException as error:
        raise InfrastructureError(
            what,
            why=(error.stderr or f"the docker command ended with {error.return_code}").strip(),
            mend="see what `docker info` says",
        ) from error
    except OSError as error:
        raise InfrastructureError(
            what, why=str(error), mend="see what `docker info` says"
        ) from error
