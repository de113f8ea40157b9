"""The run path on a real Docker Engine, by docker-py's low-level client.

The only module that imports docker-py. Create by image id, attach before start,
read the raw multiplexed stream ourselves (docker-py's reader turns a broken
stream into a normal end, and costs half the throughput), never
`containers.run`, which pulls silently.

Decision: the log driver is `json-file` with one bounded file. Attaching with
driver `none` reads three times as fast, but what was printed is then gone if
this process dies; the engine's own copy is what a lost run is completed from.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import docker
import requests
import urllib3
from docker import errors as docker_errors
from docker.types import LogConfig, Mount, Ulimit

from runner.engine.api import (
    PART_LABEL,
    RUN_LABEL,
    Attachment,
    Binding,
    EngineInfo,
    ExitStatus,
    RunObjects,
    Stream,
)
from runner.engine.docker_stream import DockerAttachment
from runner.engine.endpoint import Endpoint
from runner.log import debug
from runner.model.errors import EngineUnavailable, InfrastructureError
from runner.model.plan import ContainerSpec

_MINIMUM_API = (1, 41)  # Docker 20.10
_CALL_TIMEOUT_S = 60

_T = TypeVar("_T")
_P = ParamSpec("_P")


def _call(what: str, function: Callable[[], _T]) -> _T:
    try:
        return function()
    except docker_errors.APIError as error:
        raise InfrastructureError(
            f"the engine refused to {what}",
            why=(error.explanation or str(error)).strip(),
            mend="see what `docker info` and its log say" if error.is_server_error() else "",
        ) from None
    except (requests.exceptions.RequestException, docker_errors.DockerException, OSError) as error:
        raise InfrastructureError(
            f"the engine did not answer when asked to {what}",
            why=type(error).__name__,
            mend="is it running? `docker version` tells",
        ) from None


def _again(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Try an idempotent call again after a failure of the engine, with back-off.

    tenacity loads at the first failure only: it costs 50 ms, and most runs have none.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except InfrastructureError as error:
            debug("the engine is asked again", call=function.__name__, why=error.what)
            from tenacity import (
                Retrying,
                retry_if_exception_type,
                stop_after_attempt,
                wait_exponential_jitter,
            )

            again = Retrying(
                retry=retry_if_exception_type(InfrastructureError),
                stop=stop_after_attempt(3),
                wait=wait_exponential_jitter(multiplier=0.1, max=2.0),
                reraise=True,
            )
            return again(function, *args, **kwargs)

    return call


class DockerEngine:
    """`Engine` on a Docker Engine 20.10 or newer. Use `connect`."""

    def __init__(self, client: docker.APIClient) -> None:
        self._client = client
        self._info: EngineInfo | None = None

    @classmethod
    def connect(cls, endpoint: Endpoint) -> DockerEngine:
        """Connect, and refuse an engine that is not there or too old.

        Raises:
            EngineUnavailable: With what to do about it.
        """
        try:
            client = docker.APIClient(
                base_url=endpoint.url,
                version="auto",
                timeout=_CALL_TIMEOUT_S,
                tls=endpoint.tls or False,
            )
        except (
            docker_errors.DockerException,
            requests.exceptions.RequestException,
            ValueError,  # docker-py's word for some malformed addresses
        ) as error:
            raise EngineUnavailable(
                f"no engine answers at {endpoint.url} ({endpoint.origin})",
                why=str(error).partition("(")[0].strip() or type(error).__name__,
                mend="start one (`make engine` on Debian and Ubuntu), or set DOCKER_HOST",
            ) from None
        if tuple(int(part) for part in client.api_version.split(".")) < _MINIMUM_API:
            raise EngineUnavailable(
                f"the engine at {endpoint.url} is too old: API {client.api_version}",
                why="its older releases silently drop hardening flags",
                mend="upgrade to Docker 20.10 or newer",
            )
        return cls(client)

    @_again
    def info(self) -> EngineInfo:
        if self._info is None:
            raw = _call("describe itself", self._client.info)
            security = tuple(str(item) for item in raw.get("SecurityOptions") or ())
            self._info = EngineInfo(
                id=raw.get("ID", ""),
                name=raw.get("Name", ""),
                version=raw.get("ServerVersion", ""),
                api_version=self._client.api_version,
                kernel=raw.get("KernelVersion", ""),
                os=raw.get("OperatingSystem", ""),
                architecture=raw.get("Architecture", ""),
                cgroup=f"v{raw.get('CgroupVersion', '?')} {raw.get('CgroupDriver', '')}".strip(),
                runtime=raw.get("DefaultRuntime", ""),
                rootless=any("rootless" in item for item in security),
                security=security,
                root=raw.get("DockerRootDir", ""),
            )
        return self._info

    @_again
    def has_image(self, image: str) -> bool:
        try:
            found: dict[str, Any] = self._client.inspect_image(image)  # type: ignore[no-untyped-call]
        except docker_errors.ImageNotFound:
            return False
        except (docker_errors.DockerException, requests.exceptions.RequestException) as error:
            raise InfrastructureError(
                "the engine did not answer when asked for an image", why=type(error).__name__
            ) from None
        return bool(found["Id"] == image)

    @_again
    def image_ids(self) -> frozenset[str]:
        """Return the ids of all images that the engine holds."""
        found = _call("list images", lambda: self._client.images(all=True))
        return frozenset(str(image["Id"]) for image in found)

    def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> None:
        _call(
            f"create the volume {name}",
            lambda: self._client.create_volume(
                name, driver="local", driver_opts=dict(options), labels=dict(labels)
            ),
        )

    @_again
    def remove_volume(self, name: str) -> None:
        with contextlib.suppress(docker_errors.NotFound):
            _call_missing_ok(
                f"remove the volume {name}", lambda: self._client.remove_volume(name, force=True)
            )

    def create(self, spec: ContainerSpec, binding: Binding) -> str:
        created = _call(
            f"create the container {binding.name}",
            lambda: self._client.create_container(
                image=spec.image,
                command=list(spec.argv),
                entrypoint=[],
                name=binding.name,
                user=spec.user,
                working_dir=spec.workdir,
                hostname=spec.hostname or None,
                environment=dict(spec.env),
                labels=dict(binding.labels),
                stdin_open=spec.open_stdin,
                tty=False,
                network_disabled=spec.network == "disabled",
                stop_signal=spec.stop_signal,
                healthcheck={"test": ["NONE"]},
                use_config_proxy=False,
                host_config=self._host_config(spec, binding),
            ),
        )
        return str(created["Id"])

    def _host_config(self, spec: ContainerSpec, binding: Binding) -> Any:
        security = [f"seccomp={binding.seccomp}"]
        if spec.no_new_privileges:
            security.append("no-new-privileges:true")
        return self._client.create_host_config(
            network_mode="none" if spec.network == "disabled" else spec.network,
            read_only=spec.read_only_root,
            privileged=spec.privileged,
            cap_drop=list(spec.cap_drop),
            cap_add=list(spec.cap_add),
            security_opt=security,
            ipc_mode=spec.ipc,
            pid_mode=spec.pid or None,
            uts_mode=spec.uts or None,
            userns_mode=spec.userns or None,
            cgroupns="private" if spec.cgroupns == "private" else None,
            devices=list(spec.devices),
            sysctls=dict(spec.sysctls),
            group_add=list(spec.group_add),
            mounts=[_mount(m) for m in binding.mounts],
            tmpfs={t.target: t.options for t in spec.tmpfs},
            pids_limit=spec.pids_limit,
            mem_limit=spec.memory_bytes,
            memswap_limit=spec.memory_swap_bytes,
            shm_size=spec.shm_bytes,
            nano_cpus=spec.nano_cpus,
            ulimits=[Ulimit(name=u.name, soft=u.soft, hard=u.hard) for u in spec.ulimits],
            log_config=LogConfig(
                type=LogConfig.types.JSON,
                config={"max-size": str(spec.log_max_bytes), "max-file": "1"},
            ),
            init=spec.init,
            restart_policy={"Name": "no"},
            auto_remove=False,
        )

    def attach(self, container: str) -> Attachment:
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
        return DockerAttachment(
            _call(
                "attach to the container",
                lambda: self._client.attach_socket(container, params=params),
            )
        )

    def start(self, container: str) -> None:
        _call("start the container", lambda: self._client.start(container))

    @_again
    def status(self, container: str) -> ExitStatus:
        state = _call("inspect the container", lambda: self._client.inspect_container(container))[
            "State"
        ]
        if state.get("Running") or state.get("Status") == "created":
            return ExitStatus(None)
        return ExitStatus(
            int(state["ExitCode"]), bool(state.get("OOMKilled")), str(state.get("Error") or "")
        )

    def wait(self, container: str, timeout_s: float) -> ExitStatus:
        try:
            self._client.wait(container, timeout=max(timeout_s, 0.01))  # type: ignore[arg-type]
        except requests.exceptions.RequestException:
            pass  # a timeout, or the engine went: `status` tells which
        except docker_errors.APIError as error:
            raise InfrastructureError(
                "the engine lost the container", why=str(error.explanation)
            ) from None
        return self.status(container)

    def signal(self, container: str, name: str) -> None:
        try:
            self._client.kill(container, signal=name)
        except docker_errors.APIError as error:
            if error.status_code not in (404, 409):
                raise InfrastructureError(
                    "the engine could not signal the container", why=str(error.explanation)
                ) from None
        except requests.exceptions.RequestException as error:
            raise InfrastructureError(
                "the engine did not answer when asked to signal the container",
                why=type(error).__name__,
            ) from None

    @_again
    def remove(self, container: str) -> None:
        _call_missing_ok(
            "remove the container",
            lambda: self._client.remove_container(container, force=True, v=True),
        )

    def logs(self, container: str, stream: Stream, limit: int) -> bytes:
        what = "give its copy of the output"
        chunks = _call(
            what,
            lambda: self._client.logs(
                container,
                stdout=stream == "stdout",
                stderr=stream == "stderr",
                stream=True,
                follow=False,  # docker-py's default with `stream` waits for the end
            ),
        )
        out = bytearray()
        for chunk in _whole(what, chunks):  # to its end: closing it early leaks the connection
            out += chunk[: limit - len(out)]
        return bytes(out)

    def read_files(self, container: str, path: str) -> Iterator[bytes]:
        what = f"read {path} of the container"
        try:
            chunks, _ = self._client.get_archive(container, path, chunk_size=1 << 20)
        except docker_errors.NotFound:
            self.status(container)  # raises if it is the container that is not there
            return iter(())
        except (docker_errors.DockerException, requests.exceptions.RequestException) as error:
            raise InfrastructureError(
                f"the engine could not {what}", why=type(error).__name__
            ) from None
        return _whole(what, chunks)

    @_again
    def objects(self, run: str | None = None) -> RunObjects:
        label = RUN_LABEL if run is None else f"{RUN_LABEL}={run}"
        containers = _call(
            "list containers",
            lambda: self._client.containers(all=True, filters={"label": label}),
        )
        volumes = _call("list volumes", lambda: self._client.volumes(filters={"label": label}))
        return RunObjects(
            containers={c["Id"]: c["Labels"][RUN_LABEL] for c in containers},
            parts={c["Id"]: c["Labels"].get(PART_LABEL, "") for c in containers},
            volumes={v["Name"]: v["Labels"][RUN_LABEL] for v in volumes["Volumes"] or ()},
        )


def _whole(what: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a streamed answer; one that breaks off is an error and no end."""
    try:
        yield from chunks
    except (
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        struct.error,
        OSError,
    ) as error:
        raise InfrastructureError(
            f"the engine broke off when asked to {what}", why=type(error).__name__
        ) from None


def _call_missing_ok(what: str, function: Callable[[], Any]) -> None:
    try:
        function()
    except docker_errors.NotFound:
        return
    except docker_errors.APIError as error:
        if error.status_code == 409 and "already in progress" in str(error.explanation):
            return
        raise InfrastructureError(
            f"the engine refused to {what}", why=str(error.explanation).strip()
        ) from None
    except requests.exceptions.RequestException as error:
        raise InfrastructureError(
            f"the engine did not answer when asked to {what}", why=type(error).__name__
        ) from None


def _mount(mount: Any) -> Mount:
    return Mount(
        target=mount.target,
        source=mount.source,
        type=mount.kind,
        read_only=mount.read_only,
        no_copy=mount.no_copy and mount.kind == "volume",
        propagation="rprivate" if mount.kind == "bind" else None,
    )
