"""The authored YAML's shape as data: the keys of each mapping, their kinds, and what this version does with them.

The reader checks mappings against these tables, unknown-key errors come from them, and the JSON Schema and the
reference page are made from them. A key is one of three things: acted on; accepted but not acted on (it goes to
`Dag.extra` and a warning says so); or refused, because ignoring it would do something else than the author asked for:
a step meant for a container must not run on the host, a step meant to wait for approval must not go ahead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Use(Enum):
    """What this version does with a key."""

    ACTED_ON = "acted on"
    ACCEPTED = "accepted, not acted on by this version"
    REFUSED = "not supported by this version"


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its accepted YAML kinds and its use."""

    kinds: str
    use: Use = Use.ACTED_ON


Table = Mapping[str, Key]


def _keys(written: str, use: Use = Use.ACTED_ON) -> dict[str, Key]:
    """Return the keys of `name=kinds` words."""
    return {name: Key(kinds, use) for name, kinds in (word.split("=") for word in written.split())}


def _words(written: str) -> frozenset[str]:
    return frozenset(written.split())


ROOT: Table = {
    **_keys("""
        name=text group=text description=text type=text steps=list|map params=text|list|map
        consts=list env=list|map dotenv=text|list secrets=list shell=text|list shell_args=list
        working_dir=text defaults=map handler_on=map preconditions=text|list timeout_sec=int
        delay_sec=int restart_wait_sec=int max_active_steps=int max_clean_up_time_sec=int
        max_output_size=int queue=text log_dir=text log_output=text artifacts=map
        labels=text|list|map tags=text|list|map worker_selector=text|map
        """),
    **_keys(
        """
        schedule=text|list|map retry_policy=map max_active_runs=int skip_if_successful=bool
        catchup_window=text overlap_policy=text hist_retention_days=int hist_retention_runs=int
        mail_on=map error_mail=map info_mail=map wait_mail=map smtp=map registry_auths=text|map
        s3=map redis=map resources=map run_config=map webhook=map actions=map step_types=map
        otel=map tools=list|map llm=map harness=any harnesses=any kubernetes=map
        """,
        Use.ACCEPTED,
    ),
    **_keys("container=text|map ssh=map tasks=list", Use.REFUSED),
}

STEP: Table = {
    **_keys("""
        name=text id=text description=text run=text|list action=text depends=text|list env=list|map
        working_dir=text preconditions=text|list with=map stdout=text|map stderr=text|map log_output=text
        output=text|map output_schema=map outputs=list dependencies=text|list continue_on=text|map
        retry_policy=map repeat_policy=map timeout_sec=int signal_on_stop=text
        parallel=text|list|map worker_selector=text|map command=text|list exec=map script=text
        shell=text|list shell_args=list shell_packages=list call=text params=text|list|map
        type=text config=map
        """),
    **_keys("mail_on_error=bool", Use.ACCEPTED),
    **_keys(
        """
        foreach=map inputs=list container=text|map approval=map value=text routes=map llm=map
        messages=list tools=list
        """,
        Use.REFUSED,
    ),
}

HANDLER_ON: Table = _keys("""
        init=map success=map failure=map abort=map exit=map wait=map
        """)

DEFAULTS: Table = {
    **_keys("""
        continue_on=text|map retry_policy=map repeat_policy=map timeout_sec=int signal_on_stop=text
        env=list|map preconditions=text|list
        """),
    **_keys("mail_on_error=bool", Use.ACCEPTED),
}

RUN_WITH: Table = _keys("shell=text|list shell_args=list shell_packages=list")
EXEC: Table = _keys("command=text args=list")
PRECONDITION: Table = _keys("condition=text eval=text expected=text negate=bool")
RETRY: Table = _keys("""
        limit=int|text interval_sec=int|text exit_code=int|list backoff=bool|number
        max_interval_sec=int
        """)
REPEAT: Table = _keys("""
        repeat=text|bool condition=text expected=text exit_code=int|list interval_sec=int|text
        limit=int|text backoff=bool|number max_interval_sec=int|text
        """)
CONTINUE_ON: Table = _keys("""
        failure=bool failed=bool skipped=bool exit_code=int|list output=text|list mark_success=bool
        """)
