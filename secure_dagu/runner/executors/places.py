"""Where the shell work of a step runs: on this host, on an SSH host, in a container. Pure."""

from __future__ import annotations

from secure_dagu.dag.model import Dag, Step
from secure_dagu.dag.scope import Layer, Scope

_SHELL_WORK = frozenset({"command", "script"})


def place(dag: Dag, step: Step) -> str:
    """Return the kind whose executor does the step's work.

    A container, the step's own or the DAG's, takes every command; a root `ssh` takes `run` (sections 4.6 and 4.7).
    """
    if step.kind in _SHELL_WORK or step.kind == "exec":
        if step.container is not None or dag.container is not None:
            return "container.run"
        if step.kind in _SHELL_WORK and "ssh" in dag.step_defaults:
            return "ssh.run"
    return step.kind


def remote_scope(scope: Scope) -> Scope:
    """Return what text for another machine may see: all but the working directory, which means nothing there."""
    managed = {name: value for name, value in scope.env.layer(Layer.STEP_MANAGED).items() if name != "PWD"}
    return scope.with_env(Layer.STEP_MANAGED, managed)
