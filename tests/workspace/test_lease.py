from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.model.errors import LeaseRefused, UsageError
from runner.workspace.facts import tree_facts
from runner.workspace.lease import Lease, leases_overlap, overlaps, parse_lease
from runner.workspace.protected import compile_protected
from runner.workspace.repository import open_repository
from runner.workspace.store import Store, open_store

from .conftest import PROTECTED, Sample, make_sample

NAMES = st.sampled_from(["a", "b", "B", "é", "e\u0301", "src", "x.py"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
LEASED = st.tuples(PATHS, st.sampled_from(["", "/", "//", "/."])).map("".join)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc",
        "..",
        "a/../b",
        "a/..",
        ".git",
        "a/.GIT/config",
        "git~1",
        "a\0b",
        "a\nb",
        "\udcff",
    ],
)
def test_malformed_lease_is_refused(path: str) -> None:
    with pytest.raises(LeaseRefused):
        parse_lease(["src", path])


@pytest.mark.parametrize(
    ("paths", "normal"),
    [
        ([], ()),
        (["."], (".",)),
        (["./"], (".",)),
        (["src/", "src"], ("src/",)),
        (["./src//deep/", "src"], ("src",)),
        (["b", "a/", "a/x", "ab"], ("a/", "ab", "b")),
        ([".", "src"], (".",)),
        (["..a", ".gitx", "a..b"], ("..a", ".gitx", "a..b")),
    ],
)
def test_lease_is_normalised(paths: list[str], normal: tuple[str, ...]) -> None:
    assert parse_lease(paths).paths == normal


@given(st.lists(LEASED, max_size=5))
def test_normalising_is_idempotent_and_independent_of_order(paths: list[str]) -> None:
    lease = parse_lease(paths)
    assert parse_lease(lease.paths) == lease
    assert parse_lease(list(reversed(paths))) == lease
    for one in lease.paths:
        for other in lease.paths:
            assert one == other or not PurePosixPath(one).is_relative_to(PurePosixPath(other))


@given(st.lists(LEASED, max_size=5), PATHS)
def test_a_lease_covers_what_one_of_its_paths_contains(paths: list[str], path: str) -> None:
    expected = any(PurePosixPath(path).is_relative_to(PurePosixPath(one)) for one in paths)
    assert parse_lease(paths).covers(path.encode()) == expected


@given(LEASED, LEASED, PATHS)
def test_overlap_is_symmetric_and_finds_every_shared_path(a: str, b: str, path: str) -> None:
    assert overlaps(a, b) == overlaps(b, a)
    assert overlaps(a, a)
    assert overlaps(a, ".")
    if parse_lease([a]).covers(path.encode()) and parse_lease([b]).covers(path.encode()):
        assert overlaps(a, b)


@given(PATHS)
def test_overlap_ignores_case_and_unicode_form(path: str) -> None:
    assert overlaps(path, path.upper())
    assert overlaps(unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path))


