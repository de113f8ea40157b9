from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.gateway.config import Limits
from runner.gateway.policy import DenyAll
from runner.gateway.routes import Denied, Local, Remote, Service, route
from runner.gateway.wire import Head, HttpRefused, parse_head

from .conftest import Start
from .rig import ask, post, scripted, until

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HOST = "Host: 127.0.0.1:8080\r\n"
POST = f"POST /v1/responses HTTP/1.1\r\n{HOST}"

REFUSED = [
    ("GET /healthz\r\n\r\n", 400, "http.request-line"),  # HTTP/0.9
    ("PRI * HTTP/2.0\r\n\r\n", 400, "http.request-line"),
    (f"GET  /healthz HTTP/1.1\r\n{HOST}\r\n", 400, "http.request-line"),
    (f"GET /hea\x01lthz HTTP/1.1\r\n{HOST}\r\n", 400, "http.request-line"),
    (f"GET /healthz HTTP/1.1\n{HOST}\n", 400, "http.bare-newline"),
    (f"GET /healthz HTTP/1.1\r\nA: b\rc\r\n{HOST}\r\n", 400, "http.bare-newline"),
    (f"GET /healthz HTTP/1.1\r\nA: b\nC: d\r\n{HOST}\r\n", 400, "http.bare-newline"),
    (f"GET /healthz HTTP/1.1\r\n{HOST}A: b\r\n c\r\n\r\n", 400, "http.obs-fold"),
    (f"GET /healthz HTTP/1.1\r\n{HOST}A : b\r\n\r\n", 400, "http.header"),
    (f"GET /healthz HTTP/1.1\r\n{HOST}A: b\0c\r\n\r\n", 400, "http.header"),
    (f"GET /healthz HTTP/1.1\r\n{HOST}nonsense\r\n\r\n", 400, "http.header"),
    ("GET /healthz HTTP/1.1\r\n\r\n", 400, "http.host"),
    (f"GET /healthz HTTP/1.1\r\n{HOST}{HOST}\r\n", 400, "http.host"),
    (f"TRACE /healthz HTTP/1.1\r\n{HOST}\r\n", 405, "http.trace"),
    (
        f"{POST}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "http.both-lengths",
    ),
    (
        f"POST /v1/responses HTTP/1.1\r\n{HOST}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        400,
        "http.content-length",
    ),
    (
        f"POST /v1/responses HTTP/1.1\r\n{HOST}Content-Length: 3, 3\r\n\r\nabc",
        400,
        "http.content-length",
    ),
    (
        f"POST /v1/responses HTTP/1.1\r\n{HOST}Content-Length: +3\r\n\r\nabc",
        400,
        "http.content-length",
    ),
    (
        f"POST /v1/responses HTTP/1.1\r\n{HOST}Transfer-Encoding: gzip, chunked\r\n\r\n",
        400,
        "http.transfer-encoding",
    ),
    (
        f"POST /v1/responses HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
        "http.body",
    ),
    (
        f"{POST}Transfer-Encoding: chunked\r\n\r\n0\r\nHost: evil\r\n\r\n",
        400,
        "http.trailers",
    ),
    (f"GET /healthz HTTP/1.1\r\n{HOST}Expect: tea\r\n\r\n", 417, "http.expect"),
    (f"GET /healthz HTTP/1.1\r\n{HOST}Content-Length: 2\r\n\r\nhi", 400, "route.body"),
    ("GET /healthz HTTP/1.1\r\nHost: index.test\r\n\r\n", 403, "route.host"),
    (f"GET /v1/../healthz HTTP/1.1\r\n{HOST}\r\n", 404, "route.unknown-path"),
    (f"GET //healthz HTTP/1.1\r\n{HOST}\r\n", 404, "route.unknown-path"),
    (f"GET /%68ealthz HTTP/1.1\r\n{HOST}\r\n", 404, "route.unknown-path"),
    (f"GET /healthz?x HTTP/1.1\r\n{HOST}\r\n", 404, "route.unknown-path"),
    (f"GET /v1/files HTTP/1.1\r\n{HOST}\r\n", 404, "route.unknown-path"),
    (f"POST /v1/responses/compact HTTP/1.1\r\n{HOST}\r\n", 404, "route.unknown-path"),
    (f"POST /v1/responses?a=b HTTP/1.1\r\n{HOST}\r\n", 404, "route.query"),
    (f"GET /v1/responses HTTP/1.1\r\n{HOST}\r\n", 405, "route.method"),
    (f"DELETE /v1/models HTTP/1.1\r\n{HOST}\r\n", 405, "route.method"),
    (
        f"GET /v1/responses HTTP/1.1\r\n{HOST}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        426,
        "route.websocket",
    ),
    ("CONNECT index.test:443 HTTP/1.1\r\nHost: index.test:443\r\n\r\n", 403, "egress.mode = none"),
    ("CONNECT index.test:443 HTTP/1.0\r\n\r\n", 403, "egress.mode = none"),
    ("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", 403, "egress.mode = none"),
    ("CONNECT index.test HTTP/1.1\r\nHost: index.test\r\n\r\n", 400, "http.authority"),
    ("CONNECT index.test:99999 HTTP/1.1\r\nHost: index.test\r\n\r\n", 400, "http.authority"),
    ("CONNECT u@index.test:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http.authority"),
    ("CONNECT index.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400, "http.host-mismatch"),
    ("GET http://a.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n", 403, "egress.mode = none"),
    ("GET http://127.0.0.1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 403, "egress.mode = none"),
    ("GET http://a.test/x HTTP/1.1\r\nHost: b.test\r\n\r\n", 400, "http.host-mismatch"),
    ("GET http://u:p@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", 400, "http.target"),
    (f"OPTIONS * HTTP/1.1\r\n{HOST}\r\n", 400, "http.target"),
    (f"GET mailto:x HTTP/1.1\r\n{HOST}\r\n", 400, "http.target"),
]


def test_each_refused_request_is_answered_and_audited(start: Start) -> None:
    gateway = start().ready()
    for raw, status, rule in REFUSED:
        with gateway.wire() as wire:
            wire.send(raw.encode("latin-1"))
            reply = wire.read()
            assert (reply.status, reply.error["code"]) == (status, rule), raw
            assert wire.rest() == b""
    assert gateway.healthy()
    assert gateway.stop() == 0
    denied = [line for line in gateway.of("egress") if line["decision"] == "denied"]
    assert sum(line["count"] for line in denied) == len(REFUSED)
    assert {line["rule"] for line in denied} == {rule for _, _, rule in REFUSED}
    assert [line["rule"] for line in gateway.of("egress") if line["decision"] == "allowed"] == [
        "route.healthz"
    ]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (HEALTH, 200),
        (b"GET /healthz HTTP/1.1\r\nhost:localhost\r\nX-Any: \xff\t'\"\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /v1/models?client_version=1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (post(ask()), 200),
        (post(ask(), "Expect: 100-continue"), 200),
    ],
)
def test_plain_neighbours_are_served(start: Start, raw: bytes, status: int) -> None:
    assert start(scripted({"say": "hi"})).ready().ask(raw).status == status


def test_models_lists_the_pinned_model(start: Start) -> None:
    reply = start().ready().ask(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert [model["id"] for model in json.loads(reply.body)["data"]] == ["gpt-5.5"]


def test_a_chunked_body_is_read(start: Start) -> None:
    gateway = start(scripted({"say": "hi"})).ready()
    body = ask()
    chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (7, body[:7], len(body) - 7, body[7:])
    head = f"POST /v1/responses HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n"
    assert gateway.ask(head.encode() + chunks).status == 200


def test_a_head_sent_byte_by_byte_is_read(start: Start) -> None:
    gateway = start().ready()
    with gateway.wire() as wire:
        for n in range(len(HEALTH)):
            wire.send(HEALTH[n : n + 1])
        assert wire.read().status == 200


def test_a_bare_newline_sent_byte_by_byte_is_refused(start: Start) -> None:
    gateway = start().ready()
    with gateway.wire() as wire:
        for n, byte in enumerate(b"GET / HTTP/1.1\n"):
            assert n < 15
            wire.send(bytes([byte]))
        assert wire.read().error["code"] == "http.bare-newline"


def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    gateway = start(scripted({"say": "one"}, {"say": "two"})).ready()
    with gateway.wire() as wire:
        wire.send(HEALTH + post(ask()) + post(ask()) + HEALTH)
        bodies = [wire.read().body for _ in range(4)]
    assert json.loads(bodies[0])["ok"]
    assert b'"delta":"one"' in bodies[1]
    assert b'"delta":"two"' in bodies[2]
    assert json.loads(bodies[3])["ok"]
    gateway.stop()
    sizes = [line["bytes_in"] for line in gateway.of("egress")]
    assert sizes == [len(HEALTH), len(post(ask())), len(post(ask())), len(HEALTH)]


def test_a_pipelined_request_is_held_to_the_same_rules(start: Start) -> None:
    gateway = start().ready()
    with gateway.wire() as wire:
        wire.send(HEALTH + b"GET /healthz HTTP/1.1\nHost: localhost\n\n")
        assert wire.read().status == 200
        assert wire.read().error["code"] == "http.bare-newline"


def test_large_heads_and_bodies_are_refused_and_those_at_the_limit_served(start: Start) -> None:
    limits = {"max_header_bytes": 2000, "max_headers": 10, "max_body_bytes": 1000}
    gateway = start(scripted({"say": "hi"}), limits=limits).ready()
    lines = [f"X-{n}: y" for n in range(8)]
    assert gateway.ask(post(ask(instructions="x" * 900), *lines[:7])).status == 200
    assert gateway.ask(post(ask(), *lines, "X-8: y")).error["code"] == "http.header-count"
    assert gateway.ask(post(ask(), "X: " + "y" * 1700)).error["code"] == "rolebox_script_exhausted"
    assert gateway.ask(post(ask(), "X: " + "y" * 2000)).status == 431
    assert gateway.ask(post(ask(instructions="x" * 1000))).status == 413
    unending = f"POST /v1/responses HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"190\r\n" + b"x" * 0x190 + b"\r\n"
    assert gateway.ask(unending.encode() + chunk * 3).status == 413


def test_slow_heads_are_cut_and_the_gateway_goes_on(start: Start) -> None:
    gateway = start(limits={"header_timeout_s": 0.3}).ready()
    with gateway.wire() as slow:
        slow.send(HEALTH[:-2])
        assert slow.read().status == 408
    with gateway.wire() as silent:
        assert silent.read().status == 408
    assert gateway.healthy()


def test_slow_bodies_are_cut(start: Start) -> None:
    gateway = start(scripted({"say": "hi"}), limits={"idle_timeout_s": 0.3}).ready()
    assert gateway.ask(post(ask())[:-1]).error["code"] == "http.body-timeout"
    assert gateway.ask(post(ask())).status == 200


def test_a_body_broken_off_is_audited(start: Start) -> None:
    gateway = start(scripted({"say": "hi"})).ready()
    with gateway.wire() as wire:
        wire.send(post(ask())[:-1])
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.read().error["code"] == "http.truncated"
    assert gateway.wait_for("egress")["rule"] == "http.truncated"
    assert gateway.of("model") == []


def test_connections_over_the_cap_are_turned_away_and_counted(start: Start) -> None:
    gateway = start(limits={"max_connections": 2}).ready()
    with gateway.wire() as one, gateway.wire() as two:
        for wire in (one, two):
            wire.send(HEALTH)
            assert wire.read().status == 200
        for _ in range(5):
            with gateway.wire() as third:
                assert third.read().status == 503

    def recovered() -> bool:
        with gateway.wire() as wire:
            try:
                wire.send(HEALTH)
            except OSError:
                return False
            return wire.read().status == 200

    until(recovered)
    gateway.stop()
    turned_away = [line for line in gateway.of("egress") if line["status"] == 503]
    assert sum(line["count"] for line in turned_away) >= 5
    assert {line["rule"] for line in turned_away} == {"limits.max_connections"}


def test_identical_denials_are_folded_and_allowed_requests_never(start: Start) -> None:
    gateway = start().ready()
    for _ in range(20):
        assert gateway.ask(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 404
    with gateway.wire() as wire:
        for _ in range(5):
            wire.send(HEALTH)
            wire.read()
    gateway.stop()
    denied = [line for line in gateway.of("egress") if line["decision"] == "denied"]
    assert sum(line["count"] for line in denied) == 20
    assert len(denied) < 20
    allowed = [line for line in gateway.of("egress") if line["decision"] == "allowed"]
    assert len(allowed) == 5
    assert all("count" not in line for line in allowed)


def test_hostile_bytes_forge_no_line(start: Start) -> None:
    gateway = start().ready()
    target = '/"},{"kind":"stopped","x":"\\u000a'
    gateway.ask(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    host = 'a"\\\u00e9\x85' + "h" * 5000
    gateway.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    gateway.stop()
    assert [line["kind"] for line in gateway.reports] == ["ready", "egress", "egress", "stopped"]
    assert all(line.isascii() and len(line) < 4000 for line in gateway.raw_lines)
    assert gateway.reports[1]["path"] == target
    assert gateway.reports[2]["host"].endswith("characters]")


def test_policy_denies_every_host() -> None:
    decision = DenyAll().decide("127.0.0.1", 80)
    assert not decision.allowed
    assert decision.rule in decision.reason.replace("(", "").replace(")", "")


def test_a_route_is_local_only_for_exact_paths() -> None:
    def head(method: str, target: str, host: str = "localhost") -> Head:
        return Head(method, target, "1.1", (("host", host),))

    found = route(head("POST", "/v1/responses"))
    assert isinstance(found, Local)
    assert found.service is Service.RESPONSES
    assert isinstance(route(head("POST", "/v1/responses/")), Denied)
    assert isinstance(route(head("POST", "/V1/responses")), Denied)
    assert route(head("CONNECT", "A.test:1", "a.TEST:1")) == Remote("a.test", 1, None)


PIECES = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b" ", b"GET", b"/", b"HTTP/1.1", b"Host: a", b"Content-Length: 1",
     b"Transfer-Encoding: chunked", b":", b"\0", b"\xff", b"CONNECT", b"a:1", b"http://"]
)  # fmt: skip


@given(st.lists(PIECES | st.binary(max_size=8), max_size=30))
def test_any_bytes_are_a_head_or_a_refusal(pieces: list[bytes]) -> None:
    raw = b"".join(pieces) + b"\r\n\r\n"
    try:
        head = parse_head(raw, Limits())
    except HttpRefused:
        return
    assert len(head.all("host")) <= 1
    assert not (head.all("content-length") and head.all("transfer-encoding"))
    assert not any(c in value for _, value in head.headers for c in "\r\n\0")
    route(head)


@given(st.text("abcXYZ09-", min_size=1), st.lists(st.text("az \t~", max_size=9), max_size=5))
def test_plain_heads_are_read_as_written(path: str, values: list[str]) -> None:
    lines = "".join(f"x-{n}: {value}\r\n" for n, value in enumerate(values))
    head = parse_head(f"GET /{path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode(), Limits())
    assert head.target == f"/{path}"
    assert [value for _, value in head.headers[1:]] == [value.strip(" \t") for value in values]
