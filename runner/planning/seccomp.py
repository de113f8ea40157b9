"""The agent's seccomp profile: generated from a readable table, and judged by what it decides.

`profiles/seccomp/agent.toml` says which calls are allowed and why; `generate` turns it
into the JSON that the engine takes (`HostConfig.SecurityOpt`), `validate` refuses a
profile that lets through what an agent must not have, whoever wrote it.

Decisions:
- Two architectures, no sub-architectures: an x86-32 or x32 call, `socketcall` among
  them, is outside the filter's world, and libseccomp kills the thread that makes it.
- `validate` asks what the profile decides (`decide`) for calls and arguments, so it
  does not matter how a rule is written.
- Arguments are 64 bits wide in a filter, while the kernel reads 32 of most. An allow
  rule by equality is safe against that; a refusal by inequality is not (CVE-2019-10063).
  "All but" is therefore written as the masks that cover everything else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.model.errors import HardeningRefused, UsageError

SCHEMA = "rolebox.seccomp/1"
ENOSYS = 38
EPERM = 1
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
FAMILIES = {1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK"}
USERNS_CALLS = frozenset({"clone", "mount", "pivot_root", "umount2", "unshare"})
NEW_NAMESPACE_FLAGS = tuple(1 << bit for bit in (17, 25, 26, 27, 28, 29, 30))
TERMINAL_INJECTION = {0x5412: "TIOCSTI", 0x541C: "TIOCLINUX"}

# What no profile may allow, with or without an inner sandbox.
FORBIDDEN = frozenset(
    {"add_key", "keyctl", "request_key", "bpf", "perf_event_open", "userfaultfd", "fanotify_init"}
    | {"io_uring_enter", "io_uring_register", "io_uring_setup", "clone3", "setns", "chroot"}
    | {"fsopen", "fsmount", "mount_setattr", "move_mount", "open_tree", "open_by_handle_at"}
    | {"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "socketcall"}
    | {"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot"}
    | {"iopl", "ioperm", "modify_ldt", "quotactl", "swapon", "syslog"}
)

_WORD = (1 << 64) - 1
_ACTIONS = {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"}
_KEYS = {"defaultAction", "defaultErrnoRet", "archMap", "syscalls"}

Profile = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """Read the table; each call may appear under one kind of decision only.

    Raises:
        UsageError: the file is not such a table, or decides a call twice.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError("the syscall table is not TOML", why=str(error)) from error
    if table.get("schema") != SCHEMA:
        raise UsageError(f"the syscall table is not {SCHEMA}", why=f"schema: {table.get('schema')}")
    seen: dict[str, str] = {}
    for kind, call in decisions(table):
        if call in seen:
            raise UsageError(f"{call} is decided twice", why=f"{seen[call]} and {kind}")
        seen[call] = kind
    return table


