"""Rules as data: the literal subset is read, everything computed is refused."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import pytest

from runner.model.errors import UsageError
from runner.planning.codexfiles import render
from runner.planning.rules import PrefixRule, parse_rules
from runner.resources import profiles_dir
from tests.planning.build import ROLES, role

GOOD = 'prefix_rule(pattern=["git", ["push", "fetch"]], decision="forbidden")\n'
SHIPPED = sorted(profiles_dir().rglob("*.rules"))


def caught(rule: PrefixRule, command: str) -> bool:
    """Our own reading of a prefix: each word is one of the token's alternatives."""
    words = shlex.split(command)
    return len(words) >= len(rule.pattern) and all(
        word in token for word, token in zip(words, rule.pattern, strict=False)
    )


def test_the_literal_subset_is_read() -> None:
    text = (
        "# a comment\n"
        'prefix_rule(\n    pattern = ["git", ["push", "fetch"]],\n    decision = "forbidden",\n'
        '    justification = "why",\n    match = ["git push"],\n    not_match = ["git log"],\n)\n'
        'prefix_rule(pattern=["ls"])\n'
    )
    first, second = parse_rules(text, "x.rules")
    assert first == PrefixRule(
        (("git",), ("push", "fetch")), "forbidden", "why", ("git push",), ("git log",)
    )
    assert second == PrefixRule((("ls",),), "allow", "", (), ())
    assert parse_rules("", "x.rules") == ()


@pytest.mark.parametrize(
    "text",
    [
        'prefix_rule(pattern=["a" + "b"])',
        'prefix_rule(pattern=[x for x in ["a"]])',
        'prefix_rule(pattern=["a"], decision=DECISION)',
        "prefix_rule(pattern=[open('/etc/passwd').read()])",
        'prefix_rule(["git"])',
        'prefix_rule(**{"pattern": ["a"]})',
        'other_rule(pattern=["a"])',
        'x.prefix_rule(pattern=["a"])',
        'PATTERN = ["a"]',
        'load("//x", "y")',
        'import os',
        'def prefix_rule(): pass',
        '[prefix_rule(pattern=["a"])]',
        'prefix_rule(pattern=["a"]) or prefix_rule(pattern=["b"])',
        '"text"',
    ],
)  # fmt: skip
def test_a_rule_that_computes_something_is_refused(text: str) -> None:
    assert parse_rules(GOOD, "x.rules")
    with pytest.raises(UsageError):
        parse_rules(GOOD + text, "x.rules")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prefix_rule(pattern=["a"], descision="forbidden")', "unknown argument 'descision'"),
        ('prefix_rule(pattern=["a"], decision="deny")', "decision 'deny' is none of"),
        ('prefix_rule(pattern=["a"], decision=["forbidden"])', "is none of"),
        ('prefix_rule(decision="forbidden")', "pattern must be a list"),
        ("prefix_rule(pattern=[])", "pattern must be a list"),
        ('prefix_rule(pattern="git push")', "pattern must be a list"),
        ('prefix_rule(pattern=("git",))', "pattern must be a list"),
        ("prefix_rule(pattern=[1])", "holds texts"),
        ("prefix_rule(pattern=[[]])", "holds texts"),
        ('prefix_rule(pattern=[["a", 1]])', "holds texts"),
        ('prefix_rule(pattern=["a"], match="a b")', "lists of texts"),
        ('prefix_rule(pattern=["a"], not_match=[["a"]])', "lists of texts"),
        ("prefix_rule(pattern=[", "is not a rules file"),
        ("\0", "is not a rules file"),
        ("prefix_rule(pattern=[" + "[" * 5000, "is not a rules file"),
        ('prefix_rule(pattern=["a"], pattern=["b"])', "pattern is given twice"),
        ("prefix_rule(pattern={[1]: 2})", "pattern is not a literal"),
        ("prefix_rule(pattern=" + "-" * 100_000 + "1)", "is not a"),
        ('prefix_rule(pattern=["a"], justification={"a"})', "justification is a text"),
    ],
)
def test_a_malformed_rule_is_refused_by_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_rules(text, "x.rules")


def test_a_refusal_names_file_and_line() -> None:
    with pytest.raises(UsageError, match=r"x\.rules:2: "):
        parse_rules(GOOD + "other()\n", "x.rules")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_rule_has_examples_that_hold_and_a_reason(path: Path) -> None:
    rules = parse_rules(path.read_text(), path.name)
    assert rules
    for rule in rules:
        assert rule.match
        assert rule.not_match
        assert rule.justification
        assert [e for e in rule.match if not caught(rule, e)] == []
        assert [e for e in rule.not_match if caught(rule, e)] == []


@pytest.mark.parametrize("name", ROLES)
def test_every_forbidding_rule_stands_in_the_managed_file_too(name: str) -> None:
    """`.rules` files fall to `--ignore-rules`; requirements.toml does not (facts-codex.md)."""
    loaded = role(name)
    files = render(loaded, "gpt-5.5")
    managed = tomllib.loads(files["requirements.toml"].decode())
    forbidden = [r for r in loaded.parsed_rules if r.decision == "forbidden"]
    assert forbidden
    assert managed["rules"]["prefix_rules"] == [r.as_requirement() for r in forbidden]
    assert [f for f in files if f.startswith("rules/")] == [f"rules/{n}" for n in loaded.rules]


@pytest.mark.parametrize("name", ROLES)
def test_the_managed_file_leaves_no_choice_that_would_loosen(name: str) -> None:
    files = render(role(name), "gpt-5.5")
    managed = tomllib.loads(files["requirements.toml"].decode())
    config = tomllib.loads(files["config.toml"].decode())
    assert managed["allowed_approval_policies"] == ["never"]
    assert managed["allowed_web_search_modes"] == ["disabled"]
    assert config["sandbox_mode"] in managed["allowed_sandbox_modes"]
    assert config["projects"]["/work"]["trust_level"] == "untrusted"
    assert config["model_providers"]["gateway"]["base_url"].startswith("http://127.0.0.1:")
    assert "env_key" not in config["model_providers"]["gateway"]
