"""A server, or somebody on the way to it, that is after the API key of a context, or after the client itself."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from secure_dagu.cli import main as cli
from tests.system.hosts import PROGRAM

KEY = "dagu_the-key-that-must-not-leak"
HEALTHY = json.dumps({"status": "healthy", "version": "1"}).encode()
RUN = {"name": "hello", "dagRunId": "r1", "status": 4, "nodes": []}


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """Return a whole HTTP answer."""
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body)}",
        "Content-Type: application/json",
        "Connection: close",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass
class Server:
    """Says the same to everybody and remembers what it was told."""

    says: bytes
    later: bytes = b""
    """What it says from the second time on; empty: the same."""
    tls: ssl.SSLContext | None = None
    heard: list[bytes] = field(default_factory=list)
    endless: bytes = b""
    port: int = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[Server]:
        """Serve on a port of 127.0.0.1."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            is_over = threading.Event()
            thread = threading.Thread(target=self._serve, args=(listener, is_over), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                is_over.set()
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                thread.join(timeout=20)

    def _serve(self, listener: socket.socket, is_over: threading.Event) -> None:
        while True:
            found, _ = listener.accept()
            with found, contextlib.suppress(OSError):
                if is_over.is_set():
                    return
                found.settimeout(10)
                self._answer(found, is_over)

    def _answer(self, found: socket.socket, is_over: threading.Event) -> None:
        with self.tls.wrap_socket(found, server_side=True) if self.tls else found as talk:
            heard = b""
            while b"\r\n\r\n" not in heard:
                if not (piece := talk.recv(65536)):
                    break
                heard += piece
            self.heard.append(heard)
            talk.sendall(self.later if self.later and len(self.heard) > 1 else self.says)
            while self.endless and not is_over.is_set():
                talk.sendall(self.endless)

    @property
    def url(self) -> str:
        """Return where it is."""
        return f"{'https://localhost' if self.tls else 'http://127.0.0.1'}:{self.port}"

    @property
    def text(self) -> str:
        """Return all that it was told."""
        return b"".join(self.heard).decode("latin-1")


@dataclass(frozen=True)
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Host:
    """A home, and commands that run in this process, which saves a second for each."""

    home: Path
    capsys: pytest.CaptureFixture[str]


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "home").mkdir()
    for name in ("DAGU_DEBUG", "DEBUG", "DAGU_HOME"):
        monkeypatch.delenv(name, raising=False)
    return Host(tmp_path / "home", capsys)


def command(host: Host, *words: str, stdin: str = "", **env: str) -> Done:
    """Run a command."""
    with pytest.MonkeyPatch.context() as patch, io.TextIOWrapper(io.BytesIO(stdin.encode())) as given:
        patch.setattr(sys, "stdin", given)
        for name, value in env.items():
            patch.setenv(name, value)
        host.capsys.readouterr()
        code = cli.main(["--dagu-home", str(host.home), *words])
    return Done(code, *host.capsys.readouterr())


def add(host: Host, url: str, *words: str, key: str = KEY) -> None:
    """Give the host a context `prod`."""
    done = command(host, "context", "add", "prod", "--server", url, "--api-key-stdin", *words, stdin=key)
    assert done.returncode == 0, done.stderr


def context_file(host: Host) -> Path:
    """Return where its key is."""
    return host.home / "data" / "contexts" / "prod.json"


def test_a_redirect_to_another_host_does_not_get_the_key(host: Host) -> None:
    with Server(answer(HEALTHY)).listening() as other:
        for status in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            with Server(answer(b"", status, f"Location: {other.url}/api/v1/x?key=1")).listening() as first:
                add(host, first.url)
                for words in (["status", "hello"], ["start", "hello"], ["history"]):
                    done = command(host, "--context", "prod", *words)
                    assert done.returncode == 1
                    assert f"sends us elsewhere: to {other.url}/api/v1/x; the key is for the named" in done.stderr
                assert KEY in first.text
            assert command(host, "context", "remove", "prod").returncode == 0
        assert other.heard == []


