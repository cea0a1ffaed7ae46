"""Dag → Plan: who waits for whom, in which order, and that nobody waits for himself. Pure.

Chains and nested lists are already dependencies when a `Dag` exists (`dag.steps`); a plan adds the indexes that an
engine needs to decide in constant time. Cycles are found here and not at load: `validate` accepts a cyclic file, a run
of it does not start (workflow language, section 1.2).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from secure_dagu.dag.model import Dag, Step
from secure_dagu.errors import DefinitionError

NO_EDGES: Mapping[str, tuple[str, ...]] = {}


class Plan(Struct, frozen=True, kw_only=True):
    """The steps of one document as a graph. Indexes are positions in `steps`, which are in source order."""

    steps: tuple[Step, ...]
    index: Mapping[str, int]
    """Position by runtime name."""
    dependencies: tuple[tuple[int, ...], ...]
    """For each step, the steps that it waits for, in the authored order."""
    dependents: tuple[tuple[int, ...], ...]
    """For each step, the steps that wait for it, in source order."""
    order: tuple[int, ...]
    """Every step after all that it waits for."""
    handlers: Mapping[str, Step] = field(default_factory=dict)
    """By name from `model.HANDLERS`."""

    def ancestors(self, position: int) -> tuple[int, ...]:
        """Return the steps that `position` waits for, directly or not, as output variables are looked up.

        Breadth-first from the authored `depends`, left to right; each step once, at its first position (workflow
        language, section 2.6).
        """
        return _walk(position, self.dependencies)

    def descendants(self, position: int) -> tuple[int, ...]:
        """Return the steps that wait for `position`, directly or not; each once."""
        return _walk(position, self.dependents)


def _walk(start: int, edges: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    found = dict.fromkeys(edges[start])
    queue = list(found)
    for position in queue:  # grows while it is walked
        for following in edges[position]:
            if following not in found:
                found[following] = None
                queue.append(following)
    return tuple(found)


def make_plan(dag: Dag, read_from: Mapping[str, tuple[str, ...]] | None = None) -> Plan:
    """Return the plan of `dag`.

    Args:
        dag: the document.
        read_from: for each step of a build DAG, the steps whose outputs it reads (`recipes.edges`), which `depends`
            does not show: it waits for them as for those that it names.

    Raises:
        DefinitionError: `cyclic plan detected`, here or in a `foreach` body; `why` names the steps of one cycle. Or a
            step waits for one that is not there, which only a definition that did not come through `load` can have.
    """
    for step in (*dag.steps, *dag.handlers.values()):
        if step.foreach is not None:
            plan_steps(step.foreach.steps, handlers={}, name=f"the body of {step.name}")
    return plan_steps(dag.steps, handlers=dag.handlers, name=dag.name, read_from=read_from or {})


def plan_steps(
    steps: tuple[Step, ...],
    *,
    handlers: Mapping[str, Step],
    name: str = "",
    read_from: Mapping[str, tuple[str, ...]] = NO_EDGES,
) -> Plan:
    """Return the plan of any list of steps; see `make_plan`."""
    index = {step.name: position for position, step in enumerate(steps)}
    dependents: list[list[int]] = [[] for _ in steps]
    dependencies: list[tuple[int, ...]] = []
    for position, step in enumerate(steps):
        try:
            named = dict.fromkeys((*step.depends, *read_from.get(step.name, ())))
            waits_for = tuple(index[before] for before in named)
        except KeyError as error:
            raise DefinitionError(
                f"the step {step.name!r} depends on non-existent step {error}",
                fix="correct `depends`",
            ) from error
        dependencies.append(waits_for)
        for before in waits_for:
            dependents[before].append(position)
    order = _order(dependencies, dependents)
    if len(order) < len(steps):
        raise DefinitionError(
            f"cyclic plan detected in {name or 'the workflow'}",
            why=" → ".join(steps[position].name for position in _cycle(dependencies, set(order))),
            fix="remove one of these dependencies",
        )
    return Plan(
        steps=steps,
        index=index,
        dependencies=tuple(dependencies),
        dependents=tuple(tuple(positions) for positions in dependents),
        order=tuple(order),
        handlers=handlers,
    )


def _order(dependencies: list[tuple[int, ...]], dependents: list[list[int]]) -> list[int]:
    """Return what can be put in order (Kahn); steps on or behind a cycle are left out."""
    waiting = [len(before) for before in dependencies]
    order = [position for position, count in enumerate(waiting) if not count]
    for position in order:  # grows while it is walked
        for following in dependents[position]:
            waiting[following] -= 1
            if not waiting[following]:
                order.append(following)
    return order


def _cycle(dependencies: list[tuple[int, ...]], ordered: set[int]) -> list[int]:
    """Return one cycle, its first step again at the end. Every step left waits for one that is left too."""
    position = next(at for at in range(len(dependencies)) if at not in ordered)
    seen: dict[int, int] = {}
    path: list[int] = []
    while position not in seen:
        seen[position] = len(path)
        path.append(position)
        position = next(before for before in dependencies[position] if before not in ordered)
    return [*reversed(path[seen[position] :]), path[-1]] if len(path) - seen[position] > 1 else [position, position]
