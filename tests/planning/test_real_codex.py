"""The pinned Codex itself reads what is shipped and rendered: rules, config, requirements.

One container for the whole module, without network; a small script in it runs the
binary once a question and gives the answers back as JSON.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.planning.codexfiles import render
from runner.planning.resolve import CODEX
from runner.planning.rules import parse_rules
from runner.resources import profiles_dir
from runner.session.task import load_pins
from tests.planning.build import ROLES, planned, role

SHIPPED = sorted(profiles_dir().rglob("*.rules"))

#: As a person would read the rules: (command, may a role run it).
EXPECTED = (
    ("kill -9 4711", True),
    ("kill 4711", True),
    ("kill -TERM -- -4711", True),
    ("kill -1 4711", True),
    ("kill 1", False),
    ("kill -9 1", False),
    ("kill -9 -1", False),
    ("kill -s KILL 1", False),
    ("kill -- -1", False),
    ("reboot", False),
    ("shutdown -h now", False),
    ("git remote -v", True),
    ("git remote add up https://example.com/x", False),
    ("git submodule status", True),
    ("git submodule update --init", False),
    ("git reflog", True),
    ("git clean -n", True),
    ("git clean -fd", False),
    ("git push", False),
    ("git commit -m push", True),
    ("git reset --hard", False),
    ("git reset HEAD x", True),
    ("rm -rf /", False),
    ("rm -rf build", True),
    ("sudo true", False),
    ("python3 -m unittest", True),
)

PROBE = """
import json, os, pathlib, subprocess, sys
job = json.load(sys.stdin)
def run(argv):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=30, cwd="/tmp")
    return [done.returncode, done.stdout, done.stderr]
answers = {"checks": [], "configs": {}}
for name, text in job["rules"].items():
    pathlib.Path("/tmp", name).write_text(text)
for name, argv in job["checks"]:
    answers["checks"].append(run([job["codex"], "execpolicy", "check", "--rules",
                                  "/tmp/" + name, *argv]))
for name, files in job["configs"].items():
    for path, text in files.items():
        target = pathlib.Path("/etc/codex", path)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    answers["configs"][name] = run(job["argv"])
    for path in files:
        pathlib.Path("/etc/codex", path).unlink()
print(json.dumps(answers))
"""


def example_checks() -> list[tuple[str, str, int, str | None]]:
    """(file, command, number of the rule, the decision that it must give or None)."""
    found: list[tuple[str, str, int, str | None]] = []
    for path in SHIPPED:
        for number, rule in enumerate(parse_rules(path.read_text(), path.name)):
            found += [(path.name, command, number, rule.decision) for command in rule.match]
            found += [(path.name, command, number, None) for command in rule.not_match]
    return found


def configs() -> dict[str, dict[str, str]]:
    """Name of a case to the files below /etc/codex."""
    good = {
        name: {k: v.decode() for k, v in render(role(name), "gpt-5.5").items()} for name in ROLES
    }
    one = good["scaffold"]
    config, managed = one["config.toml"], one["requirements.toml"]
    return {
        **good,
        "typo": {**one, "config.toml": config.replace("approval_policy", "aproval_policy")},
        "typo in a table": {**one, "config.toml": config.replace("hooks =", "hoks =")},
        "wrong kind": {**one, "config.toml": config.replace("hooks = false", "hooks = 5")},
        "malformed": {**one, "config.toml": "model = "},
        "malformed requirements": {**one, "requirements.toml": "rules = "},
        "allowing requirements": {
            **one,
            "requirements.toml": managed.replace('decision = "forbidden"', 'decision = "allow"', 1),
        },
        "bad example": {
            **one,
            "rules/bad.rules": 'prefix_rule(pattern=["a"], decision="forbidden", match=["b"])',
        },
    }


@pytest.fixture(scope="module")
def answers(host_state: Path) -> Mapping[str, Any]:
    """What the binary said to every question, in one go."""
    rules = {path.name: path.read_text() for path in SHIPPED}
    rules["all.rules"] = "\n".join(rules.values())
    checks = [(file, shlex.split(command)) for file, command, _, _ in example_checks()]
    checks += [("all.rules", shlex.split(command)) for command, _ in EXPECTED]
    job = {
        "codex": CODEX,
        "argv": list(planned("scaffold").plan.command.argv),
        "rules": rules,
        "checks": checks,
        "configs": configs(),
    }
    done = subprocess.run(
        [
            *("docker", "run", "--rm", "--interactive", "--network", "none", "--read-only"),
            *("--user", "1000:1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--tmpfs", "/tmp", "--tmpfs", "/codex-home:uid=1000"),
            *("--tmpfs", "/etc/codex:uid=1000", "--env", "CODEX_HOME=/codex-home"),
            *("--env", "HOME=/tmp", "--entrypoint", "python3", load_pins(host_state).agent_image),
            *("-I", "-c", PROBE),
        ],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    value: Mapping[str, Any] = json.loads(done.stdout)
    assert len(value["checks"]) == len(checks)
    return value


def test_every_example_of_every_shipped_rule_is_decided_as_it_says(
    answers: Mapping[str, Any],
) -> None:
    wrong = []
    for (file, command, number, decision), (code, out, err) in zip(
        example_checks(), answers["checks"], strict=False
    ):
        assert code == 0, err
        matched = [m["prefixRuleMatch"] for m in json.loads(out)["matchedRules"]]
        rule = parse_rules((profiles_dir() / "_common" / file).read_text(), file)[number]
        words = [m["matchedPrefix"] for m in matched]
        hit = any(
            len(w) == len(rule.pattern)
            and all(word in token for word, token in zip(w, rule.pattern, strict=True))
            for w in words
        )
        said = json.loads(out).get("decision")
        if hit != (decision is not None) or (decision is not None and said != decision):
            wrong.append((command, decision, out))
    assert wrong == []


@pytest.mark.parametrize(
    ("number", "command", "allowed"),
    [(n, command, allowed) for n, (command, allowed) in enumerate(EXPECTED)],
)
def test_the_shipped_rules_stop_what_does_harm_and_nothing_beside_it(
    answers: Mapping[str, Any], number: int, command: str, allowed: bool
) -> None:
    code, out, err = answers["checks"][len(example_checks()) + number]
    assert code == 0, err
    assert json.loads(out).get("decision") == (None if allowed else "forbidden"), command


@pytest.mark.parametrize("name", ROLES)
def test_codex_accepts_the_rendered_files_of_a_role(answers: Mapping[str, Any], name: str) -> None:
    """With its configuration accepted Codex goes on to ask for the prompt, which is empty."""
    _, _, err = answers["configs"][name]
    assert "No prompt provided via stdin" in err


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("typo", "aproval_policy"),
        ("typo in a table", "hoks"),
        ("wrong kind", "hooks"),
        ("malformed", "config.toml"),
        ("malformed requirements", "requirements.toml"),
        ("allowing requirements", "allow"),
        ("bad example", "bad.rules"),
    ],
)
def test_codex_refuses_what_is_not_as_rendered(
    answers: Mapping[str, Any], case: str, word: str
) -> None:
    code, _, err = answers["configs"][case]
    assert code != 0
    assert "No prompt provided via stdin" not in err
    assert word in err
