"""The base of every model that is read from or written to a file or a wire."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Frozen, and refuses keys that it does not know.

    Validators are built at first use: a command pays for the models that it meets.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        defer_build=True,
        json_schema_serialization_defaults_required=True,
    )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value (not text), aliases applied."""
        return self.model_dump(mode="json", by_alias=True)
