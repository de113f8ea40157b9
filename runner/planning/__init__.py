"""From profiles, a task and pins to a frozen `RunPlan`; reads files, changes nothing.

Imports only `runner.model` (and the names of the in-container controls).
"""
