"""Evidence: the run's folder, the records in it, and how they are read again.

The host writes all of it; nothing that the agent can reach is evidence by
itself. Imports only `runner.model`.
"""
