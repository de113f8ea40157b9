"""What a person gets wrong: one message with what, why and the mend, the right code, no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import git
from tests.e2e.rig import FINDINGS, Desk, Ended


def _refused(done: Ended, code: int, *words: str) -> None:
    """Hold a refusal: its code, one message on stderr alone, no traceback."""
    assert done.code == code, done.stderr
    assert done.out == b""
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected error" not in done.stderr
    lines = done.stderr.splitlines()
    assert (
        sum(x.startswith(("rolebox: ", "Error: ")) for x in lines if "--write PATH" not in x) == 1
    )


@pytest.fixture
def offline(shared: Desk) -> list[str]:
    return ["--model-script", shared.script({"say": FINDINGS})]


@pytest.fixture(autouse=True, scope="module")
def _nothing_was_started(shared: Desk) -> object:
    """No refusal of this module may leave a run's folder or a line in the ledger."""
    yield
    assert shared.runs() == []
    assert not (shared.home / "ledger.jsonl").exists()
    live = shared.home / "live"
    assert not live.exists() or list(live.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            ["run", "revewer", "x"],
            2,
            ["no role 'revewer'", "roles here:", "did you mean 'reviewer'"],
        ),
        (["run", "../x", "x"], 2, ["is no role name"]),
        (["run", "reviewer"], 2, ["prompt"]),
        (["run", "reviewer", ""], 2, ["prompt"]),
        (["run", "reviewer", "  \n"], 2, ["prompt"]),
        (["run", "reviewer", "-"], 2, ["prompt"]),
        (["run", "reviewer", "--prompt-file", "nowhere.md"], 2, ["prompt", "No such file"]),
        (["run", "reviewer", "x", "--prompt-file", "README.md"], 2, ["both given", "one of them"]),
        (["run", "reviewer", "x", "--ref", "mian"], 2, ["'mian'", "did you mean main?"]),
        (["run", "reviewer", "x", "--ref", "--output=x"], 2, ["is not a revision"]),
        (["run", "reviewer", "x", "--write", "src/"], 3, ["reads only", "scaffold or fixer"]),
        (["run", "scaffold", "x", "--write", "../x"], 3, ["'../x'", "goes up with .."]),
        (["run", "scaffold", "x", "--write", "/etc"], 3, ["'/etc'", "absolute", "relative"]),
        (["run", "scaffold", "x", "--write", ".git/x"], 3, ["git's own directory"]),
        (["run", "scaffold", "x", "--write", ".GIT/x"], 3, ["git's own directory"]),
        (["run", "scaffold", "x", "--write", ""], 3, ["it is empty"]),
        (["run", "scaffold", "x", "--write", "AGENTS.md"], 3, ["protected by 'AGENTS.md'"]),
        (["run", "scaffold", "x", "--write", ".github/"], 3, ["protected by '.github'"]),
        (["run", "scaffold", "x", "--write", "README.md/x"], 3, ["README.md is a file"]),
        (["run", "scaffold", "x", "--model", "gpt-9"], 2, ["gpt-9"]),
        (["run", "scaffold", "x", "--attach", "nowhere"], 2, ["attachment", "No such file"]),
        (
            ["run", "scaffold", "x", "--write", "src", "--attach", "README.md"],
            3,
            ["untrusted", "--allow-untrusted", "drop --write"],
        ),
        (["run", "scaffold", "x", "--output-schema", "README.md"], 2, ["is not JSON"]),
        (["run", "scaffold", "x", "--timeout", "0"], 2, ["--timeout"]),
        (["run", "scaffold", "x", "--timeout", "inf"], 2, ["timeout"]),
        (["run", "scaffold", "x", "--max-tokens", "-1"], 2, ["--max-tokens"]),
        (["run", "scaffold", "x", "--after", "20990101"], 2, ["there is no run '20990101'"]),
        (["run", "scaffold", "x", "--nonsense"], 2, ["--nonsense"]),
        (["exec", "reviewer"], 2, ["CMD"]),
        (["plan", "revewer", "x"], 2, ["did you mean 'reviewer'"]),
        (["shwo", "last"], 2, ["shwo", "'show'"]),
        (["show", "last"], 2, ["there is no run yet", "rolebox run"]),
        (["show", ""], 2, ["there is no run ''"]),
        (["logs", "../../etc"], 2, ["there is no run"]),
        (["logs", "last", "--kind", "evnets"], 2, ["evnets"]),
        (["diff", "20990101"], 2, ["rolebox list"]),
        (["list", "--limit", "0"], 2, ["--limit"]),
        (["schema", "plane"], 2, ["plane"]),
        (["-C", "nowhere", "run", "reviewer", "x"], 2, ["nowhere is not a directory"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_is_refused_with_the_mend(
    shared: Desk, offline: list[str], words: list[str], code: int, told: list[str]
) -> None:
    given = [*words, *offline] if words[0] == "run" else words
    _refused(shared.run(*given), code, *told)


def test_a_lease_through_a_link_or_a_submodule_is_refused(desk: Desk) -> None:
    (desk.repository / "link").symlink_to("src")
    git(desk.repository, "add", "link")
    head = git(desk.repository, "rev-parse", "HEAD")
    git(desk.repository, "update-index", "--add", "--cacheinfo", f"160000,{head},vendor")
    git(desk.repository, "commit", "--quiet", "--message", "link")
    for lease, why in (
        ("link", "symbolic link"),
        ("link/app.py", "symbolic"),
        ("vendor", "submodule"),
    ):
        _refused(desk.run("plan", "scaffold", "x", "--write", lease), 3, why)
    assert desk.run("plan", "scaffold", "x", "--write", "src").code == 0


def test_what_is_no_repository_or_has_no_commit_is_refused(shared: Desk, tmp_path: Path) -> None:
    _refused(shared.run("plan", "reviewer", "x", cwd=tmp_path), 2, "not in a git repository", "-C")
    git(tmp_path, "init", "--quiet")
    _refused(shared.run("plan", "reviewer", "x", cwd=tmp_path), 2, "has no commits", "commit")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "one")
    assert shared.run("plan", "reviewer", "x", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends = \n", "is not valid TOML"),
        ('acess = "write"\nextends = "reviewer"\n', "did you mean 'access'"),
        ('extends = "reviewer"\n[limits]\nmemry_mb = 1\n', "did you mean 'memory_mb'"),
        ('extends = "reviewer"\n[limits]\nmemory_mb = "much"\n', "limits.memory_mb"),
        ('extends = "revewer"\n', "extends must name a built-in role"),
        ('description = "x"\n', "extends must name a built-in role"),
        ('extends = "reviewer"\n[limits]\npids = 0\n', "limits.pids"),
    ],
)
def test_a_malformed_role_is_refused_by_file_and_key(desk: Desk, text: str, told: str) -> None:
    desk.profile("mine", text)
    _refused(desk.run("plan", "mine", "x"), 2, "mine/profile.toml", told)
    desk.profile("mine", 'extends = "reviewer"\n[limits]\nmemory_mb = 512\n')
    assert desk.run("plan", "mine", "x").code == 0