def test_a_test_sends_the_key_only_to_what_has_answered_as_a_rest_api(host: Host) -> None:
    for says in (
        answer(b"<html>"),
        answer(b"{}"),
        answer(b"", "404 Not Found"),
        answer(b"", "302 Found", "Location: /x"),
    ):
        with Server(says).listening() as server:
            add(host, server.url)
            assert "The fault is in the layer api [not_an_api]" in command(host, "context", "test", "prod").stdout
            assert len(server.heard) == 1
            assert KEY not in server.text
        assert command(host, "context", "remove", "prod").returncode == 0


def test_a_proxy_of_the_environment_gets_nothing(host: Host) -> None:
    with Server(answer(HEALTHY)).listening() as proxy, Server(answer(HEALTHY)).listening() as server:
        add(host, server.url)
        env = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"), proxy.url)
        done = command(host, "--context", "prod", "history", **env)
        assert done.returncode == 0, done.stderr
        assert KEY in server.text
        assert proxy.heard == []


def test_credentials_of_a_netrc_are_not_sent(host: Host) -> None:
    (host.home / ".netrc").write_text("machine 127.0.0.1 login ada password hunter2\n")
    (host.home / ".netrc").chmod(0o600)
    with Server(answer(HEALTHY)).listening() as server:
        done = command(host, "context", "add", "prod", "--server", server.url, "--no-api-key")
        assert done.returncode == 0
        command(host, "--context", "prod", "history", NETRC=str(host.home / ".netrc"))
        assert server.heard
        assert "uthorization" not in server.text


def test_a_server_that_is_not_proven_hears_nothing(host: Host, tmp_path: Path) -> None:
    """No key, no path, not even a request: the handshake ends before."""
    ours, theirs = trustme.CA(), trustme.CA()
    (tmp_path / "ours.pem").write_bytes(ours.cert_pem.bytes())
    mine = ["--ca-file", str(tmp_path / "ours.pem")]
    for certificate, words, code in (
        (theirs.issue_cert("localhost"), mine, "untrusted_server"),
        (theirs.issue_cert("localhost"), [], "untrusted_server"),
        (ours.issue_cert("other.example"), mine, "name_mismatch"),
        (ours.issue_cert("localhost", not_after=datetime(2020, 1, 1, tzinfo=UTC)), mine, "expired"),
    ):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(tls)
        with Server(answer(HEALTHY), tls=tls).listening() as server:
            add(host, server.url, *words)
            done = command(host, "--context", "prod", "history")
            assert (done.returncode, f"is not believed ({code})" in done.stderr) == (1, True), done.stderr
            assert b"".join(server.heard) == b""
        assert command(host, "context", "remove", "prod").returncode == 0


def test_tls_1_2_is_not_spoken(host: Host, tmp_path: Path) -> None:
    ca = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    ca.issue_cert("localhost").configure_cert(tls)
    with Server(answer(HEALTHY), tls=tls).listening() as server:
        add(host, server.url, "--ca-file", str(tmp_path / "ca.pem"))
        done = command(host, "--context", "prod", "history")
        assert (done.returncode, "it speaks no TLS 1.3" in done.stderr) == (1, True), done.stderr
        assert server.heard == []


