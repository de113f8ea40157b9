"""What runs inside the agent container; the standard library only."""
