"""What a control makes of a host that it can see; the real seals are tested in a container."""

from __future__ import annotations

import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from runner.sandbox import controls

from .conftest import control, free_port

SPEC: dict[str, Any] = {"env": {}}


def ask(kind: str, expect: str = "blocked", **arguments: Any) -> dict[str, Any]:
    return controls.run(control(kind, expect, **arguments), SPEC)


SECRET = [
    {"OPENAI_API_KEY": "x"}, {"MY_TOKEN": "x"}, {"db_password": "x"}, {"SSH_AUTH_SOCK": "/x"},
    {"AWS_SECRET_ACCESS_KEY": "x"}, {"GOOGLE_APPLICATION_CREDENTIALS": "/x"}, {"NPMTOKEN": "x"},
    {"A": "sk-" + "a1" * 12}, {"A": "ghp_" + "a1" * 12}, {"A": "AKIA" + "A1" * 8},
    {"A": "eyJ" + "hbGciOiJI" + "a1" * 4 + ".x"}, {"A": "-----BEGIN RSA PRIVATE KEY-----"},
    {"HTTPS_PROXY": "http://user:word@proxy:8080"},
]  # fmt: skip
HARMLESS = [
    {"GIT_AUTHOR_NAME": "x"}, {"KEYBOARD": "x"}, {"XAUTHORITY": "/x"}, {"OPENAI_API_KEY": ""},
    {"HTTPS_PROXY": "http://127.0.0.1:3128"}, {"PATH": "/usr/bin:/bin"}, {"A": "risk-averse"},
]  # fmt: skip


@pytest.mark.parametrize("env", SECRET, ids=str)
def test_environment_that_looks_secret_is_seen_and_never_printed(env: dict[str, str]) -> None:
    result = controls.run(control("environment", "blocked", pids=[]), {"env": env})
    assert (result["observed"], result["ok"]) == ("works", False)
    assert next(iter(env)) in result["detail"]
    assert all(len(value) < 5 or value not in str(result) for value in env.values())


@pytest.mark.parametrize("env", HARMLESS, ids=str)
def test_environment_without_secrets_passes(env: dict[str, str]) -> None:
    result = controls.run(control("environment", "blocked", pids=[]), {"env": env})
    assert result["ok"], result["detail"]


@pytest.mark.parametrize("listening", [True, False])
def test_refusal_by_a_host_counts_as_reached(listening: bool) -> None:
    """A refused connection is an answer: the packet found its way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if listening else free_port()
        result = ask("tcp", address="127.0.0.1", port=port)
    assert (result["observed"], result["ok"]) == ("works", False)


def test_address_without_a_route_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unroutable(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(101, "Network is unreachable", address)

    monkeypatch.setattr(socket, "socket", Unroutable)
    assert ask("tcp", address="192.0.2.1", port=443)["ok"]


def test_write_is_denied_or_allowed_as_the_folder_says(tmp_path: Path) -> None:
    leased = tmp_path / "leased"
    leased.write_bytes(b"kept")
    assert ask("write_denied", path=str(tmp_path))["observed"] == "works"
    assert ask("write_denied", path=str(leased))["observed"] == "works"
    assert ask("write_denied", path=str(tmp_path / "absent"))["observed"] == "error"
    assert ask("write_allowed", "works", path=str(tmp_path))["ok"]
    assert ask("write_allowed", "works", path=str(leased))["ok"]
    assert not ask("write_allowed", "works", path=str(tmp_path / "absent"))["ok"]
    assert [path.name for path in tmp_path.iterdir()] == ["leased"]
    assert leased.read_bytes() == b"kept"


def test_write_through_a_link_is_not_taken_for_a_lease(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert ask("write_allowed", "works", path=str(tmp_path / "link"))["observed"] == "error"


def test_file_that_should_be_absent_is_seen_even_as_a_dead_link(tmp_path: Path) -> None:
    (tmp_path / "auth.json").symlink_to("/nowhere")
    assert ask("files_absent", paths=[str(tmp_path / "auth.json")])["observed"] == "works"
    assert ask("files_absent", paths=[str(tmp_path / "other")])["ok"]


def test_limits_looser_than_planned_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (hard, hard))
    assert ask("limits", core=hard, nofile=hard - 1)["observed"] == "works"
    assert ask("limits", core=hard, nofile=hard)["ok"]


def test_error_never_passes_even_where_it_was_expected() -> None:
    result = ask("no_such_kind", "error")
    assert (result["observed"], result["ok"]) == ("error", False)


def test_every_kind_says_its_threat() -> None:
    for name, probe in controls.KINDS.items():
        assert (probe.__doc__ or "").startswith(("Threat: ", "The allowed neighbour")), name