def decisions(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (`allow`, `only`, `absent` or `refuse`; call) for every call that the table names."""
    for kind in ("allow", "absent", "refuse"):
        for group in table[kind]:
            for call in group["calls"]:
                yield kind, call
    for call in dict.fromkeys(rule["call"] for rule in table["only"]):
        yield "only", call


def generate(table: Mapping[str, Any], *, userns: bool = False) -> Profile:
    """Return the profile as the engine takes it; with `userns`, bubblewrap's calls as well."""
    wider: Sequence[str] = table["userns"]["calls"] if userns else ()
    rules = [
        _entry(group["calls"], "SCMP_ACT_ALLOW", f"{group['group']}: {group['why']}")
        for group in table["allow"]
    ]
    for rule in table["only"]:
        if rule["call"] not in wider:
            rules += [
                _entry([rule["call"]], "SCMP_ACT_ALLOW", rule["why"], args)
                for args in itertools.product(*(_conditions(when) for when in rule["when"]))
            ]
    if wider:
        rules.append(_entry(wider, "SCMP_ACT_ALLOW", table["userns"]["why"]))
    for group in table["absent"]:
        comment = f"{group['group']}: {group['why']}"
        entry = _entry(group["calls"], "SCMP_ACT_ERRNO", comment)
        rules.append(entry | {"errnoRet": ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "archMap": [
            {"architecture": name, "subArchitectures": []} for name in table["architectures"]
        ],
        "syscalls": rules,
    }


def render(profile: Profile) -> str:
    return json.dumps(profile, indent=1) + "\n"


def decide(profile: Profile, call: str, args: Sequence[int] = ()) -> int:
    """Return 0 when the profile lets the call through, else the errno that it answers.

    Args:
        profile: A profile as `generate` returns it.
        call: The system call's name.
        args: Its arguments, six 64-bit words; missing ones are 0.
    """
    words = [word & _WORD for word in args] + [0] * (6 - len(args))
    answer = int(profile.get("defaultErrnoRet", EPERM))
    for rule in profile["syscalls"]:
        if call in rule["names"] and all(_holds(test, words) for test in rule.get("args") or ()):
            if rule["action"] == "SCMP_ACT_ALLOW":
                return 0
            answer = int(rule.get("errnoRet", EPERM))
    return answer


def validate(profile: Profile, *, userns: bool = False) -> None:
    """Refuse a profile that is wider than an agent's may be.

    Args:
        profile: The parsed JSON of the profile.
        userns: Whether the plan chose `inner_sandbox = "codex"`.

    Raises:
        HardeningRefused: naming every fault found.
    """
    faults = list(_shape_faults(profile)) or list(_breaches(profile, userns=userns))
    if faults:
        raise HardeningRefused(
            "the seccomp profile is not fit for an agent",
            why="; ".join(faults),
            mend="use the profile that comes with rolebox, or tighten this one",
        )


def load_profile(path: Path, *, userns: bool = False) -> Profile:
    """Read a profile's JSON and validate it.

    Raises:
        HardeningRefused: it is not JSON, or not fit for an agent.
    """
    try:
        profile = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise HardeningRefused(f"{path.name} is not JSON", why=str(error)) from error
    if not isinstance(profile, dict):
        raise HardeningRefused(f"{path.name} is not a seccomp profile", why="not a JSON object")
    validate(profile, userns=userns)
    return profile


def _entry(
    calls: Sequence[str], action: str, comment: str, args: Iterable[Profile] = ()
) -> Profile:
    return {"names": sorted(calls), "action": action, "args": list(args), "comment": comment}


def _conditions(when: Mapping[str, Any]) -> list[Profile]:
    """Return the alternatives of one condition in the table."""
    index = when["arg"]
    if "not_in" in when:
        return [
            _masked(index, mask, value) for mask, value in complement(when["not_in"], when["bits"])
        ]
    values = when["is_any"] if "is_any" in when else [when["is"]]
    if "mask" in when:
        return [_masked(index, when["mask"], value) for value in values]
    return [{"index": index, "value": v, "valueTwo": 0, "op": "SCMP_CMP_EQ"} for v in values]


def _masked(index: int, mask: int, value: int) -> Profile:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def complement(values: Sequence[int], bits: int) -> list[tuple[int, int]]:
    """Return (mask, value) pairs that together match every `bits`-wide number but `values`.

    The numbers form a binary tree; wherever a path to a value turns, the other branch
    is wholly allowed, unless it leads to another value.
    """
    pairs = []
    for depth in range(1, bits + 1):
        shift = bits - depth
        mask = ((1 << depth) - 1) << shift
        kept = {value & mask for value in values}
        pairs += [(mask, twin) for twin in sorted({v ^ (1 << shift) for v in kept} - kept)]
    return pairs


def _holds(test: Mapping[str, Any], words: Sequence[int]) -> bool:
    word, value, operator = words[int(test["index"])], int(test["value"]), str(test["op"])
    if operator == "SCMP_CMP_EQ":
        return word == value
    if operator == "SCMP_CMP_MASKED_EQ":
        return (word & value) == int(test["valueTwo"])
    raise HardeningRefused("the seccomp profile compares in a way not checked here", why=operator)


def _shape_faults(profile: Profile) -> Iterator[str]:
    if profile.get("defaultAction") != "SCMP_ACT_ERRNO":
        yield f"the default action is {profile.get('defaultAction')}, not SCMP_ACT_ERRNO"
    if unknown := sorted(set(profile) - _KEYS):
        yield f"unknown keys {', '.join(unknown)}"
    arches = profile.get("archMap") or []
    names = [arch.get("architecture") for arch in arches]
    if not names or not set(names) <= set(ARCHITECTURES):
        yield f"architectures {names} are not among {list(ARCHITECTURES)}"
    if any(arch.get("subArchitectures") for arch in arches):
        yield "sub-architectures let 32-bit calls through"
    for rule in profile.get("syscalls") or []:
        if rule.get("action") not in _ACTIONS or not rule.get("names"):
            yield f"a rule for {rule.get('names')} has the action {rule.get('action')}"
        if rule.get("includes") or rule.get("excludes"):
            yield f"a rule for {rule.get('names')} depends on the engine's state"
        # runc reads repeated tests of one argument as alternatives, not as "and".
        indexes = [test.get("index") for test in rule.get("args") or ()]
        if len(set(indexes)) != len(indexes):
            yield f"a rule for {rule.get('names')} tests one argument twice"


def _breaches(profile: Profile, *, userns: bool) -> Iterator[str]:
    forbidden = FORBIDDEN if userns else FORBIDDEN | USERNS_CALLS - {"clone"}
    allowing = [rule for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    for call in sorted(forbidden & {name for rule in allowing for name in rule["names"]}):
        yield f"{call} is allowed"
    for rule in allowing:
        if "socket" in rule["names"] and not _pins_family(rule):
            yield "socket() is allowed beyond " + ", ".join(FAMILIES.values())
    if not userns and any(not decide(profile, "clone", [flag]) for flag in NEW_NAMESPACE_FLAGS):
        yield "clone() may make namespaces"
    for request, name in TERMINAL_INJECTION.items():
        if not all(decide(profile, "ioctl", [0, high | request]) for high in (0, 1 << 32)):
            yield f"ioctl({name}) is allowed"
    if decide(profile, "clone", [17]) or decide(profile, "execve"):
        yield "no process can start"


def _pins_family(rule: Profile) -> bool:
    return any(
        test["index"] == 0 and test["op"] == "SCMP_CMP_EQ" and test["value"] in FAMILIES
        for test in rule.get("args") or ()
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write agent.json and agent-userns.json beside the table, or check that they are in step."""
    parser = argparse.ArgumentParser(prog="python -m runner.planning.seccomp")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of step")
    parser.add_argument("table", nargs="?", type=Path, default=Path("profiles/seccomp/agent.toml"))
    options = parser.parse_args(argv)
    table = load(options.table)
    stale = []
    for name, userns in (("agent.json", False), ("agent-userns.json", True)):
        profile = generate(table, userns=userns)
        validate(profile, userns=userns)
        path = options.table.with_name(name)
        if options.check and (not path.exists() or path.read_text() != render(profile)):
            stale.append(name)
        elif not options.check:
            path.write_text(render(profile), encoding="utf-8")
    if stale:
        sys.stderr.write(f"out of step with {options.table}: {', '.join(stale)}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
