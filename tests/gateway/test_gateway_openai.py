from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from .conftest import Serve, Start
from .rig import SECRET, Call, ask, completed, openai, post, sse, until

CREATED = sse({"type": "response.created", "response": {"id": "resp_up", "model": "gpt-5.5-2026"}})
DELTA = sse({"type": "response.output_text.delta", "delta": "héllo"})
DONE = completed(input_tokens=100, output_tokens=9)


def answer_well(call: Call) -> None:
    call.answer(200, CREATED + DELTA + DONE, ("content-type", "text/event-stream"))


def test_the_answer_passes_through_and_is_recorded(start: Start, serve: Serve) -> None:
    upstream = serve(answer_well)
    gateway = start(openai(upstream.url)).ready()
    reply = gateway.ask(post(ask()))
    assert (reply.status, reply.body, reply.cut) == (200, CREATED + DELTA + DONE, False)
    assert reply.headers["content-type"] == "text/event-stream"
    model = gateway.wait_for("model")
    assert (model["model_observed"], model["response_id"]) == ("gpt-5.5-2026", "resp_up")
    assert model["usage"]["total_tokens"] == 109
    assert (model["complete"], model["error"]) == (True, None)
    egress = gateway.wait_for("egress")
    assert (egress["host"], egress["port"], egress["path"], egress["address"], egress["sni"]) == (
        "127.0.0.1", upstream.port, "/v1/responses", "127.0.0.1", None,
    )  # fmt: skip


def test_the_credential_is_added_and_the_clients_own_is_not_passed(
    start: Start, serve: Serve
) -> None:
    upstream = serve(answer_well)
    gateway = start(openai(upstream.url)).ready()
    mine = [
        "Authorization: Bearer agents-own",
        "Cookie: a=b",
        "X-Api-Key: k",
        "OpenAI-Organization: other",
        "x-codex-turn-metadata: origin",
        "Accept-Encoding: gzip",
        "Originator: codex_exec",
    ]
    body = ask(client_metadata={"x-codex-turn-metadata": "origin"}, instructions="é")
    assert gateway.ask(post(body, *mine)).status == 200
    (call,) = upstream.calls
    assert call.path == "/v1/responses"
    assert {name.lower(): value for name, value in call.headers.items()} == {
        "host": f"127.0.0.1:{upstream.port}",
        "authorization": f"Bearer {SECRET}",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "connection": "close",
        "originator": "codex_exec",
        "content-length": str(len(call.body)),
    }
    sent = json.loads(call.body)
    assert sent == {"model": "gpt-5.5", "stream": True, "input": [], "instructions": "é"}


def test_each_event_arrives_before_the_next_is_sent(start: Start, serve: Serve) -> None:
    read_first = threading.Event()

    def behave(call: Call) -> None:
        call.stream()
        call.wfile.write(CREATED)
        assert read_first.wait(20)
        call.wfile.write(DONE)

    gateway = start(openai(serve(behave).url)).ready()
    with gateway.wire() as wire:
        wire.send(post(ask()))
        data = b""
        while b"response.created" not in data:
            data += wire.sock.recv(65536)
        read_first.set()
        while b"response.completed" not in data:
            data += wire.sock.recv(65536)
    assert gateway.wait_for("model")["usage"]["input_tokens"] == 100


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_errors_pass_through_without_the_credential(
    start: Start, serve: Serve, status: int
) -> None:
    said = json.dumps({"error": {"message": f"bad key {SECRET}, said Bearer {SECRET}"}}).encode()
    upstream = serve(lambda call: call.answer(status, said, ("retry-after", "7"), ("x-other", "1")))
    gateway = start(openai(upstream.url)).ready()
    reply = gateway.ask(post(ask()))
    assert reply.status == status
    assert reply.headers["retry-after"] == "7"
    assert "x-other" not in reply.headers
    assert reply.error["message"] == "bad key [redacted], said [redacted]"
    model = gateway.wait_for("model")
    assert (model["status"], model["usage"], model["error"]) == (
        status,
        None,
        f"upstream: {status}",
    )


def test_a_huge_error_body_is_cut(start: Start, serve: Serve) -> None:
    gateway = start(openai(serve(lambda call: call.answer(500, b"x" * 10**6)).url)).ready()
    assert len(gateway.ask(post(ask())).body) == 65_536


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_refused(start: Start, serve: Serve, status: int) -> None:
    other = serve(answer_well)
    upstream = serve(lambda call: call.answer(status, b"", ("location", other.url)))
    reply = start(openai(upstream.url)).ready().ask(post(ask()))
    assert reply.status == 502
    assert "redirect refused" in reply.error["message"]
    assert other.calls == []


def test_an_encoded_answer_is_refused(start: Start, serve: Serve) -> None:
    upstream = serve(lambda call: call.answer(200, b"x", ("content-encoding", "gzip")))
    assert start(openai(upstream.url)).ready().ask(post(ask())).status == 502


def test_an_upstream_that_is_not_there_is_502(start: Start) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        gateway = start(openai(f"http://127.0.0.1:{reserved.getsockname()[1]}/v1")).ready()
        reply = gateway.ask(post(ask()))
    assert (reply.status, reply.error["code"]) == (502, "rolebox_upstream")
    assert "ECONNREFUSED" in gateway.wait_for("model")["error"]


