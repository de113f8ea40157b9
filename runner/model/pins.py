"""What a plan pins from the image lock; read by the images room, handed to planning."""

from __future__ import annotations

from typing import Literal

from runner.model.base import Frozen


class Pins(Frozen):
    """The images and the Codex CLI of one platform.

    Attributes:
        agent_image: Image id `sha256:<hex>`, the only form in which a run names an image.
        codex_sha256: Digest of the codex binary in the agent image.
        models: The model slugs that the pinned catalog knows.
        origin: Whether the lock was shipped, or made by this host's first build.
    """

    agent_image: str
    gateway_image: str
    codex_version: str
    codex_sha256: str
    models: tuple[str, ...]
    lock_sha256: str
    origin: Literal["shipped", "host"]
