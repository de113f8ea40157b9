"""rolebox: sealed Codex CLI roles, side by side, with evidence."""

__version__ = "0.1.0"
