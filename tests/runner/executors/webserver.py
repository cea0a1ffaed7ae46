"""A local HTTP server that answers well and badly."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme


class Web:
    """The server's address, and what it was asked."""

    def __init__(self, server: ThreadingHTTPServer, *, scheme: str) -> None:
        self.url = f"{scheme}://localhost:{server.server_port}"
        self.asked: list[tuple[str, str, Message, bytes]] = []
        self.released = threading.Event()
        """Set at the end: until then an answer that has no end goes on."""


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Web]:
    """Run a server, with TLS if it has a certificate."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name for it
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return "NOW"

        def version_string(self) -> str:
            return "test"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            web.asked.append((self.command, self.path, self.headers, body))
            name = self.path.partition("?")[0].strip("/")
            if name == "loop":
                self._head(302, location="/loop", content_length="0")
            elif name == "moved":
                self._head(302, location="/hello", content_length="0")
            elif name == "endless":
                self._head(200, connection="close")
                self._endless()
            elif name == "silent":
                web.released.wait(20)
            elif name == "cut":
                self._head(200, content_length="100")
                self.wfile.write(b"half")
                self.close_connection = True
            elif name.isdigit():
                self._send(int(name), b"no")
            elif name == "json":
                self._send(200, json.dumps({"b": 1, "a": ["x"]}).encode())
            else:
                self._send(200, b"hello")

        do_POST = do_PUT = do_GET

        def _head(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def _send(self, status: int, body: bytes) -> None:
            self._head(status, x_zeta="z", content_length=str(len(body)), a_header="1")
            self.wfile.write(body)

        def _endless(self) -> None:
            self.close_connection = True
            try:
                while not web.released.is_set():
                    self.wfile.write(b"x" * 65536)
            except OSError:
                pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up are what we test."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(certificate)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(tls)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    web = Web(server, scheme="https" if certificate else "http")
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