def test_a_ca_file_is_believed_alone_and_the_secrets_of_a_connection_are_written_nowhere(
    host: Host, tmp_path: Path
) -> None:
    ca = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(tls)
    with Server(answer(HEALTHY), tls=tls).listening() as server:
        add(host, server.url)
        env = {"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "SSLKEYLOGFILE": str(tmp_path / "keys")}
        assert command(host, "--context", "prod", "history", **env).returncode == 0
        assert not (tmp_path / "keys").exists()
        (tmp_path / "other.pem").write_bytes(trustme.CA().cert_pem.bytes())
        done = command(host, "context", "update", "prod", "--ca-file", str(tmp_path / "other.pem"))
        assert done.returncode == 0
        done = command(host, "--context", "prod", "history", **env)
        assert (done.returncode, "untrusted_server" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (Server(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", endless=b"[" * 65536), "is too large"),
        (Server(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", endless=b" " * 65536), "is too large"),
        (Server(b"HTTP/1.1 200 OK\r\nX-Long: ", endless=b"a" * 65536), "broke off"),
        (Server(answer(gzip.compress(b"[" * 100_000_000), "200 OK", "Content-Encoding: gzip")), "a compressed answer"),
        (Server(answer(b"[" * 1_000_000)), "is no REST API of Dagu"),
        (Server(answer(b'{"dagRuns":' + b"[" * 1_000_000)), "is no REST API of Dagu"),
        (Server(answer(b'{"more":' + b"[" * 1_000_000)), "is no REST API of Dagu"),
        (Server(answer(b"\xff\xfe")), "is no REST API of Dagu"),
        (Server(b"SSH-2.0-OpenSSH_9.9\r\n"), "broke off"),
        (Server(b""), "broke off"),
    ],
    ids=["endless", "announced", "endless-header", "bomb", "deep", "inside", "unread", "binary", "ssh", "silent"],
)
def test_what_a_server_says_is_bounded(host: Host, server: Server, words: str) -> None:
    with server.listening():
        add(host, server.url, "--timeout", "20")
        for said in (["--context", "prod", "history"], ["context", "test", "prod"]):
            limited = ["sh", "-c", 'ulimit -v 1500000; exec "$@"', "sh", str(PROGRAM), "--dagu-home", str(host.home)]
            done = subprocess.run([*limited, *said], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 1, done
            assert words in done.stdout + done.stderr
            assert "unexpected error" not in done.stdout + done.stderr


def test_a_server_that_never_answers_is_given_up(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        add(host, f"http://127.0.0.1:{deaf.getsockname()[1]}", "--timeout", "1")
        done = command(host, "--context", "prod", "history")
        assert (done.returncode, "nothing whole came within 1 s" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"status": 99}, {"status": "4"}, {"status": None}, {"name": 3}, {"nodes": [{}]}, {"nodes": {"a": 1}},
        {"nodes": [{"step": {"name": "a"}, "status": -1}]}, {"dagRunId": None},
    ],
)  # fmt: skip
def test_a_run_of_another_shape_is_refused_in_words(host: Host, change: dict[str, object]) -> None:
    body = json.dumps({"dagRunDetails": RUN | change, "dag": {"name": "hello"}}).encode()
    with Server(answer(body)).listening() as server:
        add(host, server.url)
        done = command(host, "--context", "prod", "status", "hello", "-r", "r1")
        assert (done.returncode, "is no REST API of Dagu" in done.stderr) == (1, True), done.stderr


def test_a_terminal_is_not_steered_by_a_server(host: Host) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    node = {"step": {"name": evil, "commands": [{"command": evil}]}, "status": 2, "error": evil}
    run = {**RUN, "status": 2, "nodes": [node], "error": evil, "log": evil, "params": evil}
    bodies = (
        {"dagRunDetails": run, "dag": {"name": "hello"}, "dagRuns": [RUN | {"params": evil, "name": evil}]},
        {"code": "bad_request", "message": evil},
    )
    for body, status in zip(bodies, ("200 OK", "400 Bad Request"), strict=True):
        with Server(answer(json.dumps(body).encode(), status)).listening() as server:
            add(host, server.url)
            for words in (["status", "hello"], ["history"], ["stop", "hello", "-r", "r1"]):
                done = command(host, "--context", "prod", *words)
                assert "\x1b" not in done.stdout + done.stderr, words
                assert "\x07" not in done.stdout + done.stderr, words
        assert command(host, "context", "remove", "prod").returncode == 0


def test_a_key_file_that_others_may_read_is_not_used(host: Host) -> None:
    with Server(answer(HEALTHY)).listening() as server:
        add(host, server.url)
        context_file(host).chmod(0o644)
        for words in (["--context", "prod", "history"], ["context", "test", "prod"], ["context", "use", "prod"]):
            done = command(host, *words)
            assert done.returncode == 1
            assert f"chmod 600 {context_file(host)}" in done.stdout + done.stderr
        assert "prod is not used" in command(host, "context", "list").stderr
        assert server.heard == []


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc/passwd", ".current", "x" * 65])
def test_a_name_that_climbs_is_refused_everywhere(host: Host, name: str) -> None:
    for words in (
        ["context", "add", name, "--server", "https://h", "--no-api-key"], ["context", "remove", name],
        ["context", "use", name], ["context", "update", name, "--timeout", "3"], ["--context", name, "history"],
    ):  # fmt: skip
        done = command(host, *words)
        assert (done.returncode, "is no name of a context" in done.stderr) == (1, True), words
    assert "is no name of a context" in command(host, "context", "test", name).stdout


def test_a_key_on_the_command_line_warns_and_is_printed_nowhere(host: Host) -> None:
    done = command(host, "context", "add", "prod", "--server", "https://ci.example.com", "--api-key", KEY)
    assert (done.returncode, done.stdout) == (0, "")
    assert "can be seen by others on this host; use --api-key-stdin" in done.stderr
    told = [
        command(host, "context", "list"), command(host, "context", "list", "--json"),
        command(host, "context", "test", "prod", "--json", DAGU_DEBUG="true"),
        command(host, "context", "add", "prod", "--server", "https://h", "--api-key-stdin", stdin=KEY),
        command(host, "context", "update", "prod", "--server", "https://evil.example.com"),
    ]  # fmt: skip
    assert KEY not in done.stderr + "".join(one.stdout + one.stderr for one in told)
    assert "its key is for https://ci.example.com, not for another" in told[-1].stderr


@pytest.mark.parametrize("stdin", ["", "\n", "two words", "a\nb", "k\x00", "schlüssel", "k" * 5000])
def test_what_is_no_key_is_refused(host: Host, stdin: str) -> None:
    done = command(host, "context", "add", "prod", "--server", "https://h", "--api-key-stdin", stdin=stdin)
    assert (done.returncode, "API key" in done.stderr) == (1, True), done.stderr
    assert not context_file(host).exists()


def test_verification_cannot_be_switched_off(host: Host) -> None:
    done = command(host, "context", "add", "prod", "--server", "https://h", "--no-api-key", "--skip-tls-verify")
    assert (done.returncode, "whoever answered would get the API key" in done.stderr) == (1, True)
    assert not context_file(host).exists()


def test_plain_http_beyond_this_host_needs_its_flag_and_an_exception_each_time(host: Host) -> None:
    url = "http://192.0.2.1:9"
    refused = command(host, "context", "add", "prod", "--server", url, "--api-key-stdin", stdin=KEY)
    assert (refused.returncode, "--insecure-http asks for it" in refused.stderr) == (1, True)
    add(host, url, "--insecure-http", "--timeout", "1")
    for words in (["--context", "prod", "history"], ["context", "test", "prod"]):
        done = command(host, *words)
        assert done.returncode == 1
        assert "secure-dagu exception grant http-plaintext" in done.stdout + done.stderr
    granted = ["exception", "grant", "http-plaintext", "--owner", "ada", "--reason", "a test", "--until", "1d"]
    assert command(host, *granted).returncode == 0
    done = command(host, "--context", "prod", "history")
    assert f"warning: {url} is spoken to without TLS" in done.stderr
    assert "needs an exception" not in done.stderr
    moved = command(host, "context", "update", "prod", "--server", "http://192.0.2.2", "--api-key-stdin", stdin=KEY)
    assert (moved.returncode, "--insecure-http asks for it" in moved.stderr) == (1, True)


@pytest.mark.parametrize("verb", ["start", "enqueue"])
def test_a_change_is_sent_once_though_its_answer_is_lost(host: Host, verb: str) -> None:
    """Two runs would be worse than none; whether there is one can be found out, for we chose its id."""
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"
    with Server(answer(b'{"dag": {"name": "etl"}}'), later=cut).listening() as server:
        add(host, server.url)
        done = command(host, "--context", "prod", verb, "nightly", "-r", "r1")
        assert done.returncode == 1
        assert "whether there is a dag-run r1 is not known" in done.stderr
        assert "`secure-dagu --context prod status etl -r r1`" in done.stderr
        assert server.text.count("POST ") == 1
