"""Load a role: its own files over those of the role that it extends.

A role is a folder: `profile.toml`, `config.toml` (Codex), `*.rules` (Codex
execpolicy), `instructions.md`, and an output schema if it names one. Built-in
roles stand in `profiles/`; a repository adds its own in `.rolebox/profiles/`,
each extending a built-in one. Values cascade key by key; rules only add up, and
Codex takes the strictest, so an extending role cannot take one back.

Decision: a repository's role is a folder of regular files. A link in it would let
whoever wrote the repository name a file of this host, whose text would then go into
the instructions, so links and special files there are refused, not followed.
"""

from __future__ import annotations

import difflib
import json
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from runner.model.canonical import digest, sha256
from runner.model.errors import UsageError
from runner.model.profile import RoleProfile, loosenings
from runner.planning.rules import PrefixRule, parse_rules

_COMMON = "_common"
_MAX_FILE = 1 << 20
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class Role:
    """A loaded role.

    Attributes:
        origins: Dotted profile field to the file that set it.
        config: Codex configuration, merged; the planner adds the managed keys.
        rules: File name to text, in the order in which they were found.
        loosened: Where it allows more than the built-in role that it extends.
        digest: Over profile, configuration, rules, instructions and schema.
    """

    name: str
    profile: RoleProfile
    origins: Mapping[str, str]
    config: Mapping[str, Any]
    rules: Mapping[str, str]
    parsed_rules: tuple[PrefixRule, ...]
    instructions: str
    schema: bytes | None
    loosened: tuple[str, ...]
    digest: str


@dataclass
class _Layers:
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    instructions: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def role_names(builtin: Path, own: Path | None) -> tuple[str, ...]:
    """Return the names of all roles, the repository's own included, sorted."""
    found: set[str] = set()
    for root in filter(None, (builtin, own)):
        if root.is_dir():
            found |= {p.parent.name for p in root.glob("*/profile.toml")}
    found = {name for name in found if _NAME.fullmatch(name)}
    return tuple(sorted(found))


