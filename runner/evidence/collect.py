"""Take files out of an ended container without trusting a byte of them.

The engine sends a tar stream that the agent shaped: names, links, sizes. Only
regular files with an expected name are read, up to a cap, into memory-bounded
files of our own naming; nothing is extracted, no link is followed.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from runner.evidence.files import disk_error

_ROLLOUT = re.compile(r"(?:.*/)?rollout-[0-9A-Za-z_.:-]{1,200}\.jsonl")
_CHUNK = 1 << 20
_MAX_EXTENSION = 1 << 16
_DATA = frozenset(tarfile.REGULAR_TYPES)
#: What the folder may hold beside the rollouts, headers and all, before the reading ends.
_BESIDE = 64 << 20


@dataclass(frozen=True)
class Collected:
    """What was taken.

    Attributes:
        files: How many session files were found and kept.
        problems: What was left out, and why.
    """

    files: int
    bytes: int
    problems: tuple[str, ...]


class _Stream(io.RawIOBase):
    """The engine's chunks as a readable file of at most `cap` bytes; `tail` is its last block."""

    def __init__(self, chunks: Iterator[bytes], cap: int) -> None:
        self.tail = b""
        self._chunks = chunks
        self._room = cap
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._room -= len(chunk)
            if self._room < 0:
                raise tarfile.ReadError("it goes on and on")
            self._rest = chunk
            self.tail = (self.tail + chunk)[-tarfile.BLOCKSIZE :]
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


class _Header(tarfile.TarInfo):
    """A member's header, read strictly.

    The library takes a broken header for the end of the archive, and reads an extension
    (a long name) into memory whatever its size: both are damage here.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if any(buf):
                raise tarfile.ReadError("a header is no header") from None
            raise
        if member.size < 0 or (member.type not in _DATA and member.size > _MAX_EXTENSION):
            raise tarfile.ReadError(f"a header claims {member.size} bytes")
        return member


def collect_rollouts(chunks: Iterable[bytes], target: Path, *, limit: int) -> Collected:
    """Write every rollout of a CODEX_HOME's sessions, one after the other, to one file.

    Subagents and reviews write files of their own (facts-codex.md), so all are
    taken, in the order of their names' appearance; each file keeps its lines.

    Args:
        chunks: The tar stream.
        target: The file to write; made only if a rollout was found.
        limit: The most bytes to keep in all.

    Raises:
        UsageError, InfrastructureError: The disk refuses.
    """
    try:
        return _collect(_Stream(iter(chunks), limit + _BESIDE), target, limit)
    except OSError as error:
        raise disk_error(target, error) from None


def _collect(source: _Stream, target: Path, limit: int) -> Collected:
    files = taken = 0
    problems: list[str] = []
    out: BinaryIO | None = None
    try:
        with tarfile.open(fileobj=io.BufferedReader(source), mode="r|", tarinfo=_Header) as archive:
            for member in archive:
                if not _ROLLOUT.fullmatch(member.name):
                    continue
                if not member.isreg():
                    problems.append("rollout: a session file is no regular file")
                    continue
                if member.size > limit - taken:
                    problems.append(f"rollout: {member.size} bytes more than the limit allows")
                    continue
                stream = archive.extractfile(member)
                if stream is None:
                    continue
                out = out or target.open("wb")
                last = b"\n"
                while block := stream.read(_CHUNK):
                    out.write(block)
                    last = block[-1:]
                if last != b"\n":
                    out.write(b"\n")
                taken += member.size
                files += 1
        while source.read(_CHUNK):
            pass
        if any(source.tail):
            problems.append("rollout: the archive is damaged (it has no end)")
    except (tarfile.TarError, ValueError) as error:  # the library's own parsing raises both
        # An empty stream is no archive: there simply is nothing.
        if files or taken or "empty" not in str(error):
            problems.append(f"rollout: the archive is damaged ({error})")
    finally:
        if out is not None:
            out.close()
    return Collected(files, taken, tuple(problems))
