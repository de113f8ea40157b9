"""The command line: parse, wire, exit codes. What it does lies in the other rooms.

Heavy modules (pydantic, docker-py, rich) load within the command that needs
them, so that `rolebox --help` and shell completion stay quick.
"""
