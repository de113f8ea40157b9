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
from typing import BinaryIO

_ROLLOUT = re.compile(r"(?:.*/)?rollout-[0-9A-Za-z_.:-]{1,200}\.jsonl")
_CHUNK = 1 << 20


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
    """The engine's chunks as a readable file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


def collect_rollouts(chunks: Iterable[bytes], target: Path, *, limit: int) -> Collected:
    """Write every rollout of a CODEX_HOME's sessions, one after the other, to one file.

    Subagents and reviews write files of their own (facts-codex.md), so all are
    taken, in the order of their names' appearance; each file keeps its lines.

    Args:
        chunks: The tar stream.
        target: The file to write; made only if a rollout was found.
        limit: The most bytes to keep in all.
    """
    files = taken = 0
    problems: list[str] = []
    out: BinaryIO | None = None
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Stream(iter(chunks))), mode="r|") as archive:
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
    except tarfile.TarError as error:
        # An empty stream is no archive: there simply is nothing.
        if files or taken or "empty" not in str(error):
            problems.append(f"rollout: the archive is damaged ({error})")
    finally:
        if out is not None:
            out.close()
    return Collected(files, taken, tuple(problems))
