"""Hand a run over to a coordinator: its task, and the files that it depends on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from secure_dagu.dag.model import Dag
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import BundleRef, Caller, Operation, Task
from secure_dagu.dispatch.retrying import told_at_start
from secure_dagu.errors import DefinitionError
from secure_dagu.local.runs import Retry, Start
from secure_dagu.runner.bundle import pack

PIECE_BYTES = 2**20


async def hand_over(coordinator: Coordinator, caller: Caller, start: Start, retry: Retry | None = None) -> Task:
    """Dispatch a run; what is returned is on the coordinator's disk.

    Raises:
        SecureDaguError: as `TaskDesk.dispatch`.
    """
    bundle = await send_bundle(coordinator, caller, start)
    return await coordinator.dispatch(caller, task_of(start, bundle, retry))


def task_of(start: Start, bundle: BundleRef | None, retry: Retry | None) -> Task:
    """Return the task of a run."""
    return Task(
        operation=Operation.RETRY if retry else Operation.START,
        run=start.run,
        root=start.run,
        definition=start.loaded.text,
        params=start.params,
        step=retry.step if retry else "",
        include_downstream=retry.downstream if retry else False,
        previous_status=retry.previous if retry else told_at_start(start.trigger),
        worker_selector=selector_of(start.loaded.main),
        labels=",".join(start.labels),
        base_config=start.base_config,
        schedule_time=start.schedule_time,
        queue_name=start.queue,
        source_file=start.source_file,
        bundle=bundle,
        profile_name=start.profile,
        trigger_actor=start.actor,
        definition_id=Path(start.source_file).stem if start.source_file else start.run.name,
    )


def selector_of(dag: Dag) -> Mapping[str, str]:
    """Return the labels that a run of a DAG asks of its worker."""
    return dict(dag.worker_selector or {})


async def send_bundle(coordinator: Coordinator, caller: Caller, start: Start) -> BundleRef | None:
    """Pack what the workflow declares under `dependencies` and upload it unless the coordinator has it already.

    Raises:
        DefinitionError: a file is missing, or the coordinator does not take them.
    """
    patterns = start.loaded.file_dependencies
    if not patterns:
        return None
    if not start.source_file:
        raise DefinitionError("an inline DAG cannot have file dependencies", fix="save it in the DAGs directory")
    path = Path(start.source_file)
    ref, data = pack(base=path.parent, dag_path=path.name, dag_text=start.loaded.text, patterns=patterns)
    if not await coordinator.has(caller, ref.digest):
        verdict = await coordinator.put(caller, ref, _pieces(data))
        if not verdict.accepted:
            raise DefinitionError("the coordinator did not take the file dependencies", why=verdict.error)
    return ref


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), PIECE_BYTES):
        yield data[begin : begin + PIECE_BYTES]


def is_over(document: Mapping[str, Any]) -> bool:
    """Tell whether a run at a coordinator holds no place in its queue any more."""
    from secure_dagu.run.model import RunStatus

    status = RunStatus(document.get("status", RunStatus.FAILED))
    return status.is_terminal or status is RunStatus.WAITING
