"""Live updates over a real connection: first frames, changes, limits, tickets, and who may read what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from secure_dagu.run.model import DagRunRef
from tests.web.api.conftest import client_of
from tests.web.api.installation import Installation

Query = list[tuple[str, str | int | float | bool | None]]


class Stream:
    """An open stream, read frame by frame."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()
        self.comments = 0

    async def frame(self) -> dict[str, Any]:
        """Return the next frame: `event`, `id` and parsed `data`."""
        found: dict[str, Any] = {}
        async with asyncio.timeout(60):
            async for line in self._lines:
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    key, _, value = line.partition(": ")
                    found[key] = json.loads(value) if key == "data" else value
                elif found:
                    return found
        raise EOFError

    async def of(self, topic: str) -> Any:
        """Return the next payload of a topic."""
        while True:
            frame = await self.frame()
            if frame.get("event") == "message" and frame["data"]["topic"] == topic:
                return frame["data"]["payload"]


@pytest.fixture
async def clients(site: Installation) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(site, "admin") as client:
        yield client


async def test_a_stream_says_what_it_carries_then_how_things_stand(clients: httpx.AsyncClient) -> None:
    query: Query = [
        ("topic", "dagslist:"),
        ("topic", "dag:hello"),
        ("topic", "nonsense:"),
        ("topic", "dagruns:limit=0"),
    ]
    async with clients.stream("GET", "/events/stream", params=query) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        stream = Stream(response)
        control = await stream.frame()
        assert control["event"] == "control"
        assert control["data"]["subscribed"] == ["dag:hello", "dagslist:"]
        assert {error["code"] for error in control["data"]["errors"]} == {"invalid_topic"}
        first, second = await stream.frame(), await stream.frame()
        assert [first["id"], second["id"]] == ["1", "2"]
        payloads = {frame["data"]["topic"]: frame["data"]["payload"] for frame in (first, second)}
        rest = (await clients.get("/dags")).json()
        assert payloads["dagslist:"] == rest
        assert payloads["dag:hello"]["dag"]["name"] == "hello"


async def test_a_run_is_watched_until_it_is_over(clients: httpx.AsyncClient, site: Installation) -> None:
    topic, logs = "dagrun:hello/r1", "steplog:hello/r1/one"
    async with clients.stream("GET", "/events/stream", params={"topic": topic}) as response:
        stream = Stream(response)
        session = (await stream.frame())["data"]["sessionID"]
        error = (await stream.frame())["data"]["errors"][0]
        assert error == {"topic": topic, "code": "not-found", "message": error["message"]}
        await clients.post("/dags/hello/start", json={"dagRunId": "r1"})
        site.runs.tell(DagRunRef("hello", "r1"))
        payload = await stream.of(topic)
        while payload["dagRunDetails"]["statusLabel"] != "succeeded":
            site.runs.tell(DagRunRef("hello", "r1"))
            payload = await stream.of(topic)
        answer = await clients.post("/events/stream/topics", json={"sessionID": session, "add": [logs]})
        assert answer.json() == {"subscribed": [topic, logs], "errors": []}
        assert (await stream.of(logs))["stdoutContent"] == "hello world\n"


async def test_what_did_not_change_is_not_sent_and_a_silent_stream_says_that_it_lives(
    clients: httpx.AsyncClient, site: Installation
) -> None:
    async with clients.stream("GET", "/events/stream", params={"topic": "dagslist:"}) as response:
        stream = Stream(response)
        await stream.frame()
        await stream.of("dagslist:")
        for _ in range(5):
            site.runs.tell(DagRunRef("hello", "x"))
        await clients.post("/dags", json={"name": "another"})
        payload = await stream.of("dagslist:")
        assert [item["fileName"] for item in payload["dags"]] == ["another", "hello"]
        await clients.post("/dags/another/suspend", json={"suspend": True})
        assert (await stream.of("dagslist:"))["dags"][0]["suspended"] is True
        await asyncio.wait_for(_until_comment(stream), 10)


async def _to_the_end(stream: Stream) -> None:
    while True:
        await stream.frame()


async def _until_comment(stream: Stream) -> None:
    while not stream.comments:
        async for line in stream._lines:
            if line.startswith(":"):
                stream.comments += 1
                break


async def test_a_ticket_opens_one_stream_once(site: Installation, clients: httpx.AsyncClient) -> None:
    ticket = (await clients.post("/events/ticket")).json()["ticket"]
    async with client_of(site, "nobody") as nobody:
        query = {"topic": "queues:", "ticket": ticket}
        async with nobody.stream("GET", "/events/stream", params=query) as response:
            assert response.status_code == 200
        assert (await nobody.get("/events/stream", params=query)).status_code == 401
        assert (await nobody.get("/events/stream", params={"token": "admin"})).status_code == 401


async def test_topics_are_limited_in_number_and_length(clients: httpx.AsyncClient) -> None:
    many: Query = [("topic", f"dag:d{number}") for number in range(21)]
    answer = await clients.get("/events/stream", params=many)
    assert answer.status_code == 400
    assert (answer.json()["code"], answer.json()["error"]) == ("bad_request", "too_many_topics")
    assert (await clients.get("/events/stream", params={"topic": "dagruns:" + "x" * 5000})).status_code == 413
    answer = await clients.post("/events/stream/topics", json={"sessionID": "none"})
    assert (answer.status_code, answer.json()["error"]) == (404, "unknown_session")
    assert "error" not in (await clients.get("/dags/none")).json()


async def test_each_topic_asks_who_reads_it(site: Installation) -> None:
    async with client_of(site, "viewer") as viewer, client_of(site, "admin") as admin:
        query: Query = [("topic", "workers:"), ("topic", "security:")]
        async with viewer.stream("GET", "/events/stream", params=query) as low:
            stream = Stream(low)
            control = (await stream.frame())["data"]
            assert control["subscribed"] == ["workers:"]
            assert control["errors"][0]["code"] == "refused"
            assert "remoteAddress" not in (await stream.of("workers:"))["workers"][0]
            async with admin.stream("GET", "/events/stream", params=query) as high:
                other = Stream(high)
                assert "remoteAddress" in (await other.of("workers:"))["workers"][0]
            answer = await viewer.post(
                "/events/stream/topics", json={"sessionID": control["sessionID"], "add": ["services:"]}
            )
            assert answer.status_code == 403
            stolen = await admin.post(
                "/events/stream/topics", json={"sessionID": control["sessionID"], "add": ["queues:"]}
            )
            assert stolen.status_code == 404


async def test_a_stream_ends_when_its_account_is_withdrawn(site: Installation) -> None:
    query = {"topic": "queues:"}
    async with client_of(site, "viewer") as viewer, viewer.stream("GET", "/events/stream", params=query) as response:
        stream = Stream(response)
        await stream.frame()
        site.gate.withdrawn.add("viewer")
        with pytest.raises(EOFError):
            await _to_the_end(stream)
    assert site.hub.readers == {}


async def test_streams_beyond_the_limit_are_refused(site: Installation, clients: httpx.AsyncClient) -> None:
    site.hub._max_clients = 1
    async with clients.stream("GET", "/events/stream") as response:
        assert response.status_code == 200
        assert (await clients.get("/events/stream")).status_code == 503