def test_an_upstream_that_is_not_http_is_502(start: Start, serve: Serve) -> None:
    upstream = serve(lambda call: call.wfile.write(b"SSH-2.0-x\r\n\r\n") and None)
    assert start(openai(upstream.url)).ready().ask(post(ask())).status == 502


def test_an_upstream_that_falls_silent_is_cut_and_recorded(start: Start, serve: Serve) -> None:
    release = threading.Event()

    def behave(call: Call) -> None:
        call.stream()
        call.wfile.write(CREATED)
        release.wait(20)

    gateway = start(openai(serve(behave).url), limits={"idle_timeout_s": 0.4}).ready()
    reply = gateway.ask(post(ask()))
    release.set()
    assert (reply.status, reply.cut) == (200, True)
    model = gateway.wait_for("model")
    assert (model["complete"], model["usage"]) == (False, None)
    assert "idle" in model["error"]


def test_an_answer_without_end_is_cut_at_the_total_limit(start: Start, serve: Serve) -> None:
    release = threading.Event()

    def behave(call: Call) -> None:
        call.stream()
        while not release.wait(0.05):
            call.wfile.write(DELTA)

    gateway = start(openai(serve(behave).url), limits={"total_timeout_s": 0.5}).ready()
    assert gateway.ask(post(ask())).cut
    release.set()
    assert "total_timeout" in gateway.wait_for("model")["error"]


def test_a_stream_broken_off_is_broken_off_for_the_client(start: Start, serve: Serve) -> None:
    def behave(call: Call) -> None:
        call.send_response(200)
        call.send_header("content-length", "100000")
        call.end_headers()
        call.wfile.write(CREATED)

    gateway = start(openai(serve(behave).url)).ready()
    assert gateway.ask(post(ask())).cut
    model = gateway.wait_for("model")
    assert model["complete"] is False
    assert model["model_observed"] == "gpt-5.5-2026"


def test_a_client_that_hangs_up_ends_the_upstream_and_keeps_the_usage(
    start: Start, serve: Serve
) -> None:
    def behave(call: Call) -> None:
        call.stream()
        call.wfile.write(CREATED + DONE)
        while True:
            call.wfile.write(b": more\n\n")

    upstream = serve(behave)
    gateway = start(openai(upstream.url)).ready()
    with gateway.wire() as wire:
        wire.send(post(ask()))
        data = b""
        while b"response.completed" not in data:
            data += wire.sock.recv(65536)
    assert upstream.hung_up.wait(20)
    model = gateway.wait_for("model")
    assert (model["error"], model["usage"]["input_tokens"]) == ("client gone", 100)
    assert gateway.healthy()


def test_a_client_that_hangs_up_while_the_upstream_is_silent_is_noticed(
    start: Start, serve: Serve
) -> None:
    release = threading.Event()
    upstream = serve(lambda call: release.wait(20) and None)
    gateway = start(openai(upstream.url)).ready()
    with gateway.wire() as wire:
        wire.send(post(ask()))
        until(lambda: len(upstream.calls) == 1)
    model = gateway.wait_for("model")
    release.set()
    assert (model["error"], model["status"]) == ("client gone", None)


def test_a_large_request_and_a_large_answer_pass(start: Start, serve: Serve) -> None:
    event = sse({"type": "response.output_text.delta", "delta": "x" * 9_000_000})
    upstream = serve(lambda call: call.answer(200, event + DONE))
    gateway = start(openai(upstream.url)).ready()
    reply = gateway.ask(post(ask(instructions="y" * 8_000_000)))
    assert reply.body == event + DONE
    assert len(json.loads(upstream.calls[0].body)["instructions"]) == 8_000_000
    assert gateway.wait_for("model")["usage"]["output_tokens"] == 9


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, key included."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def test_a_certificate_that_nobody_trusts_gets_no_request(
    start: Start, serve: Serve, certificate: Path
) -> None:
    upstream = serve(answer_well, tls(certificate))
    gateway = start(openai(f"https://localhost:{upstream.port}/v1")).ready()
    reply = gateway.ask(post(ask()))
    assert reply.status == 502
    assert "certificate" in reply.error["message"]
    assert upstream.calls == []


def test_a_certificate_for_another_name_gets_no_request(
    start: Start, serve: Serve, certificate: Path
) -> None:
    upstream = serve(answer_well, tls(certificate))
    trust = {"SSL_CERT_FILE": str(certificate / "cert.pem")}
    gateway = start(openai(f"https://127.0.0.1:{upstream.port}/v1"), env=trust).ready()
    assert gateway.ask(post(ask())).status == 502
    assert upstream.calls == []


def test_a_trusted_certificate_is_spoken_to(start: Start, serve: Serve, certificate: Path) -> None:
    upstream = serve(answer_well, tls(certificate))
    trust = {"SSL_CERT_FILE": str(certificate / "cert.pem")}
    gateway = start(openai(f"https://localhost:{upstream.port}/v1"), env=trust).ready()
    assert gateway.ask(post(ask())).status == 200
    assert upstream.calls[0].headers["authorization"] == f"Bearer {SECRET}"
    assert gateway.wait_for("egress")["sni"] == "localhost"
