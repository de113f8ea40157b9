from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.engine.images.build import settle
from runner.engine.images.lock import (
    Cause,
    ImageLock,
    LockFiles,
    PlatformLock,
    differences,
    effective_lock,
    is_current,
    plan_pins,
    read_lock,
    verify,
    write_lock,
)
from runner.model.errors import ImageRefused, UsageError

AMD64 = "linux/amd64"


def sha(seed: int) -> str:
    return "sha256:" + f"{seed:064x}"


def value() -> dict[str, Any]:
    return {
        "h11_version": "0.16.0",
        "inputs": {
            "recipe": 1,
            "pins": sha(1),
            "sandbox": sha(2),
            "gateway": sha(3),
            "h11": sha(4),
        },
        "images": {
            kind: {"id": sha(n), "manifest": sha(n + 1), "layers": [sha(9)], "size": 5}
            for n, kind in ((10, "base"), (20, "agent"), (30, "gateway"))
        },
        "codex": {
            "version": "0.169.0",
            "integrity": "sha512-x",
            "catalog": sha(5),
            "models": ['a "quoted" one', "b"],
            "files": {"bin/codex": sha(6)},
        },
        "debian": {
            "rootfs": sha(7),
            "list_hash": sha(8),
            "packages": {"git": "1:2.39.5", "libstdc++6": "12.2.0-14"},
        },
    }


def lock(**changes: Any) -> PlatformLock:
    """Return a lock in which `a__b=x` replaces value()["a"]["b"]; the agent's id moves with it."""
    made = value()
    for path, new in changes.items():
        *parents, last = path.split("__")
        at = made
        for parent in parents:
            at = at[parent]
        at[last] = new
    if changes:
        made["images"]["agent"]["id"] = sha(99)
    return PlatformLock.model_validate(made)


def shipped(made: PlatformLock) -> ImageLock:
    return ImageLock(origin="shipped", platforms={AMD64: made})


def host(made: PlatformLock) -> ImageLock:
    return ImageLock(origin="host", platforms={AMD64: made})


MOVED: dict[str, dict[str, Any]] = {
    "archive": {"debian__packages": {"git": "1:2.40", "libstdc++6": "12.2.0-14"}},
    "same packages, other files": {"debian__rootfs": sha(70)},
    "pins": {"inputs__pins": sha(71)},
    "sandbox": {"inputs__sandbox": sha(72)},
    "gateway": {"inputs__gateway": sha(73)},
    "recipe": {"inputs__recipe": 2},
    "h11": {"h11_version": "0.17.0", "inputs__h11": sha(74)},
    "h11 files": {"inputs__h11": sha(74)},
    "codex": {"codex__files": {"bin/codex": sha(75)}},
    "catalog": {"codex__catalog": sha(76)},
    "nothing that is known": {"images__agent__layers": [sha(9), sha(77)]},
}
BY_ARCHIVE = ("archive", "same packages, other files")


def test_a_lock_is_read_back_as_written_and_is_the_same_text(tmp_path: Path) -> None:
    write_lock(tmp_path / "new/a.lock", shipped(lock()))
    assert read_lock(tmp_path / "new/a.lock") == shipped(lock())
    write_lock(tmp_path / "b.lock", read_lock(tmp_path / "new/a.lock"))
    assert (tmp_path / "new/a.lock").read_bytes() == (tmp_path / "b.lock").read_bytes()
    assert "rolebox images lock" in (tmp_path / "b.lock").read_text().splitlines()[0]


