"""Doing the steps: processes, shells, outputs, folders, and the loop that drives `run.machine`."""
