from __future__ import annotations

import hashlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import RelayProcess, gateway_at


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def echo_after_the_end(connection: socket.socket) -> None:
    connection.sendall(read_all(connection)[::-1])


def test_half_close_passes_both_ways(relay_process: RelayProcess) -> None:
    with gateway_at(relay_process.path, echo_after_the_end), relay_process.connect() as client:
        client.sendall(b"abc" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"cba" * 1000


def test_gateways_half_close_leaves_the_way_to_it_open(relay_process: RelayProcess) -> None:
    received: list[bytes] = []
    done = threading.Event()

    def greet_and_listen(connection: socket.socket) -> None:
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        received.append(read_all(connection))
        done.set()

    with gateway_at(relay_process.path, greet_and_listen), relay_process.connect() as client:
        assert read_all(client) == b"bye"
        client.sendall(b"still here")
        client.shutdown(socket.SHUT_WR)
        assert done.wait(30)
    assert received == [b"still here"]


def test_gateway_that_is_away_resets_the_client_and_is_found_when_back(
    relay_process: RelayProcess,
) -> None:
    for _ in range(2):
        with relay_process.connect() as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        with (
            gateway_at(relay_process.path, echo_after_the_end),
            relay_process.connect() as client,
        ):
            client.sendall(b"ab")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"ba"


def test_refusal_that_does_not_read_the_request_still_arrives(relay_process: RelayProcess) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 400 No\r\n\r\n")

    with gateway_at(relay_process.path, refuse), relay_process.connect() as client:
        client.sendall(b"x" * 100_000)
        assert client.recv(100) == b"HTTP/1.1 400 No\r\n\r\n"


def test_five_hundred_connections_at_once_each_get_their_own_answer(
    relay_process: RelayProcess,
) -> None:
    together = threading.Barrier(500)

    def hold_all_open(connection: socket.socket) -> None:
        asked = connection.recv(64)
        together.wait(60)
        connection.sendall(asked * 2)

    def ask(number: int) -> bool:
        with relay_process.connect() as client:
            client.sendall(f"<{number}>".encode())
            return read_all(client) == f"<{number}><{number}>".encode()

    with gateway_at(relay_process.path, hold_all_open), ThreadPoolExecutor(500) as pool:
        assert all(pool.map(ask, range(500)))


def test_hundred_megabytes_each_way_in_bounded_memory(relay_process: RelayProcess) -> None:
    block = bytes(range(256)) * 4096
    digest = hashlib.sha256()

    def sink_then_source(connection: socket.socket) -> None:
        while data := connection.recv(1 << 20):
            digest.update(data)
        for _ in range(100):
            connection.sendall(block)

    with gateway_at(relay_process.path, sink_then_source), relay_process.connect() as client:
        for _ in range(100):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)
        assert hashlib.sha256(read_all(client)).digest() == hashlib.sha256(block * 100).digest()
    assert digest.digest() == hashlib.sha256(block * 100).digest()
    assert relay_process.peak_mb() < 40


def test_reader_that_stops_holds_its_writer_and_nobody_else(relay_process: RelayProcess) -> None:
    """Back-pressure: the gateway cannot push more than the buffers of the kernel hold."""
    pushed = []

    def push(connection: socket.socket) -> None:
        if connection.recv(8) == b"push":
            connection.settimeout(1)
            for _ in range(200):
                connection.sendall(b"x" * (1 << 20))
                pushed.append(1)
        else:
            connection.sendall(b"prompt")

    with gateway_at(relay_process.path, push), relay_process.connect() as slow:
        slow.sendall(b"push")
        assert slow.recv(1) == b"x"
        with relay_process.connect() as quick:
            quick.sendall(b"other")
            assert read_all(quick) == b"prompt"
    assert len(pushed) < 50
    assert relay_process.peak_mb() < 40


def test_cut_off_answer_is_a_reset_not_an_end(relay_process: RelayProcess) -> None:
    """A gateway that dies with unread bytes must not look as if it had finished."""

    def die(connection: socket.socket) -> None:
        connection.recv(1)

    with gateway_at(relay_process.path, die), relay_process.connect() as client:
        client.sendall(b"x" * 1000)
        with pytest.raises(ConnectionResetError):
            read_all(client)
