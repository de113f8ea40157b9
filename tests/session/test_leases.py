"""Two live runs never hold overlapping leases on one repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.evidence.store import RunStore
from runner.model.errors import LeaseRefused
from runner.model.state import RunState
from runner.session.leases import exclusive
from runner.workspace.lease import parse_lease
from runner.workspace.repository import open_repository
from runner.workspace.store import Store, open_store


@pytest.fixture
def store(home: Path, repository: Path) -> Store:
    return open_store(home, open_repository(repository))


def live(runs: RunStore, repo_id: str, *lease: str, status: str = "running") -> None:
    state = RunState.model_validate(
        {
            "id": "20260101t000000000-abcdef",
            "role": "scaffold",
            "status": status,
            "created": "2026-01-01T00:00:00.000000Z",
            "updated": "2026-01-01T00:00:00.000000Z",
            "repo_id": repo_id,
            "lease": lease,
        }
    )
    runs.create(state, {})


@pytest.mark.parametrize("wanted", ["src/", "src/app.py", ".", "SRC/app.py"])
def test_an_overlapping_lease_is_refused_while_the_other_run_lives(
    store: Store, wanted: str
) -> None:
    runs = RunStore(store.home)
    live(runs, store.repo_id, "src/")
    with (
        pytest.raises(LeaseRefused, match="holds a lease on src/"),
        exclusive(runs, store, parse_lease([wanted])),
    ):
        pytest.fail("granted")


@pytest.mark.parametrize("wanted", [["tests/"], ["README.md"], []])
def test_another_path_and_no_path_are_granted(store: Store, wanted: list[str]) -> None:
    runs = RunStore(store.home)
    live(runs, store.repo_id, "src/")
    with exclusive(runs, store, parse_lease(wanted)):
        pass


def test_another_repository_and_an_ended_run_hold_nothing(store: Store) -> None:
    runs = RunStore(store.home)
    live(runs, "another", "src/")
    with exclusive(runs, store, parse_lease(["src/"])):
        pass


def test_an_ended_run_that_waits_to_be_cleaned_holds_nothing(store: Store) -> None:
    runs = RunStore(store.home)
    live(runs, store.repo_id, "src/", status="done")
    with exclusive(runs, store, parse_lease(["src/"])):
        pass
