"""The walls of the web server, each climbed: forged requests, borrowed names, frames, guesses, sizes, sessions."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import jwt
import pytest

from secure_dagu.web.app import make_inside
from secure_dagu.web.context import Options
from secure_dagu.web.gate import Rules
from secure_dagu.web.pages import routes
from secure_dagu.web.sessions import secret_of
from secure_dagu.web.walls import Outside
from tests.web.site import PASSWORD, Site, open_site

API = "/api/v1"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "home") as opened:
        await opened.accounts.set_up("ada", PASSWORD)
        yield opened


# ── forged requests ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_browser_that_is_logged_in_changes_nothing_for_another_site(site: Site) -> None:
    async with site.client() as browser:
        form = await site.login(browser)
        good = {"X-CSRF-Token": form, "Origin": site.url}
        body = {"name": "new"}
        for headers in (
            {},
            {"X-CSRF-Token": ""},
            {"X-CSRF-Token": "0" * 64},
            {**good, "Origin": "https://evil.example"},
            {**good, "Origin": "null"},
            {**good, "Sec-Fetch-Site": "cross-site"},
            {**good, "Sec-Fetch-Site": "same-site"},
        ):
            answer = await browser.post(f"{API}/dags", json=body, headers=headers)
            assert answer.status_code == 403, headers
        assert not list(site.installation.dags.iterdir())
        assert (await browser.post(f"{API}/dags", json=body, headers=good)).status_code == 201


async def test_the_form_token_of_one_login_is_no_good_for_another(site: Site) -> None:
    async with site.client() as one, site.client() as two:
        form = await site.login(one)
        await site.login(two)
        answer = await two.post(f"{API}/dags", json={"name": "new"}, headers={"X-CSRF-Token": form})
        assert answer.status_code == 403


async def test_nobody_is_logged_in_by_another_site(site: Site) -> None:
    async with site.client() as browser:
        said = {"username": "ada", "password": PASSWORD, "cookie": True}
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await browser.post(f"{API}/auth/login", json=said, headers=headers)).status_code == 403
        assert not browser.cookies


async def test_the_cookie_is_for_this_site_and_no_script(site: Site) -> None:
    async with site.client() as browser:
        said = {"username": "ada", "password": PASSWORD, "cookie": True}
        answer = await browser.post(f"{API}/auth/login", json=said)
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "token" not in answer.json()


async def test_without_a_login_a_page_of_another_site_still_changes_nothing(tmp_path: Path) -> None:
    async with open_site(tmp_path, rules=Rules(mode="none")) as site, site.client() as browser:
        evil = {"Origin": "https://evil.example"}
        assert (await browser.post(f"{API}/dags", json={"name": "new"}, headers=evil)).status_code == 403
        assert (await browser.post(f"{API}/dags", json={"name": "new"})).status_code == 201


# ── borrowed names ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example:8080", 421),
        ("", 421),
        ("[::1", 421),
        ("localhost@evil.example", 421),
        ("localhost", 200),
        ("LOCALHOST:9", 200),
        ("localhost.", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
    ],
)
async def test_a_name_that_was_turned_to_us_gets_no_answer(site: Site, host: str, status: int) -> None:
    async with site.client(headers={"Host": host}) as client:
        assert (await client.get(f"{API}/health")).status_code == status


async def test_only_listed_proxies_say_for_whom_they_come(tmp_path: Path) -> None:
    loopback = [ipaddress.ip_network("127.0.0.0/8")]
    inside = [ipaddress.ip_network("10.0.0.0/8")]
    hosts = frozenset({"localhost"})

    async def status(outside: Outside, home: str, said: str) -> int:
        async with open_site(tmp_path / home, outside=outside) as site, site.client() as client:
            return (await client.get(f"{API}/health", headers={"X-Forwarded-For": said})).status_code

    believed = Outside(hosts=hosts, allowed=inside, proxies=loopback)
    assert await status(believed, "a", "10.1.2.3") == 200
    assert await status(believed, "b", "10.1.2.3, 192.0.2.9") == 403, "the right-most that is no proxy counts"
    assert await status(believed, "c", "10.1.2.3, not an address") == 400
    assert await status(Outside(hosts=hosts, allowed=inside), "d", "10.1.2.3") == 403


async def test_a_redirect_never_leads_away(site: Site) -> None:
    async with site.client() as client:
        answer = await client.get("//evil.example/", follow_redirects=False)
        assert not answer.headers.get("location", "").startswith("//")
        answer = await client.get(f"{API}/dags/", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (301, f"{API}/dags")


@pytest.mark.parametrize(
    ("path", "status", "where"),
    [
        (rb"/\evil.example/", 404, b""),
        (rb"/%5Cevil.example/", 301, b"/%5Cevil.example"),
        (b"/%09/evil.example/", 301, b"/%09/evil.example"),
        (b"/%0d%0aSet-Cookie:%20a=b/", 301, b"/%0d%0aSet-Cookie:%20a=b"),
        (b"/%E6%97%A5/?q=%0d%0a", 301, b"/%E6%97%A5?q=%0d%0a"),
        (b"/dags//", 301, b"/dags"),
        (b"/%2Fevil.example/", 301, b"/%2Fevil.example"),
        (b"///", 404, b""),
    ],
)
async def test_a_redirect_is_written_as_it_came_and_never_leads_away(
    site: Site, path: bytes, status: int, where: bytes
) -> None:
    """A browser takes a backslash for a slash and leaves out tabs; an end of a line would begin another field."""
    host, _, port = site.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = (await reader.read()).partition(b"\r\n\r\n")[0].split(b"\r\n")
    writer.close()
    assert int(head[0].split()[1]) == status
    assert [line.partition(b": ")[2] for line in head if line.lower().startswith(b"location:")] == [where] * bool(where)
    assert not [line for line in head if line.lower().startswith(b"set-cookie")]


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [f"{API}/health", f"{API}/nothing", f"{API}/dags", "/nothing"])
async def test_every_answer_forbids_frames_scripts_of_others_and_guessing(site: Site, path: str) -> None:
    async with site.client() as client:
        headers = (await client.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"]
        assert "server" not in headers


# ── guesses ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_passwords_are_guessed_five_times_by_address_and_by_name_also_side_by_side(site: Site) -> None:
    async with site.client() as client, asyncio.TaskGroup() as group:
        body = {"username": "ada", "password": "guess guess"}
        tried = [group.create_task(client.post(f"{API}/auth/login", json=body)) for _ in range(20)]
    codes = [task.result().status_code for task in tried]
    assert codes.count(401) == 5
    assert codes.count(429) == 15
    late = next(task.result() for task in tried if task.result().status_code == 429)
    assert 0 < int(late.headers["retry-after"]) <= 900
    async with site.client() as client:
        right = await client.post(f"{API}/auth/login", json={"username": "ada", "password": PASSWORD})
        assert right.status_code == 429, "a right guess after many wrong ones waits as well"


async def test_a_name_that_nobody_has_is_answered_as_one_that_somebody_has(site: Site) -> None:
    async with site.client() as client:
        answers = [
            await client.post(f"{API}/auth/login", json={"username": name, "password": "guess guess"})
            for name in ("ada", "nobody")
        ]
    assert answers[0].status_code == answers[1].status_code == 401
    assert answers[0].json() == answers[1].json()


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_token_that_we_did_not_sign_is_nobodys(site: Site) -> None:
    user = site.accounts.users()[0]
    claims = {"sub": "ada", "uid": user.id, "jti": "x", "iat": 1, "exp": 9_999_999_999, "role": "admin"}
    secret = secret_of(site.installation.home / "data" / "auth", "")
    forged = [
        jwt.encode(claims, "guess" * 10, algorithm="HS256"),
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode({key: claims[key] for key in claims if key != "exp"}, secret, algorithm="HS256"),
        jwt.encode({**claims, "exp": 2}, secret, algorithm="HS256"),
        jwt.encode({**claims, "uid": "nobody"}, secret, algorithm="HS256"),
        "", "a.b.c", "dagu_" + "x" * 43, "\x00",
    ]  # fmt: skip
    async with site.client() as client:
        for token in forged:
            for headers in ({"Authorization": f"Bearer {token}"}, {"Cookie": f"secure_dagu_login={token}"}):
                try:
                    answer = await client.get(f"{API}/dags", headers=headers)
                except (httpx.LocalProtocolError, httpx.InvalidURL):
                    continue
                assert answer.status_code in (400, 401), token


async def test_basic_credentials_are_compared_whole(tmp_path: Path) -> None:
    rules = Rules(mode="basic", basic_username="ada", basic_password=PASSWORD)
    pages = make_inside(Options(), pages=routes.routers(), page_error=routes.page_error)
    async with open_site(tmp_path, rules=rules, inside=pages) as site, site.client() as client:
        for path in ("/queues", f"{API}/dags"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="restricted"'), path
        assert (await client.get(f"{API}/dags", auth=("ada", PASSWORD))).status_code == 200
        for name, password in (("ada", ""), ("", PASSWORD), ("ada", PASSWORD + "x"), ("", "")):
            assert (await client.get(f"{API}/dags", auth=(name, password))).status_code == 401
        assert (await client.get(f"{API}/dags")).status_code == 401


async def test_basic_credentials_are_guessed_five_times(tmp_path: Path) -> None:
    rules = Rules(mode="basic", basic_username="ada", basic_password=PASSWORD)
    async with open_site(tmp_path, rules=rules) as site, site.client() as client:
        codes = [(await client.get(f"{API}/dags", auth=("ada", f"guess {n}"))).status_code for n in range(7)]
        assert codes == [401] * 5 + [429] * 2
        late = await client.get(f"{API}/dags", auth=("ada", PASSWORD))
        assert late.status_code == 429, "a right guess after many wrong ones waits as well"
        assert 0 < int(late.headers["retry-after"]) <= 900


async def test_switches_of_the_installation_stand_above_every_role(tmp_path: Path) -> None:
    async with open_site(tmp_path, rules=Rules(write_dags=False, run_dags=False)) as site, site.client() as client:
        token, _ = await site.accounts.set_up("ada", PASSWORD)
        client.headers["Authorization"] = f"Bearer {token}"
        assert (await client.post(f"{API}/dags", json={"name": "new"})).status_code == 403
        assert (await client.post(f"{API}/dags/new/start", json={})).status_code == 403
        assert (await client.get(f"{API}/dags")).status_code == 200


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_body_above_the_limit_is_refused_whether_it_says_its_length_or_not(site: Site) -> None:
    token, _ = await site.accounts.log_in("ada", PASSWORD, address="x")
    async with site.client(headers={"Authorization": f"Bearer {token}"}) as client:
        large = json.dumps({"name": "new", "spec": "x" * (3 * 2**20)}).encode()

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(large), 65536):
                yield large[start : start + 65536]

        told = await client.post(f"{API}/dags", content=large, headers={"Content-Type": "application/json"})
        assert told.status_code == 413
        try:
            chunked = await client.post(f"{API}/dags", content=pieces(), headers={"Content-Type": "application/json"})
            assert chunked.status_code == 413
        except httpx.HTTPError:
            pass  # it was cut off in the middle, which is an answer as well
        nested = b'{"name":' + b"[" * 100_000
        deep = await client.post(f"{API}/dags", content=nested, headers={"Content-Type": "application/json"})
        assert deep.status_code == 400
        assert not list(site.installation.dags.iterdir())
