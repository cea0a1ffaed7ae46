"""Send mail: to which server, as whom, over which wire (workflow language, section 3.20).

Port 465 is TLS from the first byte; elsewhere TLS is taken up when the server offers it, and its certificate is always
checked. A password or token does not cross a network in the clear: without TLS it is given to this host only.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from secure_dagu.dag import formats
from secure_dagu.errors import DefinitionError, Refused, SecureDaguError, Unavailable
from secure_dagu.runner.executors.extras import library
from secure_dagu.runner.executors.options import Options

if TYPE_CHECKING:
    from email.message import EmailMessage

SEND_S = 60.0
"""How long one mail may take, from looking up the server to its last word."""
IMPLICIT_TLS_PORT = 465
DEFAULT_PORT = 587
MAX_TOKEN_BYTES = 64 * 1024
MAX_ATTACHED = 20 * 2**20
"""Bytes of all attachments of a mail; most servers refuse more."""
_LOOPBACK = ("127.0.0.1", "::1")
_GOOGLE_SCOPE = "https://mail.google.com/"
_GOOGLE_TOKENS = "https://oauth2.googleapis.com/token"


class OAuth(Struct, frozen=True, kw_only=True):
    """How an access token is got: a form that is posted; for a service account it is signed right before."""

    token_url: str
    form: Mapping[str, str]
    service_account: Mapping[str, str] | None = None
    """`client_email` and `private_key`."""


class Smtp(Struct, frozen=True, kw_only=True):
    """A mail server and how to log in; an empty `username` logs in as nobody."""

    host: str
    port: int
    is_tls: bool = False
    """TLS from the first byte."""
    username: str = ""
    password: str = ""
    oauth: OAuth | None = None


def read_smtp(values: Mapping[str, Any]) -> Smtp:
    """Read the resolved root `smtp`.

    Raises:
        DefinitionError: something is missing, or password and `oauth` are both there.
    """
    options = Options(values, name="smtp")
    oauth = options.mapping("oauth")
    username, password = options.text("username"), options.text("password")
    if oauth is not None:
        if password:
            raise DefinitionError("smtp has both a password and oauth", fix="leave one of them out")
        host, tokens = _read_oauth(oauth)
        return Smtp(host=host, port=DEFAULT_PORT, username=options.needed("username"), oauth=tokens)
    port = options.integer("port", DEFAULT_PORT, minimum=1, maximum=65535) if options.text("port") else DEFAULT_PORT
    host, is_tls = options.needed("host"), port == IMPLICIT_TLS_PORT
    return Smtp(host=host, port=port, is_tls=is_tls, username=username, password=password)


def _read_oauth(options: Options) -> tuple[str, OAuth]:
    """Return the provider's mail server and how to get a token; hosts are fixed, so that a token goes nowhere else."""
    match options.choice("provider", ("microsoft", "google_service_account", "google_refresh"), ""):
        case "microsoft":
            tenant = options.needed("tenant_id")
            if not all(letter.isalnum() or letter in "-." for letter in tenant):
                raise DefinitionError("smtp.oauth.tenant_id is no tenant", why="it has characters that no id has")
            form = {"grant_type": "client_credentials", "scope": "https://outlook.office365.com/.default"}
            form |= {name: options.needed(name) for name in ("client_id", "client_secret")}
            url = f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"
            return "smtp.office365.com", OAuth(token_url=url, form=form)
        case "google_refresh":
            form = {name: options.needed(name) for name in ("client_id", "client_secret", "refresh_token")}
            form["grant_type"] = "refresh_token"
            return "smtp.gmail.com", OAuth(token_url=_GOOGLE_TOKENS, form=form)
        case _:
            account = _service_account(options)
            form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}
            return "smtp.gmail.com", OAuth(token_url=_GOOGLE_TOKENS, form=form, service_account=account)


def _service_account(options: Options) -> Mapping[str, str]:
    try:
        values = json.loads(options.needed("service_account_json"))
        return {name: str(values[name]) for name in ("client_email", "private_key")}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DefinitionError(
            "smtp.oauth.service_account_json cannot be used", why="it is not JSON with client_email and private_key"
        ) from None


# ── a message ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Attachment(Struct, frozen=True, kw_only=True):
    """A file of a mail."""

    name: str
    data: bytes
    is_text: bool = False
    """Text in UTF-8 whatever its name says, such as a log."""


def message(
    *, sender: str, to: Sequence[str], subject: str, body: str, is_html: bool, attachments: Sequence[Attachment] = ()
) -> EmailMessage:
    """Compose a mail.

    Raises:
        DefinitionError: nobody to send to, or a line break where it would add a header.
    """
    import mimetypes  # these cost a run that sends no mail 20 ms
    from email.message import EmailMessage
    from email.policy import SMTP
    from email.utils import format_datetime, getaddresses, localtime, make_msgid

    recipients = [address for address in to if address.strip()]
    for name, text in (("from", sender), ("subject", subject), *(("to", address) for address in recipients)):
        if "\n" in text or "\r" in text or "\0" in text:
            raise DefinitionError(f"the mail's {name} is refused", why="it holds a line break, which adds headers")
    if not sender.strip() or not recipients:
        raise DefinitionError(f"the mail has no {'recipient' if sender.strip() else 'sender'}")
    mail = EmailMessage(policy=SMTP)
    try:
        mail["From"], mail["To"], mail["Subject"] = sender, ", ".join(recipients), subject
        domain = getaddresses([sender])[0][1].rpartition("@")[2]
        mail["Date"] = format_datetime(localtime())
        mail["Message-ID"] = make_msgid(domain=domain if domain.isascii() and domain else "localhost")
        mail.set_content(body, subtype="html" if is_html else "plain")
    except (ValueError, UnicodeError, IndexError):
        raise DefinitionError("the mail cannot be written", why="an address or text is malformed") from None
    for file in attachments:
        kind = "text/plain" if file.is_text else mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        main, _, sub = kind.partition("/")
        params = {"charset": "utf-8"} if main == "text" else None
        mail.add_attachment(file.data, maintype=main, subtype=sub, filename=file.name, params=params)
    return mail


