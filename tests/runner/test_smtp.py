"""Handing mails to a server: TLS, logins, tokens, and what a mail may hold."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from secure_dagu.errors import DefinitionError, Refused, Unavailable
from secure_dagu.runner import smtp
from secure_dagu.runner.smtp import Attachment, OAuth, Smtp, read_smtp, recipients, send
from tests.runner.mailserver import mail_server


def mail(**changes: Any) -> Any:
    values: dict[str, Any] = {"sender": "a@x.test", "to": ["b@x.test"], "subject": "S", "body": "B\n", "is_html": False}
    return smtp.message(**{**values, **changes})


def server_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that this process trusts, as it would one of the system."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


async def test_a_mail_arrives_with_its_attachments() -> None:
    file = Attachment(name="größe.bin", data=bytes(range(256)))
    async with mail_server() as server:
        await send(
            Smtp(host="127.0.0.1", port=server.port),
            mail(to=["B Person <b@x.test>", "c@x.test"], subject="Grüße", body="line\n.\nend\n", attachments=[file]),
        )
    (seen,) = server.mails
    assert server.recipients == [["b@x.test", "c@x.test"]]
    assert (seen["From"], seen["Subject"]) == ("a@x.test", "Grüße")
    assert seen["Date"]
    assert seen["Message-ID"].endswith("@x.test>")
    text = seen.get_body()
    assert text is not None
    assert text.get_content().splitlines() == ["line", ".", "end"]
    (attached,) = seen.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == ("größe.bin", bytes(range(256)))


async def test_tls_is_taken_up_when_offered(authority: trustme.CA) -> None:
    async with mail_server(tls=server_tls(authority, "127.0.0.1"), credentials=("u", "p")) as server:
        await send(Smtp(host="127.0.0.1", port=server.port, username="u", password="p"), mail())
    assert server.was_private == [True]
    assert server.logins == ["\0u\0p"]


@pytest.mark.parametrize("is_tls", [True, False])
async def test_a_certificate_of_another_host_ends_it(authority: trustme.CA, is_tls: bool) -> None:
    tls = server_tls(authority, "other.test")
    async with mail_server(tls=tls, is_implicit=is_tls, credentials=("u", "p")) as server:
        with pytest.raises(Unavailable):
            await send(Smtp(host="127.0.0.1", port=server.port, is_tls=is_tls, username="u", password="p"), mail())
    assert (server.logins, server.mails) == ([], [])


async def test_tls_may_be_spoken_from_the_first_byte(authority: trustme.CA) -> None:
    async with mail_server(tls=server_tls(authority, "127.0.0.1"), is_implicit=True) as server:
        await send(Smtp(host="127.0.0.1", port=server.port, is_tls=True), mail())
    assert server.was_private == [True]


@pytest.mark.parametrize(("port", "is_tls"), [(465, True), ("465", True), (25, False), (None, False)])
def test_port_465_is_tls_from_the_first_byte(port: object, is_tls: bool) -> None:
    assert read_smtp({"host": "h", "port": port}).is_tls is is_tls


async def test_a_wrong_password_is_told_without_the_password() -> None:
    async with mail_server(credentials=("u", "right")) as server:
        with pytest.raises(Refused, match="535") as refusal:
            await send(Smtp(host="127.0.0.1", port=server.port, username="u", password="wrong"), mail())
    assert "wrong" not in str(refusal.value)


async def test_no_password_crosses_a_network_in_the_clear() -> None:
    """Only 127.0.0.1 and ::1 count as this host: another address stands for all others."""
    async with mail_server(credentials=("u", "p"), address="127.0.0.2") as server:
        with pytest.raises(Refused, match="offers no TLS"):
            await send(Smtp(host="127.0.0.2", port=server.port, username="u", password="p"), mail())
    assert server.logins == []


async def test_refused_recipients_are_told() -> None:
    async with mail_server(refuses=b"550 nobody here\r\n") as server:
        with pytest.raises(Unavailable, match=r"b@x\.test: 550"):
            await send(Smtp(host="127.0.0.1", port=server.port), mail())


async def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await send(Smtp(host="127.0.0.1", port=1), mail())


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "S\r\nBcc: evil@x.test"},
        {"sender": "a@x.test\nBcc: evil@x.test"},
        {"to": ["b@x.test\r\nBcc: evil@x.test"]},
        {"to": ["b@x.test\0"]},
    ],
)
def test_a_line_break_that_would_add_a_header_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="line break"):
        mail(**changes)


@pytest.mark.parametrize("changes", [{"to": []}, {"to": [" "]}, {"sender": ""}])
def test_a_mail_needs_a_sender_and_a_recipient(changes: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=r"no (sender|recipient)"):
        mail(**changes)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("a@x, b@x", ["a@x", "b@x"]), (["a@x", " b@x "], ["a@x", "b@x"]), (None, []), ("", [])],
)
def test_recipients_are_a_list_or_a_text_with_commas(value: object, wanted: list[str]) -> None:
    assert recipients(value) == wanted


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_port_may_be_text() -> None:
    assert read_smtp({"host": "h", "port": "2525"}) == Smtp(host="h", port=2525)


@pytest.mark.parametrize(
    ("oauth", "host", "url"),
    [
        (
            {"provider": "microsoft", "tenant_id": "t-1", "client_id": "c", "client_secret": "s"},
            "smtp.office365.com",
            "https://login.microsoftonline.com/t-1/oauth2/v2.0/token",
        ),
        (
            {"provider": "google_refresh", "client_id": "c", "client_secret": "s", "refresh_token": "r"},
            "smtp.gmail.com",
            "https://oauth2.googleapis.com/token",
        ),
        (
            {"provider": "google_service_account", "service_account_json": '{"client_email":"e","private_key":"k"}'},
            "smtp.gmail.com",
            "https://oauth2.googleapis.com/token",
        ),
    ],
)
def test_hosts_of_a_provider_are_fixed(oauth: dict[str, str], host: str, url: str) -> None:
    found = read_smtp({"host": "evil.test", "port": 25, "username": "u", "oauth": oauth})
    assert (found.host, found.port) == (host, 587)
    assert found.oauth is not None
    assert found.oauth.token_url == url


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "smtp.host"),
        ({"host": "h", "port": 70000}, "smtp.port"),
        ({"username": "u", "password": "p", "oauth": {"provider": "google_refresh"}}, "both"),
        ({"username": "u", "oauth": {"provider": "other"}}, "provider"),
        ({"username": "u", "oauth": {"provider": "microsoft", "tenant_id": "a/../b"}}, "tenant"),
        ({"username": "u", "oauth": {"provider": "google_refresh", "client_id": "c"}}, "client_secret"),
        ({"username": "u", "oauth": {"provider": "google_service_account", "service_account_json": "[]"}}, "JSON"),
    ],
)
def test_settings_that_cannot_be_used_are_named(values: dict[str, Any], word: str) -> None:
    with pytest.raises(DefinitionError, match=word):
        read_smtp(values)


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class TokenServer:
    """An HTTP server that takes one form and answers with a token."""

    def __init__(self, answer: bytes) -> None:
        self.form: dict[str, list[str]] = {}
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.form = parse_qs((await reader.readexactly(length)).decode())
        writer.write(self._answer)
        await writer.drain()
        writer.close()


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)


async def with_token(server: TokenServer, port: int, **changes: Any) -> None:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/token"
    oauth = OAuth(token_url=url, **{"form": {"client_secret": "hidden"}, **changes})
    async with listening:
        await send(Smtp(host="127.0.0.1", port=port, username="me@x.test", oauth=oauth), mail())


async def test_a_token_logs_in() -> None:
    tokens = TokenServer(answer(b'{"access_token": "tok"}'))
    async with mail_server(token="tok") as server:
        await with_token(tokens, server.port)
    assert server.logins == ["user=me@x.test\x01auth=Bearer tok\x01\x01"]
    assert tokens.form == {"client_secret": ["hidden"]}
    assert len(server.mails) == 1


@pytest.mark.parametrize(
    "said",
    [answer(b'{"access_token": "tok"}', b"401 No"), answer(b"{}"), answer(b"[[["), answer(b'{"access_token": 1}')],
)
async def test_without_a_token_nothing_is_sent(said: bytes) -> None:
    async with mail_server(token="tok") as server:
        with pytest.raises(Refused, match="no access token") as refusal:
            await with_token(TokenServer(said), server.port)
    assert "hidden" not in str(refusal.value)
    assert server.mails == []


async def test_an_endless_token_is_not_read() -> None:
    async with mail_server(token="tok") as server:
        with pytest.raises(Unavailable, match="too long"):
            await with_token(TokenServer(answer(b"x" * (smtp.MAX_TOKEN_BYTES + 1))), server.port)


async def test_a_service_account_signs_what_it_asks_for() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    tokens = TokenServer(answer(b'{"access_token": "tok"}'))
    async with mail_server(token="tok") as server:
        await with_token(tokens, server.port, service_account={"client_email": "robot@x.test", "private_key": pem})
    signed, _, signature = tokens.form["assertion"][0].rpartition(".")
    key.public_key().verify(
        base64.urlsafe_b64decode(signature + "=="), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
    )
    claims = json.loads(base64.urlsafe_b64decode(signed.split(".")[1] + "=="))
    assert (claims["iss"], claims["sub"]) == ("robot@x.test", "me@x.test")
    assert claims["exp"] - claims["iat"] == 600
