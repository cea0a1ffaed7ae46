"""Find the references that a run would leave unchanged, for the author of a workflow. Pure.

Section 2.12 of the workflow language. The authored nodes are walked, not the model, because a notice names the field
as it was written. Which field may refer to what is the field matrix of section 2.11.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

from msgspec import Struct, field

from secure_dagu.dag import nodes, references
from secure_dagu.dag.model import Dag, Position, Step
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.references import Token, TokenKind

MAX_NOTICES = 1000


class Level(StrEnum):
    """WARN: a mistake. INFO: only a run can tell."""

    WARN = "WARN"
    INFO = "INFO"


class Notice(Struct, frozen=True, kw_only=True):
    """One reference of one field that stays as it is."""

    token: str
    """As authored, with dollar and braces."""
    field: str
    """Path of the field, such as `steps[0].run`."""
    reason: str
    """Empty for a parameter without value."""
    level: Level
    text: str
    """The sentence for the author."""
    position: Position


_WHY = {
    "unknown_step_id": "no step has this id",
    "unknown_output_name": "the step does not declare this output",
    "missing_dependency": "the step does not depend on the step that it refers to",
    "self_reference": "a step cannot refer to its own outputs",
    "unknown_context_field": "there is no such context field",
    "unknown_const_name": "no such constant is defined before it",
    "namespace_unavailable": "its namespace has no value here",
    "unknown_env_binding": "no such variable was known",
    "": "the parameter had no value",
}
_DEFECTS = frozenset(
    {
        "unknown_step_id",
        "unknown_output_name",
        "missing_dependency",
        "self_reference",
        "unknown_context_field",
        "unknown_const_name",
    }
)

CONTEXT_FIELDS = frozenset(references.FROZEN_ALIASES.values())
"""Paths below `context.` that have a value in some run (section 2.8)."""

FIXED_OUTPUTS = {
    "git.worktree.add": ("path", "branch", "commit", "worktree_created", "branch_created"),
    "git.worktree.remove": ("path", "branch", "worktree_removed", "branch_deleted"),
}
"""Outputs that an action declares by itself (section 2.7)."""


def find_notices(document: Mapping, dag: Dag, *, show_unresolved: bool = False) -> list[Notice]:
    """Return what a run of `dag` would leave unchanged, in the order of the file.

    Args:
        document: the authored document.
        dag: what it was read as.
        show_unresolved: also return what only a run can resolve.
    """
    finder = _Finder(dag, show_unresolved=show_unresolved)
    finder.root(document)
    return finder.found


class _Place(Struct, frozen=True, kw_only=True):
    """What the fields of one owner may refer to."""

    step: Step | None = None
    """The step that owns the field; None for root fields and handlers, which see no step outputs."""
    siblings: tuple[Step, ...] = ()
    """Body steps of a foreach around `step`."""
    outer: Step | None = None
    """The foreach step around `step`."""
    foreach: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    """Variables that are declared around the field."""


class _Finder(Struct):
    dag: Dag
    show_unresolved: bool = False
    found: list[Notice] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)
    steps_at: dict[tuple[int, int], Step] = field(default_factory=dict)
    by_id: dict[str, Step] = field(default_factory=dict)
    by_name: dict[str, Step] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()
    """Output variables of all steps."""

    # ------------------------------------------------------------------------------------------------------- fields

    def root(self, document: Mapping) -> None:
        known = frozenset(
            {
                *(item.name for item in self.dag.params if item.name),
                *(str(index) for index, _ in enumerate(self.dag.params, 1)),
                *(item.name for item in self.dag.secrets),
            }
        )
        self._consts(document.get("consts"))
        place = _Place(names=known)
        for key, node in document.entries.items():
            if key == "params":
                self._evals(node, place)
            elif key in (
                "dotenv",
                "shell",
                "shell_args",
                "working_dir",
                "ssh",
                "s3",
                "redis",
                "smtp",
                "registry_auths",
            ) or key in ("error_mail", "info_mail", "wait_mail", "worker_selector"):
                self.tree(node, key, place)
        place = _Place(names=self._env(document.get("env"), "env", place))
        self._preconditions(document.get("preconditions"), "preconditions", place)
        self._container(document.get("container"), "container", place)
        defaults = document.get("defaults")
        if isinstance(defaults, Mapping):
            place = _Place(names=self._env(defaults.get("env"), "defaults.env", place))
            self._preconditions(defaults.get("preconditions"), "defaults.preconditions", place)
        every = list(_all_steps(self.dag.steps))
        handlers_steps = _all_steps(self.dag.handlers.values())
        self.steps_at = {(step.position.line, step.position.column): step for step in (*every, *handlers_steps)}
        self.by_name = {step.name: step for step in every}
        self.by_id = {step.id: step for step in self.dag.steps if step.id}
        self.variables = frozenset(step.output for step in every if isinstance(step.output, str))
        self._steps(document.get("steps"), "steps", place)
        handlers = document.get("handler_on")
        for name, node in handlers.entries.items() if isinstance(handlers, Mapping) else ():
            if isinstance(node, Mapping):
                self._step(node, f"handler_on.{name}", place)

    def _steps(self, node: Node | None, path: str, place: _Place) -> None:
        if isinstance(node, Mapping):
            for name in sorted(node.entries):
                self._one(node.entries[name], f"{path}.{name}", place)
        elif isinstance(node, Sequence):
            for index, item in enumerate(node.items):
                if isinstance(item, Sequence):
                    self._steps(item, f"{path}[{index}]", place)
                else:
                    self._one(item, f"{path}[{index}]", place)

    def _one(self, node: Node, path: str, place: _Place) -> None:
        step = self.steps_at.get((node.line, node.column))
        place = _Place(step=step, siblings=place.siblings, outer=place.outer, foreach=place.foreach, names=place.names)
        if isinstance(node, Mapping):
            self._step(node, path, place)
        else:
            self.tree(node, path, place)

    def _step(self, entry: Mapping, path: str, place: _Place) -> None:
        place = self._with_names(place, place.names | self.variables)
        place = self._with_names(place, self._env(entry.get("env"), f"{path}.env", place))
        action = _text_of(entry.get("action")) or _text_of(entry.get("type"))
        for key, node in entry.entries.items():
            where = f"{path}.{key}"
            if key in ("with", "config"):
                self._inputs(node, where, place, action)
            elif key in _STEP_TEXTS:
                self.tree(node, where, place)
            elif key == "preconditions":
                self._preconditions(node, where, place)
            elif key in ("retry_policy", "repeat_policy") and isinstance(node, Mapping):
                for name in ("limit", "interval_sec", "max_interval_sec", "condition"):
                    self.tree(node.entries.get(name), f"{where}.{name}", place)
            elif key == "container":
                self._container(node, where, place)
            elif key == "foreach" and isinstance(node, Mapping):
                self._foreach(node, where, place, self.steps_at.get((entry.line, entry.column)))
            elif key == "output" and isinstance(node, Scalar):
                continue  # a variable's name
            elif key in ("output", "stdout", "stderr"):
                self.tree(node, where, place)

    def _inputs(self, node: Node, path: str, place: _Place, action: str) -> None:
        literal = {"router.route": ("routes",), "template.render": ("template",), "human.task": ("form",)}
        if isinstance(node, Mapping):
            for key, item in node.entries.items():
                if key not in literal.get(action, ()):
                    self.tree(item, f"{path}.{key}", place)

    def _foreach(self, node: Mapping, path: str, place: _Place, owner: Step | None) -> None:
        self.tree(node.get("items"), f"{path}.items", place)
        name = _text_of(node.get("as")) or "item"
        body = owner.foreach.steps if owner is not None and owner.foreach is not None else ()
        inside = _Place(siblings=body, outer=place.step, foreach=frozenset({"index", "key", name}), names=place.names)
        self.tree(node.get("key"), f"{path}.key", self._of(inside, place.step))
        self._steps(node.get("steps"), f"{path}.steps", inside)
        self.tree(node.get("collect"), f"{path}.collect", self._of(inside, None))

    @staticmethod
    def _of(place: _Place, step: Step | None) -> _Place:
        return _Place(step=step, siblings=place.siblings, outer=place.outer, foreach=place.foreach, names=place.names)

    @staticmethod
    def _with_names(place: _Place, names: frozenset[str]) -> _Place:
        return _Place(step=place.step, siblings=place.siblings, outer=place.outer, foreach=place.foreach, names=names)

    def _container(self, node: Node | None, path: str, place: _Place) -> None:
        if isinstance(node, Mapping):
            for key, item in node.entries.items():
                if key == "env":
                    self._env(item, f"{path}.env", place)
                elif key in _CONTAINER_TEXTS:
                    self.tree(item, f"{path}.{key}", place)
        else:
            self.tree(node, path, place)

    def _preconditions(self, node: Node | None, path: str, place: _Place) -> None:
        listed = node.items if isinstance(node, Sequence) else [node] if node is not None else []
        for index, item in enumerate(listed):
            if isinstance(item, Mapping):
                for key in ("condition", "eval"):
                    self.tree(item.get(key), f"{path}[{index}].{key}", place)
            else:
                self.tree(item, f"{path}[{index}].condition", place)

    def _evals(self, node: Node, place: _Place) -> None:
        for index, item in enumerate(node.items if isinstance(node, Sequence) else ()):
            if isinstance(item, Mapping) and "name" in item.entries:
                self.tree(item.get("eval"), f"params[{index}].eval", place)

    def _env(self, node: Node | None, path: str, place: _Place) -> frozenset[str]:
        """Walk declarations; return the names known after them."""
        names = set(place.names)
        for index, (name, value) in enumerate(_declarations(node)):
            self._text(value, f"{path}[{index}]", self._with_names(place, frozenset(names)), in_env=True)
            names.add(name)
        return frozenset(names)

    def _consts(self, node: Node | None) -> None:
        earlier: set[str] = set()
        for item in node.items if isinstance(node, Sequence) else ():
            for name, value in item.entries.items() if isinstance(item, Mapping) else ():
                if isinstance(value, Scalar):
                    for token in self._tokens(value):
                        if token.kind is not TokenKind.STRICT:
                            continue
                        if token.segments[0] != "consts":
                            self._add(token, value, f"consts.{name}", "namespace_unavailable")
                        elif token.segments[1] not in earlier:
                            self._add(token, value, f"consts.{name}", "unknown_const_name")
                earlier.add(name)

    # -------------------------------------------------------------------------------------------------------- texts

    def tree(self, node: Node | None, path: str, place: _Place) -> None:
        """Look at every text in `node`."""
        if isinstance(node, Scalar):
            self._text(node, path, place)
        elif isinstance(node, Sequence):
            for index, item in enumerate(node.items):
                self.tree(item, f"{path}[{index}]", place)
        elif isinstance(node, Mapping):
            for key, item in node.entries.items():
                self.tree(item, f"{path}.{key}", place)

    def _tokens(self, node: Scalar) -> Iterable[Token]:
        if "$" not in node.text:
            return ()
        return [token for token in references.scan(node.text) if not token.is_escaped]

    def _text(self, node: Node, path: str, place: _Place, *, in_env: bool = False) -> None:
        if not isinstance(node, Scalar):
            return
        for token in self._tokens(node):
            reason: str | None = None
            if token.kind is TokenKind.STRICT:
                reason = self._reason(token.segments, place)
            elif token.kind is TokenKind.NAME and in_env and not token.is_quoted:
                reason = None if token.segments[0] in place.names else "unknown_env_binding"
            if reason is not None:
                self._add(token, node, path, reason, is_step=token.segments[0] == "steps")

    def _reason(self, segments: tuple[str, ...], place: _Place) -> str | None:
        """Return why a strict reference has no value, None when it has one."""
        match segments:
            case ("consts", name):
                return None if name in self.dag.consts else "unknown_const_name"
            case ("params",):
                return None if self.dag.params else ""
            case ("params", name):
                has_value = any(item.name == name and (item.default is not None) for item in self.dag.params)
                return None if has_value else ""
            case ("env", name):
                return None if name in place.names else "unknown_env_binding"
            case ("steps", step_id, "outputs", name):
                return self._step_output(step_id, name, place)
            case ("foreach", name, *_):
                return None if name in place.foreach else "namespace_unavailable"
            case ("inputs" | "outputs", _):
                return None if place.step is not None and self.dag.type == "build" else "namespace_unavailable"
            case ("context", *path):
                return "namespace_unavailable" if ".".join(path) in CONTEXT_FIELDS else "unknown_context_field"
            case _:
                return "namespace_unavailable"  # a frozen alias of a context field

    def _step_output(self, step_id: str, name: str, place: _Place) -> str | None:
        consumer = place.step
        if consumer is None and not place.foreach:
            return "namespace_unavailable"
        inner = next((step for step in place.siblings if step.id == step_id), None)
        if inner is None and place.foreach and place.outer is None:
            return "namespace_unavailable"  # a foreach of a handler
        producer = inner or self.by_id.get(step_id)
        if producer is None:
            return "unknown_step_id"
        if producer is consumer or producer is place.outer:
            return "self_reference"
        if name not in declared_outputs(producer):
            return "unknown_output_name"
        if inner is not None:
            allowed = consumer is None or self._reaches(consumer, producer.name)
        else:
            owner = place.outer or consumer
            allowed = owner is not None and self._reaches(owner, producer.name)
        return None if allowed else "missing_dependency"

    def _reaches(self, step: Step, name: str) -> bool:
        """Tell whether `step` depends on the step called `name`, directly or through others."""
        found: set[str] = set()
        waiting = list(step.depends)
        while waiting:
            upstream = waiting.pop()
            if upstream == name:
                return True
            if upstream not in found and upstream in self.by_name:
                found.add(upstream)
                waiting.extend(self.by_name[upstream].depends)
        return False

    def _add(self, token: Token, node: Node, path: str, reason: str, *, is_step: bool = False) -> None:
        is_defect = reason in _DEFECTS or (is_step and reason == "namespace_unavailable")
        key = (path, token.text)
        if key in self.seen or len(self.found) >= MAX_NOTICES or not (is_defect or self.show_unresolved):
            return
        self.seen.add(key)
        self.found.append(
            Notice(
                token=token.text,
                field=path,
                reason=reason,
                level=Level.WARN if is_defect else Level.INFO,
                text=f"{token.text} was left unchanged because {_WHY[reason]} when {path} was evaluated.",
                position=node.position,
            )
        )


_STEP_TEXTS = frozenset(
    {
        "run", "command", "script", "exec", "call", "params", "value", "shell", "shell_args", "working_dir", "parallel",
        "worker_selector",
    }
)  # fmt: skip
_CONTAINER_TEXTS = frozenset(
    {"exec", "image", "name", "user", "working_dir", "network", "volumes", "ports", "command", "shell"}
)


def declared_outputs(step: Step) -> Iterable[str]:
    """Return the names that `${steps.ID.outputs.N}` may read of a step (section 2.7)."""
    if step.kind in FIXED_OUTPUTS:
        return FIXED_OUTPUTS[step.kind]
    if step.kind == "human.task":
        form: Any = step.inputs.get("form")
        properties = form.get("properties", form) if hasattr(form, "get") else {}
        return tuple(properties)
    return tuple(output.name for output in step.outputs)


def _all_steps(steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if step.foreach is not None:
            yield from _all_steps(step.foreach.steps)


def _declarations(node: Node | None) -> Iterator[tuple[str, Scalar]]:
    """Yield name and value of each environment declaration, whatever its form."""
    if isinstance(node, Mapping):
        for name, value in node.entries.items():
            if isinstance(value, Scalar):
                yield name, value
    elif isinstance(node, Sequence):
        for item in node.items:
            if isinstance(item, Scalar):
                name, _, text = item.text.partition("=")
                yield name, Scalar(item.file, item.line, item.column, text, is_plain=item.is_plain)
            else:
                yield from _declarations(item)


def _text_of(node: Node | None) -> str:
    return nodes.scalar_text(node) if isinstance(node, Scalar) else ""