def recipients(value: Any) -> list[str]:
    """Return whom a mail goes to: a list, or one text with commas."""
    items = value if isinstance(value, list | tuple) else formats.as_text(value or "").split(",")
    return [text for text in (formats.as_text(item).strip() for item in items) if text]


# ── the wire ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def send(smtp: Smtp, mail: EmailMessage) -> None:
    """Hand a mail to the server.

    Raises:
        Unavailable: it cannot be reached, or does not take the mail now.
        Refused: it does not let us in, or would have to be given the password in the clear.
    """
    import asyncio
    import socket

    lib = library("aiosmtplib", extra="mail")
    where = f"{smtp.host}:{smtp.port}"
    client = lib.SMTP(
        hostname=smtp.host,
        port=smtp.port,
        use_tls=smtp.is_tls,
        timeout=SEND_S,
        local_hostname=socket.gethostname() or "localhost",
    )
    try:
        async with asyncio.timeout(SEND_S):
            token = await access_token(smtp.oauth, smtp.username) if smtp.oauth else ""
            async with client:
                await _log_in(client, smtp, token)
                await client.send_message(mail)
    except SecureDaguError:
        raise
    except lib.SMTPAuthenticationError as error:
        raise Refused(f"{where} refused the login of {smtp.username}", why=f"it answered {error.code}") from None
    except lib.SMTPResponseException as error:
        raise Unavailable(f"{where} did not take the mail", why=f"{error.code} {error.message[:200]}") from None
    except lib.SMTPRecipientsRefused as error:
        why = "; ".join(f"{refused.recipient}: {refused.code}" for refused in error.recipients[:5])
        raise Unavailable(f"{where} took none of the recipients", why=why) from None
    except (lib.SMTPException, OSError, TimeoutError) as error:
        raise Unavailable(f"the mail server {where} cannot be used", why=str(error)[:200]) from None
    finally:
        client.close()


async def _log_in(client: Any, smtp: Smtp, token: str) -> None:
    if not smtp.username:
        return
    is_private = client.get_transport_info("sslcontext") is not None
    peer = client.get_transport_info("peername")
    if not is_private and not (peer and peer[0] in _LOOPBACK):
        raise Refused(
            f"{smtp.host}:{smtp.port} is not told the password",
            why="it offers no TLS, and whoever listens would read it",
            fix="use a server with STARTTLS or port 465",
        )
    if token:
        await client.auth_xoauth2(smtp.username, token)
    else:
        await client.login(smtp.username, smtp.password)


async def access_token(oauth: OAuth, username: str) -> str:
    """Get an access token of the provider for `username`.

    Raises:
        Refused: the provider gives none.
        Unavailable: it does not answer.
    """
    import httpx

    form = dict(oauth.form)
    if oauth.service_account is not None:
        form["assertion"] = _assertion(oauth, username)
    try:
        async with (
            httpx.AsyncClient(timeout=SEND_S) as client,
            client.stream("POST", oauth.token_url, data=form) as answer,
        ):
            data = b""
            async for piece in answer.aiter_bytes():
                data += piece
                if len(data) > MAX_TOKEN_BYTES:
                    raise Unavailable("the answer with the access token is too long")
    except httpx.HTTPError as error:
        raise Unavailable("no access token", why=f"{oauth.token_url}: {type(error).__name__}") from None
    try:
        token = json.loads(data)["access_token"] if answer.is_success else None
    except (ValueError, KeyError, TypeError, RecursionError):
        token = None
    if not isinstance(token, str) or not token:
        raise Refused("no access token", why=f"{oauth.token_url} answered {answer.status_code}")
    return token


def _assertion(oauth: OAuth, username: str) -> str:
    """Return the signed statement by which a service account asks to act for `username` (RFC 7523)."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    assert oauth.service_account is not None, "only a service account signs"
    now = int(time.time())
    claims = {
        "iss": oauth.service_account["client_email"], "sub": username, "scope": _GOOGLE_SCOPE,
        "aud": oauth.token_url, "iat": now, "exp": now + 600,
    }  # fmt: skip
    parts = [_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims)]
    try:
        key = serialization.load_pem_private_key(oauth.service_account["private_key"].encode(), password=None)
    except (ValueError, TypeError):
        raise DefinitionError("the service account's private_key cannot be read") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise DefinitionError("the service account's private_key is no RSA key")
    return ".".join([*parts, _base64url(key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256()))])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
