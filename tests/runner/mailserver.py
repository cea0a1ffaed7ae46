"""A small SMTP server: real sockets, STARTTLS or TLS from the start, logins, and the mails that it was given."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage


class MailServer:
    """What it offers, and what it has seen."""

    def __init__(self, *, tls: ssl.SSLContext | None, credentials: tuple[str, str] | None, token: str, refuses: bytes):
        self.mails: list[EmailMessage] = []
        self.raw: list[bytes] = []
        self.recipients: list[list[str]] = []
        self.logins: list[str] = []
        self.was_private: list[bool] = []
        self.port = 0
        self._tls, self._credentials, self._token, self._refuses = tls, credentials, token, refuses

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_private = writer.get_extra_info("sslcontext") is not None
        recipients: list[str] = []
        writer.write(b"220 test\r\n")
        while line := await reader.readline():
            verb, _, rest = line.strip().partition(b" ")
            match verb.upper():
                case b"EHLO":
                    offers = [b"test", b"SIZE 50000000"]
                    if self._tls is not None and not is_private:
                        offers.append(b"STARTTLS")
                    if self._credentials or self._token:
                        offers.append(b"AUTH PLAIN XOAUTH2")
                    writer.write(b"".join(b"250-%s\r\n" % offer for offer in offers) + b"250 HELP\r\n")
                case b"STARTTLS" if self._tls is not None:
                    writer.write(b"220 go\r\n")
                    await writer.start_tls(self._tls)
                    is_private = True
                case b"AUTH":
                    writer.write(b"235 in\r\n" if self._lets_in(rest) else b"535 no\r\n")
                case b"RCPT":
                    recipients.append(rest.decode().partition("<")[2].partition(">")[0])
                    writer.write(self._refuses or b"250 ok\r\n")
                case b"DATA":
                    writer.write(b"354 send\r\n")
                    data = await reader.readuntil(b"\r\n.\r\n")
                    self.raw.append(data[:-3].replace(b"\r\n..", b"\r\n."))
                    self.mails.append(message_from_bytes(self.raw[-1], policy=policy.default))
                    self.recipients.append(recipients)
                    self.was_private.append(is_private)
                    writer.write(b"250 taken\r\n")
                case b"QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                case _:
                    writer.write(b"250 ok\r\n")

    def _lets_in(self, words: bytes) -> bool:
        kind, _, data = words.partition(b" ")
        given = base64.b64decode(data).decode()
        self.logins.append(given)
        if kind == b"XOAUTH2":
            return f"auth=Bearer {self._token}\x01" in given
        return self._credentials is not None and given == "\0" + "\0".join(self._credentials)


@contextlib.asynccontextmanager
async def mail_server(
    *,
    tls: ssl.SSLContext | None = None,
    is_implicit: bool = False,
    credentials: tuple[str, str] | None = None,
    token: str = "",
    refuses: bytes = b"",
    address: str = "127.0.0.1",
) -> AsyncIterator[MailServer]:
    """Run a server on a loopback port."""
    server = MailServer(tls=tls, credentials=credentials, token=token, refuses=refuses)
    listening = await asyncio.start_server(server.serve, address, 0, ssl=tls if is_implicit else None)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server
