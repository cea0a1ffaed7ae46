"""The JSON Schema of workflow files, made from the tables that the loader reads by. Pure.

It says which keys there are and what they may be, for editors and for `secure-dagu schema dag`. What only the loader
can tell (unique names, dependencies that exist, keys that exclude each other) is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secure_dagu.dag import actions, legacy, parts, schema
from secure_dagu.dag.container import PULL_POLICIES
from secure_dagu.dag.declarations import PARAM_TYPES
from secure_dagu.dag.model import HANDLERS, DagType

_Schema = dict[str, Any]

_KINDS: Mapping[str, tuple[str, ...]] = {
    "text": ("string", "number", "boolean"),
    "int": ("integer",),
    "number": ("number",),
    "bool": ("boolean",),
    "list": ("array",),
    "map": ("object",),
}
_REFERABLE = frozenset({"int", "number", "bool", "list", "map"})
"""Kinds that an input of an action may also have as text with a reference."""

DESCRIPTIONS: Mapping[str, str] = {
    "action": "Which action the step does.",
    "actions": "The workflow's own actions: a name, the schema of its inputs, and the step that it stands for.",
    "approval": "A person must approve after the step has succeeded, before what depends on it starts.",
    "artifacts": "Whether and where the run keeps files for later.",
    "catchup_window": "How far back missed start times are made up for after downtime, such as 6h or 2d12h.",
    "consts": "Constants, evaluated when the file is loaded; a later one may use earlier ones.",
    "container": "Where commands run: the name of a running container, or a new one.",
    "continue_on": "Which outcomes of the step its dependents accept.",
    "defaults": "Fields that every step and handler takes over unless it sets them.",
    "delay_sec": "Seconds to wait after launching each step.",
    "dependencies": "Files that a run on a worker needs: literal paths or globs, relative to the workflow file.",
    "depends": "Names or ids of the steps that must be finished first.",
    "description": "What this is for.",
    "dotenv": "Files of environment variables; .env is always tried first, an empty list is none.",
    "env": "Environment variables, evaluated from top to bottom.",
    "error_mail": "Mail about a failure.",
    "foreach": "Run body steps for each item of a list.",
    "group": "A label that groups workflows for display.",
    "handler_on": "Steps that run at events of the run.",
    "hist_retention_days": "Runs older than this many days are deleted after a run; 30 unless set, or 0.",
    "hist_retention_runs": "How many runs are kept, instead of hist_retention_days.",
    "id": "How other steps refer to this one: a letter, then letters, digits, _; at most 40.",
    "info_mail": "Mail about a success.",
    "inputs": "Files that the step reads, in a workflow of type build.",
    "labels": "Words, or key=value, to find runs by.",
    "log_dir": "Base folder of the log files.",
    "log_output": "Whether stdout and stderr have a log file each or share one.",
    "mail_on": "At which events a mail is sent.",
    "mail_on_error": "Send error_mail when this step fails.",
    "max_active_runs": "Deprecated: use queue with a named queue.",
    "max_active_steps": "How many steps run at a time; 0 is no limit.",
    "max_clean_up_time_sec": "Seconds between asking steps to stop and killing them.",
    "max_output_size": "Bytes that captured output, or an output file, may have.",
    "name": "The name; unique among its kind.",
    "otel": "Export of traces.",
    "output": "The variable that takes the trimmed stdout, or a map of values to publish.",
    "output_schema": "JSON Schema that stdout must satisfy.",
    "outputs": "Values that the step writes to $DAGU_OUTPUT_FILE, or in a build the file that it makes.",
    "overlap_policy": "What happens to a start time while the workflow runs.",
    "parallel": "Call the sub-workflow once for each item.",
    "params": "Parameters and their defaults.",
    "preconditions": "What must hold before anything starts.",
    "queue": "The named queue that runs wait in.",
    "redis": "What redis actions take unless they say otherwise.",
    "registry_auths": "How to log in to container registries.",
    "repeat_policy": "When and how often the step runs again after it ended.",
    "resources": "Limits of CPU and memory of the run.",
    "restart_wait_sec": "Seconds between stop and start of a restart.",
    "retry_policy": "When and how often a failure is tried again.",
    "run": "A command line, a script of several lines, or a list of command lines.",
    "run_config": "What a person may not change when starting a run.",
    "s3": "What S3 actions take unless they say otherwise.",
    "schedule": "When runs start, stop or restart: cron expressions.",
    "secrets": "Names of secrets and where their values come from.",
    "shell": "The shell of run steps, with its arguments.",
    "shell_args": "More arguments of the shell.",
    "shell_packages": "Packages for nix-shell.",
    "signal_on_stop": "The signal that asks the step to stop.",
    "skip_if_successful": "Skip a scheduled start when a run has succeeded since the time before.",
    "smtp": "The mail server.",
    "ssh": "The host on which run steps run, and what ssh and sftp actions take unless they say otherwise.",
    "stderr": "A file or artifact that stderr goes to, besides the log.",
    "stdout": "A file, artifact or published outputs that stdout goes to, besides the log.",
    "step_types": "Deprecated: use actions.",
    "steps": "The steps.",
    "tags": "Deprecated: use labels.",
    "timeout_sec": "Seconds that it may take; 0 is no limit.",
    "type": "How steps are ordered, or of a step in an old form what executes it.",
    "wait_mail": "Mail when the run waits for a person.",
    "webhook": "Which headers a webhook passes on.",
    "with": "The inputs of the action, or shell, shell_args and shell_packages of run.",
    "worker_selector": "Labels of the worker that runs it, or the word local.",
    "working_dir": "The folder that commands run in.",
}
"""What editors show beside a key."""


def dag_schema() -> _Schema:
    """Return the schema of one document of a workflow file, in draft 2020-12."""
    defs: _Schema = {"step": _step(), "env": _env(), "preconditions": _preconditions(), "container": _container()}
    for name in sorted(actions.ACTIONS):
        defs[f"with.{name}"] = _inputs(name, actions.ACTIONS[name])
    defs["with.redis"] = _inputs("redis", actions.REDIS)
    root = _table(schema.ROOT, _root_parts())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Workflow",
        "description": "One document of a workflow file; the first is the workflow, later ones are its sub-workflows.",
        **root,
        "$defs": defs,
    }


# ------------------------------------------------------------------------------------------------------------- tables


def _table(table: schema.Table, nested: Mapping[str, _Schema] | None = None) -> _Schema:
    """Return an object with the keys of a table; `nested` says more about some of them."""
    nested = nested or {}
    return {
        "type": "object",
        "properties": {
            name: _described(name, nested.get(name) or _value(key))
            for name, key in table.items()
            if key.use is not schema.Use.REFUSED
        },
        "additionalProperties": False,
    }


def _described(name: str, value: _Schema) -> _Schema:
    said = DESCRIPTIONS.get(name, "")
    return {"description": said, **value} if said else value


def _value(key: schema.Key, *, or_reference: bool = False) -> _Schema:
    """Return what a value of the key's kinds is; with `or_reference` also text that becomes one."""
    if key.kinds == "any":
        return {}
    kinds = key.kinds.split("|")
    types = list(dict.fromkeys(word for kind in kinds for word in _KINDS[kind]))
    if or_reference and "string" not in types and _REFERABLE.intersection(kinds):
        types.append("string")
    if "number" in types and "integer" in types:
        types.remove("integer")  # which a number may be
    if key.use is schema.Use.ACCEPTED:
        return {"type": types, "description": "Accepted and ignored: not part of this edition."}
    return {"type": types[0] if len(types) == 1 else [*types, "null"]}


