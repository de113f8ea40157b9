"""Two live runs never hold overlapping leases on the same repository (guarantee 4).

A run's state says what it leases from the moment its folder exists; looking and
making the folder happen under one lock a repository. A run whose rolebox died
keeps its lease until a later command has proven its container gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runner.evidence.store import RunStore
from runner.locks import locked
from runner.model.errors import EvidenceError, LeaseRefused
from runner.workspace.lease import Lease, leases_overlap
from runner.workspace.store import Store

_WAIT_S = 60.0


@contextmanager
def exclusive(runs: RunStore, store: Store, lease: Lease) -> Iterator[None]:
    """Hold the repository's lock while a run with this lease gets its folder.

    Raises:
        LeaseRefused: A live run leases an overlapping path.
    """
    if not lease.paths:
        yield
        return
    with locked(store.home / "repos" / store.repo_id / "lease.lock", _WAIT_S):
        _refuse_overlap(runs, store.repo_id, lease)
        yield


def _refuse_overlap(runs: RunStore, repo_id: str, lease: Lease) -> None:
    for folder in runs.live():
        try:
            state = folder.read_state()
        except EvidenceError:
            continue
        held = Lease(paths=state.lease)
        if not state.ended and state.repo_id == repo_id and leases_overlap(held, lease):
            raise LeaseRefused(
                f"run {state.id} ({state.role}) holds a lease on {', '.join(state.lease)}",
                why="two live runs never write the same paths of a repository",
                mend="wait for it to end, or lease other paths",
            )
