"""The controls of a run: proof, from inside this very container, that it is sealed.

A control asks one question and observes one of
- `blocked`: the thing cannot be done, the protection holds;
- `works`: it can be done;
- `error`: the question could not be answered.
It says beforehand what it expects. An escape expects `blocked`; its allowed neighbour
(the lease, loopback, the gateway) expects `works`, so that a container in which nothing
works at all does not pass for a sealed one. `error` never passes.

Decision: the kinds are functions by name, with their arguments from the spec, so that
the host can check names and arguments (`KINDS`, `inspect.signature`) before a start.
"""

from __future__ import annotations

import time

from runner.sandbox import network, privileges, surroundings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

CONTROL_SCHEMA = "rolebox.control/1"
SUMMARY_SCHEMA = "rolebox.controls/1"

KINDS: Mapping[str, Callable[..., tuple[str, str]]] = {
    probe.__name__: probe
    for probe in (
        network.interfaces,
        network.tcp,
        network.udp,
        network.dns,
        network.loopback_works,
        network.gateway,
        privileges.uid,
        privileges.capabilities,
        privileges.no_new_privs,
        privileges.seccomp,
        privileges.namespaces,
        privileges.runs,
        privileges.limits,
        surroundings.write_denied,
        surroundings.write_allowed,
        surroundings.readonly_root,
        surroundings.masked,
        surroundings.devices,
        surroundings.engine_socket,
        surroundings.files_absent,
        surroundings.environment,
    )
}

_OWN = ("name", "category", "kind", "expect")


def run(control: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Ask one question; return its record.

    Args:
        control: `name`, `category`, `kind`, `expect`, and the kind's arguments.
        spec: The whole of sandbox.json.
    """
    began = time.monotonic()
    arguments = {key: value for key, value in control.items() if key not in _OWN}
    try:
        observed, detail = KINDS[control["kind"]](spec, **arguments)
    # Whatever goes wrong in a question, the answer is not "sealed".
    except Exception as error:  # noqa: BLE001
        observed, detail = "error", f"{type(error).__name__}: {error}"
    return record(control, observed, detail, time.monotonic() - began)


def record(
    control: Mapping[str, Any], observed: str, detail: str, seconds: float = 0.0
) -> dict[str, Any]:
    return {
        "_schema": CONTROL_SCHEMA,
        "name": control["name"],
        "category": control["category"],
        "expect": control["expect"],
        "observed": observed,
        "ok": observed == control["expect"] and observed != "error",
        "detail": detail,
        "ms": round(seconds * 1000, 3),
    }