def _choice(words: Sequence[str | bool]) -> _Schema:
    return {"enum": list(words)}


def _either(*options: _Schema) -> _Schema:
    return {"anyOf": list(options)}


def _listed(item: _Schema) -> _Schema:
    return {"type": "array", "items": item}


_TEXT: _Schema = {"type": "string"}
_SCALAR: _Schema = {"type": ["string", "number", "boolean", "null"]}
_COUNT: _Schema = {"type": "integer", "minimum": 0}
_STEP: _Schema = {"$ref": "#/$defs/step"}


def _root_parts() -> Mapping[str, _Schema]:
    entry = _either(_TEXT, _table(schema.SCHEDULE_ENTRY, {"kind": _choice(("cron", "at"))}))
    entries = _either(_TEXT, _listed(entry), entry["anyOf"][1])
    own_action = {"type": "object", "additionalProperties": _table(schema.ACTION)}
    mail = _table(schema.MAIL, {"to": _either(_TEXT, _listed(_TEXT))})
    return {
        "type": _choice([kind.value for kind in DagType]),
        "steps": _either(
            _listed(_either(_STEP, _TEXT, _listed(_either(_STEP, _TEXT)))),
            {"type": "object", "additionalProperties": _STEP},
        ),
        "params": _either(_TEXT, _listed(_either(_param(), {"type": "object"}, _SCALAR)), {"type": "object"}),
        "consts": _listed({"type": "object", "minProperties": 1, "maxProperties": 1}),
        "env": {"$ref": "#/$defs/env"},
        "dotenv": _either(_TEXT, _listed(_TEXT)),
        "secrets": _listed(_table(schema.SECRET)),
        "defaults": _table(schema.DEFAULTS, _policies()),
        "handler_on": {
            "type": "object",
            "properties": dict.fromkeys(HANDLERS, _STEP),
            "additionalProperties": False,
        },
        "preconditions": {"$ref": "#/$defs/preconditions"},
        "retry_policy": _table(schema.DAG_RETRY),
        "schedule": _either(
            *entries["anyOf"], _table(schema.SCHEDULE, dict.fromkeys(("start", "stop", "restart"), entries))
        ),
        "overlap_policy": _choice(("skip", "all", "latest")),
        "log_output": _choice(("separate", "merged")),
        "artifacts": _table(schema.ARTIFACTS),
        "mail_on": _table(schema.MAIL_ON),
        **dict.fromkeys(("error_mail", "info_mail", "wait_mail"), mail),
        "smtp": _table(schema.SMTP, {"oauth": _table(schema.OAUTH)}),
        "container": {"$ref": "#/$defs/container"},
        "ssh": _options(actions.SSH_KEYS),
        "s3": _options(actions.S3_KEYS),
        "redis": _options(actions.REDIS.keys),
        "resources": _table(schema.RESOURCES, {"limits": _table(schema.LIMITS)}),
        "run_config": _table(schema.RUN_CONFIG),
        "webhook": _table(schema.WEBHOOK),
        "otel": _table(schema.OTEL),
        "worker_selector": _selector(),
        "actions": own_action,
        "step_types": {"type": "object", "additionalProperties": _table(schema.STEP_TYPE)},
        **dict.fromkeys(
            ("timeout_sec", "delay_sec", "restart_wait_sec", "max_active_steps", "max_clean_up_time_sec"), _COUNT
        ),
        "hist_retention_days": _COUNT,
        "hist_retention_runs": {"type": "integer", "minimum": 1},
    }


