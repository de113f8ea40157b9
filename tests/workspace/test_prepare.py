from __future__ import annotations

from pathlib import Path

import pytest

from runner.model.errors import InfrastructureError, UsageError
from runner.workspace.facts import TreeFacts
from runner.workspace.lease import LeasedPath, LeaseKind
from runner.workspace.mounts import Access, Mode, WorkspaceSpec, choose_mode, plan_mounts
from runner.workspace.prepare import Bind, Overlay, prepare

from .conftest import UID, Sample, StartRun


def facts(*leased: tuple[str, LeaseKind], protected: tuple[str, ...] = ()) -> TreeFacts:
    return TreeFacts(
        commit="c",
        leased=tuple(LeasedPath(path=path, kind=kind) for path, kind in leased),
        protected=protected,
        protected_links=(),
        submodules=(),
        files=1,
    )


def planned(
    found: TreeFacts, mode: Mode = "overlay", access: Access = "write", *, scratch: bool = False
) -> list[str]:
    spec = WorkspaceSpec(mode=mode, access=access, scratch=scratch)
    return [
        f"{mount.target} {mount.source} {'ro' if mount.read_only else 'rw'}"
        for mount in plan_mounts(found, spec)
    ]


def test_read_only_role_sees_everything_read_only_but_its_scratch() -> None:
    assert planned(facts(), access="read-only", scratch=True) == [
        "/run/rolebox/objects objects ro",
        "/scratch scratch rw",
        "/scratch/.git scratch-git rw",
        "/work tree ro",
        "/work/.git git ro",
    ]


def test_leased_directory_is_writable_and_its_protected_paths_are_not() -> None:
    found = facts(("src", "dir"), ("a.py", "file"), protected=("src/AGENTS.md",))
    for mode in ("overlay", "copy"):
        assert planned(found, mode) == [
            "/run/rolebox/objects objects ro",
            "/work tree ro",
            "/work/.git git rw",
            "/work/a.py file:a.py rw",
            f"/work/src {mode}:src rw",
            "/work/src/AGENTS.md tree:src/AGENTS.md ro",
        ]


def test_new_paths_get_mount_points_in_a_skeleton() -> None:
    assert planned(facts(("n/d", "new-dir"), ("n.txt", "new-file"))) == [
        "/run/rolebox/objects objects ro",
        "/work skeleton ro",
        "/work/.git git rw",
        "/work/n/d new:n/d rw",
        "/work/n.txt file:n.txt rw",
    ]


def test_whole_tree() -> None:
    assert planned(facts((".", "dir"), protected=(".github",))) == [
        "/run/rolebox/objects objects ro",
        "/work overlay:. rw",
        "/work/.git git rw",
        "/work/.github tree:.github ro",
    ]


def test_read_only_role_with_a_lease_is_refused() -> None:
    with pytest.raises(UsageError, match="no write lease"):
        planned(facts(("src", "dir")), access="read-only")
    assert planned(facts(("src", "dir")), access="write")


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_what_is_prepared_is_what_was_planned(
    sample: Sample, start_run: StartRun, mode: Mode
) -> None:
    run = start_run(sample, ("src/", "README.md", "new/", "n.txt"), mode=mode, scratch=True)
    spec = WorkspaceSpec(mode=mode, access="write", scratch=True)
    plan = plan_mounts(run.facts, spec)
    made = run.workspace.mounts
    assert [(m.target, m.read_only) for m in plan] == [(m.target, m.read_only) for m in made]
    assert any(isinstance(mount, Overlay) for mount in made) is (mode == "overlay")
    shared = run.checkout.path
    for mount in made:
        if isinstance(mount, Bind) and not mount.read_only:
            assert shared not in (mount.host_path, *mount.host_path.parents)


def test_state_folder_that_overlay_options_cannot_carry_gets_copies(
    sample: Sample, start_run: StartRun, tmp_path: Path
) -> None:
    for name in ("a,b", "a:b", "a\\b", 'a"b'):
        assert choose_mode(tmp_path / name, "overlay") == "copy"
    assert choose_mode(tmp_path / "plain", "overlay") == "overlay"
    run = start_run(sample)
    spec = WorkspaceSpec(mode="overlay", access="write", scratch=False)
    odd = tmp_path / "a,b" / "ws"
    with pytest.raises(UsageError, match="cannot hold an overlay"):
        prepare(run.checkout, run.facts, spec, run_id="r", root=odd, uid=UID, gid=UID)
    assert not odd.exists()
    copies = WorkspaceSpec(mode="copy", access="write", scratch=False)
    assert prepare(run.checkout, run.facts, copies, run_id="r", root=odd, uid=UID, gid=UID)
    with pytest.raises(InfrastructureError, match="already has a workspace"):
        prepare(run.checkout, run.facts, copies, run_id="r", root=odd, uid=UID, gid=UID)


def test_odd_directory_names_never_enter_the_option_string(
    sample: Sample, start_run: StartRun
) -> None:
    name = 'a,b:c"d\\e'
    sample.commit({f"{name}/f": "1\n"})
    run = start_run(sample, (name,))
    for mount in run.workspace.mounts:
        if isinstance(mount, Overlay):
            assert name not in mount.options
    run.agent("cp", "README.md", f"{name}/f")
    assert len(run.collect().files) == 1


def test_two_runs_share_the_tree_and_not_their_writes(sample: Sample, start_run: StartRun) -> None:
    one, two = start_run(sample, name="one"), start_run(sample, name="two")
    one.agent("sh", "-c", "echo changed > README.md")
    assert (two.view / "README.md").read_text() == "hello\n"
    assert (one.checkout.tree / "README.md").read_text() == "hello\n"
    assert one.checkout.path == two.checkout.path
