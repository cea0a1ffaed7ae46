"""A server of another kind or age, as our client meets it: what it asks, and what it makes of the answers."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from secure_dagu.contexts import address
from secure_dagu.contexts.book import Context
from secure_dagu.contexts.client import opened
from secure_dagu.contexts.server import MAX_PAGES, Filter, Server, Wanted
from secure_dagu.errors import (
    AlreadyExists,
    ConfigError,
    Conflict,
    LimitExceeded,
    NoMatchingWorker,
    NotFound,
    NotRunning,
    Refused,
    SecureDaguError,
    Unauthenticated,
    Unavailable,
)
from secure_dagu.run.model import DagRunRef, RunStatus
from secure_dagu.security.secret import Secret

REF = DagRunRef("etl", "r1")
Reply = tuple[int, Any]


@dataclass
class Dagu:
    """Answers by a table: `METHOD path` without the query → status and document, or what makes them of the query."""

    replies: dict[str, Reply | Callable[[str], Reply]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    port: int = 0

    def reply(self, method: str, target: str) -> Reply:
        """Return what is said."""
        path, _, query = target.removeprefix("/api/v1").partition("?")
        self.asked.append(f"{method} {path}" + (f"?{query}" if query else ""))
        found = self.replies.get(f"{method} {path}", (404, {"code": "not_found", "message": f"no {path}"}))
        return found(query) if callable(found) else found


@contextmanager
def serving(dagu: Dagu) -> Iterator[Dagu]:
    """Listen on a port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            if length := int(self.headers.get("Content-Length") or 0):
                dagu.bodies.append(json.loads(self.rfile.read(length)))
            assert self.headers["Authorization"] == "Bearer dagu_key"
            status, document = dagu.reply(self.command, self.path)
            body = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 429:
                self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _serve

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        dagu.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield dagu
        server.shutdown()
        thread.join()


@pytest.fixture
def dagu() -> Iterator[Dagu]:
    with serving(Dagu()) as found:
        yield found


@pytest.fixture
async def server(dagu: Dagu) -> AsyncIterator[Server]:
    url = address.parse(f"http://127.0.0.1:{dagu.port}")
    async with opened(Context(name="prod", server=url, api_key=Secret("dagu_key"))) as client:
        yield Server(client)


def run(**more: Any) -> dict[str, Any]:
    return {"name": "etl", "dagRunId": "r1", "status": 4, "startedAt": "", "finishedAt": ""} | more


async def test_a_run_of_dagu_becomes_a_status_document(dagu: Dagu, server: Server) -> None:
    """Its lists may be null, commands come in words, logs are files of its host, and it says more than we ask."""
    node = {
        "step": {"name": "a", "depends": None, "executorConfig": {},
                 "commands": [{"command": "echo", "args": "x y"}, {"command": "ls", "args": ["-l", "/"]}]},
        "status": 2, "statusLabel": "failed", "stdout": "/var/log/a.out",
        "stderr": "/api/v1/dag-runs/etl/r1/steps/a/log", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "-",
        "retryCount": 1, "doneCount": 0, "error": "exit status 1",
        "subRuns": [{"dagRunId": "kid", "params": "A=1"}],
    }  # fmt: skip
    page = run(
        nodes=[node], labels=None, tags=None, onExit=node, rootDAGRunName="etl", log="/var/log/run.log", status=2
    )
    dagu.replies["GET /dag-runs/etl/r1"] = (200, {"dagRunDetails": page, "more": 1})
    document = server.document(await server.run(REF))
    assert document["labels"] == []
    assert document["log"] == "/var/log/run.log"
    for shown in (document["nodes"][0], document["onExit"]):
        assert [line["cmdWithArgs"] for line in shown["step"]["commands"]] == ["echo x y", "ls -l /"]
        assert shown["stdout"] == "/var/log/a.out"
        assert shown["stderr"] == f"http://127.0.0.1:{dagu.port}/api/v1/dag-runs/etl/r1/steps/a/log"
        assert shown["children"] == [{"dagRunId": "kid", "params": "A=1"}]
        assert (shown["status"], shown["error"], shown["retryCount"]) == (2, "exit status 1", 1)


