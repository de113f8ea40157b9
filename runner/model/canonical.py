"""Canonical JSON and digests.

Canonical means RFC 8785 (JCS): the same value gives the same bytes in every
language, so a digest can be checked without any of our code. Digests are
written `sha256:<hex>`, as OCI writes them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import rfc8785


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 form of a JSON value (None, bool, int, float, str, list, dict)."""
    return rfc8785.dumps(value)


def sha256(data: bytes) -> str:
    """Return `sha256:<hex>` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """Return the digest of a JSON value's canonical form."""
    return sha256(canonical(value))


def sha256_file(path: Path) -> str:
    """Return `sha256:<hex>` of a regular file's bytes, read in chunks."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
