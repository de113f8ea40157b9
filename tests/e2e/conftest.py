"""Desks for the end-to-end tests."""

from __future__ import annotations

import secrets
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.gateway.backend import reply_events
from runner.gateway.script import Reply, Say, Shell
from tests.e2e.rig import WAIT_FOR_GO, Desk, docker, make_desk, until

#: The agent asks the model by hand, in a name of its own.
ASK = """
import json, urllib.request
body = {"model": "gpt-5.5", "stream": True, "store": False, "instructions": "x", "input": []}
headers = {
    "authorization": "Bearer of-the-agent",
    "x-api-key": "of-the-agent",
    "cookie": "of-the-agent",
    "openai-organization": "of-the-agent",
    "content-type": "application/json",
    "user-agent": "asked-by-hand",
}
request = urllib.request.Request(
    "http://127.0.0.1:3128/v1/responses", json.dumps(body).encode(), headers
)
print("by hand:", urllib.request.urlopen(request, timeout=20).status)
"""


@pytest.fixture
def desk(tmp_path: Path, host_state: Path) -> Desk:
    """A desk of this test alone."""
    return make_desk(tmp_path / "desk", host_state / "images.lock")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, host_state: Path) -> Desk:
    """A desk that the tests of one module share; they leave its repository as it is."""
    return make_desk(tmp_path_factory.mktemp("desk"), host_state / "images.lock")


@pytest.fixture(scope="session")
def upstream_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The upstream's program and answers, made by the gateway's own encoder."""
    folder = tmp_path_factory.mktemp("upstream")
    folder.chmod(0o755)
    shutil.copy(Path(__file__).parent / "upstream.py", folder / "upstream.py")
    look = "cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'; echo done > src/done.txt"
    ask = f"cat > /tmp/ask.py <<'END'\n{ASK}END\npython3 /tmp/ask.py; echo done > src/done.txt"
    replies = {
        "good": Reply((Shell(ask),)),
        "slow": Reply((Shell(f"{look}; {WAIT_FOR_GO}", 30_000),)),
        "last": Reply((Say("All done."),)),
    }
    for n, (name, reply) in enumerate(replies.items(), start=1):
        body = b"".join(reply_events(reply, "gpt-5.5", n, 4000))
        (folder / f"{name}.sse").write_bytes(body)
    return folder


@pytest.fixture(scope="session")
def upstream_container(upstream_folder: Path, agent_image: str) -> Iterator[str]:
    """A model upstream in a container of its own on the engine's default bridge."""
    name = f"rolebox-e2e-upstream-{secrets.token_hex(4)}"
    docker(
        "run", "--detach", "--name", name, "--user", "65534:65534", "--read-only",
        "--cap-drop", "ALL", "--entrypoint", "python3", "--volume", f"{upstream_folder}:/srv:ro",
        agent_image, "-B", "/srv/upstream.py", "/srv",
    )  # fmt: skip
    yield name
    docker("rm", "--force", "--volumes", name)


@pytest.fixture(scope="session")
def upstream(upstream_container: str) -> str:
    """The upstream's address, once it answers."""
    form = "{{.NetworkSettings.IPAddress}}"
    address = docker("inspect", "--format", form, upstream_container)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}:8080/", timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    until(answers, "the upstream")
    return address
