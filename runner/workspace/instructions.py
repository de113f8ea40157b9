"""The agent instructions of a tree, by digest: which words of the repository steer Codex."""

from __future__ import annotations

import os
from collections.abc import Mapping

from runner.model.canonical import sha256
from runner.workspace.git import run_git
from runner.workspace.listing import list_tree
from runner.workspace.names import shown
from runner.workspace.store import Store

_NAMES = (b"AGENTS.md", b"AGENTS.override.md")
_MOST = 200


def agents_digests(store: Store, commit: str) -> Mapping[str, str]:
    """Return path to `sha256:…` of each AGENTS file in the commit's tree (at most 200)."""
    listing = list_tree(store.git_dir, commit)
    found = [
        path
        for path in listing.paths
        if path.rpartition(b"/")[2] in _NAMES and listing.kind(path) == "file"
    ]
    return {
        shown(path): sha256(
            run_git(["cat-file", "blob", f"{commit}:{os.fsdecode(path)}"], git_dir=store.git_dir)
        )
        for path in found[:_MOST]
    }
