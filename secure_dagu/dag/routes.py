"""Who is behind which branch of a router, and where an approval goes back to: names become steps. Pure.

Workflow language, sections 3.27 and 3.25.
"""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from secure_dagu.dag import formats, nodes, schema
from secure_dagu.dag.model import Routed, Step
from secure_dagu.dag.reading import Report

if TYPE_CHECKING:
    from secure_dagu.dag.step import Read

ROUTER = "router.route"


def linked_routes(
    report: Report, steps: list[Step], flat: list[Read], runtime: AbstractMapping[str, str]
) -> list[Step]:
    """Return the steps with `routed` set on each target of a route, which then depends on its router.

    Args:
        report: takes unknown targets, and targets of two routes.
        steps: with `depends` as runtime names.
        flat: where each stands.
        runtime: runtime name by name or id.
    """
    routed: dict[str, Routed] = {}
    for step, read in zip(steps, flat, strict=True):
        if step.kind != ROUTER:
            continue
        routes = step.inputs.get("routes")
        written = nodes.at(read.entry, "with", "routes")
        for pattern, named in routes.items() if isinstance(routes, dict) else ():
            targets = named if isinstance(named, list) else [named]
            for target in dict.fromkeys(formats.as_text(item) for item in targets):
                where = f"{read.path}.with.routes"
                name = runtime.get(target)
                if name is None:
                    near = "" if report.is_full else schema.nearest(target, runtime)
                    hint = f' (did you mean "{near}"?)' if near else ""
                    report.item_problem(
                        nodes.at(written, pattern), target, where, f'routes to non-existent step "{target[:80]}"{hint}'
                    )
                elif name in routed:
                    report.item_problem(
                        nodes.at(written, pattern),
                        target,
                        where,
                        f'the step "{target[:80]}" is the target of two routes, only one may be',
                    )
                else:
                    routed[name] = Routed(router=step.name, patterns=(pattern,))
    if not routed:
        return steps
    return [_behind(step, routed.get(step.name)) for step in steps]


def _behind(step: Step, routed: Routed | None) -> Step:
    if routed is None:
        return step
    return replace(step, routed=routed, depends=tuple(dict.fromkeys((*step.depends, routed.router))))


def rewinds(report: Report, steps: list[Step], flat: list[Read]) -> list[Step]:
    """Return the steps with `approval.rewind_to` as a runtime name: the step itself, or one that it waits for."""
    if not any(step.approval is not None and step.approval.rewind_to for step in steps):
        return steps
    by_name = {step.name: step for step in steps}
    runtime = {step.id: step.name for step in steps if step.id} | dict.fromkeys(by_name)
    result: list[Step] = []
    for step, read in zip(steps, flat, strict=True):
        if step.approval is None or not step.approval.rewind_to:
            result.append(step)
            continue
        wanted = step.approval.rewind_to
        target = runtime.get(wanted, wanted) or wanted
        if target != step.name and target not in _upstream(step, by_name):
            why = "must be the step itself or one that it waits for" if target in by_name else "there is no such step"
            at = nodes.at(read.entry, "approval", "rewind_to")
            report.problem(at, f"{read.path}.approval.rewind_to", f'"{wanted[:80]}": {why}')
        result.append(replace(step, approval=replace(step.approval, rewind_to=target)))
    return result


def _upstream(step: Step, by_name: AbstractMapping[str, Step]) -> set[str]:
    seen: set[str] = set()
    waiting = list(step.depends)
    while waiting:
        name = waiting.pop()
        if name not in seen and name in by_name:
            seen.add(name)
            waiting += by_name[name].depends
    return seen
