"""First in the container after the init: relay, controls, the host's word, then the command.

    docker-init -- python3 -I -S -B /opt/rolebox/runner/sandbox/supervisor.py [SPEC]

The spec (default /etc/rolebox/sandbox.json, mounted read-only) names the controls and
the command. One JSON line for each control goes to stdout, then a summary. The host
judges them and writes `go`; anything else, or a control that failed, and nothing is
started (exit 3). After `go` this process becomes the command (`execve`): stdout is the
command's byte for byte, stdin a file, the environment the spec's and nothing more.

Decision: the host judges as well as this process. This one runs before anything of the
agent's does, so its answers are honest; but it is not what decides alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys

# -I leaves no folder of ours on the path: /opt/rolebox, from .../runner/sandbox/supervisor.py.
sys.path.insert(0, __file__.rsplit("/", 3)[0])

from runner.sandbox import controls, relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

SCHEMA = "rolebox.sandbox/1"
KEYS = frozenset(
    {"_schema", "argv", "cwd", "stdin", "env", "relay", "gateway_timeout_s", "controls", "umask"}
)
SPEC = "/etc/rolebox/sandbox.json"
REFUSED = 3
GO = b"go\n"
RELAY_CONTROL = {"name": "relay", "category": "network", "expect": "works"}


def main(argv: list[str]) -> NoReturn:
    with open(argv[1] if len(argv) > 1 else SPEC, encoding="utf-8") as stream:  # noqa: PTH123
        spec = json.load(stream)
    if spec.get("_schema") != SCHEMA:
        refuse(f"the spec is {spec.get('_schema')!r}, not {SCHEMA!r}")
    if set(spec) != KEYS or not spec["argv"]:
        refuse(f"the spec lacks or adds keys: {sorted(set(spec) ^ KEYS)}")
    if not prove(spec):
        refuse("a control failed; nothing was started")
    if not told_to_go():
        refuse("the host did not say go; nothing was started")
    become(spec)


def prove(spec: dict[str, Any]) -> bool:
    """Start the relay, run every control, say each result; return whether all held."""
    held = []
    if spec["relay"] is not None:
        held.append(_say(_start_relay(spec["relay"])))
    held += [_say(controls.run(control, spec)) for control in spec["controls"]]
    passed = sum(held)
    failed = len(held) - passed
    _say(
        {"_schema": controls.SUMMARY_SCHEMA, "done": True, "passed": passed, "failed": failed},
    )
    return not failed


def told_to_go() -> bool:
    """Read exactly `go` and a newline, byte by byte: what follows would be the command's."""
    said = b""
    while len(said) < len(GO) and GO.startswith(said):
        byte = os.read(0, 1)
        if not byte:
            return False
        said += byte
    return said == GO


def become(spec: dict[str, Any]) -> NoReturn:
    """Replace this process by the command; nothing of ours is left in it."""
    command = spec["argv"]
    try:
        source = os.open(spec["stdin"] or os.devnull, os.O_RDONLY)
        os.dup2(source, 0)
        os.closerange(3, 1 + max(map(int, os.listdir("/proc/self/fd"))))  # noqa: PTH208
        os.umask(int(spec["umask"], 8))
        os.chdir(spec["cwd"])
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _exec(command, spec["env"])
    except OSError as error:
        sys.stderr.write(f"rolebox: {error.filename or command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def refuse(why: str) -> NoReturn:
    sys.stderr.write(f"rolebox: {why}\n")
    sys.exit(REFUSED)


def _exec(command: list[str], env: dict[str, str]) -> NoReturn:
    """Exec a path as it is, a bare name by the PATH of the command's own environment."""
    if "/" in command[0]:
        os.execve(command[0], command, env)  # noqa: S606 -- to start a process is the job
    os.execvpe(command[0], command, env)  # noqa: S606


def _start_relay(wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        with relay.listen(wanted["port"]) as listener:
            relay.spawn(listener, wanted["socket"])
    except OSError as error:
        return controls.record(RELAY_CONTROL, "error", f"127.0.0.1:{wanted['port']}: {error}")
    return controls.record(RELAY_CONTROL, "works", f"listens on 127.0.0.1:{wanted['port']}")


def _say(line: dict[str, Any]) -> bool:
    """Write one line past Python's buffer: none of it may surface after `go`."""
    data = (json.dumps(line) + "\n").encode()
    while data:
        data = data[os.write(1, data) :]
    return bool(line.get("ok"))


if __name__ == "__main__":
    main(sys.argv)
