"""Debug logging, off unless asked for: `ROLEBOX_LOG=debug` or `--debug`.

loguru loads only when it is on: it costs 90 ms, and most runs never log. Nothing
secret is ever passed here, and what an agent wrote is passed as a `repr`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loguru import Logger

_logger: Logger | None = None


def enable() -> None:
    """Log to stderr from now on."""
    global _logger
    import sys

    from loguru import logger

    logger.remove()
    logger.add(
        sys.stderr,
        level="DEBUG",
        format="{time:HH:mm:ss.SSS} {level} {message} {extra}",
        diagnose=False,  # values of variables may be secrets
        backtrace=False,
    )
    _logger = logger


def debug(message: str, **fields: Any) -> None:
    """Log one message with its fields, if logging is on."""
    if _logger is not None:
        _logger.bind(**fields).debug(message)