@pytest.mark.parametrize("text", ["not toml [", 'schema = "other/1"', 'origin = "host"\nx = 1'])
def test_a_broken_lock_is_an_error_and_never_no_lock(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.lock").write_text(text)
    write_lock(tmp_path / "shipped.lock", shipped(lock()))
    with pytest.raises(UsageError, match="cannot be used"):
        effective_lock(LockFiles(tmp_path / "shipped.lock", tmp_path / "host.lock"), AMD64)


def test_the_hosts_lock_rules_where_it_knows_the_platform(tmp_path: Path) -> None:
    files = LockFiles(tmp_path / "shipped.lock", tmp_path / "host.lock")
    assert effective_lock(files, AMD64) is None
    write_lock(files.shipped, shipped(lock()))
    assert effective_lock(files, AMD64) == shipped(lock())
    write_lock(files.host, ImageLock(origin="host", platforms={"linux/arm64": lock()}))
    assert effective_lock(files, AMD64) == shipped(lock())
    write_lock(files.host, host(lock()))
    assert effective_lock(files, AMD64) == host(lock())


def test_a_hosts_lock_of_another_rolebox_no_longer_rules(tmp_path: Path) -> None:
    """After an upgrade the host's lock is about other sources: the shipped one rules again."""
    files = LockFiles(tmp_path / "shipped.lock", tmp_path / "host.lock")
    write_lock(files.shipped, shipped(lock()))
    write_lock(files.host, host(lock(inputs__gateway=sha(73))))
    assert effective_lock(files, AMD64) == shipped(lock())
    write_lock(files.host, host(lock(**MOVED["archive"])))
    assert effective_lock(files, AMD64) == host(lock(**MOVED["archive"]))


def test_an_unknown_platform_is_refused() -> None:
    with pytest.raises(ImageRefused, match="linux/arm64"):
        shipped(lock()).platform("linux/arm64")


@pytest.mark.parametrize("made", [sha(20), sha(21)], ids=["classic store", "containerd store"])
def test_the_locked_image_is_accepted_by_either_id(made: str) -> None:
    verify(lock(), "agent", made)


@pytest.mark.parametrize("other", [sha(10), sha(30), "rolebox/agent:latest", ""])
def test_another_image_is_refused(other: str) -> None:
    with pytest.raises(ImageRefused, match="not the one"):
        verify(lock(), "agent", other)


def test_current_means_all_images_present_and_no_input_moved() -> None:
    present = {sha(10), sha(21), sha(30), sha(555)}
    assert is_current(lock(), lock().inputs, present)
    assert not is_current(lock(), lock().inputs, present - {sha(21)})
    for name in ("pins", "sandbox", "gateway", "h11", "recipe"):
        assert not is_current(lock(), lock(**MOVED[name]).inputs, present)


def test_a_plan_pins_the_locks_ids_and_its_digest() -> None:
    pins = plan_pins(host(lock()), AMD64)
    assert (pins.agent_image, pins.gateway_image) == (sha(20), sha(30))
    assert (pins.codex_sha256, pins.origin) == (sha(6), "host")
    moved = plan_pins(host(lock(**MOVED["archive"])), AMD64)
    assert pins.lock_sha256 != moved.lock_sha256
    assert pins.lock_sha256 == plan_pins(shipped(lock()), AMD64).lock_sha256


def test_no_lock_at_all_makes_the_hosts() -> None:
    assert settle(None, AMD64, lock()) == (host(lock()), ())


@pytest.mark.parametrize("ruling", [shipped(lock()), host(lock())], ids=["shipped", "host"])
def test_an_equal_build_is_accepted_and_changes_nothing(ruling: ImageLock) -> None:
    assert settle(ruling, AMD64, lock()) == (ruling, ())


@pytest.mark.parametrize("what", BY_ARCHIVE)
def test_an_archive_that_moved_makes_the_hosts_lock_and_is_told(what: str) -> None:
    ruling, moved = settle(shipped(lock()), AMD64, lock(**MOVED[what]))
    assert ruling == host(lock(**MOVED[what]))
    assert [item.cause for item in moved] == [Cause.ARCHIVE]


@pytest.mark.parametrize("what", MOVED)
def test_against_the_hosts_lock_any_difference_is_refused(what: str) -> None:
    with pytest.raises(ImageRefused) as caught:
        settle(host(lock()), AMD64, lock(**MOVED[what]))
    assert "rolebox images lock" in caught.value.mend
    assert caught.value.why
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("what", [name for name in MOVED if name not in BY_ARCHIVE])
def test_against_the_shipped_lock_more_than_the_archive_is_refused(what: str) -> None:
    both = {**MOVED["archive"], **MOVED[what]}
    for changes in (MOVED[what], both):
        with pytest.raises(ImageRefused, match="shipped lock"):
            settle(shipped(lock()), AMD64, lock(**changes))


def test_the_report_says_what_moved() -> None:
    def told(what: str) -> list[str]:
        return [item.text for item in differences(lock(), lock(**MOVED[what]))]

    assert told("archive") == ["git 1:2.39.5 → 1:2.40"]
    assert told("h11") == ["h11: 0.16.0 → 0.17.0"]
    assert "the gateway's sources" in told("gateway")[0]
    assert "bin/codex" in told("codex")[0]
    assert told("nothing that is known")[0].startswith("agent image")
    assert differences(lock(), lock()) == ()


def test_reading_a_lock_loads_no_docker_library() -> None:
    code = (
        "import sys, runner.engine.images.lock; "
        "print([m for m in ('docker', 'python_on_whales', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
