"""Start: configuration from stdin, reports to stdout, the socket in between.

Exit status: 0 stopped as asked · 2 the configuration is refused · 4 the socket
cannot be made, or the reports have no reader any more.

The event loop is imported when the configuration is known: asyncio loads `ssl`
where it finds it, and does without where it does not. A gateway that speaks no
TLS saves that memory and time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import UTC, datetime
from typing import Final

from .config import ConfigError, GatewayConfig, parse_config
from .source import Input

MAX_CONFIG: Final = 64 * 1024 * 1024


def read_config(source: Input) -> GatewayConfig:
    line = source.line(MAX_CONFIG)
    if line is None:
        raise ConfigError("stdin ended before the configuration")
    return parse_config(line)


def say_fatal(error: str) -> None:
    time = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    line = {
        "_schema": "rolebox.gateway-report/1",
        "seq": 0,
        "time": time,
        "run": None,
        "kind": "fatal",
        "error": error,
    }
    os.write(1, json.dumps(line).encode() + b"\n")


def main() -> int:
    # A traceback could quote a value; only the type of what went wrong is said.
    sys.excepthook = lambda kind, *_: print(f"gateway: {kind.__name__}", file=sys.stderr)  # noqa: T201
    threading.excepthook = lambda args: print(  # noqa: T201
        f"gateway: {args.exc_type.__name__}", file=sys.stderr
    )
    source = Input(0)
    try:
        config = read_config(source)
    except ConfigError as error:
        say_fatal(str(error))
        return 2
    if config.model.base_url is None or not config.model.base_url.https:
        sys.modules["ssl"] = None  # type: ignore[assignment]
    from .service import run

    # A reader that never reads would hold the writing thread, and with it a normal exit.
    os._exit(run(config, source))


if __name__ == "__main__":
    sys.exit(main())
