"""The one way out of a sealed agent container.

An agent container has no network. What it has is one unix socket, on a volume
that it mounts read-only, and this process listens there, in a hardened
container of its own, one per run. It answers the model route, refuses all else,
and reports every decision.

Why a process of its own: the credential lives in this address space and nowhere
else; a flood harms one run; what the agent says is recorded by something that
the agent cannot touch.

Why the standard library and h11 only: the image then holds Debian's Python and
one pure-Python package, and this package starts in about 80 ms. Nothing here
imports the rest of `runner`; imports are relative, so the folder can be copied.

How it is driven: the configuration is the first line of stdin, reports are JSON
lines on stdout, EOF on stdin means that the orchestrator is gone and ends it.

What the threats are, and where they are met:

    request smuggling, slow or huge requests     `wire`, before and around h11
    a host that is not allowed                   `policy`, `routes`
    the model provider used as a way out         `modelrules` (hosted tools, remote
                                                 URLs, stored state, other models)
    a credential read back                       `config` (never in repr or errors),
                                                 `upstream` (scrubbed error bodies)
    forged, lost or flooded audit lines          `report` (ASCII JSON, capped fields,
                                                 folding, no line - no decision)
    spending without end                         `budget`, also when streams are dropped

Modules, from the bottom up: `config`, `script`, `sse`, `budget`, `policy`,
`wire`, `routes`, `modelrules`, `backend`, `upstream`, `report`, `audit`,
`exchange`, `server`, `source`, `service`, `__main__`.
"""
