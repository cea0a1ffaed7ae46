"""Read the steps of a document: what they are called and what they wait for. Pure.

`read_steps` reads every step, settles names, then turns `depends` into runtime names: those of the file in graph mode,
the previous entry's in chain mode. The body of a `foreach` is such a list of its own.
"""

from __future__ import annotations

from msgspec.structs import replace

from secure_dagu.dag import nodes, parts, reading, schema
from secure_dagu.dag.model import HANDLERS, DagType, ForEach, Step
from secure_dagu.dag.nodes import Mapping, Node, Scalar, Sequence
from secure_dagu.dag.reading import Report
from secure_dagu.dag.routes import linked_routes, rewinds
from secure_dagu.dag.step import Read, Surroundings, read_step

MAX_EDGES = 500_000
"""Dependencies of one document after chain expansion: two nested lists of 1,000 steps already make a million."""
MAX_ID_BYTES = 40
MAX_NAME_BYTES = 255

_RESERVED_IDS = frozenset({"env", "params", "args", "stdout", "stderr", "output", "outputs"})

_Slot = list[Read]
"""One entry of `steps`: its members; several for a nested list."""


def read_steps(report: Report, node: Node | None, path: str, around: Surroundings) -> list[Step]:
    """Read `steps` of a document: a list, or a map of names (ordered by name)."""
    slots: list[_Slot] = []
    if isinstance(node, Mapping):
        for name in sorted(node.entries):
            slots.append(_named_slot(report, node, name, path, around))
    elif isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            where = f"{path}[{index}]"
            inner = item.items if isinstance(item, Sequence) else None
            members = [(item, where)] if inner is None else [(one, f"{where}[{at}]") for at, one in enumerate(inner)]
            slots.append([found for member, at in members if (found := read_step(report, member, at, around))])
    elif node is not None:
        report.problem(node, path, f"steps must be a sequence, found {reading.kind_of(node)}")
    flat = [member for slot in slots for member in slot]
    steps = _with_names(report, flat)
    authored = {word for read in flat for word in (read.step.name, read.step.id) if word}
    steps = [
        replace(step, foreach=_foreach(report, read, around, authored)) if step.kind == "foreach" else step
        for step, read in zip(steps, flat, strict=True)
    ]
    if around.type is DagType.CHAIN:
        return rewinds(report, _chained(report, slots, steps, path), flat)
    return _with_dependencies(report, flat, steps)


def _named_slot(report: Report, node: Mapping, name: str, path: str, around: Surroundings) -> _Slot:
    found = read_step(report, node.entries[name], f"{path}.{name}", around)
    if found is None:
        return []
    return [found if found.step.name else replace(found, step=replace(found.step, name=name))]


def _with_names(report: Report, flat: list[Read]) -> list[Step]:
    """Return all steps, each with a unique name; report what is wrong with the authored ones (section 1.7)."""
    names: dict[str, int] = {}
    ids: dict[str, int] = {}
    for at, read in enumerate(flat):
        step, path = read.step, read.path
        is_again = bool(step.id) and step.id in ids
        if step.id:
            _check_id(report, step.id, read)
            if is_again:
                report.problem(nodes.at(read.entry, "id"), path, f'duplicate step ID "{step.id}": ids must be unique')
            ids.setdefault(step.id, at)
        name = step.name or step.id
        if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
            report.problem(nodes.at(read.entry, "name"), path, f"step name must be at most {MAX_NAME_BYTES} bytes")
        if name and names.setdefault(name, at) != at:
            node = nodes.at(read.entry, "name" if step.name else "id")
            if is_again and not step.name:
                pass  # said already: it is called by its id
            elif bool(step.name) is bool(flat[names[name]].step.name):
                report.problem(node, path, f'step name "{name[:80]}" must be unique')
            else:  # one of them is named by its id alone
                report.problem(node, path, f'step name "{name[:80]}" conflicts with the ID of another step')
    for step_id, at in ids.items():
        if names.get(step_id, at) != at:
            node = nodes.at(flat[at].entry, "id")
            report.problem(node, flat[at].path, f'step ID "{step_id}" conflicts with the name of another step')
    taken = names.keys() | ids.keys()
    steps: list[Step] = []
    free: dict[str, int] = {}
    for position, read in enumerate(flat, 1):
        name = read.step.name or read.step.id
        if not name:
            name = f"{read.prefix}_{position}"
            if name in taken:  # a collision moves to the next free number; all before `free` are known to be taken
                number = max(position, free.get(read.prefix, 0))
                while f"{read.prefix}_{number}" in taken:
                    number += 1
                name = f"{read.prefix}_{number}"
                free[read.prefix] = number + 1
        taken.add(name)
        steps.append(read.step if read.step.name == name else replace(read.step, name=name))
    return steps


def _check_id(report: Report, step_id: str, read: Read) -> None:
    node, path = nodes.at(read.entry, "id"), read.path
    if len(step_id.encode("utf-8", "replace")) > MAX_ID_BYTES:
        report.problem(node, path, f"step ID must be at most {MAX_ID_BYTES} bytes")
    elif not reading.WORD.fullmatch(step_id):
        report.problem(node, path, f'invalid step ID format: "{step_id}": a letter, then letters, digits, _')
    elif step_id.lower() in _RESERVED_IDS:
        report.problem(node, path, f'step ID "{step_id}" is a reserved word')


# ----------------------------------------------------------------------------------------------------------- ordering