@pytest.mark.parametrize(("a", "b"), [("src", "srcs"), ("a/b", "a/c"), ("a.py", "a.pyi")])
def test_neighbours_do_not_overlap(a: str, b: str) -> None:
    assert not overlaps(a, b)
    assert not leases_overlap(parse_lease([a]), parse_lease([b]))
    assert leases_overlap(parse_lease([a, "z"]), parse_lease(["q", "z/y"]))


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Store, str]:
    inner = make_sample(tmp_path / "inner")
    inner.commit({"x": "1"})
    sample = make_sample(tmp_path / "user")
    (sample.path / "link").symlink_to("src")
    (sample.path / "src").mkdir()
    (sample.path / "src" / "AGENTS.md").write_text("x")
    (sample.path / "src" / "Agents.MD.txt").write_text("x")
    (sample.path / "src" / "codex.rules").symlink_to("AGENTS.md")
    (sample.path / "src" / ".GitHub" / "w").mkdir(parents=True)
    (sample.path / "src" / ".GitHub" / "w" / "ci.yml").write_text("x")
    (sample.path / "src" / "a.py").write_text("x")
    (sample.path / ".rolebox").mkdir()
    (sample.path / ".rolebox" / "p.toml").write_text("x")
    sample.git("submodule", "--quiet", "add", str(inner.path), "libs/inner")
    commit = sample.commit()
    return open_store(tmp_path / "home", open_repository(sample.path)), commit


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("link", "symbolic link"),
        ("link/a.py", "symbolic link"),
        ("libs/inner", "submodule"),
        ("libs/inner/x", "submodule"),
        ("src/a.py/", "is a file"),
        ("src/a.py/x", "is a file"),
        ("src/AGENTS.md", "protected"),
        ("src/new/agents.md", "protected"),
        (".rolebox", "protected"),
        (".rolebox/p.toml", "protected"),
        ("src/.github/new", "protected"),
        (".GITHUB/", "protected"),
        (".github./", "protected"),
        ("my.rules", "protected"),
    ],
)
def test_lease_that_the_tree_forbids_is_refused(
    tree: tuple[Store, str], path: str, why: str
) -> None:
    with pytest.raises(LeaseRefused) as caught:
        tree_facts(*tree, protected_patterns=PROTECTED, lease=parse_lease([path]))
    assert why in caught.value.why


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (".", "dir"),
        ("src", "dir"),
        ("src/", "dir"),
        ("src/a.py", "file"),
        ("src/new.py", "new-file"),
        ("src/new/", "new-dir"),
        ("src/Agents.MD.txt", "file"),
        ("libs/other/", "new-dir"),
        ("linked", "new-file"),
    ],
)
def test_lease_that_the_tree_allows(tree: tuple[Store, str], path: str, kind: str) -> None:
    facts = tree_facts(*tree, protected_patterns=PROTECTED, lease=parse_lease([path]))
    assert [leased.kind for leased in facts.leased] == [kind]


def test_facts_name_the_protected_paths_inside_the_lease(tree: tuple[Store, str]) -> None:
    facts = tree_facts(*tree, protected_patterns=PROTECTED, lease=parse_lease(["src"]))
    assert facts.protected == ("src/.GitHub", "src/AGENTS.md")
    assert facts.protected_links == ("src/codex.rules",)
    assert facts.submodules == ("libs/inner",)
    assert facts.files == 8
    whole = tree_facts(*tree, protected_patterns=PROTECTED, lease=Lease(paths=(".",)))
    assert whole.protected == (
        ".gitmodules",
        ".rolebox",
        "libs/inner",
        "src/.GitHub",
        "src/AGENTS.md",
    )


def test_a_protected_path_that_no_mount_can_carry_refuses_the_lease(
    sample: Sample, tmp_path: Path
) -> None:
    commit = sample.commit({"odd\nname/AGENTS.md": "x"})
    store = open_store(tmp_path / "home", open_repository(sample.path))
    with pytest.raises(LeaseRefused, match="cannot be mounted"):
        tree_facts(store, commit, protected_patterns=PROTECTED, lease=parse_lease(["."]))
    assert tree_facts(store, commit, protected_patterns=PROTECTED, lease=parse_lease(["src"]))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("AGENTS.md", "a/b/agents.MD", True),
        ("AGENTS.md", "a/AGENTS.md.txt", False),
        ("docs/policy", "docs/policy/x", True),
        ("docs/policy", "a/docs/policy", False),
        ("/ci.yml", "ci.yml", True),
        ("/ci.yml", "a/ci.yml", False),
        ("hooks/", "a/hooks/x", True),
        ("hooks/", "a/hooks", False),
        ("*.rules", "a/x.rules", True),
        ("*.rules", "a/x.rules.bak", False),
        ("docs/*.md", "docs/a.md", True),
        ("docs/*.md", "docs/a/b.md", False),
        ("a?c", "abc", True),
        ("a.c", "abc", False),
    ],
)
def test_protected_patterns(pattern: str, path: str, matches: bool) -> None:
    assert (compile_protected([pattern]).match(path.encode()) is not None) is matches


@pytest.mark.parametrize("pattern", ["", "/", "a//b", "!x", "**/x", "[ab]", "../x", "."])
def test_pattern_that_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError):
        compile_protected([pattern])