async def test_runs_come_page_by_page_up_to_the_limit_and_of_any_day(dagu: Dagu, server: Server) -> None:
    def page(query: str) -> Reply:
        start = int(query.partition("cursor=")[2] or 0)
        return 200, {"dagRuns": [run(dagRunId=f"r{n}") for n in range(start, start + 3)], "nextCursor": str(start + 3)}

    dagu.replies["GET /dag-runs/etl"] = page
    wanted = Filter(
        name="etl", statuses=frozenset({RunStatus.FAILED, RunStatus.RUNNING}), labels=("a", "!b"), run_id_part="r",
        until=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    assert [one.dag_run_id async for one in server.runs(wanted, limit=7)] == [f"r{n}" for n in range(7)]
    first = "status=1&status=2&fromDate=0&toDate=1767312000&labels=a%2C%21b&dagRunId=r&limit="
    assert dagu.asked[0] == f"GET /dag-runs/etl?{first}7"
    assert len(dagu.asked) == 3


async def test_a_list_that_never_ends_is_left(dagu: Dagu, server: Server) -> None:
    dagu.replies["GET /queues/q/items"] = (200, {"items": None, "nextCursor": "again"})
    assert [one async for one in server.queued("q")] == []
    assert len(dagu.asked) == MAX_PAGES


async def test_what_is_empty_is_not_said(dagu: Dagu, server: Server) -> None:
    dagu.replies["POST /dags/etl/start"] = (200, {"dagRunId": "r1"})
    assert await server.start("etl", Wanted(run_id="r1")) == "r1"
    everything = Wanted(run_id="r2", params="A=1", name="other", labels=("x",), profile="p", no_reuse=True, queue="q")
    await server.start("etl", everything)
    assert dagu.bodies == [
        {"dagRunId": "r1"},
        {"dagRunId": "r2", "params": "A=1", "dagName": "other", "labels": ["x"], "profile": "p", "noReuse": True,
         "queue": "q"},
    ]  # fmt: skip


async def test_dequeue_falls_back_to_the_get_of_dagu_only_where_post_is_no_method(dagu: Dagu, server: Server) -> None:
    path = "/dag-runs/etl/r1/dequeue"
    dagu.replies |= {f"POST {path}": (405, None), f"GET {path}": (200, None)}
    await server.dequeue(REF)
    assert dagu.asked == [f"POST {path}", f"GET {path}"]
    dagu.asked.clear()
    dagu.replies[f"POST {path}"] = (403, {"code": "forbidden", "message": "no"})
    with pytest.raises(Refused):
        await server.dequeue(REF)
    assert dagu.asked == [f"POST {path}"]


async def test_a_dag_is_found_by_its_file_or_by_a_name_that_one_has(dagu: Dagu, server: Server) -> None:
    dagu.replies["GET /dags/nightly"] = (200, {"dag": {"name": "etl"}, "spec": "…", "errors": []})
    dagu.replies["GET /dags/broken"] = (200, {"errors": ["it does not load"]})
    dagu.replies["GET /dags"] = (
        200,
        {"dags": [{"fileName": name, "dag": {"name": dag}} for name, dag in
                  (("a", "one"), ("b", "twice"), ("c", "twice"), ("d", "one more"))]},
    )  # fmt: skip
    found = await server.definition_of("nightly")
    assert (found.file, found.dag, await server.dag_of("nightly")) == ("nightly", "etl", "etl")
    assert await server.dag_of("broken") == "broken"
    assert (await server.definition_of("one")).file == "a"
    with pytest.raises(Conflict, match="several DAGs are called twice: b, c"):
        await server.definition_of("twice")
    with pytest.raises(NotFound, match="failed to load DAG from none"):
        await server.definition_of("none")


@pytest.mark.parametrize(
    ("status", "code", "family", "reason"),
    [
        (400, "not_running", NotRunning, ""),
        (401, "", Unauthenticated, "unauthenticated"),
        (403, "forbidden", Refused, "forbidden"),
        (404, "not_found", NotFound, ""),
        (404, "", Unavailable, "not_an_api"),
        (409, "already_exists", AlreadyExists, ""),
        (409, "conflict", Conflict, ""),
        (413, "payload_too_large", LimitExceeded, ""),
        (421, "bad_request", ConfigError, "other_name"),
        (429, "rate_limited", Unavailable, "too_often"),
        (500, "internal_error", Unavailable, "server_error"),
        (503, "no_worker", NoMatchingWorker, ""),
        (504, "timeout", Unavailable, "server_error"),
    ],
)
async def test_an_error_of_the_server_is_one_of_ours(
    dagu: Dagu, server: Server, status: int, code: str, family: type[SecureDaguError], reason: str
) -> None:
    dagu.replies["POST /dag-runs/etl/r1/stop"] = (status, {"code": code, "message": "its own words"} if code else None)
    with pytest.raises(family) as problem:
        await server.stop(REF)
    assert type(problem.value) is family
    assert problem.value.reason == reason
    assert not code or "its own words" in str(problem.value)
    assert "dagu_key" not in str(problem.value.as_dict())
    if status == 429:
        assert "in 7 seconds" in problem.value.fix


async def test_names_are_one_segment_each(dagu: Dagu, server: Server) -> None:
    """A step may be called anything; nothing that is named leads to another place of the server."""
    dagu.replies["GET /dag-runs/etl/r1/steps/a%2F..%2Fb%3Fc%23d/log"] = (200, {"content": "x\n", "totalLines": 1})
    assert (await server.log(REF, "a/../b?c#d", "stdout")).content == "x\n"
    for step in ("", ".", ".."):
        with pytest.raises(NotFound):
            await server.log(REF, step, "stdout")
    assert dagu.asked == ["GET /dag-runs/etl/r1/steps/a%2F..%2Fb%3Fc%23d/log?stream=stdout&tail=50"]