def _with_dependencies(report: Report, flat: list[Read], steps: list[Step]) -> list[Step]:
    """Return the steps with `depends` as runtime names; a name wins over an id."""
    runtime = {step.id: step.name for step in steps if step.id} | {step.name: step.name for step in steps}
    linked: list[Step] = []
    for step, read in zip(steps, flat, strict=True):
        if not step.depends:
            linked.append(step)
            continue
        found: dict[str, None] = {}
        for name in step.depends:
            if name in runtime:
                found[runtime[name]] = None
                continue
            near = "" if report.is_full else schema.nearest(name, runtime)
            hint = f' (did you mean "{near}"?)' if near else ""
            text = f'depends on non-existent step "{name[:80]}"{hint}'
            report.item_problem(read.entry.entries["depends"], name, f"{read.path}.depends", text)
        depends = tuple(found)
        linked.append(step if depends == step.depends else replace(step, depends=depends))
    return rewinds(report, linked_routes(report, linked, flat, runtime), flat)


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
            report.problem(slot[0].entry, path, f"the chain needs more than {MAX_EDGES} dependencies")
            return steps
        for step, read in zip(members, slot, strict=True):
            if "depends" in read.entry.entries:
                report.problem(read.entry.keys["depends"], read.path, "depends field is not allowed in a chain")
            linked.append(replace(step, depends=before))
        if members:
            before = tuple(step.name for step in members)
    return linked


# ------------------------------------------------------------------------------------------------------------ foreach


def _foreach(report: Report, read: Read, around: Surroundings, outer: set[str]) -> ForEach | None:
    """Read `foreach` of a step and its body, whose names are its own but none of the steps around it (3.15)."""
    path = f"{read.path}.foreach"
    entry = reading.table(report, read.entry.get("foreach"), path, schema.FOREACH)
    if entry is None:
        if read.entry.get("foreach") is None:
            report.problem(read.entry, path, "foreach needs items and steps")
        return None
    if around.place == "foreach":
        report.problem(entry, path, "a foreach does not stand in the body of another; call a sub-DAG there")
        return None
    as_name = reading.text(report, entry.get("as"), f"{path}.as", "item")
    if not reading.WORD.fullmatch(as_name) or as_name in ("index", "key"):
        report.problem(entry.entries["as"], f"{path}.as", "a letter, then letters, digits, _; not index or key")
    return ForEach(
        items=_items(report, entry, path),
        steps=tuple(_body(report, entry, f"{path}.steps", around, outer)),
        as_name=as_name,
        key=reading.text(report, entry.get("key"), f"{path}.key"),
        max_concurrent=parts.max_concurrent(report, entry.get("max_concurrent"), f"{path}.max_concurrent"),
        collect=_collect(report, entry.get("collect"), f"{path}.collect"),
    )


def _items(report: Report, entry: Mapping, path: str) -> object:
    node = entry.get("items")
    if isinstance(node, Sequence):
        if len(node.items) > 1000:
            report.problem(node, f"{path}.items", "at most 1000 items")
        return nodes.plain_value(node)
    if isinstance(node, Scalar) and isinstance(nodes.scalar_value(node), str):
        return node.text
    found = "nothing" if node is None else reading.kind_of(node)
    report.problem(node or entry, f"{path}.items", f"expected a list, or text that becomes a JSON array, found {found}")
    return []


def _body(report: Report, entry: Mapping, path: str, around: Surroundings, outer: set[str]) -> list[Step]:
    node = entry.get("steps")
    if not isinstance(node, Sequence) or not node.items:
        report.problem(node or entry, path, "steps must be a non-empty sequence")
        return []
    for index, item in enumerate(node.items):
        if isinstance(item, Sequence):
            report.problem(item, f"{path}[{index}]", "the body of a foreach has no nested lists of steps")
            return []
    steps = read_steps(report, node, path, replace(around, place="foreach", type=DagType.GRAPH))
    for item in node.items:
        for key in ("id", "name"):
            written = item.get(key) if isinstance(item, Mapping) else None
            if isinstance(written, Scalar) and (word := nodes.scalar_text(written).strip()) in outer:
                report.problem(written, path, f'the {key} "{word[:80]}" collides with a step outside the foreach')
    return steps


def _collect(report: Report, node: Node | None, path: str) -> dict[str, str]:
    collect = reading.text_map(report, node, path)
    for name in collect:
        if not reading.WORD.fullmatch(name):
            assert isinstance(node, Mapping)
            report.problem(node.keys[name], path, f'"{name[:80]}" is not a name: a letter, then letters, digits, _')
    return collect


# ----------------------------------------------------------------------------------------------------------- handlers


def read_handlers(report: Report, node: Node | None, path: str, around: Surroundings) -> dict[str, Step]:
    """Read `handler_on`: one step for each event; the step of `exit` is called `onExit`."""
    entry = reading.table(report, node, path, schema.HANDLER_ON)
    inside = replace(around, place="handler_on")
    handlers: dict[str, Step] = {}
    for event in HANDLERS:
        value = entry.get(event) if entry is not None else None
        if value is None:
            continue
        where = f"{path}.{event}"
        if isinstance(value, Mapping) and "depends" in value.entries:
            report.problem(value.keys["depends"], where, "a handler has no depends")
        if found := read_step(report, value, where, inside):
            step = replace(found.step, name=f"on{event.capitalize()}", depends=())
            if step.kind == "foreach":
                step = replace(step, foreach=_foreach(report, found, inside, set()))
            handlers[event] = step
    return handlers
