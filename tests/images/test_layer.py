from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import pytest

from runner.engine.images.layer import Entry, folders, write_layer
from runner.engine.images.pins import BasePins, CodexPins, Pins, Uids
from runner.engine.images.rootfs import Rootfs, cached_rootfs, mmdebstrap, normalise
from runner.model.canonical import sha256_file
from runner.model.errors import InfrastructureError

EPOCH = 1_700_000_000
STATUS = (
    b"Package: git\nStatus: install ok installed\nVersion: 1:2.39\n\n"
    b"Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
)


def member(name: str, mode: int = 0o644, mtime: int = EPOCH, **more: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = mode, mtime
    for key, value in more.items():
        setattr(info, key, value)
    return info


def raw(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in (*members, (member("./var/lib/dpkg/status"), STATUS)):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def clean(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Rootfs:
    return normalise(raw(tmp_path / "raw.tar", *members), tmp_path / "out.tar", mtime=EPOCH)


def listing(rootfs: Rootfs) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(rootfs.layer.path) as tar:
        return {info.name: info for info in tar}


def test_entries_in_any_order_give_the_same_layer(tmp_path: Path) -> None:
    entries = [*folders("a/b"), Entry("a/b/f", b"1", 0o644), Entry("a/l", "b/f")]
    one = write_layer(tmp_path / "one", entries, mtime=EPOCH)
    two = write_layer(tmp_path / "two", reversed(entries), mtime=EPOCH)
    other = write_layer(tmp_path / "three", entries, mtime=EPOCH + 1)
    assert one.diff_id == two.diff_id == sha256_file(one.path)
    assert one.diff_id != other.diff_id
    assert one.size == one.path.stat().st_size


def test_a_path_named_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_layer(tmp_path / "x", [Entry("a", b""), Entry("a", b"")], mtime=0)
    assert not (tmp_path / "x").exists()


def test_set_id_bits_go_and_the_sticky_bit_stays(tmp_path: Path) -> None:
    found = listing(
        clean(
            tmp_path,
            (member("./usr/bin/su", 0o4755), b"su"),
            (member("./usr/bin/expiry", 0o2755), b"e"),
            (member("./tmp", 0o1777, type=tarfile.DIRTYPE), b""),
        )
    )
    assert found["usr/bin/su"].mode == 0o755
    assert found["usr/bin/expiry"].mode == 0o755
    assert found["tmp"].mode == 0o1777


@pytest.mark.parametrize(
    "name",
    [
        *("etc/machine-id", "etc/resolv.conf", "etc/hostname", "etc/passwd-", "dev/null"),
        *("var/log/dpkg.log", "var/cache/ldconfig/aux-cache", "var/lib/apt/lists/x_Release"),
        *("usr/share/man/man1/git.1.gz", "usr/share/locale/de/x.mo", "usr/share/doc/git/README"),
    ],
)
def test_what_varies_or_is_not_needed_is_left_out(tmp_path: Path, name: str) -> None:
    found = listing(
        clean(
            tmp_path,
            (member(f"./{name}"), b"x"),
            (member("./usr/share/doc/git/copyright"), b"GPL"),
            (member("./etc/passwd"), b"root"),
            (member("./usr/share/man/man1", type=tarfile.DIRTYPE), b""),
        )
    )
    assert name not in found
    assert {"usr/share/doc/git/copyright", "etc/passwd", "usr/share/man/man1"} <= found.keys()


def test_order_names_times_and_hard_links_of_the_source_do_not_matter(tmp_path: Path) -> None:
    one = clean(
        tmp_path,
        (member("./b"), b"data"),
        (member("./a", linkname="./b", type=tarfile.LNKTYPE), b""),
        (member("./c", mtime=EPOCH + 5), b""),
    )
    found = listing(one)
    assert (found["a"].size, found["b"].linkname) == (4, "a")
    other = raw(
        tmp_path / "other",
        (member("c", mtime=EPOCH + 9, uname="me"), b""),
        (member("a"), b"data"),
        (member("b", linkname="a", type=tarfile.LNKTYPE), b""),
    )
    again = normalise(other, tmp_path / "again", mtime=EPOCH)
    assert again.layer.diff_id == one.layer.diff_id


def test_compiled_python_keeps_matching_its_source_whose_time_was_clamped(tmp_path: Path) -> None:
    name = "usr/lib/python3/__pycache__/x.cpython-311.pyc"
    late = b"\xa7\r\r\n" + struct.pack("<III", 0, EPOCH + 99, 7) + b"code"
    early = b"\xa7\r\r\n" + struct.pack("<III", 0, EPOCH - 99, 7) + b"code"
    by_hash = b"\xa7\r\r\n" + struct.pack("<III", 3, EPOCH + 99, 7) + b"code"
    expected = {late: late[:8] + struct.pack("<I", EPOCH) + late[12:], early: early}
    for data in (late, early, by_hash):
        rootfs = clean(tmp_path, (member(name), data))
        with tarfile.open(rootfs.layer.path) as tar:
            stream = tar.extractfile(name)
            assert stream is not None
            assert stream.read() == expected.get(data, data)


def test_only_installed_packages_are_listed(tmp_path: Path) -> None:
    assert clean(tmp_path).packages == {"git": "1:2.39"}


def test_a_tar_that_is_no_debian_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "raw.tar", "w") as tar:
        tar.addfile(member("etc/passwd"))
    with pytest.raises(InfrastructureError, match="no Debian"):
        normalise(tmp_path / "raw.tar", tmp_path / "out.tar", mtime=EPOCH)
    assert not (tmp_path / "out.tar").exists()


PINS = Pins(
    source_date_epoch=EPOCH,
    base=BasePins(suite="bookworm", packages=("git",)),
    codex=CodexPins(version="1.2.3", platforms={}),
    uids=Uids(agent=65534, gateway=65532),
)


def test_the_cached_base_is_used_when_whole_and_made_anew_when_not(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(raw(target))

    def get(*, fresh: bool = False) -> Rootfs:
        return cached_rootfs(tmp_path / "c", PINS, "linux/amd64", 1, make, fresh=fresh)

    first, second = get(), get()
    assert (len(made), first) == (1, second)
    first.layer.path.write_bytes(b"broken")
    assert (get().layer.diff_id, len(made)) == (first.layer.diff_id, 2)
    get(fresh=True)
    assert len(made) == 3
    assert not made[0].exists()


def test_a_missing_mmdebstrap_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError) as caught:
        mmdebstrap(tmp_path / "x", PINS, "linux/amd64", {"PATH": str(tmp_path)})
    assert "apt-get install mmdebstrap" in caught.value.mend
