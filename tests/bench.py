"""`make bench`: speed and memory, side by side with raw docker in the same run.

Medians, never asserted: this machine is shared and noisy, so read the ratios.
Runs of the two sides alternate, so that both meet the same noise.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import platformdirs

from runner.engine.api import RUN_LABEL, Binding
from runner.engine.docker_engine import DockerEngine
from runner.engine.endpoint import resolve_endpoint
from runner.evidence.events import EventRecorder
from runner.evidence.store import RunStore
from runner.model.pins import Pins
from runner.model.profile import Limits
from runner.planning.containers import agent_container
from runner.resources import profiles_dir
from runner.session.task import load_pins, load_seccomp

ROLEBOX = str(Path(__file__).parent.parent / ".venv" / "bin" / "rolebox")
ROUNDS = 12
LINES = 500_000

_PRINTER = (
    "import json,sys; line=json.dumps({'type':'item.completed','item':{'id':'item_1',"
    "'type':'command_execution','command':'/bin/sh -c ls','aggregated_output':'x'*170,"
    "'exit_code':0,'status':'completed'}})+'\\n'; block=line*200\n"
    f"for _ in range({LINES // 200}): sys.stdout.write(block)"
)


def main() -> None:
    """Measure and print."""
    home = Path(os.environ.get("ROLEBOX_HOME") or platformdirs.user_state_path("rolebox"))
    pins = load_pins(home)
    with tempfile.TemporaryDirectory() as folder:
        repository = _repository(Path(folder))
        _exec_against_docker(repository, pins, home)
        _help()
    _stream(pins)


def _repository(folder: Path) -> Path:
    (folder / "a.txt").write_text("a\n")
    who = ["-c", "user.name=bench", "-c", "user.email=bench@example.com"]
    for args in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *args], cwd=folder, check=True)
    return folder


def _exec_against_docker(repository: Path, pins: Pins, home: Path) -> None:
    raw = _raw_docker(pins)
    sealed = [ROLEBOX, "exec", "reviewer", "--", "true"]
    _seconds(sealed, repository)
    docker, rolebox, peaks = [], [], []
    stages: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        docker.append(_seconds(raw, repository)[0])
        seconds, peak = _seconds(sealed, repository)
        rolebox.append(seconds)
        peaks.append(peak)
        latest = next(RunStore(home).folders()).read_json("provenance.json") or {}
        timings = latest["timings_ms"]
        assert isinstance(timings, dict)
        for stage, value in timings.items():
            stages.setdefault(stage, []).append(value)
    base, ours = statistics.median(docker), statistics.median(rolebox)
    print(f"docker run --rm, hardened, default bridge  {base * 1000:7.0f} ms")
    print(f"rolebox exec reviewer -- true              {ours * 1000:7.0f} ms   x{ours / base:.2f}")
    for stage, values in stages.items():
        print(f"    {stage:<20} {statistics.median(values):7.0f} ms")
    outside = ours * 1000 - statistics.median(stages["total"])
    print(f"    {'start, plan, exit':<20} {outside:7.0f} ms")
    print(f"orchestrator, peak resident                {statistics.median(peaks):7.1f} MB")


def _raw_docker(pins: Pins) -> list[str]:
    seccomp = profiles_dir() / "seccomp" / "agent.json"
    flags = "--rm --init --read-only --cap-drop ALL --user 1000:1000 --pids-limit 256 --memory 2g"
    flags += " --memory-swap 2g --cpus 2 --shm-size 64m --ipc private --ulimit core=0"
    flags += " --ulimit nofile=8192 --ulimit fsize=1073741824 --security-opt no-new-privileges"
    flags += " --tmpfs /tmp:rw,nosuid,nodev,size=1024m --log-opt max-size=256m"
    return [
        "docker",
        "run",
        *flags.split(),
        "--security-opt",
        f"seccomp={seccomp}",
        pins.agent_image,
        "true",
    ]


def _seconds(command: list[str], directory: Path) -> tuple[float, float]:
    """Run a command; return its wall time in seconds and its peak resident size in MB."""
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    stderr = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command[:4])} …: {stderr.decode()}")
    return seconds, usage.ru_maxrss / 1024


def _help() -> None:
    times = [_seconds([ROLEBOX, "--help"], Path("/"))[0] for _ in range(ROUNDS)]
    bare = [_seconds([sys.executable, "-c", "pass"], Path("/"))[0] for _ in range(ROUNDS)]
    print(
        f"rolebox --help                             {statistics.median(times) * 1000:7.0f} ms"
        f"   (python alone {statistics.median(bare) * 1000:.0f} ms)"
    )


def _stream(pins: Pins) -> None:
    """Print typed lines a second, from a container that only prints, to disk."""
    engine = DockerEngine.connect(resolve_endpoint(os.environ))
    seccomp = load_seccomp()["agent"]
    spec = agent_container(
        image=pins.agent_image,
        role="bench",
        uid=1000,
        gid=1000,
        seccomp="",
        limits=Limits(log_mb=1024),
        tree_mounts=(),
        attachments=False,
    ).model_copy(update={"argv": ("python3", "-c", _PRINTER), "mounts": (), "workdir": "/"})
    rates = []
    for number in range(3):
        name = f"rolebox-bench-{os.getpid()}-{number}"
        container = engine.create(spec, Binding(name, {RUN_LABEL: name}, (), seccomp))
        try:
            with tempfile.NamedTemporaryFile(buffering=0) as sink:
                recorder = EventRecorder(sink, limit=1 << 40)  # type: ignore[arg-type]
                attachment = engine.attach(container)
                begun = time.monotonic()
                engine.start(container)
                for _, data in attachment.frames():
                    recorder.feed(data)
                seconds = time.monotonic() - begun
            if recorder.finish().events != LINES:
                sys.exit(f"{recorder.summary.events} of {LINES} lines arrived")
            rates.append(LINES / seconds)
        finally:
            engine.remove(container)
    print(f"event stream, container to disk            {statistics.median(rates):7.0f} lines/s")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0]}))
    main()
