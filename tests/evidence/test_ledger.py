"""The ledger: a chain that concurrent writers, torn lines and full disks cannot break."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.evidence.ledger import GENESIS, append
from runner.model.errors import EvidenceError, InfrastructureError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def assert_chain(path: Path, length: int) -> None:
    """Check the chain with the standard library alone."""
    previous = GENESIS
    lines = path.read_bytes().splitlines()
    assert len(lines) == length
    for number, raw in enumerate(lines, start=1):
        entry = json.loads(raw)
        assert (entry["seq"], entry["previous"]) == (number, previous)
        tight = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        assert raw == tight
        previous = "sha256:" + hashlib.sha256(raw).hexdigest()


def test_each_entry_holds_the_digest_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    digests = [append(path, {"kind": "run", "run": f"r{n}"}) for n in range(5)]
    assert_chain(path, 5)
    assert [e["previous"] for e in entries(path)] == [GENESIS, *digests[:-1]]
    assert entries(path)[0]["_schema"] == "rolebox.ledger/1"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_changed_removed_or_moved_line_breaks_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for n in range(4):
        append(path, {"run": f"r{n}"})
    good = path.read_bytes().splitlines(keepends=True)
    assert_chain(path, 4)
    for bad in (
        [good[0], good[1].replace(b"r1", b"rX"), *good[2:]],
        [good[0], *good[2:]],
        [good[1], good[0], *good[2:]],
    ):
        path.write_bytes(b"".join(bad))
        with pytest.raises(AssertionError):
            assert_chain(path, len(bad))


def test_appends_from_eight_processes_stay_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = (
        "import sys; from pathlib import Path; from runner.evidence.ledger import append\n"
        "sys.stdin.read()\n"
        "for n in range(25): append(Path(sys.argv[1]), {'writer': sys.argv[2], 'n': n})\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, str(number)], cwd=ROOT, stdin=subprocess.PIPE
        )
        for number in range(8)
    ]
    for writer in writers:  # all begin together
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(120) for writer in writers] == [0] * 8
    assert_chain(path, 200)
    order = [(e["writer"], e["n"]) for e in entries(path)]
    for number in range(8):
        assert [n for writer, n in order if writer == str(number)] == list(range(25))


@pytest.mark.parametrize(
    "tail",
    [b'{"seq":2,"previous":', b"\n", b"not json\n", b"[]\n", b"{}\n", b'{"seq":"2"}\n', b"\xff\n"],
)
def test_a_ledger_that_does_not_end_with_a_whole_entry_is_left_as_it_is(
    tmp_path: Path, tail: bytes
) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, {"run": "r"})
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with pytest.raises(EvidenceError, match="does not end with a whole entry") as refused:
        append(path, {"run": "s"})
    assert refused.value.exit_code == 7
    assert refused.value.mend
    assert path.read_bytes() == whole + tail
    path.write_bytes(whole)
    append(path, {"run": "s"})
    assert_chain(path, 2)


def test_an_entry_longer_than_the_tail_that_is_read_first_is_found_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, {"kind": "reject", "reason": "x" * 200_000})
    append(path, {"run": "s"})
    assert_chain(path, 2)


def test_a_full_disk_leaves_the_ledger_as_it_was(tiny_disk: Path, fill: Callable[[], Path]) -> None:
    path = tiny_disk / "ledger.jsonl"
    append(path, {"run": "r"})
    before = path.read_bytes()
    filler = fill()
    with pytest.raises(InfrastructureError, match="cannot be written") as refused:
        append(path, {"run": "x" * 10_000})
    assert "No space" in refused.value.why
    assert path.read_bytes() == before
    filler.unlink()
    append(path, {"run": "x" * 10_000})
    assert_chain(path, 2)


def test_a_folder_in_the_ledger_s_place_is_an_error_with_a_mend(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="cannot be written"):
        append(tmp_path, {"run": "r"})
    with pytest.raises(InfrastructureError):
        append(tmp_path / "missing" / "ledger.jsonl", {"run": "r"})


def test_an_entry_that_json_cannot_say_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, {"run": "r"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="safe integer"):
        append(path, {"n": 1 << 60})
    assert path.read_bytes() == before


def test_a_ledger_of_another_user_is_an_error_of_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match="cannot be written"):
        append(tmp_path / "ledger.jsonl", {"run": "r"})
