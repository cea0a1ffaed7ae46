"""The topics of live updates (REST reference, section 11): what each one is made of and who may read it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote

from msgspec import Struct
from pydantic import BaseModel, ValidationError

from secure_dagu.errors import InvalidRequest, NotFound, Refused
from secure_dagu.run.model import DagRunRef
from secure_dagu.web.api import views_dags, views_machines, views_runs
from secure_dagu.web.api.deps import Account, Need, Parts
from secure_dagu.web.api.live import Topic
from secure_dagu.web.api.queries import DagsQuery, ItemsQuery, RunsQuery, TailQuery

MAX_TEXT = 4096
"""Characters of a topic, and of all topics in one URL."""
_TICK_S = 1.0
"""For what changes without a run's change."""
_SLOW_TICK_S = 5.0
"""For what a run's change tells; in case that a change was missed."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")

_Model = TypeVar("_Model", bound=BaseModel)


class _Kind(Struct, frozen=True, kw_only=True):
    make: Callable[[Parts, Account, str], Awaitable[Mapping[str, Any]]]
    need: Need = Need.READ


async def topic(parts: Parts, account: Account, text: str) -> Topic:
    """Return the topic that a text names.

    Raises:
        InvalidRequest: there is no such topic, or its query is wrong. Refused: the account may not read it.
    """
    kind, colon, argument = text.partition(":")
    known = _KINDS.get(kind)
    if known is None or not colon or len(text) > MAX_TEXT:
        raise InvalidRequest("there is no such topic", fix=f"one of {', '.join(_KINDS)}, with a colon behind it")
    if not account.may(known.need):
        raise Refused("your role may not read this topic")
    return Topic(text=text, kind=kind, **await known.make(parts, account, argument))


async def _dags(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    query = _query(DagsQuery, argument)
    return _any_run(lambda: views_dags.dag_list(parts.workflows, parts.runs, query))


async def _dag(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    name = await _dag_of(parts, argument)
    return _runs_of(name, lambda: views_dags.dag_page(parts.workflows, parts.runs, argument, api=parts.api_path))


async def _dag_history(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    name = await _dag_of(parts, argument)
    return _runs_of(name, lambda: views_dags.history(parts.workflows, parts.runs, argument, api=parts.api_path))


async def _runs(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    query = _query(RunsQuery, argument)
    return _any_run(lambda: views_runs.run_list(parts.runs, query), every_s=_SLOW_TICK_S)


async def _run(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    name, run_id = _words(argument, 2)
    run = DagRunRef(name, run_id)
    return _one_run(run, lambda: views_runs.run_page(parts.runs, run, api=parts.api_path), every_s=_SLOW_TICK_S)


async def _sub_run(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    name, run_id, child = _words(argument, 3)
    run = DagRunRef(name, run_id)
    return _one_run(run, lambda: views_runs.run_page(parts.runs, run, child=child, api=parts.api_path))


async def _run_logs(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    path, _, tail = argument.partition("?")
    name, run_id = _words(path, 2)
    run, query = DagRunRef(name, run_id), _query(TailQuery, tail)
    return _one_run(run, lambda: views_runs.run_logs(parts.runs, run, tail=query.tail))


async def _step_log(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    name, _, rest = argument.partition("/")
    run_id, _, step = rest.partition("/")
    _words(f"{name}/{run_id}", 2)
    if not step:
        raise InvalidRequest("the topic names no step")
    run, step = DagRunRef(name, run_id), unquote(step)
    return _one_run(run, lambda: views_runs.step_log(parts.runs, run, step))


async def _queues(parts: Parts, _account: Account, _argument: str) -> Mapping[str, Any]:
    return _any_run(lambda: views_machines.queue_list(parts.queues))


async def _queue_items(parts: Parts, _account: Account, argument: str) -> Mapping[str, Any]:
    name, _, rest = argument.partition("?")
    query = _query(ItemsQuery, rest)
    return _any_run(lambda: views_machines.queue_items(parts.queues, unquote(name), query))


async def _workers(parts: Parts, account: Account, _argument: str) -> Mapping[str, Any]:
    is_full = account.may(Need.MACHINES)
    found = _clock(lambda: views_machines.worker_list(parts, is_full=is_full))
    return {**found, "view": "full" if is_full else "brief"}


async def _services(parts: Parts, _account: Account, _argument: str) -> Mapping[str, Any]:
    return _clock(lambda: views_machines.services(parts.fleet))


async def _security(parts: Parts, _account: Account, _argument: str) -> Mapping[str, Any]:
    return {**_clock(lambda: views_machines.security_summary(parts)), "every_s": _SLOW_TICK_S}


_KINDS: Mapping[str, _Kind] = {
    "dagslist": _Kind(make=_dags),
    "dag": _Kind(make=_dag),
    "daghistory": _Kind(make=_dag_history),
    "dagruns": _Kind(make=_runs),
    "dagrun": _Kind(make=_run),
    "subdagrun": _Kind(make=_sub_run),
    "dagrunlogs": _Kind(make=_run_logs),
    "steplog": _Kind(make=_step_log),
    "queues": _Kind(make=_queues),
    "queueitems": _Kind(make=_queue_items),
    "workers": _Kind(make=_workers),
    "services": _Kind(make=_services, need=Need.MACHINES),
    "security": _Kind(make=_security, need=Need.MACHINES),
}


def _any_run(produce: Callable[[], Awaitable[Any]], *, every_s: float = _TICK_S) -> Mapping[str, Any]:
    return {"produce": produce, "every_s": every_s, "dag": ""}


def _runs_of(dag: str, produce: Callable[[], Awaitable[Any]]) -> Mapping[str, Any]:
    return {"produce": produce, "every_s": _TICK_S, "dag": dag}


def _one_run(run: DagRunRef, produce: Callable[[], Awaitable[Any]], *, every_s: float = _TICK_S) -> Mapping[str, Any]:
    run_id = "" if run.run_id == "latest" else run.run_id
    return {"produce": produce, "every_s": every_s, "dag": run.name, "run_id": run_id}


def _clock(produce: Callable[[], Awaitable[Any]]) -> Mapping[str, Any]:
    return {"produce": produce, "every_s": _TICK_S}


async def _dag_of(parts: Parts, file: str) -> str:
    """Return the name of a file's DAG; of a file that is not there yet, the file's."""
    _words(file, 1)
    try:
        return (await parts.workflows.get(file)).name
    except NotFound:
        return file


def _words(argument: str, number: int) -> list[str]:
    words = argument.split("/")
    if len(words) != number or not all(_NAME.fullmatch(word) for word in words):
        raise InvalidRequest("the topic is not named correctly", why=f"expected {number} names with / between them")
    return words


def _query(model: type[_Model], text: str) -> _Model:
    """Return what the query behind a topic says.

    Raises:
        InvalidRequest: it says what REST would answer with 400.
    """
    try:
        given = parse_qs(text, keep_blank_values=True, max_num_fields=50)
        lists = {name for name, item in model.model_fields.items() if "list" in str(item.annotation)}
        return model.model_validate({key: value if key in lists else value[-1] for key, value in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest("the topic's query is wrong", why=f"{where}: {first['msg']}") from None
    except ValueError as error:
        raise InvalidRequest("the topic's query is wrong", why=str(error)) from None