def _param() -> _Schema:
    return _table(schema.PARAM, {"type": _choice(PARAM_TYPES)})


def _env() -> _Schema:
    entries = {"type": "object", "additionalProperties": _SCALAR}
    return _either(entries, _listed(_either(entries, _TEXT)))


def _preconditions() -> _Schema:
    return _either(_TEXT, _listed(_either(_TEXT, _table(schema.PRECONDITION))))


def _selector() -> _Schema:
    return _either({"const": "local"}, {"type": "object", "additionalProperties": _SCALAR})


def _container() -> _Schema:
    health = _table(schema.HEALTHCHECK)
    return _either(
        _TEXT,
        _table(
            schema.CONTAINER,
            {
                "env": {"$ref": "#/$defs/env"},
                "pull_policy": _either(_choice(PULL_POLICIES), {"type": "boolean"}),
                "startup": _choice(("keepalive", "entrypoint", "command")),
                "wait_for": _choice(("running", "healthy")),
                "restart_policy": _choice(("no", "always", "unless-stopped")),
                "healthcheck": health,
            },
        ),
    )


# -------------------------------------------------------------------------------------------------------------- steps


def _policies() -> Mapping[str, _Schema]:
    """Return what `defaults` and steps have in common."""
    return {
        "env": {"$ref": "#/$defs/env"},
        "preconditions": {"$ref": "#/$defs/preconditions"},
        "continue_on": _either(_choice(("failed", "skipped")), _table(schema.CONTINUE_ON)),
        "retry_policy": {**_table(schema.RETRY), "required": ["limit", "interval_sec"]},
        "repeat_policy": _table(schema.REPEAT, {"repeat": _choice(("while", "until", True, False))}),
        "timeout_sec": _COUNT,
        "signal_on_stop": _choice(sorted(parts.SIGNALS)),
    }


