"""Loopback TCP to the gateway's unix socket: one connection each, one thread for all.

Programs in the container know `HTTP_PROXY=http://127.0.0.1:PORT`; the only way out is
a unix socket. The relay carries bytes between the two and understands none of them:
policy is the gateway's, on the far side of a boundary that the agent cannot reach.

Decisions:
- Plain epoll and sockets: importing asyncio costs 45 ms of each start.
- What one side cannot take yet is the only thing buffered, at most CHUNK bytes a
  direction; until it is taken the other side is not read. Memory is bounded by
  two CHUNKs a connection, and the kernel passes the pressure on.
- A FIN travels as a FIN (`shutdown`), an error as a reset, never the one as the other:
  a cut-off answer must not look like a finished one.
- The gateway's backlog being full (EAGAIN from a non-blocking unix connect) is waited
  out; its absence (ENOENT, ECONNREFUSED) resets the client at once.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import struct
import time
from collections import deque

CHUNK = 256 * 1024
BACKLOG = 4096
ACCEPTS_PER_TURN = 64
RETRY_S = 0.002
CONNECT_TIMEOUT_S = 10.0
RESERVED_FDS = 16

_RESET = struct.pack("ii", 1, 0)
_GONE = select.EPOLLHUP | select.EPOLLERR


def listen(port: int) -> socket.socket:
    """Return the listening socket on 127.0.0.1; clients queue in the kernel from here on.

    Raises:
        OSError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class End:
    """One of the two sockets of a connection."""

    __slots__ = ("eof", "fd", "mask", "peer", "pending", "sock")

    peer: End

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.pending = memoryview(b"")  # read from the peer, not yet taken by this side
        self.eof = False  # this side will send no more
        self.mask = 0  # what epoll watches; 0 is not registered


class Relay:
    """Serves one listener until the process that `lifeline` stands for is gone.

    Args:
        listener: From `listen`.
        path: The gateway's unix socket.
        lifeline: A pidfd; None serves for ever.
    """

    def __init__(self, listener: socket.socket, path: str, lifeline: int | None = None) -> None:
        self._listener = listener
        self._path = path
        self._lifeline = lifeline
        self._ends: dict[int, End] = {}
        self._knocking: deque[tuple[socket.socket, float]] = deque()
        self._buffer = bytearray(CHUNK)
        self._view = memoryview(self._buffer)
        self._accepting = False

    def serve(self) -> None:
        limit = _raise_fd_limit()
        with select.epoll() as self._epoll:
            if self._lifeline is not None:
                self._epoll.register(self._lifeline, select.EPOLLIN)
            while True:
                self._accept_when(len(self._ends) + 2 * len(self._knocking) < limit)
                timeout = RETRY_S if self._knocking else None
                for fd, events in self._epoll.poll(timeout):
                    if fd == self._lifeline:
                        return
                    if fd == self._listener.fileno():
                        self._accept(limit)
                    elif end := self._ends.get(fd):
                        self._turn(end, events)
                self._knock_again()

    def _accept_when(self, room: bool) -> None:
        """Stop listening while descriptors are short: clients wait in the backlog."""
        if room and not self._accepting:
            self._epoll.register(self._listener, select.EPOLLIN)
        elif self._accepting and not room:
            self._epoll.unregister(self._listener)
        self._accepting = room

    def _accept(self, limit: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if len(self._ends) + 2 * len(self._knocking) >= limit:
                return
            try:
                client, _address = self._listener.accept()
            except OSError:  # none left, or one that gave up before it was its turn
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connect(client, time.monotonic() + CONNECT_TIMEOUT_S)

    def _knock_again(self) -> None:
        for _ in range(len(self._knocking)):
            self._connect(*self._knocking.popleft())

    def _connect(self, client: socket.socket, deadline: float) -> None:
        gateway = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        gateway.setblocking(False)
        try:
            gateway.connect(self._path)
        except OSError as error:
            gateway.close()
            if isinstance(error, BlockingIOError) and time.monotonic() < deadline:
                self._knocking.append((client, deadline))
            else:
                _reset(client)
            return
        near, far = End(client), End(gateway)
        near.peer, far.peer = far, near
        for end in (near, far):
            self._ends[end.fd] = end
            self._watch(end)

    def _turn(self, end: End, events: int) -> None:
        try:
            if end.pending and events & (select.EPOLLOUT | _GONE):
                self._flush(end)
            if events & (select.EPOLLIN | _GONE) and not end.eof and not end.peer.pending:
                self._pump(end)
        except OSError:
            self._drop(end, clean=False)
            return
        if end.eof and end.peer.eof and not end.pending and not end.peer.pending:
            self._drop(end, clean=True)
        else:
            self._watch(end)
            self._watch(end.peer)

    def _pump(self, end: End) -> None:
        """Read once and pass it on; one turn each keeps a bulk transfer from starving others."""
        peer = end.peer
        try:
            count = end.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        if not count:
            end.eof = True
            peer.sock.shutdown(socket.SHUT_WR)
            return
        try:
            sent = peer.sock.send(self._view[:count])
        except BlockingIOError:
            sent = 0
        if sent < count:
            peer.pending = memoryview(bytes(self._view[sent:count]))

    def _flush(self, end: End) -> None:
        try:
            end.pending = end.pending[end.sock.send(end.pending) :]
        except BlockingIOError:
            return

    def _watch(self, end: End) -> None:
        """Register for what is wanted now; for nothing, leave epoll (a hang-up would spin)."""
        mask = 0 if end.eof or end.peer.pending else select.EPOLLIN
        if end.pending:
            mask |= select.EPOLLOUT
        if mask == end.mask:
            return
        if not end.mask:
            self._epoll.register(end.fd, mask)
        elif not mask:
            self._epoll.unregister(end.fd)
        else:
            self._epoll.modify(end.fd, mask)
        end.mask = mask

    def _drop(self, end: End, *, clean: bool) -> None:
        for each in (end, end.peer):
            del self._ends[each.fd]
            if clean:
                each.sock.close()
            else:
                _reset(each.sock)


def _reset(sock: socket.socket) -> None:
    """Close so that the other side sees an error, not an end (TCP; a unix socket just closes)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _raise_fd_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit; return how many sockets that leaves."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted - RESERVED_FDS


def spawn(listener: socket.socket, path: str) -> None:
    """Serve in a process of its own that is nobody's child and ends with the caller.

    Forked twice, so that the command which takes the caller's place has no child that
    it does not know of; tied to the caller's pid, which outlives exec, by a pidfd.

    Raises:
        OSError: the kernel has no pidfds (before 5.3), or no process to spare.
    """
    lifeline = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os.close(lifeline)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            Relay(listener, path, lifeline).serve()
    finally:
        os._exit(0)
