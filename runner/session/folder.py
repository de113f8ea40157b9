"""What a run's folder holds before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

from runner.evidence.store import RunFolder
from runner.model.plan import Materials, PlannedRun, RunPlan
from runner.session.bind import config_files, write_config


def first_files(planned: PlannedRun) -> dict[str, bytes]:
    """Return name to bytes: the plan, where its values came from, the prompt, the script."""
    files = {
        "plan.json": planned.plan.canonical(),
        "origins.json": json.dumps(dict(planned.origins), indent=2).encode() + b"\n",
    }
    if planned.materials.prompt is not None:
        files["prompt.md"] = planned.materials.prompt
    if planned.materials.script is not None:
        files["model-script.json"] = json.dumps(planned.materials.script).encode() + b"\n"
    return files


def write_config_of(folder: RunFolder, plan: RunPlan, materials: Materials) -> Path:
    """Write what the agent's container mounts read-only; returns its folder."""
    config = folder.path / "config"
    write_config(config, config_files(plan, materials))
    return config
