from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.model.errors import HardeningRefused, UsageError
from runner.planning import seccomp

from .conftest import ROOT

FOLDER = ROOT / "profiles/seccomp"
TABLE = seccomp.load(FOLDER / "agent.toml")
AGENT = seccomp.generate(TABLE)
USERNS = seccomp.generate(TABLE, userns=True)
WORD = st.integers(0, (1 << 64) - 1)
EPERM, ENOSYS = 1, 38
TYPING = {0x5412, 0x541C}


@pytest.mark.parametrize(("name", "userns"), [("agent.json", False), ("agent-userns.json", True)])
def test_generated_profiles_are_in_step_with_the_table(name: str, userns: bool) -> None:
    profile = seccomp.load_profile(FOLDER / name, userns=userns)
    assert profile == seccomp.generate(TABLE, userns=userns)
    assert (FOLDER / name).read_text() == seccomp.render(profile)


def test_check_tells_a_stale_profile_from_a_fresh_one(tmp_path: Path) -> None:
    table = tmp_path / "agent.toml"
    table.write_bytes((FOLDER / "agent.toml").read_bytes())
    assert seccomp.main(["--check", str(table)]) == 1
    assert seccomp.main([str(table)]) == 0
    assert seccomp.main(["--check", str(table)]) == 0
    (tmp_path / "agent.json").write_text("{}")
    assert seccomp.main(["--check", str(table)]) == 1


def test_userns_profile_differs_by_exactly_the_five_calls() -> None:
    def allowed(profile: seccomp.Profile) -> set[str]:
        rules = [rule for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
        return {name for rule in rules for name in rule["names"]}

    assert allowed(USERNS) - allowed(AGENT) == seccomp.USERNS_CALLS - {"clone"}
    assert allowed(AGENT) <= allowed(USERNS)
    assert seccomp.decide(USERNS, "clone", [0x10000011]) == 0
    assert seccomp.decide(AGENT, "clone", [0x10000011]) == EPERM


def test_no_call_is_decided_twice(tmp_path: Path) -> None:
    text = (FOLDER / "agent.toml").read_text()
    (tmp_path / "t.toml").write_text(
        text.replace('calls = ["clone3"]', 'calls = ["clone3", "read"]')
    )
    with pytest.raises(UsageError, match="read is decided twice"):
        seccomp.load(tmp_path / "t.toml")


@given(WORD, WORD, st.sampled_from([0, 1, 6, 17, 132, 262]))
def test_socket_families_are_four_whatever_the_upper_bits(
    family: int, kind: int, proto: int
) -> None:
    allowed = seccomp.decide(AGENT, "socket", [family, kind, proto]) == 0
    assert allowed == (
        family == 1 or (family in (2, 10) and proto in (0, 6, 17)) or (family == 16 and proto == 0)
    )


@given(st.sampled_from(sorted(TYPING)) | st.integers(0x5400, 0x5430) | WORD, WORD)
def test_ioctl_refuses_typing_into_a_terminal_and_nothing_else(request_: int, high: int) -> None:
    word = (high & ~0xFFFFFFFF) | (request_ & 0xFFFFFFFF)
    refused = seccomp.decide(AGENT, "ioctl", [0, word]) != 0
    assert refused == ((word & 0xFFFFFFFF) in TYPING)


@given(st.sets(st.integers(0, 255), min_size=1, max_size=5), st.integers(0, 255))
def test_complement_covers_everything_else_and_nothing_more(values: set[int], probe: int) -> None:
    pairs = seccomp.complement(sorted(values), 8)
    assert any(probe & mask == value for mask, value in pairs) == (probe not in values)


@given(WORD)
def test_clone_makes_no_namespace(flags: int) -> None:
    makes = any(flags & flag for flag in seccomp.NEW_NAMESPACE_FLAGS)
    assert (seccomp.decide(AGENT, "clone", [flags]) != 0) == makes


@pytest.mark.parametrize(("call", "answer"), [
    ("clone3", ENOSYS), ("io_uring_setup", ENOSYS), ("memfd_secret", ENOSYS), ("mount", EPERM),
    ("unshare", EPERM), ("ptrace", EPERM), ("call_of_next_year", EPERM), ("read", 0), ("execve", 0),
])  # fmt: skip
def test_answers_are_errors_that_programs_fall_back_from(call: str, answer: int) -> None:
    assert seccomp.decide(AGENT, call) == answer


def _allow(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", "args": [], **more}


def _family(index: int, value: int, op: str = "SCMP_CMP_EQ") -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": 0, "op": op}


NOT_TIOCSTI = {"index": 1, "value": 0x5412, "valueTwo": 0, "op": "SCMP_CMP_NE"}
WIDER = {
    "unshare": [_allow("unshare")],
    "any socket": [_allow("socket")],
    "vsock": [_allow("socket", args=[_family(0, 40)])],
    "socket by its type alone": [_allow("socket", args=[_family(1, 1)])],
    "socket by mask": [_allow("socket", args=[_family(0, 1, "SCMP_CMP_MASKED_EQ")])],
    "any clone": [_allow("clone")],
    "any ioctl": [_allow("ioctl")],
    "ioctl but 64 bits of TIOCSTI": [_allow("ioctl", args=[NOT_TIOCSTI])],
    "io_uring": [_allow("read", "io_uring_setup")],
    "one argument twice": [_allow("mincore", args=[_family(0, 1), _family(0, 2)])],
    "depends on the engine": [_allow("mincore", includes={"caps": ["CAP_SYS_ADMIN"]})],
    "a trace action": [{"names": ["mincore"], "action": "SCMP_ACT_TRACE"}],
}


@pytest.mark.parametrize("added", WIDER.values(), ids=WIDER)
def test_profile_that_lets_more_through_is_refused(added: list[dict[str, Any]]) -> None:
    seccomp.validate(AGENT)
    with pytest.raises(HardeningRefused):
        seccomp.validate(AGENT | {"syscalls": AGENT["syscalls"] + added})


@pytest.mark.parametrize("changes", [
    {"defaultAction": "SCMP_ACT_ALLOW"},
    {"defaultAction": "SCMP_ACT_LOG"},
    {"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]},
    {"archMap": [{"architecture": "SCMP_ARCH_X86", "subArchitectures": []}]},
    {"archMap": []},
    {"flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]},
])  # fmt: skip
def test_profile_of_another_shape_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(HardeningRefused):
        seccomp.validate(AGENT | changes)


def test_tighter_profile_passes_and_the_userns_one_only_where_it_was_chosen() -> None:
    tighter = copy.deepcopy(AGENT)
    tighter["syscalls"].pop(1)
    seccomp.validate(tighter)
    seccomp.validate(USERNS, userns=True)
    with pytest.raises(HardeningRefused, match="unshare is allowed"):
        seccomp.validate(USERNS)


def test_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for text in ("{", "[]", json.dumps({"defaultAction": "SCMP_ACT_ALLOW"})):
        path.write_text(text)
        with pytest.raises(HardeningRefused):
            seccomp.load_profile(path)
