"""One file a step type; what is not in the registry is refused."""

from secure_dagu.runner.context import Executor
from secure_dagu.runner.executors import command, dag_run, direct, script, simple

EXECUTORS: dict[str, Executor] = {
    "command": command.execute,
    "script": script.execute,
    "exec": direct.execute,
    "noop": simple.noop,
    "log.write": simple.log_write,
    "outputs.write": simple.outputs_write,
    "dag.run": dag_run.execute,
}
"""Step kind → executor."""