def test_a_role_that_loosens_takes_a_flag(desk: Desk) -> None:
    desk.profile("wide", 'extends = "reviewer"\naccess = "write"\n')
    _refused(desk.run("plan", "wide", "x"), 3, "access: read-only -> write", "--allow-loosened")
    planned = desk.run("plan", "wide", "x", "--allow-loosened", "--json").check().json()
    assert any("access" in override for override in planned["plan"]["overrides"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "turns"),
        ('{"turns": []}', "1 to"),
        ('{"turns": [{"sya": "x"}]}', "turn 1: unknown key 'sya'"),
        ('{"turns": [{"say": "x"}, {"shell": 1}]}', "turn 2: 'shell' needs text"),
        ('{"turns": [{"error": {"status": 200, "message": "x"}}]}', "400 to 599"),
        ("\x00\xff", "is not JSON"),
    ],
)
def test_a_malformed_model_script_is_refused_by_turn(shared: Desk, text: str, told: str) -> None:
    script = shared.home.parent / "bad.json"
    script.write_bytes(text.encode("latin-1"))
    done = shared.run("run", "reviewer", "x", "--model-script", str(script))
    _refused(done, 2, "bad.json", told)


def test_untrusted_text_into_a_writer_is_allowed_by_a_flag(shared: Desk) -> None:
    words = ("plan", "scaffold", "x", "--write", "src", "--attach", "README.md", "--json")
    plan = shared.run(*words, "--allow-untrusted").check().json()["plan"]
    assert plan["overrides"] == ["untrusted-into-writer"]
    assert shared.run("plan", "reviewer", "x", "--attach", "README.md").code == 0


