"""Read the steps of a document: what they are called and what they wait for. Pure.

`read_steps` reads every step, settles names, then turns `depends` into runtime names: those of the file in graph mode,
the previous entry's in chain mode.
"""

from __future__ import annotations

from dataclasses import replace

from secure_dagu.dag import reading, schema
from secure_dagu.dag.model import HANDLERS, DagType, Step
from secure_dagu.dag.nodes import Mapping, Node, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.dag.step import Defaults, read_step

MAX_EDGES = 500_000
"""Dependencies of one document after chain expansion: two nested lists of 1,000 steps already make a million."""
MAX_ID_BYTES = 40
MAX_NAME_BYTES = 255

_RESERVED_IDS = frozenset({"env", "params", "args", "stdout", "stderr", "output", "outputs"})

_Slot = list[tuple[Step, str, Node, str]]
"""One entry of `steps`: its members with prefix, node and path; several for a nested list."""


def read_steps(report: Report, node: Node | None, path: str, kind: DagType, defaults: Defaults | None) -> list[Step]:
    """Read `steps` of a document: a list, or a map of names (ordered by name)."""
    slots: list[_Slot] = []
    if isinstance(node, Mapping):
        for name in sorted(node.entries):
            slots.append(_named_slot(report, node, name, path, defaults))
    elif isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            where = f"{path}[{index}]"
            inner = item.items if isinstance(item, Sequence) else None
            members = [(item, where)] if inner is None else [(one, f"{where}[{at}]") for at, one in enumerate(inner)]
            slots.append(
                [(*found, member, at) for member, at in members if (found := read_step(report, member, at, defaults))]
            )
    elif node is not None:
        report.problem(node, path, f"steps must be a sequence, found {reading.kind_of(node)}")
    steps = _with_names(report, slots)
    if kind is DagType.CHAIN:
        return _chained(report, slots, steps, path)
    return _with_dependencies(report, slots, steps)


def _named_slot(report: Report, node: Mapping, name: str, path: str, defaults: Defaults | None) -> _Slot:
    where = f"{path}.{name}"
    found = read_step(report, node.entries[name], where, defaults)
    if found is None:
        return []
    step, prefix = found
    return [(step if step.name else replace(step, name=name), prefix, node.entries[name], where)]


def _with_names(report: Report, slots: list[_Slot]) -> list[Step]:
    """Return all steps, each with a unique name; report what is wrong with the authored ones (section 1.7)."""
    flat = [member for slot in slots for member in slot]
    names: dict[str, int] = {}
    ids: dict[str, int] = {}
    for at, (step, _, node, path) in enumerate(flat):
        if step.id:
            _check_id(report, step.id, node, path)
            if step.id in ids:
                report.problem(node, path, f'duplicate step ID "{step.id}": ids must be unique')
            ids.setdefault(step.id, at)
        name = step.name or step.id
        if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
            report.problem(node, path, f"step name must be at most {MAX_NAME_BYTES} bytes")
        if name and names.setdefault(name, at) != at:
            report.problem(node, path, f'step name "{name[:80]}" must be unique')
    for step_id, at in ids.items():
        if names.get(step_id, at) != at:
            _, _, node, path = flat[at]
            report.problem(node, path, f'step ID "{step_id}" conflicts with the name of another step')
    taken = names.keys() | ids.keys()
    steps: list[Step] = []
    free: dict[str, int] = {}
    for position, (step, prefix, _, _) in enumerate(flat, 1):
        name = step.name or step.id
        if not name:
            name = f"{prefix}_{position}"
            if name in taken:  # a collision moves to the next free number; all before `free` are known to be taken
                number = max(position, free.get(prefix, 0))
                while f"{prefix}_{number}" in taken:
                    number += 1
                name = f"{prefix}_{number}"
                free[prefix] = number + 1
        taken.add(name)
        steps.append(step if step.name == name else replace(step, name=name))
    return steps


def _check_id(report: Report, step_id: str, node: Node, path: str) -> None:
    if len(step_id.encode("utf-8", "replace")) > MAX_ID_BYTES:
        report.problem(node, path, f"step ID must be at most {MAX_ID_BYTES} bytes")
    elif not reading.WORD.fullmatch(step_id):
        report.problem(node, path, f'invalid step ID format: "{step_id}": a letter, then letters, digits, _')
    elif step_id.lower() in _RESERVED_IDS:
        report.problem(node, path, f'step ID "{step_id}" is a reserved word')


def _with_dependencies(report: Report, slots: list[_Slot], steps: list[Step]) -> list[Step]:
    """Return the steps with `depends` as runtime names; a name wins over an id."""
    flat = [member for slot in slots for member in slot]
    runtime = {step.id: step.name for step in steps if step.id} | {step.name: step.name for step in steps}
    linked: list[Step] = []
    for step, (_, _, node, path) in zip(steps, flat, strict=True):
        if not step.depends:
            linked.append(step)
            continue
        found: dict[str, None] = {}
        for name in step.depends:
            if name in runtime:
                found[runtime[name]] = None
                continue
            near = "" if report.is_full else schema.nearest(name, runtime)
            at = node.entries["depends"] if isinstance(node, Mapping) else node
            hint = f' (did you mean "{near}"?)' if near else ""
            report.problem(at, f"{path}.depends", f'depends on non-existent step "{name[:80]}"{hint}')
        depends = tuple(found)
        linked.append(step if depends == step.depends else replace(step, depends=depends))
    return linked


def _chained(report: Report, slots: list[_Slot], steps: list[Step], path: str) -> list[Step]:
    """Return the steps of a chain: each depends on every member of the entry before it (section 1.6)."""
    linked: list[Step] = []
    before: tuple[str, ...] = ()
    edges = 0
    remaining = iter(steps)
    for slot in slots:
        members = [next(remaining) for _ in slot]
        edges += len(before) * len(members)
        if edges > MAX_EDGES:
            report.problem(slot[0][2], path, f"the chain needs more than {MAX_EDGES} dependencies")
            return steps
        for step, (_, _, node, where) in zip(members, slot, strict=True):
            if isinstance(node, Mapping) and "depends" in node.entries:
                report.problem(node.keys["depends"], where, "depends field is not allowed in a chain")
            linked.append(replace(step, depends=before))
        if members:
            before = tuple(step.name for step in members)
    return linked


def read_handlers(report: Report, node: Node | None, path: str, defaults: Defaults | None) -> dict[str, Step]:
    """Read `handler_on`: one step for each event; the step of `exit` is called `onExit`."""
    entry = reading.table(report, node, path, schema.HANDLER_ON)
    handlers: dict[str, Step] = {}
    for event in HANDLERS:
        value = entry.get(event) if entry is not None else None
        if value is None:
            continue
        where = f"{path}.{event}"
        if isinstance(value, Mapping) and "depends" in value.entries:
            report.problem(value.keys["depends"], where, "a handler has no depends")
        if found := read_step(report, value, where, defaults):
            handlers[event] = replace(found[0], name=f"on{event.capitalize()}", depends=())
    return handlers
