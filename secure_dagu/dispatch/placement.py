"""Where a run is executed: the one decision, for every way of starting it (configuration reference, 6.4). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from secure_dagu.dag.model import Dag
from secure_dagu.dispatch.operating import Placement


def placement_of(dag: Dag, *, has_coordinator: bool, distributed_by_default: bool) -> Placement:
    """Return where a root run goes; the first match wins.

    Local if the DAG says so, or no coordinator is there; to workers if it selects some by labels, or runs are
    distributed by default; else local.
    """
    return placed(
        local_only=dag.run_locally,
        selector=dag.worker_selector,
        has_coordinator=has_coordinator,
        distributed_by_default=distributed_by_default,
    )


def placed(
    *, local_only: bool, selector: Mapping[str, str] | None, has_coordinator: bool, distributed_by_default: bool
) -> Placement:
    """Return where a run goes whose selector is known: a sub-DAG's is its step's, else its own."""
    if local_only or not has_coordinator:
        return Placement.LOCAL
    return Placement.WORKERS if selector or distributed_by_default else Placement.LOCAL
