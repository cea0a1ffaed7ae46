"""A small S3: buckets and objects in memory over real HTTP; signatures are taken note of, not checked."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape


class S3(ThreadingHTTPServer):
    """One server: what it holds, and the headers of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.holds = False
        """True: an answer never comes."""
        self.asked = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _answer(self, status: int, body: bytes = b"", *, size: int | None = None, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store = self.server
        store.seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        store.asked.set()
        if store.holds:
            self.rfile.read(1)  # until the other end is gone
            return
        if "Authorization" not in self.headers or bucket == "forbidden":
            self._error(403, "AccessDenied")
        elif bucket != "box":
            self._error(404, "NoSuchBucket")
        elif self.command == "PUT":
            store.objects[key] = body
            self._answer(200, etag=hashlib.md5(body).hexdigest())
        elif self.command == "DELETE":
            store.objects.pop(key, None)
            self._answer(204)
        elif self.command == "POST":
            for found in ElementTree.fromstring(body).iter():
                if found.tag.endswith("Key"):
                    store.objects.pop(found.text or "", None)
            self._answer(200, b"<DeleteResult/>")
        elif not key:
            self._list(query)
        elif key in store.objects:
            data = store.objects[key]
            self._answer(200, data, etag=hashlib.md5(data).hexdigest())
        else:
            self._error(404, "NoSuchKey")

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, limit = query.get("prefix", [""])[0], int(query["max-keys"][0])
        after, delimiter = query.get("continuation-token", [""])[0], query.get("delimiter", [""])[0]
        keys = sorted(key for key in self.server.objects if key.startswith(prefix) and key > after)
        folders: dict[str, None] = {}
        if delimiter:
            for key in list(keys):
                head, found, _ = key[len(prefix) :].partition(delimiter)
                if found:
                    folders[prefix + head + delimiter] = None
                    keys.remove(key)
        page = keys[:limit]
        more = len(keys) > limit
        parts = [f"<IsTruncated>{str(more).lower()}</IsTruncated>"]
        if more:
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        for key in page:
            size = len(self.server.objects[key])
            parts.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
                f'<ETag>"e"</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>'
            )
        parts += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders]
        self._answer(200, f"<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve


@contextlib.contextmanager
def running() -> Iterator[S3]:
    """Run a server on a loopback port."""
    server = S3()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
