"""The values that flow through rolebox; nothing here does I/O.

Frozen pydantic models where a value crosses a file or a wire, plain frozen
dataclasses within. This room imports only the standard library and pydantic
(and rfc8785, which is pure), so every other room may import it.
"""
