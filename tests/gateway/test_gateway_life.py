from __future__ import annotations

import json
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from runner.gateway.config import ConfigError, parse_config

from .conftest import Start
from .rig import SECRET, ask, config, openai, post, scripted

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost:1\r\n\r\n"


def test_answers_the_probe_and_stops_when_asked(start: Start, folder: Path) -> None:
    gateway = start().ready()
    assert json.loads(gateway.ask(HEALTH).body) == {"ok": True, "run": "run-1"}
    assert gateway.stop() == 0
    assert gateway.reports[-1]["kind"] == "stopped"
    assert gateway.reports[-1]["reason"] == "stop"
    assert gateway.reports[-1]["counts"]["allowed"] == 1
    assert [line["seq"] for line in gateway.reports] == list(range(len(gateway.reports)))
    assert not (folder / "g.sock").exists()
    assert gateway.stderr() == b""


def test_socket_is_open_to_the_agents_user(start: Start, folder: Path) -> None:
    start().ready()
    assert stat.S_IMODE((folder / "g.sock").stat().st_mode) == 0o666


def test_ends_when_the_orchestrator_dies(start: Start) -> None:
    gateway = start().ready()
    assert gateway.process.stdin
    gateway.process.stdin.close()
    assert gateway.ended() == 0
    assert gateway.reports[-1]["reason"] == "eof"


def test_sigterm_ends_it_with_its_last_words(start: Start) -> None:
    gateway = start().ready()
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.ended() == 0
    assert gateway.reports[-1]["reason"] == "SIGTERM"


def test_an_exchange_in_flight_is_recorded_when_it_stops(start: Start) -> None:
    gateway = start(scripted({"hang": 60})).ready()
    with gateway.wire() as wire:
        wire.send(post(ask()))
        assert wire.sock.recv(12) == b"HTTP/1.1 200"
        assert gateway.stop() == 0
    assert gateway.of("model")[0]["error"] == "stopped"
    assert gateway.of("model")[0]["complete"] is False
    assert gateway.reports[-1]["kind"] == "stopped"


def test_a_socket_that_exists_is_not_taken_over(start: Start, folder: Path) -> None:
    (folder / "g.sock").touch()
    gateway = start()
    assert gateway.ended() == 4
    assert gateway.reports[-1]["kind"] == "fatal"
    assert (folder / "g.sock").exists()


def test_a_wrong_configuration_is_one_fatal_line(start: Start) -> None:
    gateway = start(openai("https://a.test/v1") | {"surprise": SECRET})
    assert gateway.ended() == 2
    assert [line["kind"] for line in gateway.reports] == ["fatal"]
    assert "surprise" in gateway.reports[0]["error"]
    assert SECRET.encode() not in gateway.raw_lines[0] + gateway.stderr()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_schema": "rolebox.gateway-config/2"}, "_schema"),
        ({"extra": 1}, "extra"),
        ({"run": 7}, "run"),
        ({"socket": "relative.sock"}, "socket"),
        ({"socket": "/" + "x" * 107}, "socket"),
        ({"model": {"backend": "magic", "model": "m"}}, "backend"),
        ({"model": {"backend": "script", "model": "m"}}, "script"),
        ({"model": scripted({"sing": "la"})}, "turn 1"),
        ({"model": {"backend": "none", "model": "m", "models": ["n"]}}, "models"),
        ({"model": openai("https://user:pw@host/v1")}, "base_url"),
        ({"model": openai("file:///etc/passwd")}, "base_url"),
        ({"model": openai("https://h/v1?x=1")}, "base_url"),
        ({"model": openai("https://h/v1") | {"headers": {"a": "b\r\nc: d"}}}, "headers"),
        ({"model": openai("https://h/v1") | {"headers": {"host": "other"}}}, "headers"),
        ({"budget": {"requests": -1}}, "requests"),
        ({"budget": {"requests": True}}, "requests"),
        ({"budget": {"money": 1}}, "money"),
        ({"egress": {"mode": "open"}}, "egress.mode"),
        ({"egress": {"mode": "none", "allow": ["a:1"]}}, "egress.allow"),
        ({"limits": {"max_connections": 0}}, "max_connections"),
        ({"limits": {"max_connections": 1.5}}, "max_connections"),
    ],
)
def test_configuration_errors_name_the_key(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    assert parse_config(json.dumps(config(Path("/r"))).encode()).run == "run-1"
    with pytest.raises(ConfigError, match=named):
        parse_config(json.dumps(config(Path("/r"), **changes)).encode())


def test_configuration_is_one_object_without_repeated_keys() -> None:
    for line in (b"", b"[]", b"{", b"\xff", b'{"run":1,"run":2}', b"[" * 100_000):
        with pytest.raises(ConfigError):
            parse_config(line)


def test_credential_is_not_in_the_repr_of_the_configuration() -> None:
    parsed = parse_config(json.dumps(config(Path("/r"), model=openai("https://h/v1"))).encode())
    assert parsed.model.headers == (("authorization", f"Bearer {SECRET}"),)
    assert SECRET not in repr(parsed)


def test_credential_is_nowhere_but_in_memory(start: Start) -> None:
    gateway = start(openai("http://127.0.0.1:9/v1")).ready()
    process = Path(f"/proc/{gateway.process.pid}")
    seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert gateway.ask(post(ask())).status == 502
    gateway.stop()
    seen += b"".join(gateway.raw_lines) + gateway.stderr()
    assert b"runner.gateway" in seen
    assert SECRET.encode() not in seen


def test_a_reader_that_stalls_loses_no_decision(start: Start) -> None:
    gateway = start().ready()
    gateway.hold()
    each, clients = 1000, 4
    answered: list[int] = []

    def flood(number: int) -> None:
        for n in range(each):
            path = f"{number}-{n}-".ljust(480, "x")
            raw = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            answered.append(gateway.ask(raw.encode()).status)

    threads = [threading.Thread(target=flood, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    threads[0].join(2)
    assert len(answered) < each * clients  # nothing is decided that cannot be written down
    gateway.resume()
    for thread in threads:
        thread.join()
    assert gateway.stop() == 0
    denied = [line for line in gateway.of("egress") if line["decision"] == "denied"]
    assert sum(line["count"] for line in denied) == each * clients
    assert {line["path"] for line in denied} >= {f"/{n}-999-".ljust(481, "x") for n in range(4)}


def test_ends_when_nobody_reads_the_reports(start: Start) -> None:
    gateway = start().ready()
    gateway.hold()
    assert gateway.process.stdout
    assert gateway.healthy()  # the line that the held reader was waiting for
    gateway.wait_for("egress")
    gateway.process.stdout.close()
    gateway.healthy()
    assert gateway.process.wait(20) == 4
