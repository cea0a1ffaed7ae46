"""`http.request` and `wait.http` against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secure_dagu.run.model import RunStatus
from secure_dagu.runner.executors import http
from tests.runner.executors.test_sqlite import dag, error_of, step, stopped_at
from tests.runner.executors.webserver import Web, serving
from tests.runner.harness import Seen, run

HEAD = "200 OK\nA-Header: 1\nContent-Length: {}\nDate: NOW\nServer: test\nX-Zeta: z\n"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


async def ask(base: Path, url: str, method: str = "GET", **inputs: Any) -> Seen:
    return await run(dag(step("q", "http.request", method=method, url=url, **inputs)), base)


async def test_an_answer_is_printed_as_status_sorted_headers_and_body(web: Web, tmp_path: Path) -> None:
    seen = await ask(tmp_path, f"{web.url}/hello")
    assert seen.out("q") == HEAD.format(5) + "hello"


async def test_silent_prints_the_body_only(web: Web, tmp_path: Path) -> None:
    assert (await ask(tmp_path, f"{web.url}/hello", silent=True)).out("q") == "hello"


async def test_json_has_an_indent_of_one(web: Web, tmp_path: Path) -> None:
    out = (await ask(tmp_path, f"{web.url}/json", format="json")).out("q")
    answer = json.loads(out)
    assert list(answer) == ["status_code", "headers", "body"]
    assert answer["headers"]["X-Zeta"] == ["z"]
    assert out.startswith('{\n "status_code": 200,\n "headers": {\n  "A-Header": [\n   "1"\n  ],')


@pytest.mark.parametrize("how", [{"format": "json"}, {"json": True}])
async def test_silent_json_is_the_body_alone(web: Web, tmp_path: Path, how: dict[str, Any]) -> None:
    out = (await ask(tmp_path, f"{web.url}/json", silent=True, **how)).out("q")
    assert out == '{\n "body": {\n  "b": 1,\n  "a": [\n   "x"\n  ]\n }\n}\n'


async def test_a_body_that_is_no_json_fails(web: Web, tmp_path: Path) -> None:
    assert "not JSON" in error_of(await ask(tmp_path, f"{web.url}/hello", format="json"))


@pytest.mark.parametrize("silent", [True, False])
async def test_another_status_fails_and_the_answer_is_printed(web: Web, tmp_path: Path, silent: bool) -> None:
    seen = await ask(tmp_path, f"{web.url}/404", silent=silent, output="saved")
    assert error_of(seen) == "http status code not 2xx: 404"
    assert seen.out("q").startswith("404 Not Found\n")
    assert seen.out("q").endswith("\nno")
    assert not (tmp_path / "work" / "saved").exists()


async def test_output_saves_the_body_and_prints_the_rest(web: Web, tmp_path: Path) -> None:
    seen = await ask(tmp_path, f"{web.url}/hello", output="new/folder/f")
    assert (tmp_path / "work/new/folder/f").read_text() == "hello"
    assert seen.out("q") == HEAD.format(5)


async def test_a_body_that_is_cut_leaves_the_old_file(web: Web, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o700)
    (tmp_path / "work/f").write_text("old")
    seen = await ask(tmp_path, f"{web.url}/cut", output="f")
    assert seen.status is RunStatus.FAILED
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["f"]
    assert (tmp_path / "work/f").read_text() == "old"


async def test_query_headers_and_body_are_sent(web: Web, tmp_path: Path) -> None:
    seen = await ask(
        tmp_path, f"{web.url}/x?a=1", "post", query={"b": "2 3", "c": 4}, headers={"X-Own": "v"}, body={"k": [1]}
    )
    assert seen.status is RunStatus.SUCCEEDED
    method, path, headers, body = web.asked[0]
    assert (method, path, headers["X-Own"], body) == ("POST", "/x?a=1&b=2+3&c=4", "v", b'{"k":[1]}')
    assert headers["Content-Type"] == "application/json"


async def test_forms_and_files_travel_as_multipart(web: Web, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir(mode=0o700)
    (tmp_path / "work/up.txt").write_text("FILE")
    await ask(tmp_path, f"{web.url}/x", "POST", form={"name": "v"}, files={"doc": "up.txt"})
    _, _, headers, body = web.asked[0]
    assert headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b'name="name"\r\n\r\nv\r\n' in body
    assert b'name="doc"; filename="up.txt"\r\nContent-Type: text/plain\r\n\r\nFILE\r\n' in body


async def test_redirects_are_followed_but_not_for_ever(web: Web, tmp_path: Path) -> None:
    assert (await ask(tmp_path / "a", f"{web.url}/moved", silent=True)).out("q") == "hello"
    assert "redirects" in error_of(await ask(tmp_path / "b", f"{web.url}/loop"))
    assert len(web.asked) == 2 + http.MAX_REDIRECTS + 1


async def test_a_body_without_end_ends_at_the_limit(web: Web, tmp_path: Path) -> None:
    seen = await ask(tmp_path, f"{web.url}/endless", format="json")
    assert "too large" in error_of(seen)


@pytest.mark.parametrize("path", ["silent", "endless"])
async def test_a_timeout_is_the_limit_of_the_whole_request(web: Web, tmp_path: Path, path: str) -> None:
    seen = await ask(tmp_path, f"{web.url}/{path}", timeout=0.2, output="f")
    assert "took too long" in error_of(seen) or "does not answer" in error_of(seen)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("action", ["http.request", "wait.http"])
async def test_a_stop_ends_a_request_at_once(web: Web, tmp_path: Path, action: str) -> None:
    seen = await stopped_at(dag(step("q", action, method="GET", url=f"{web.url}/silent")), tmp_path)
    assert seen.nodes() == {"q": "aborted"}


@pytest.mark.parametrize(
    "inputs",
    [{"url": "file:///etc/passwd"}, {"url": "nonsense"}, {"headers": {"X": "a\r\nB: c"}}, {"method": "GET /x"}],
)
async def test_what_cannot_be_sent_is_refused(web: Web, tmp_path: Path, inputs: dict[str, Any]) -> None:
    seen = await run(dag(step("q", "http.request", **{"method": "GET", "url": web.url, **inputs})), tmp_path)
    assert seen.status is RunStatus.FAILED
    assert not web.asked


async def test_certificates_are_verified_unless_the_author_says_not_to(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    with serving(authority) as web:
        assert "CERTIFICATE_VERIFY_FAILED" in error_of(await ask(tmp_path / "a", f"{web.url}/hello"))
        seen = await ask(tmp_path / "b", f"{web.url}/hello", skip_tls_verify=True, silent=True)
        assert seen.out("q") == "hello"
        assert b"WARNING: skip_tls_verify" in seen.logs["q.stderr.log"]
        trusting = {**step("q", "http.request", method="GET", url=web.url), "env": {"SSL_CERT_FILE": str(authority)}}
        assert (await run(dag(trusting), tmp_path / "c")).status is RunStatus.SUCCEEDED


async def test_debug_tells_no_values_of_headers(web: Web, tmp_path: Path) -> None:
    seen = await ask(tmp_path, f"{web.url}/x?token=T1", headers={"Authorization": "Bearer T2"}, debug=True)
    said = seen.logs["q.stderr.log"].decode()
    assert "Authorization" in said
    assert "T1" not in said
    assert "T2" not in said


async def test_waiting_ends_with_the_wanted_status(web: Web, tmp_path: Path) -> None:
    seen = await run(dag(step("q", "wait.http", url=f"{web.url}/204", status=204)), tmp_path)
    assert seen.nodes() == {"q": "succeeded"}


async def test_waiting_goes_on_after_another_status(web: Web, tmp_path: Path) -> None:
    waiting = {**step("q", "wait.http", url=f"{web.url}/503", poll_interval="10ms"), "timeout_sec": 1}
    async with asyncio.timeout(10):
        seen = await run(dag(waiting), tmp_path)
    assert seen.status is RunStatus.FAILED
    assert len(web.asked) > 2
