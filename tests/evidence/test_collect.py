"""Session files out of a tar stream that an agent shaped: the rollout and nothing else."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.evidence.collect import Collected, collect_rollouts
from runner.model.errors import InfrastructureError

NAME = "sessions/2026/11/22/rollout-2026-11-22T20-15-01-abc.jsonl"
GOOD = b'{"type":"session_meta"}\n'
MIB = 1 << 20


def info(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = ""
) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def file(name: str, data: bytes = GOOD) -> tuple[tarfile.TarInfo, bytes]:
    return info(name, size=len(data)), data


def take(data: bytes, folder: Path, *, limit: int = MIB, step: int = 1000) -> Collected:
    chunks = (data[i : i + step] for i in range(0, len(data), step))
    return collect_rollouts(chunks, folder / "rollout.jsonl", limit=limit)


def left(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")}


@pytest.mark.parametrize("step", [1, 511, 1 << 20])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_rollout_is_kept_one_after_the_other(tmp_path: Path, step: int, form: int) -> None:
    data = archive(
        (info("sessions", tarfile.DIRTYPE), b""),
        file(NAME, b"one\n"),
        file("sessions/state.sqlite", b"secret"),
        file(NAME.replace("abc", "sub.agent:2"), b"two without an end"),
        file(NAME.replace("abc", "third"), b"three\n"),
        file(NAME.replace("abc", "empty"), b""),
        form=form,
    )
    assert take(data, tmp_path, step=step) == Collected(4, 28, ())
    assert left(tmp_path) == {"rollout.jsonl": b"one\ntwo without an end\nthree\n"}


@pytest.mark.parametrize("data", [b"", archive(), archive((info("s", tarfile.DIRTYPE), b""))])
def test_without_a_rollout_there_is_no_file_and_no_problem(tmp_path: Path, data: bytes) -> None:
    assert take(data, tmp_path) == Collected(0, 0, ())
    assert left(tmp_path) == {}


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
     tarfile.DIRTYPE],
)  # fmt: skip
def test_a_rollout_that_is_no_regular_file_is_left_out_and_said(
    tmp_path: Path, kind: bytes
) -> None:
    evil = info(NAME, kind, link="/etc/passwd")
    got = take(archive((evil, b""), file(NAME.replace("abc", "good"))), tmp_path)
    assert got == Collected(1, len(GOOD), ("rollout: a session file is no regular file",))
    assert left(tmp_path) == {"rollout.jsonl": GOOD}


@pytest.mark.parametrize(
    "name",
    ["../../../etc/cron.d/x", "/etc/passwd", "sessions/../../x", "sessions/x.jsonl",
     "rollout.jsonl", "rollout-x.jsonl/../../evil", "rollout-a b.jsonl", "rollout-x.json",
     "x/rollout-x.jsonl\n",     "rollout-" + "x" * 300 + ".jsonl"],
)  # fmt: skip
def test_a_file_of_another_name_is_not_taken(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "run"
    inner.mkdir()
    got = take(archive(file(name, b"evil"), file(NAME)), inner)
    assert got == Collected(1, len(GOOD), ())
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert left(inner) == {"rollout.jsonl": GOOD}


@pytest.mark.parametrize("name", ["../../rollout-x.jsonl", "/etc/rollout-x.jsonl"])
def test_where_a_rollout_claims_to_lie_decides_nothing(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "run"
    inner.mkdir()
    assert take(archive(file(name)), inner).files == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert left(inner) == {"rollout.jsonl": GOOD}


def test_the_limit_holds_over_all_files_and_a_smaller_one_still_fits(tmp_path: Path) -> None:
    data = archive(
        file(NAME, b"a" * 60), file(NAME + "x.jsonl", b""), file(f"x/{NAME}", b"b" * 60),
        file(f"y/{NAME}", b"c" * 40),
    )  # fmt: skip
    got = take(data, tmp_path, limit=100)
    assert (got.files, got.bytes) == (3, 100)
    assert got.problems == ("rollout: 60 bytes more than the limit allows",)
    assert left(tmp_path)["rollout.jsonl"] == b"a" * 60 + b"\n" + b"c" * 40 + b"\n"


def test_a_huge_declared_size_takes_nothing(tmp_path: Path) -> None:
    header = info(NAME, size=8 << 30).tobuf(tarfile.GNU_FORMAT)
    got = take(header + b"x" * 5000, tmp_path)
    assert got.files == 0
    assert any("more than the limit" in problem for problem in got.problems)
    assert left(tmp_path) == {}


def test_a_negative_size_ends_the_reading(tmp_path: Path) -> None:
    header = info(NAME, size=-(1 << 20)).tobuf(tarfile.GNU_FORMAT)
    got = take(archive(file("a"))[:1024] + header + bytes(10240), tmp_path)
    assert got.problems
    assert not any(left(tmp_path).values())


def test_a_sparse_file_of_a_terabyte_takes_nothing(tmp_path: Path) -> None:
    member = info(NAME, size=0)
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": str(1 << 40),
        "GNU.sparse.name": NAME,
    }
    member.size = 512
    got = take(archive((member, b"1\n0\n0\n".ljust(512, b"\0"))), tmp_path)
    assert got.files == 0
    assert got.problems
    assert left(tmp_path) == {}


@pytest.mark.parametrize("cut", [1, 100, 511, 512, 513, 700, 1024, 1536])
def test_a_damaged_archive_is_said_to_be_so(tmp_path: Path, cut: int) -> None:
    whole = archive(file(NAME, b"x" * 1000))
    assert take(whole, tmp_path).problems == ()
    (tmp_path / "rollout.jsonl").unlink()
    got = take(whole[:cut], tmp_path)
    assert any("damaged" in problem for problem in got.problems)
    assert set(left(tmp_path)) <= {"rollout.jsonl"}


def test_rollouts_before_the_damage_are_kept(tmp_path: Path) -> None:
    data = archive(file(NAME), file(f"x/{NAME}"))
    bad = data[:1024] + b"\xff" * 512 + data[1536:]
    got = take(bad, tmp_path)
    assert (got.files, got.bytes) == (1, len(GOOD))
    assert any("damaged" in problem for problem in got.problems)
    assert left(tmp_path) == {"rollout.jsonl": GOOD}


def counted(chunks: Iterable[bytes], counter: list[int]) -> Iterator[bytes]:
    for chunk in chunks:
        counter[0] += len(chunk)
        yield chunk


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_an_endless_name_is_not_read_to_its_end(tmp_path: Path, kind: bytes) -> None:
    header = info("././@LongLink", kind, size=8 << 30).tobuf(tarfile.GNU_FORMAT)
    read = [0]
    stream = counted(itertools.chain([header], itertools.repeat(b"x" * MIB)), read)
    got = collect_rollouts(stream, tmp_path / "rollout.jsonl", limit=MIB)
    assert any("damaged" in problem for problem in got.problems)
    assert read[0] < 512 * MIB
    assert left(tmp_path) == {}


def test_endless_files_of_other_names_are_not_read_to_their_end(tmp_path: Path) -> None:
    one = archive(file("sessions/x.db", b"x" * 100_000))[:-10240].ljust(100_864, b"\0")[:100_864]
    read = [0]
    stream = counted(itertools.chain([archive(file(NAME))[:1024]], itertools.repeat(one)), read)
    got = collect_rollouts(stream, tmp_path / "rollout.jsonl", limit=MIB)
    assert (got.files, got.bytes) == (1, len(GOOD))
    assert any("damaged" in problem for problem in got.problems)
    assert read[0] < 512 * MIB
    assert left(tmp_path) == {"rollout.jsonl": GOOD}


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_archive_raises_or_leaves_more_than_the_limit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    member = info(NAME, size=len(GOOD))
    member.pax_headers = {"comment": "x" * 40, "GNU.sparse.major": "1", "size": "24"}
    whole = bytearray(archive((member, GOOD), file(f"x/{NAME}", b"y" * 600)))
    spots = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(spots, min_size=1, max_size=12)):
        whole[place % 4096] = value
    got = take(bytes(whole), folder, limit=4096, step=997)
    assert set(left(folder)) <= {"rollout.jsonl"}
    assert sum(len(v) for v in left(folder).values()) <= 4096 + got.files + 1


def test_a_full_disk_is_an_error_that_a_person_can_act_on(
    tiny_disk: Path, fill: Callable[[], Path]
) -> None:
    data = archive(file(NAME, b"x" * 200_000))
    filler = fill()
    with pytest.raises(InfrastructureError, match="cannot be written"):
        take(data, tiny_disk)
    filler.unlink()
    assert take(data, tiny_disk).files == 1