def _step() -> _Schema:
    stream = _either(_TEXT, _table(schema.STREAM, {"outputs": _either(_TEXT, _table(schema.STREAM_OUTPUTS))}))
    commands = _either(_TEXT, _listed(_either(_SCALAR, {"type": "object", "maxProperties": 1})))
    one_at_a_time = {"type": "integer", "minimum": 1, "maximum": 1000}
    declared = _listed(_table(schema.DECLARED_OUTPUT, {"type": _choice(("string", "json"))}))
    step = _table(
        schema.STEP,
        {
            **_policies(),
            "id": {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_]*$", "maxLength": 40},
            "run": commands,
            "action": {"type": "string", "examples": sorted([*actions.ACTIONS, "redis.command"])},
            "with": {"type": "object"},
            "depends": _either(_TEXT, _listed(_SCALAR)),
            "stdout": stream,
            "stderr": stream,
            "log_output": _choice(("separate", "merged")),
            "outputs": {**declared, "minItems": 1},
            "inputs": {**_listed(_table(schema.PATH_INPUT)), "minItems": 1},
            "dependencies": _either(_TEXT, _listed(_TEXT)),
            "parallel": _either(
                _TEXT, {"type": "array"}, _table(schema.PARALLEL, {"max_concurrent": one_at_a_time, "items": {}})
            ),
            "foreach": _table(
                schema.FOREACH,
                {"items": _either(_TEXT, {"type": "array"}), "steps": _listed(_STEP), "max_concurrent": one_at_a_time},
            ),
            "worker_selector": _selector(),
            "container": {"$ref": "#/$defs/container"},
            "approval": _table(schema.APPROVAL, {"input": _listed(_TEXT), "required": _listed(_TEXT)}),
            "type": {"type": "string", "examples": sorted(legacy.TYPES)},
        },
    )
    step["allOf"] = [
        {"if": {"properties": {"run": {}}, "required": ["run"]}, "then": _then(_table(schema.RUN_WITH))},
        *(_when({"const": name}, f"with.{name}", action) for name, action in sorted(actions.ACTIONS.items())),
        _when({"type": "string", "pattern": r"^redis\."}, "with.redis", actions.REDIS),
    ]
    return step


def _when(action: _Schema, definition: str, spec: actions.Action) -> _Schema:
    then = _then({"$ref": f"#/$defs/{definition}"})
    if spec.required or spec.one_of:
        then["required"] = ["with"]
    return {"if": {"properties": {"action": action}, "required": ["action"]}, "then": then}


def _then(inputs: _Schema) -> _Schema:
    return {"properties": {"with": inputs}}


def _options(table: schema.Table) -> _Schema:
    """Return a map of an action's inputs: typed, or text that becomes what is wanted."""
    return {
        "type": "object",
        "properties": {name: _value(key, or_reference=True) for name, key in table.items()},
        "additionalProperties": False,
    }


def _inputs(name: str, action: actions.Action) -> _Schema:
    inputs = _options(action.keys)
    for key in action.keys:
        if words := actions.CHOICES.get(f"{name}.{key}"):
            inputs["properties"][key] = _either(_choice(words), {"type": "string", "pattern": r"\$"})
    if action.required:
        inputs["required"] = list(action.required)
    if action.one_of:
        inputs["allOf"] = [{"oneOf": [{"required": [key]} for key in group]} for group in action.one_of]
    return inputs
