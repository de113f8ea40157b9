"""What a run needs of the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from runner.engine.api import Engine

_MIB = 1 << 20


@dataclass(frozen=True)
class Host:
    """What a run needs of the world, all of it given.

    Attributes:
        headers: The credential headers for the model's upstream; empty offline.
        min_free_bytes: With less free disk under `home` a run is stopped.
    """

    home: Path
    engine: Engine
    now: Callable[[], datetime]
    entropy: Callable[[int], bytes]
    headers: Mapping[str, str]
    min_free_bytes: int = 512 * _MIB
