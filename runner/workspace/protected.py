"""Protected paths: what a role may not change, not even inside its lease.

A pattern is one of:

    AGENTS.md       no slash: the name of a file, link or directory at any depth
    docs/policy     a slash: anchored at the root of the tree
    hooks/          a trailing slash: only a directory, and all that is in it
    *.rules         `*` and `?` match within one component

What lies below a match is protected too. There is no `**`, no `!` and no
`[...]`: a pattern that holds them is refused rather than half understood.
Names are compared as the most forgiving file system would (`names.fold`).
Submodule paths are protected whatever the patterns say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from runner.model.errors import UsageError
from runner.workspace.names import fold, is_dotgit, text


@dataclass(frozen=True)
class _Rule:
    pattern: str
    components: tuple[re.Pattern[str], ...]
    anchored: bool
    directory: bool


@dataclass(frozen=True)
class Protected:
    """Compiled patterns and the exact paths (submodules) that are protected as well."""

    rules: tuple[_Rule, ...]
    last_names: re.Pattern[str]
    exact: frozenset[str]

    def match(self, path: bytes, *, is_dir: bool = False) -> str | None:
        """Return the pattern that protects a path or one of its parents.

        `is_dir` says whether the path's last component is a directory.
        """
        raw = path.split(b"/")
        folded = tuple(fold(text(component)) for component in raw)
        for depth in range(1, len(raw) + 1):
            if is_dotgit(raw[depth - 1]):
                return ".git"
            if "/".join(folded[:depth]) in self.exact:
                return "submodule"
            if not self.last_names.fullmatch(folded[depth - 1]):
                continue
            for rule in self.rules:
                if _matches(rule, folded[:depth], is_dir=is_dir or depth < len(raw)):
                    return rule.pattern
        return None


def compile_protected(patterns: Sequence[str], *, submodules: Collection[bytes] = ()) -> Protected:
    """Compile patterns.

    Raises:
        UsageError: A pattern is empty, or uses syntax that is not supported.
    """
    exact = frozenset("/".join(fold(part) for part in text(path).split("/")) for path in submodules)
    rules = tuple(_compile(pattern) for pattern in patterns)
    names = "|".join(f"(?:{rule.components[-1].pattern})" for rule in rules)
    return Protected(rules, re.compile(names or r"(?!)", re.DOTALL), exact)


def _compile(pattern: str) -> _Rule:
    directory = pattern.endswith("/")
    body = pattern.removesuffix("/").removeprefix("/")
    components = body.split("/")
    if "**" in body or body.startswith("!") or set(body) & set("[]\\\0"):
        raise UsageError(
            f"the protected pattern {pattern!r} is not supported",
            why="only `*` and `?` within one component, a leading and a trailing slash are",
            mend="write one pattern for each name",
        )
    if any(component in ("", ".", "..") for component in components):
        raise UsageError(
            f"the protected pattern {pattern!r} names nothing",
            mend="name a file, a directory, or a path below the root of the tree",
        )
    return _Rule(
        pattern=pattern,
        components=tuple(_component(component) for component in components),
        anchored="/" in pattern.removesuffix("/"),
        directory=directory,
    )


def _component(glob: str) -> re.Pattern[str]:
    parts = re.split(r"([*?])", fold(glob))
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _matches(rule: _Rule, folded: tuple[str, ...], *, is_dir: bool) -> bool:
    if rule.directory and not is_dir:
        return False
    if rule.anchored and len(folded) != len(rule.components):
        return False
    last = folded[-len(rule.components) :]
    return all(glob.fullmatch(name) for glob, name in zip(rule.components, last, strict=True))
