from __future__ import annotations

from pathlib import Path

import pytest

from runner.engine.images.pins import load_pins
from runner.model.errors import UsageError

SHIPPED = Path(__file__).parents[2] / "images" / "pins.toml"


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = SHIPPED.read_text()
    assert text.count(old) == 1
    path = tmp_path / "pins.toml"
    path.write_text(text.replace(old, new))
    return path


def test_the_shipped_pins_name_both_platforms() -> None:
    pins = load_pins(SHIPPED)
    for platform in ("linux/amd64", "linux/arm64"):
        assert pins.codex_for(platform).package.startswith(f"@openai/codex@{pins.codex.version}-")


def test_an_unknown_platform_is_named() -> None:
    with pytest.raises(UsageError, match="linux/riscv64"):
        load_pins(SHIPPED).codex_for("linux/riscv64")


def test_a_comment_does_not_change_the_digest_and_a_value_does(tmp_path: Path) -> None:
    before = load_pins(SHIPPED)
    same = load_pins(edited(tmp_path, "[uids]\n", "[uids]  # said\n"))
    other = load_pins(edited(tmp_path, "gateway = 65532", "gateway = 65531"))
    assert same.digest_for("linux/amd64") == before.digest_for("linux/amd64")
    assert other.digest_for("linux/amd64") != before.digest_for("linux/amd64")


def test_a_registry_image_by_digest_is_accepted(tmp_path: Path) -> None:
    name = f"127.0.0.1:5000/debian@sha256:{'a' * 64}"
    pins = load_pins(edited(tmp_path, 'registry = ""', f'registry = "{name}"'))
    assert pins.base.registry == name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('registry = ""', 'registry = "debian:bookworm-slim"'),
        ('registry = ""', f'registry = "--evil@sha256:{"a" * 64}"'),
        ("gateway = 65532", "gateway = 0"),
        ('"git"', '"git --allow-untrusted"'),
        ("@openai/codex@0.169.0-linux-x64", "@openai/codex"),
        ('suite = "bookworm"', 'suite = "bookworm"\nsiute = "x"'),
        ("[uids]", "[uids"),
    ],
)
def test_a_floating_dangerous_or_unknown_pin_is_refused(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        load_pins(edited(tmp_path, old, new))


def test_missing_pins_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        load_pins(tmp_path / "none.toml")
