"""Make text of an agent harmless for a terminal.

Escape sequences can repaint, hide or type; bidirectional controls make code read
otherwise than it runs (CVE-2021-42574). Both become visible escapes.
"""

from __future__ import annotations

import unicodedata

_KEPT = {"\n", "\t"}


def inert(text: str) -> str:
    """Return the text with every control, format and surrogate character written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def one_line(text: str, width: int) -> str:
    """Return inert text on one line of at most `width` characters."""
    flat = " ".join(inert(text[: width * 4]).split())
    return flat if len(flat) <= width else flat[: max(width - 1, 0)] + "…"


def _shown(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