def test_a_live_run_without_a_key_is_refused(shared: Desk) -> None:
    for env in ({}, {"OPENAI_API_KEY": " "}):
        _refused(shared.run("run", "reviewer", "x", env=env), 2, "OPENAI_API_KEY", "--model-script")
    bad = shared.run("run", "reviewer", "x", env={"OPENAI_API_KEY": "sk-a b\nc"})
    _refused(bad, 2, "OPENAI_API_KEY is no key")
    assert "sk-a" not in bad.stderr


@pytest.mark.parametrize("host", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "ftp://x"])
def test_an_engine_that_does_not_answer_is_named(
    shared: Desk, offline: list[str], host: str
) -> None:
    done = shared.run("run", "reviewer", "x", *offline, env={"DOCKER_HOST": host})
    _refused(done, 4, host)
    assert "mend: " in done.stderr


def test_a_locked_image_that_the_engine_lacks_is_refused(desk: Desk) -> None:
    shipped = Path(__file__).parents[2] / "images" / "images.lock"
    lock = desk.home / "images.lock"
    text = (lock if lock.exists() else shipped).read_text()
    agent = desk.run("images", "list", "--json").check().json()["images"][0]["id"]
    lock.write_text(text.replace(agent, "sha256:" + "0" * 64))
    script = desk.script({"say": FINDINGS})
    done = desk.run("run", "reviewer", "x", "--model-script", script)
    assert done.code == 3, done.stderr
    assert "mend: build them: rolebox images build" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["run", "reviewer", "x"], ["list"], ["show", "last"], ["demo"]]
)
def test_a_state_folder_that_is_a_file_is_refused(
    shared: Desk, offline: list[str], command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = [*command, *offline] if command[0] == "run" else command
    done = shared.run(*words, env={"ROLEBOX_HOME": str(tmp_path / "file")})
    _refused(done, 2, str(tmp_path / "file"))


def test_a_state_folder_that_cannot_be_made_is_refused(shared: Desk, offline: list[str]) -> None:
    home = {"ROLEBOX_HOME": "/proc/rolebox"}
    done = shared.run("run", "reviewer", "x", *offline, env=home)
    _refused(done, 2, "/proc/rolebox", "set ROLEBOX_HOME")


def test_an_ambiguous_prefix_names_the_runs_that_it_may_mean(desk: Desk) -> None:
    for _ in range(2):
        desk.run("exec", "reviewer", "--", "true").check()
    first, second = desk.runs()
    prefix = next(first[:n] for n in range(len(first), 0, -1) if second.startswith(first[:n]))
    _refused(desk.run("show", prefix), 2, "names 2 runs", first, second, "give more of the id")
    assert desk.run("show", first).code == 0
    unique = second[: len(prefix) + 1]
    assert json.loads(desk.run("show", unique, "--json").out)["id"] == second


def test_a_run_on_a_dirty_repository_says_what_it_does_not_see(desk: Desk) -> None:
    (desk.repository / "README.md").write_text("dirty\n")
    script = desk.script({"shell": "cat README.md"}, {"say": "Seen."})
    done = desk.run("run", "scaffold", "x", "--model-script", script).check()
    assert "1 changed file(s) here are not committed" in done.stderr
    assert "# sample" in desk.text("events.jsonl")
    assert (desk.repository / "README.md").read_text() == "dirty\n"


def test_debug_shows_the_traceback_and_the_same_message(shared: Desk) -> None:
    done = shared.run("--debug", "plan", "revewer", "x")
    assert done.code == 2
    assert "Traceback" in done.stderr
    assert "rolebox: there is no role 'revewer'" in done.stderr