PARALLEL: Table = _keys("items=text|list max_concurrent=int")
ARTIFACTS: Table = _keys("enabled=bool dir=text")
SECRET: Table = _keys("""
        name=text ref=text provider=text key=text options=map
        """)
DECLARED_OUTPUT: Table = {**_keys("name=text type=text"), **_keys("path=text", Use.REFUSED)}
STREAM: Table = _keys("artifact=text outputs=text|map")
STREAM_OUTPUTS: Table = _keys("field=text decode=text select=text fields=map")
PARAM: Table = _keys("""
        name=text type=text default=any eval=text description=text required=bool enum=list
        minimum=number maximum=number min_length=int max_length=int pattern=text
        """)

# ----------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Action:
    """One builtin action: the keys of its `with`, and which of them must be there."""

    keys: Table
    required: tuple[str, ...] = ()


ACTIONS: Mapping[str, Action] = {
    "exec": Action(EXEC, ("command",)),
    "noop": Action({}),
    "log.write": Action(_keys("message=text"), ("message",)),
    "outputs.write": Action(_keys("values=map"), ("values",)),
    "dag.run": Action(_keys("dag=text params=text|list|map"), ("dag",)),
}
"""What this version can do."""

KNOWN_ACTIONS = _words(
    """
    dag.enqueue router.route http.request wait.duration wait.until wait.file wait.http file.write
    file.read file.stat file.copy file.move file.delete file.mkdir file.list artifact.write
    artifact.read artifact.list state.get state.set state.delete state.list state.diff jq.filter
    data.convert data.pick template.render sqlite.query sqlite.import postgres.query postgres.import
    redis.command s3.upload s3.download s3.list s3.delete ssh.run sftp.upload sftp.download mail.send
    git.checkout git.worktree.add git.worktree.remove archive.create archive.extract archive.list
    docker.run container.run human.task chat.completion harness.run k8s.run kubernetes.run
    """
)
"""Actions of the language that this version cannot do yet; `redis.<command>` as well."""

LEGACY_TYPES: Mapping[str, str] = {
    "command": "",
    "shell": "",
    "dag": "dag.run",
    "subworkflow": "dag.run",
    "log": "log.write",
    "outputs": "outputs.write",
}
"""`type:` of a legacy step → the action that it is now; empty for plain commands."""

LEGACY_TYPES_UNSUPPORTED = _words(
    """
    docker container ssh sftp http mail jq archive sqlite postgres redis s3 git template file router
    parallel foreach kubernetes k8s chat harness action
    """
)

EXCLUDED_BY_RUN_OR_ACTION = (
    *("call", "command", "config", "exec", "llm", "messages", "params", "routes", "script"),
    *("shell", "shell_args", "shell_packages", "type", "value"),
)
"""Legacy keys that `run` and `action` exclude."""

# ------------------------------------------------------------------------------------------------------ unknown keys

REMOVED = {"precondition": "preconditions", "dir": "working_dir", "executor": "action` with `with"}
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")
_OLD_NAMES = {
    "mail_on": "mail_on",
    "max_cleanup_time_sec": "max_clean_up_time_sec",
    "max_clean_up_time": "max_clean_up_time_sec",
    "timeout": "timeout_sec",
    "delay": "delay_sec",
    "restart_wait": "restart_wait_sec",
}


def hint_for(key: str, table: Table) -> str:
    """Return what the author of an unknown key may have meant, empty when nothing is near."""
    if key in REMOVED and key not in table:
        return f"it was removed, use `{REMOVED[key]}`"
    snake = _CAMEL.sub(r"_\1", key).lower()
    snake = snake if snake in table else _OLD_NAMES.get(snake, snake)
    if snake != key and snake in table:
        return f"{key} is now {snake}: use snake_case keys"
    if key.startswith("x-"):
        return "extension keys are not accepted"
    if near := nearest(key, table):
        return f'did you mean "{near}"?'
    return ""


def nearest(word: str, candidates: Mapping[str, object] | frozenset[str]) -> str:
    """Return the most similar candidate, empty when none is similar or there are too many to compare."""
    if len(candidates) > 500:
        return ""
    import difflib  # only a file with a mistake pays for it

    found = difflib.get_close_matches(word[:80], list(candidates), n=1, cutoff=0.6)
    return found[0] if found else ""