def load_role(name: str, builtin: Path, own: Path | None = None) -> Role:
    """Load a role by name.

    Args:
        name: The role.
        builtin: The folder of the built-in roles.
        own: The repository's `.rolebox/profiles`, if it has one.

    Raises:
        UsageError: An unknown role, a malformed file, an unknown key.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no role name", mend="use a-z, 0-9 and -")
    names = role_names(builtin, own)
    if name not in names:
        raise UsageError(
            f"there is no role {name!r}",
            why=f"roles here: {', '.join(names)}",
            mend=_did_you_mean(name, names) or "see: rolebox profiles",
        )
    own_folder = own / name if own and (own / name / "profile.toml").is_file() else None
    if own_folder is None:
        return _assemble(name, [builtin / name], builtin)
    _refuse_links(own_folder)
    base = _toml(own_folder / "profile.toml").get("extends")
    if not isinstance(base, str) or not (builtin / base / "profile.toml").is_file():
        known = role_names(builtin, None)
        raise UsageError(
            f"{own_folder / 'profile.toml'}: extends must name a built-in role",
            why=f"it says {base!r}; the built-in roles are {', '.join(known)}",
            mend='start the file with: extends = "reviewer"',
        )
    if base != name and (builtin / name / "profile.toml").is_file():
        raise UsageError(
            f"{own_folder / 'profile.toml'}: a role called {name!r} must extend {name!r}",
            why=f"{name} is a built-in role, and nobody asking for it means {base}",
            mend="give your role a name of its own",
        )
    child = _assemble(name, [builtin / base, own_folder], builtin)
    parent = _assemble(base, [builtin / base], builtin)
    loosened = (*loosenings(parent.profile, child.profile), *_loosened_files(parent, child))
    return Role(**{**vars(child), "loosened": loosened})


def _refuse_links(folder: Path) -> None:
    paths = [folder.parent.parent, folder.parent, folder, *sorted(folder.iterdir())]
    for path in paths:
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UsageError(
                f"{path} is a link or a special file",
                why="a repository's role could name any file of this host by it",
                mend="copy what it points to into the role's folder",
            )


#: Keys of Codex that only change how much is said; a role may add them unasked.
_HARMLESS = frozenset(
    {
        "model_verbosity",
        "model_reasoning_summary",
        "project_doc_max_bytes",
        "tool_output_token_limit",
    }
)


def _loosened_files(base: Role, child: Role) -> tuple[str, ...]:
    """Name what a role sets otherwise in Codex's configuration, or demands by another schema.

    Nobody can order two values of Codex's own keys, so each change of one counts,
    and each new one (an MCP server is a program).
    """
    old, new = dict(_leaves(base.config)), dict(_leaves(child.config))
    found = [
        f"config.{key}: {old.get(key)} -> {new.get(key)}"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not (key in _HARMLESS and key not in old)
    ]
    same_name = base.profile.output_schema == child.profile.output_schema
    if base.schema is not None and same_name and child.schema != base.schema:
        found.append(f"output_schema: another text for {base.profile.output_schema}")
    return tuple(found)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _assemble(name: str, folders: list[Path], builtin: Path) -> Role:
    layers = _Layers()
    for folder in [builtin / _COMMON, *folders]:
        _add_layer(layers, folder, own=folder.parent != builtin)
    profile = _profile(layers.values, folders[-1] / "profile.toml")
    schema = None
    if profile.output_schema:
        schema = _find_schema(profile.output_schema, folders)
    instructions = "\n\n".join(layers.instructions)
    parsed = tuple(r for n, text in layers.rules.items() for r in parse_rules(text, n))
    return Role(
        name=name,
        profile=profile,
        origins=layers.origins,
        config=layers.config,
        rules=layers.rules,
        parsed_rules=parsed,
        instructions=instructions,
        schema=schema,
        loosened=(),
        digest=_role_digest(
            {
                "profile": profile.to_json(),
                "config": layers.config,
                "rules": {k: sha256(v.encode()) for k, v in layers.rules.items()},
                "instructions": sha256(instructions.encode()),
                "schema": sha256(schema) if schema else None,
            },
            folders[-1],
        ),
    )


def _role_digest(value: dict[str, Any], folder: Path) -> str:
    try:
        return digest(value)
    except ValueError as error:
        raise UsageError(
            f"{folder / 'config.toml'} holds a value that JSON cannot say",
            why=str(error),
            mend="write dates as text; numbers are finite and below 2**53",
        ) from None


def _add_layer(layers: _Layers, folder: Path, *, own: bool) -> None:
    if not folder.is_dir():
        raise UsageError(f"the profile folder {folder} is missing", mend="reinstall rolebox")
    label = f"{'.rolebox/' if own else ''}profiles/{folder.name}"
    profile_file = folder / "profile.toml"
    if profile_file.is_file():
        values = _toml(profile_file)
        values.pop("extends", None)
        _check_keys(values, RoleProfile, profile_file)
        _merge(layers.values, values, layers.origins, f"{label}/profile.toml")
    if (folder / "config.toml").is_file():
        _merge(layers.config, _toml(folder / "config.toml"), {}, label)
    for path in sorted(folder.glob("*.rules")):
        # A name of its own for each layer, so that no file takes the place of another.
        layers.rules[f"{'own-' if own else ''}{folder.name}-{path.name}"] = _text(path)
    if (folder / "instructions.md").is_file():
        layers.instructions.append(_text(folder / "instructions.md").strip())


def _merge(into: dict[str, Any], new: dict[str, Any], origins: dict[str, str], label: str) -> None:
    def walk(target: dict[str, Any], source: dict[str, Any], prefix: str) -> None:
        for key, value in source.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and isinstance(target.get(key, {}), dict):
                walk(target.setdefault(key, {}), value, name + ".")
            else:
                target[key] = value
                origins[name] = label

    walk(into, new, "")


def _profile(values: dict[str, Any], path: Path) -> RoleProfile:
    try:
        # Strict, so that a text is no number; by way of JSON, whose lists may be tuples.
        return RoleProfile.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']}") from None


def _check_keys(
    values: Mapping[str, Any], model: type[BaseModel], path: Path, at: str = ""
) -> None:
    known = model.model_fields
    for key, value in values.items():
        if key not in known:
            raise UsageError(
                f"{path}: unknown key {at}{key!s}",
                why=f"known here: {', '.join(known)}",
                mend=_did_you_mean(key, known),
            )
        kind = known[key].annotation
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            _check_keys(value, kind, path, f"{at}{key}.")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def _find_schema(name: str, folders: list[Path]) -> bytes:
    for folder in reversed(folders):
        if (folder / name).is_file():
            return _schema(folder / name)
    raise UsageError(f"the output schema {name} is missing", why=f"looked in {folders[-1]}")


def _schema(path: Path) -> bytes:
    text = _text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON", why=str(error)) from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is no JSON object")
    return text.encode()


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE:
            raise UsageError(f"{path} is larger than 1 MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read", why=str(error)) from None


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML", why=str(error)) from None
