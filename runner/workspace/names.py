"""How names of a git tree are compared and shown.

Names are bytes on the host and in git. They are folded before they are
compared with a rule, because the patch may be checked out later on a file
system that folds them: HFS+ ignores some code points and decomposes the rest,
NTFS drops trailing dots and spaces, both ignore case (CVE-2014-9390).
"""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from typing import Final

_IGNORED_BY_HFS: Final = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]
)


@lru_cache(maxsize=1 << 16)
def fold(name: str) -> str:
    """Return a form that two spellings share when some file system takes them for one."""
    if name.isascii():
        return name.lower().rstrip(" .") or name
    bare = name.translate(_IGNORED_BY_HFS)
    decomposed = unicodedata.normalize("NFD", bare)
    return unicodedata.normalize("NFD", decomposed.casefold()).rstrip(" .") or bare


def is_dotgit(name: bytes) -> bool:
    """Say whether some file system would take this component, or a part of it, for `.git`.

    Windows parts a name at a backslash, and a colon begins a stream of the file.
    """
    parts = text(name).split("\\")
    return any(fold(part.partition(":")[0]) in {".git", "git~1"} for part in parts)


def text(path: bytes) -> str:
    """Return a path as Python text, every byte kept (PEP 383)."""
    return os.fsdecode(path)


def shown(path: bytes) -> str:
    """Return a path as one printable line, without control, bidi or stray bytes."""
    decoded = path.decode("utf-8", "surrogateescape")
    return "".join(_shown_character(character) for character in decoded)


def _shown_character(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\U{code:08x}"
