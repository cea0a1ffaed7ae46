"""Read what a document declares: params, consts, secrets, labels. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

from msgspec.structs import replace

from secure_dagu.dag import formats, go_regexp, nodes, params, reading, schema, values
from secure_dagu.dag.model import ParamDef, SecretDef
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.dag.scope import Scope
from secure_dagu.errors import DefinitionError

PARAM_TYPES = ("string", "integer", "number", "boolean")

MANAGED_NAMES = frozenset({
    "DAG_NAME", "DAG_RUN_ID", "DAG_RUN_LOG_FILE", "DAG_RUN_STEP_NAME", "DAG_RUN_STEP_STDOUT_FILE",
    "DAG_RUN_STEP_STDERR_FILE", "DAG_RUN_STATUS", "DAG_WAITING_STEPS", "DAG_PARAMS_JSON", "DAG_RUN_WORK_DIR",
    "DAG_RUN_ARTIFACTS_DIR", "DAG_PUSHBACK", "DAG_PUSHBACK_ITERATION", "DAG_PUSHBACK_PREVIOUS_STDOUT_FILE",
})  # fmt: skip
"""Names that the engine sets; a secret must not collide with one."""

_SECRET_REF = re.compile(r"[a-z0-9][a-z0-9-]*(?:/[a-z0-9][a-z0-9-]*)*")
_LABEL_KEY = re.compile(r"[^\s,=]{1,63}")
_LABEL_RULE = "a label has a key of 1 to 63 characters and a value of at most 255"

# ----------------------------------------------------------------------------------------------------------- params


def read_params(report: Report, node: Node | None, path: str) -> tuple[ParamDef, ...]:
    """Read every declaration form of section 2.5; a schema in another file is read through the report."""
    if node is None:
        return ()
    if isinstance(node, Scalar):
        found = [_word(report, node, path, word) for word in params.split_words(nodes.scalar_text(node))]
    elif isinstance(node, Sequence):
        found = [item for index, entry in enumerate(node.items) for item in _entry(report, entry, f"{path}[{index}]")]
    elif isinstance(node, Mapping) and _is_schema(node):
        found = _from_schema(report, node, path)
    else:
        assert isinstance(node, Mapping)
        found = [_pair(report, node, path, name) for name in node.entries]
    seen: set[str] = set()
    for definition in found:
        if definition.name in seen:
            report.problem(node, path, f'params: "{definition.name}" is declared twice')
        seen.add(definition.name or f"#{len(seen)}")
    return tuple(found)


def _named(report: Report, node: Node, path: str, name: str) -> str:
    if not reading.WORD.fullmatch(name):
        report.problem(node, path, f'params: "{name[:80]}" is not a parameter name: a letter, then letters, digits, _')
    return name


def _word(report: Report, node: Node, path: str, word: str) -> ParamDef:
    name, equals, value = word.partition("=")
    if not equals:
        return ParamDef(name="", default=word)
    return ParamDef(name=_named(report, node, path, name), default=value)


def _pair(report: Report, node: Mapping, path: str, name: str) -> ParamDef:
    value = node.entries[name]
    _named(report, node.keys[name], path, name)
    return ParamDef(name=name, default=reading.text(report, value, f"{path}.{name}"))


def _entry(report: Report, node: Node, path: str) -> list[ParamDef]:
    if isinstance(node, Scalar):
        text = nodes.scalar_text(node)
        name, equals, value = text.partition("=")
        if equals and reading.ENV_NAME.fullmatch(name):
            words = params.split_words(f"{name}={value}") if value.startswith('"') else [text]
            return [_word(report, node, path, words[0] if len(words) == 1 else text)]
        if equals and not any(char.isspace() or char in "\"'`" for char in name):
            return [_word(report, node, path, text)]
        return [ParamDef(name="", default=text)]
    if isinstance(node, Mapping):
        if "name" in node.entries and len(node.entries) > 1:
            return [_definition(report, node, path)]
        if len(node.entries) > 1 and node.entries.keys() <= schema.PARAM.keys():
            report.problem(node, path, "params: a definition needs name")
        return [_pair(report, node, path, name) for name in node.entries]
    report.problem(node, path, "expected KEY=value, a value or a map, found a list")
    return []


def _definition(report: Report, node: Mapping, path: str) -> ParamDef:
    reading.table(report, node, path, schema.PARAM)
    kind = reading.choice(report, node.get("type"), f"{path}.type", PARAM_TYPES, "string")
    return _bounded(report, node, path, kind)


def _bounded(report: Report, node: Mapping, path: str, kind: str, extra: dict[str, Any] | None = None) -> ParamDef:
    """Read a definition whose keys and type are known to be right, and hold its default against it."""
    default = node.entries.get("default")
    enum = node.get("enum")
    lengths: dict[str, int | None] = {}
    for field in ("min_length", "max_length"):
        value = node.get(field)
        lengths[field] = None if value is None else reading.integer(report, value, f"{path}.{field}")
    definition = ParamDef(
        name=_named(report, node, path, reading.text(report, node.get("name"), f"{path}.name")),
        type=kind,
        default=None if default is None else _default(report, default, f"{path}.default", kind),
        eval=reading.text(report, node.get("eval"), f"{path}.eval"),
        description=reading.text(report, node.get("description"), f"{path}.description"),
        required=reading.boolean(report, node.get("required"), f"{path}.required"),
        enum=tuple(nodes.plain_value(item) for item, _ in reading.items(report, enum, f"{path}.enum", "a list")),
        minimum=reading.number(report, node.get("minimum"), f"{path}.minimum"),
        maximum=reading.number(report, node.get("maximum"), f"{path}.maximum"),
        min_length=lengths["min_length"],
        max_length=lengths["max_length"],
        pattern=_pattern(report, node.get("pattern"), f"{path}.pattern"),
        schema=extra,
    )
    if definition.default is not None and default is not None:
        try:
            params.checked(definition, definition.default)
        except DefinitionError as error:
            report.problem(default, f"{path}.default", str(error))
    return definition


def _default(report: Report, node: Node, path: str, kind: str) -> str:
    if kind in ("array", "object") and not isinstance(node, Scalar):
        return formats.compact_json(nodes.plain_value(node))
    return reading.text(report, node, path)


def _pattern(report: Report, node: Node | None, path: str) -> str:
    pattern = reading.text(report, node, path)
    try:
        go_regexp.compiled(pattern)
    except ValueError as problem:
        assert node is not None
        report.problem(node, path, f"this is not a valid regexp: {problem}")
        return ""
    return pattern


def _is_schema(node: Mapping) -> bool:
    """Tell the two schema forms from a plain map of defaults."""
    if "schema" in node.entries and node.entries.keys() <= {"schema", "values"}:
        source = node.entries["schema"]
        is_word = isinstance(source, Scalar) and not _PLACE.search(nodes.scalar_text(source))
        return "values" in node.entries or not is_word
    kind = node.entries.get("type")
    properties = node.entries.get("properties")
    return isinstance(kind, Scalar) and kind.text == "object" and isinstance(properties, Mapping)


_PLACE = re.compile(r"[/\\]|\.(?:json|ya?ml)$")
"""What makes `schema: text` a file; without `values` and without this it is a parameter of that name."""
_SCHEMA_NAMES = {"minLength": "min_length", "maxLength": "max_length"}
_SCHEMA_FIELDS = frozenset({"name", "type", "default", "description", "enum", "minimum", "maximum", "pattern"})
_SAYS_NOTHING = frozenset({"title", "examples", "$comment", "deprecated", "readOnly", "writeOnly"})
_LEADS_AWAY = frozenset({"$ref", "$dynamicRef", "$id", "$schema"})


def _from_schema(report: Report, node: Mapping, path: str) -> list[ParamDef]:
    """Read a JSON Schema of properties, in place or from elsewhere, with `values` over its defaults."""
    given: Mapping | None = None
    is_external = False
    if "schema" in node.entries:
        inner: Node | None = node.entries["schema"]
        listed = node.get("values")
        if listed is not None and not isinstance(listed, Mapping):
            report.problem(listed, f"{path}.values", f"expected a map, found {reading.kind_of(listed)}")
        given = listed if isinstance(listed, Mapping) else None
        path = f"{path}.schema"
        if isinstance(inner, Scalar):
            is_external = True
            inner = _fetched(report, inner, path)
        elif not isinstance(inner, Mapping):
            report.problem(node, path, "params: expected a file, or a schema")
        if not isinstance(inner, Mapping):
            return []
        node = inner
    properties = node.get("properties")
    if not isinstance(properties, Mapping):
        report.problem(node, path, "params: a schema needs properties")
        return []
    required = set(reading.texts(report, node.get("required"), f"{path}.required", "a list"))
    found: list[ParamDef] = []
    for name, body in properties.entries.items():
        where = f"{path}.properties.{name}"
        if isinstance(body, Mapping):
            value = given.entries.get(name) if given is not None else None
            definition = _property(report, name, body, where, value)
            found.append(replace(definition, required=name in required, is_external=is_external))
        else:
            report.problem(body, where, f"expected a map, found {reading.kind_of(body)}")
    for name, key in given.keys.items() if given is not None else ():
        if name not in properties.entries:
            report.problem(key, path, f'params: "{name[:80]}" is not a property of the schema')
    return found


def _property(report: Report, name: str, body: Mapping, path: str, value: Node | None) -> ParamDef:
    """Read one property; what a parameter has no field for stays a schema, and is checked as one."""
    entry = Mapping(body.file, body.line, body.column)
    entry.entries["name"] = entry.keys["name"] = Scalar(body.file, body.line, body.column, name, is_plain=False)
    is_more = False
    for key, item in body.entries.items():
        known = _SCHEMA_NAMES.get(key, key)
        if known in _SCHEMA_FIELDS or known in _SCHEMA_NAMES.values():
            entry.entries[known], entry.keys[known] = item, body.keys[key]
        elif key in _LEADS_AWAY:
            report.problem(body.keys[key], path, f"`{key}` is not supported in a parameter schema")
        elif key not in _SAYS_NOTHING:
            is_more = True
    if value is not None:
        entry.entries["default"] = value
    kind = reading.choice(report, entry.get("type"), f"{path}.type", (*PARAM_TYPES, "array", "object"), "string")
    extra = {key: item for key, item in nodes.plain_value(body).items() if key != "default"} if is_more else None
    return _bounded(report, entry, path, kind, extra)


def _fetched(report: Report, source: Scalar, path: str) -> Node | None:
    """Return the schema that `source` names: a file that the caller of the loader reads; None when there is none."""
    name = nodes.scalar_text(source)
    text = report.read_schema(name)
    if text is None:
        is_url = "://" in name
        why = "schemas are not fetched from the network" if is_url else "the schema file cannot be read"
        report.problem(source, path, f'params: "{name[:200]}": {why}' + ("; save it in a file" if is_url else ""))
        return None
    try:
        documents = nodes.parse(text, file=name)
    except DefinitionError as error:
        report.problem(source, path, f"params: {error}")
        return None
    if len(documents) == 1 and isinstance(documents[0], Mapping):
        return documents[0]
    report.problem(source, path, f'params: "{name[:200]}" is not a JSON Schema')
    return None


# ----------------------------------------------------------------------------------------------------------- consts


def read_consts(report: Report, node: Node | None, path: str) -> dict[str, Any]:
    """Read and evaluate constants in order; a text may use earlier ones only (section 2.4)."""
    if node is None:
        return {}
    if not isinstance(node, Sequence):
        report.problem(node, path, "consts must be a list of single-entry mappings")
        return {}
    consts: dict[str, Any] = {}
    for index, item in enumerate(node.items):
        where = f"{path}[{index}]"
        if not isinstance(item, Mapping):
            report.problem(item, where, "the list takes single-entry mappings")
            continue
        if len(item.entries) != 1:
            report.problem(item, where, "an entry has exactly one key")
            continue
        [(name, value)] = item.entries.items()
        if not reading.WORD.fullmatch(name):
            report.problem(item, where, f'consts key "{name[:80]}" is invalid: a letter, then letters, digits, _')
        elif name in consts:
            report.problem(item, where, f'const "{name}" is defined twice')
        else:
            consts[name] = _const(report, value, where, name, consts)
    return consts


def _const(report: Report, node: Node, path: str, name: str, earlier: dict[str, Any]) -> Any:
    value = nodes.scalar_value(node) if isinstance(node, Scalar) else None
    if isinstance(value, float) and not math.isfinite(value):
        report.problem(node, path, f'const "{name}" must be finite')
    elif isinstance(value, str):
        return values.resolve(value, Scope(consts=dict(earlier)), values.FieldMode.SHELL)
    elif value is None:
        report.problem(node, path, f'const "{name}" must be a literal string, number, or boolean')
    return value


# ---------------------------------------------------------------------------------------------------------- secrets


def read_secrets(report: Report, node: Node | None, path: str) -> tuple[SecretDef, ...]:
    """Read `secrets` (section 3.21): a reference to the registry, or provider `env` or `file`."""
    if node is None:
        return ()
    if not isinstance(node, Sequence):
        report.problem(node, path, f"expected a list, found {reading.kind_of(node)}")
        return ()
    found: list[SecretDef] = []
    for index, item in enumerate(node.items):
        where = f"{path}[{index}]"
        entry = reading.table(report, item, where, schema.SECRET)
        if entry is None:
            continue
        secret = SecretDef(
            name=reading.text(report, entry.get("name"), f"{where}.name"),
            ref=reading.text(report, entry.get("ref"), f"{where}.ref"),
            provider=reading.text(report, entry.get("provider"), f"{where}.provider"),
            key=reading.text(report, entry.get("key"), f"{where}.key"),
            options=reading.text_map(report, entry.get("options"), f"{where}.options"),
        )
        if wrong := _secret_problem(secret, {known.name for known in found}):
            report.problem(nodes.at(entry, wrong[0]), where, wrong[1])
        found.append(secret)
    return tuple(found)


def _secret_problem(secret: SecretDef, names: set[str]) -> tuple[str, str] | None:
    """Return the key that is wrong, and why."""
    name = secret.name
    if not reading.ENV_NAME.fullmatch(name):
        return "name", f'name "{name[:80]}" is not an environment name'
    if name.startswith("DAGU_"):
        return "name", f'name "{name}" must not start with DAGU_'
    if name in MANAGED_NAMES:
        return "name", f'name "{name}" collides with a managed variable'
    if name in names:
        return "name", f'name "{name}" is declared twice'
    if secret.ref:
        if secret.provider or secret.key or secret.options:
            return "ref", f'"{name}": ref excludes provider, key and options'
        if not _SECRET_REF.fullmatch(secret.ref):
            return "ref", f'"{name}": ref must be lower-case words with - and /'
        return None
    if not secret.provider or not secret.key:
        return "", f'"{name}" needs ref, or provider and key'
    if secret.provider not in ("env", "file"):
        why = "is not supported by this version, use env, file or ref"
        return "provider", f'"{name}": provider "{secret.provider[:40]}" {why}'
    return None


# ----------------------------------------------------------------------------------------------------------- labels


def read_labels(report: Report, node: Node | None, path: str) -> tuple[str, ...]:
    """Read labels in any form as `key` or `key=value`, lower case, each once (section 3.22)."""
    labels: dict[str, None] = {}

    def add(at: Node, label: str) -> None:
        if not _is_label(label):
            report.problem(at, path, _LABEL_RULE)
        labels[label.lower()] = None

    def add_map(entry: Mapping) -> None:
        for key, value in entry.entries.items():
            text = "" if isinstance(value, Scalar) and value.is_null else reading.text(report, value, f"{path}.{key}")
            add(entry.keys[key], f"{key}={text}" if text else key)

    if isinstance(node, Mapping):
        add_map(node)
        return tuple(labels)
    for item, where in reading.items(report, node, path, "text, a list or a map"):
        if isinstance(item, Mapping):
            add_map(item)
        else:
            for word in _label_words(reading.text(report, item, where)):
                add(item, word)
    return tuple(labels)


def caller_labels(text: str) -> tuple[str, ...]:
    """Return the labels that whoever starts a run gives, such as `a,env=prod`; they are like those of a file.

    Raises:
        DefinitionError: one is none.
    """
    words = _label_words(text)
    if wrong := [word for word in words if not _is_label(word)]:
        raise DefinitionError(f"invalid label {wrong[0][:80]!r}", why=_LABEL_RULE)
    return tuple(dict.fromkeys(word.lower() for word in words))


def _label_words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", text) if word]


def _is_label(label: str) -> bool:
    key, _, value = label.partition("=")
    return bool(_LABEL_KEY.fullmatch(key)) and len(value) <= 255
