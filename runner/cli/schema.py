"""`rolebox schema`: the JSON Schemas of what rolebox writes."""

from __future__ import annotations

import click

from runner.cli.wiring import echo_json


@click.command("schema")
@click.argument("name", type=click.Choice(["provenance", "plan", "state"]))
def schema_command(name: str) -> int:
    """Print a JSON Schema (2020-12).

    \b
    Example:
      rolebox schema provenance > provenance.schema.json
    """
    from runner.model.base import Frozen
    from runner.model.plan import RunPlan
    from runner.model.provenance import provenance_schema
    from runner.model.state import RunState

    if name == "provenance":
        echo_json(provenance_schema())
        return 0
    models: dict[str, type[Frozen]] = {"plan": RunPlan, "state": RunState}
    model = models[name]
    schema = model.model_json_schema(by_alias=True, mode="serialization")
    echo_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    return 0
