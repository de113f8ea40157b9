from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from runner.engine.images.codex import CodexLayer, codex_layer, fetch, read_catalog
from runner.engine.images.pins import CodexPackage
from runner.model.canonical import sha256
from runner.model.errors import ImageRefused, InfrastructureError

TRIPLE = "x86_64-unknown-linux-musl"
SPEC = "@openai/codex@0.0.1-linux-x64"
VENDOR = f"package/vendor/{TRIPLE}/"
FILES = {
    "package/package.json": b"{}",
    f"{VENDOR}codex-package.json": b"{}",
    f"{VENDOR}bin/codex": b"the binary",
    f"{VENDOR}bin/codex-code-mode-host": b"host",
    f"{VENDOR}codex-path/rg": b"rg",
    f"{VENDOR}codex-resources/bwrap": b"bwrap",
    f"{VENDOR}codex-resources/voice/bin/codex-voice-host": b"voice",
}


def pack(path: Path, files: dict[str, bytes], *odd: tarfile.TarInfo) -> CodexPackage:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(data), 0o6777, 501
            tar.addfile(info, io.BytesIO(data))
        for info in odd:
            tar.addfile(info)
    hashed = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return CodexPackage(
        package=SPEC,
        triple=TRIPLE,
        integrity=f"sha512-{hashed}",
        sha256=sha256(FILES[f"{VENDOR}bin/codex"]),
    )


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "openai-codex@0.0.1-linux-x64.tgz"


def unpack(tmp_path: Path, files: dict[str, bytes], *odd: tarfile.TarInfo) -> CodexLayer:
    package = pack(tmp_path / "x.tgz", files, *odd)
    return codex_layer(tmp_path / "x.tgz", package, tmp_path / "layer.tar", mtime=7)


def test_the_pinned_tarball_is_accepted_from_the_cache(tmp_path: Path) -> None:
    package = pack(cached(tmp_path), FILES)
    assert fetch(package, tmp_path / "cache", {"PATH": ""}) == cached(tmp_path)


def test_a_tampered_tarball_is_refused_and_thrown_away(tmp_path: Path) -> None:
    package = pack(cached(tmp_path), FILES)
    cached(tmp_path).write_bytes(cached(tmp_path).read_bytes() + b"\0")
    with pytest.raises(ImageRefused, match="not the pinned one"):
        fetch(package, tmp_path / "cache", {"PATH": ""})
    assert not cached(tmp_path).exists()


def test_a_missing_npm_says_what_to_install(tmp_path: Path) -> None:
    package = pack(tmp_path / "elsewhere.tgz", FILES)
    with pytest.raises(InfrastructureError) as caught:
        fetch(package, tmp_path / "cache", {"PATH": str(tmp_path)})
    assert "install npm" in caught.value.mend


def test_the_layout_stays_together_without_voice_owned_by_root(tmp_path: Path) -> None:
    made = unpack(tmp_path, FILES)
    with tarfile.open(made.layer.path) as tar:
        found = {info.name: info for info in tar}
    files = {f"opt/codex/{name}" for name in made.files}
    assert {name for name, info in found.items() if info.isreg()} == files
    assert "bin/codex" in made.files
    assert not [name for name in found if "voice" in name]
    assert {(info.uid, info.gid, info.mtime) for info in found.values()} == {(0, 0, 7)}
    assert {info.mode for info in found.values() if not info.issym()} == {0o755, 0o644}
    assert found["usr/local/bin/rg"].linkname == "/opt/codex/codex-path/rg"


def test_another_codex_binary_is_refused_even_in_a_tarball_that_fits(tmp_path: Path) -> None:
    with pytest.raises(ImageRefused, match="binary is not the pinned one"):
        unpack(tmp_path, {**FILES, f"{VENDOR}bin/codex": b"another"})


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "odd",
    [
        link(f"{VENDOR}bin/helper", tarfile.SYMTYPE),
        link(f"{VENDOR}bin/helper", tarfile.LNKTYPE),
        link(f"{VENDOR}bin/helper", tarfile.FIFOTYPE),
        link("package/../../etc/x", tarfile.REGTYPE),
        link("/package/x", tarfile.REGTYPE),
        link("other/x", tarfile.REGTYPE),
        link(f"{VENDOR}bin/codex", tarfile.REGTYPE),
    ],
    ids=["symlink", "hard link", "fifo", "parent", "absolute", "outside", "twice"],
)
def test_an_odd_member_is_refused(tmp_path: Path, odd: tarfile.TarInfo) -> None:
    with pytest.raises(ImageRefused, match="unexpected"):
        unpack(tmp_path, FILES, odd)
    assert not (tmp_path / "layer.tar").exists()


def test_a_tarball_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageRefused) as caught:
        unpack(tmp_path, {k: v for k, v in FILES.items() if not k.endswith("/rg")})
    assert "codex-path/rg" in caught.value.why


def test_a_truncated_tarball_is_refused(tmp_path: Path) -> None:
    package = pack(tmp_path / "x.tgz", FILES)
    (tmp_path / "x.tgz").write_bytes((tmp_path / "x.tgz").read_bytes()[:200])
    with pytest.raises(ImageRefused, match="unexpected"):
        codex_layer(tmp_path / "x.tgz", package, tmp_path / "layer.tar", mtime=7)


def test_the_catalog_loses_subagents_and_nothing_else() -> None:
    printed = json.dumps({"models": [{"slug": "b", "multi_agent_version": "v2", "x": 1}], "y": 2})
    text, models = read_catalog(printed)
    assert json.loads(text) == {"models": [{"slug": "b", "x": 1}], "y": 2}
    assert models == ("b",)
    assert read_catalog(text.decode()) == (text, models)


@pytest.mark.parametrize("printed", ["", "{}", '{"models": []}', '{"models": [1]}', "[]"])
def test_what_is_no_catalog_is_refused(printed: str) -> None:
    with pytest.raises(ImageRefused, match="no model catalog"):
        read_catalog(printed)
