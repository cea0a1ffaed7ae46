"""One file a step type; what is not in the registry is refused.

An executor is imported when a step first needs it: a run of shell commands pays nothing for databases and networks.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from secure_dagu.runner.context import Executor

EXECUTORS: dict[str, str] = {
    "command": "command:execute",
    "script": "script:execute",
    "exec": "direct:execute",
    "noop": "simple:noop",
    "log.write": "simple:log_write",
    "outputs.write": "simple:outputs_write",
    "router.route": "simple:route",
    "dag.run": "dag_run:execute",
    "dag.enqueue": "dag_run:enqueue",
    "http.request": "http:request",
    "wait.duration": "wait:duration",
    "wait.until": "wait:until",
    "wait.file": "wait:file",
    "wait.http": "wait:http",
    "file.write": "file:write",
    "file.read": "file:read",
    "file.stat": "file:stat_",
    "file.copy": "file:copy",
    "file.move": "file:move",
    "file.delete": "file:delete",
    "file.mkdir": "file:mkdir",
    "file.list": "file:list_",
    "artifact.write": "artifact:write",
    "artifact.read": "artifact:read",
    "artifact.list": "artifact:list_",
    "state.get": "state:get",
    "state.set": "state:set_",
    "state.diff": "state:diff",
    "state.list": "state:list_",
    "state.delete": "state:delete",
    "jq.filter": "jq_filter:execute",
    "data.convert": "data:convert",
    "data.pick": "data:pick",
    "template.render": "template:render",
    "sqlite.query": "sqlite:query",
    "sqlite.import": "sqlite:import_",
    "postgres.query": "postgres:query",
    "postgres.import": "postgres:import_",
    "redis": "redis:execute",
    "s3.upload": "s3:upload",
    "s3.download": "s3:download",
    "s3.list": "s3:list_",
    "s3.delete": "s3:delete",
    "ssh.run": "ssh:execute",
    "sftp.upload": "sftp:upload",
    "sftp.download": "sftp:download",
    "mail.send": "mail:send",
    "git.checkout": "git:checkout",
    "git.worktree.add": "git:worktree_add",
    "git.worktree.remove": "git:worktree_remove",
    "archive.create": "archive:create",
    "archive.extract": "archive:extract",
    "archive.list": "archive:list_",
    "docker.run": "container:execute",
    "container.run": "container:execute",
}
"""Step kind → where its executor is, below this package. `redis` stands for every `redis.<command>`."""


@cache
def executor_of(kind: str) -> Executor:
    """Return the executor of a step kind.

    Raises:
        KeyError: there is none.
    """
    module, _, name = EXECUTORS["redis" if kind.startswith("redis.") else kind].partition(":")
    return cast(Executor, getattr(import_module(f"secure_dagu.runner.executors.{module}"), name))
