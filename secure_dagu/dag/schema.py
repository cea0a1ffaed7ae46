"""The authored YAML's shape as data: the keys of each mapping, their kinds, and what this version does with them.

The reader checks mappings against these tables, unknown-key errors come from them, and the JSON Schema and the
reference page are made from them. A key is one of three things: acted on; accepted and ignored, because it belongs to
parts of the language that this edition leaves out; or refused, because ignoring it would do something else than the
author asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from secure_dagu.dag.tables import Key, Table, Use
from secure_dagu.dag.tables import keys as _keys

__all__ = ["Key", "Table", "Use"]

ROOT: Table = {
    **_keys("""
        name=text group=text description=text type=text steps=list|map params=text|list|map
        consts=list env=list|map dotenv=text|list secrets=list shell=text|list shell_args=list
        working_dir=text defaults=map handler_on=map preconditions=text|list retry_policy=map timeout_sec=int
        delay_sec=int restart_wait_sec=int max_active_steps=int max_active_runs=int max_clean_up_time_sec=int
        max_output_size=int queue=text schedule=text|list|map skip_if_successful=bool catchup_window=text
        overlap_policy=text log_dir=text log_output=text artifacts=map hist_retention_days=int
        hist_retention_runs=int labels=text|list|map tags=text|list|map mail_on=map error_mail=map info_mail=map
        wait_mail=map smtp=map container=text|map registry_auths=text|map ssh=map s3=map redis=map
        worker_selector=text|map resources=map run_config=map webhook=map actions=map step_types=map otel=map
        """),
    **_keys("tools=list|map llm=map harness=any harnesses=any kubernetes=map", Use.ACCEPTED),
    **_keys("tasks=list", Use.REFUSED),
}

STEP: Table = {
    **_keys("""
        name=text id=text description=text run=text|list action=text with=map depends=text|list env=list|map
        working_dir=text preconditions=text|list stdout=text|map stderr=text|map log_output=text
        output=text|map output_schema=map outputs=list inputs=list dependencies=text|list continue_on=text|map
        retry_policy=map repeat_policy=map timeout_sec=int signal_on_stop=text mail_on_error=bool
        parallel=text|list|map foreach=map worker_selector=text|map container=text|map approval=map
        command=text|list exec=map script=text shell=text|list shell_args=list shell_packages=list call=text
        params=text|list|map type=text config=map value=any routes=map
        """),
    **_keys("llm=map messages=list tools=list|map", Use.ACCEPTED),
}

HANDLER_ON: Table = _keys("""
        init=map success=map failure=map abort=map exit=map wait=map
        """)

DEFAULTS: Table = _keys("""
        continue_on=text|map retry_policy=map repeat_policy=map timeout_sec=int mail_on_error=bool
        signal_on_stop=text env=list|map preconditions=text|list
        """)

RUN_WITH: Table = _keys("shell=text|list shell_args=list shell_packages=list")
PRECONDITION: Table = _keys("condition=text eval=text expected=text negate=bool")
RETRY: Table = _keys("""
        limit=int|text interval_sec=int|text exit_code=int|list backoff=bool|number
        max_interval_sec=int
        """)
DAG_RETRY: Table = _keys("limit=int|text interval_sec=int|text backoff=bool|number max_interval_sec=int|text")
REPEAT: Table = _keys("""
        repeat=text|bool condition=text expected=text exit_code=int|list interval_sec=int|text
        limit=int|text backoff=bool|number max_interval_sec=int|text
        """)
CONTINUE_ON: Table = _keys("""
        failure=bool failed=bool skipped=bool exit_code=int|list output=text|list mark_success=bool
        """)
PARALLEL: Table = _keys("items=text|list max_concurrent=int")
FOREACH: Table = _keys("items=text|list steps=list as=text key=text max_concurrent=int collect=map")
APPROVAL: Table = _keys("prompt=text input=list required=list rewind_to=text")
FORM: Table = _keys("type=text properties=map required=list title=text description=text additionalProperties=bool")
ARTIFACTS: Table = _keys("enabled=bool dir=text")
SECRET: Table = _keys("""
        name=text ref=text provider=text key=text options=map
        """)
PATH_INPUT: Table = _keys("name=text path=text")
DECLARED_OUTPUT: Table = _keys("name=text type=text path=text")
STREAM: Table = _keys("artifact=text outputs=text|map")
STREAM_OUTPUTS: Table = _keys("field=text decode=text select=text fields=map")
ENTRY: Table = _keys("from=text path=text decode=text select=text")
PARAM: Table = _keys("""
        name=text type=text default=any eval=text description=text required=bool enum=list
        minimum=number maximum=number min_length=int max_length=int pattern=text
        """)

MAIL_ON: Table = _keys("failure=bool success=bool wait=bool")
MAIL: Table = {**_keys("to=text|list prefix=text attach_logs=bool"), "from": Key("text")}
SMTP: Table = _keys("host=text port=text|int username=text password=text oauth=map")
OAUTH: Table = _keys("""
        provider=text tenant_id=text client_id=text client_secret=text service_account_json=text refresh_token=text
        """)
RESOURCES: Table = _keys("limits=map")
LIMITS: Table = _keys("cpu=text|number memory=text|int")
RUN_CONFIG: Table = _keys("disable_param_edit=bool disable_run_id_edit=bool")
WEBHOOK: Table = _keys("forward_headers=list")
OTEL: Table = _keys("enabled=bool endpoint=text headers=map insecure=bool timeout=text resource=map")
SCHEDULE: Table = _keys("start=text|list|map stop=text|list|map restart=text|list|map")
SCHEDULE_ENTRY: Table = _keys("expression=text at=text kind=text profile=text")
ACTION: Table = _keys("description=text input_schema=map output_schema=map template=map")
STEP_TYPE: Table = {**ACTION, **_keys("type=text")}

_EITHER_CONTAINER = _keys("user=text working_dir=text env=list|map shell=text|list")
CONTAINER_EXEC: Table = {**_keys("exec=text"), **_EITHER_CONTAINER}
CONTAINER_IMAGE: Table = {
    **_keys("image=text"),
    **_EITHER_CONTAINER,
    **_keys("""
        name=text pull_policy=text|bool volumes=list platform=text ports=list network=text startup=text
        command=text|list wait_for=text log_pattern=text restart_policy=text keep_container=bool healthcheck=map
        """),
}
CONTAINER: Table = {**CONTAINER_EXEC, **CONTAINER_IMAGE}
HEALTHCHECK: Table = _keys("test=text|list interval=text|int timeout=text|int start_period=text|int retries=int")

EXCLUDED_BY_RUN_OR_ACTION = (
    *("call", "command", "config", "exec", "llm", "messages", "params", "routes", "script"),
    *("shell", "shell_args", "shell_packages", "type", "value"),
)
"""Legacy keys that `run` and `action` exclude."""

# ------------------------------------------------------------------------------------------------------ unknown keys

REMOVED = {"precondition": "preconditions", "dir": "working_dir", "executor": "action` with `with"}
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")
_OLD_NAMES = {
    "max_cleanup_time_sec": "max_clean_up_time_sec",
    "max_clean_up_time": "max_clean_up_time_sec",
    "timeout": "timeout_sec",
    "delay": "delay_sec",
    "restart_wait": "restart_wait_sec",
    "hist_retention": "hist_retention_days",
}


def hint_for(key: str, table: Table) -> str:
    """Return what the author of an unknown key may have meant, empty when nothing is near."""
    if key in REMOVED and key not in table:
        return f"it was removed, use `{REMOVED[key]}`"
    snake = _CAMEL.sub(r"_\1", key).lower()
    snake = snake if snake in table else _OLD_NAMES.get(snake, snake)
    if snake != key and (snake in table or snake in ROOT or snake in STEP):
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
