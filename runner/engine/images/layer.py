"""Layers that come out the same twice.

A layer is an uncompressed tar whose members are sorted, with owners by number,
no names, whole-second times and no set-id bits. It is written once to disk and
hashed on the way; nothing bigger than a copy buffer is held in memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Layer:
    """A layer on disk; `diff_id` is `sha256:<hex>` of the file's bytes."""

    path: Path
    diff_id: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One member of a layer.

    Attributes:
        path: Relative, `/`-separated, without `.` or `..`.
        content: Bytes or a file for a file, None for a folder; a str is a
            symbolic link's target.
        mode: Permission bits; ignored for links.
    """

    path: str
    content: bytes | Path | str | None
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


def folders(*paths: str) -> list[Entry]:
    """Return root-owned 0755 folders, each with all its parents."""
    found = {
        "/".join(parts[: depth + 1])
        for parts in (path.split("/") for path in paths)
        for depth in range(len(parts))
    }
    return [Entry(path, None) for path in sorted(found)]


def write_layer(path: Path, entries: Iterable[Entry], *, mtime: int) -> Layer:
    """Write entries, sorted, as a layer. Two entries of one path are an error."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    names = [entry.path for entry in ordered]
    if len(set(names)) != len(names):
        raise ValueError(f"a layer names a path twice: {sorted(names)}")
    with layer_writer(path) as out:
        for entry in ordered:
            member = tarfile.TarInfo(entry.path)
            member.mtime, member.uid, member.gid = mtime, entry.uid, entry.gid
            member.mode = entry.mode
            _add(out.tar, member, entry.content)
    return out.layer()


def _add(tar: tarfile.TarFile, member: tarfile.TarInfo, content: bytes | Path | str | None) -> None:
    if content is None:
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif isinstance(content, str):
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, content, 0o777
        tar.addfile(member)
    elif isinstance(content, bytes):
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    else:
        with content.open("rb") as stream:
            member.size = os.fstat(stream.fileno()).st_size
            tar.addfile(member, stream)


class _HashingFile(io.RawIOBase):
    """A file that is hashed as it is written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # tarfile gives bytes
        self.hash.update(data)
        self.size += len(data)
        return self._stream.write(data)


class LayerWriter:
    """A layer in the making, from `layer_writer`: add members to `tar`, then take `layer()`."""

    def __init__(self, path: Path, sink: _HashingFile, tar: tarfile.TarFile) -> None:
        self.tar = tar
        self._path = path
        self._sink = sink

    def layer(self) -> Layer:
        """Return what was written, once the writer is closed."""
        return Layer(self._path, "sha256:" + self._sink.hash.hexdigest(), self._sink.size)


@contextmanager
def layer_writer(path: Path) -> Iterator[LayerWriter]:
    """Write a layer to a side file; it takes its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        sink = _HashingFile(stream)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            writer = LayerWriter(path, sink, tar)
            yield writer
    part.replace(path)


def plain_mode(mode: int) -> int:
    """Return permission bits without set-user-id and set-group-id; sticky stays."""
    return stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID)
