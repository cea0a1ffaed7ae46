"""Whoever is refused leaves a trace: a distinct code in log, metric and audit, with address and claimed subject."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import needs
from tests.system.conftest import Cluster
from tests.system.hosts import PROGRAM, Service

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


class Attacker:
    """Comes to one coordinator in every wrong way, with openssl and with plain sockets."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.pki = cluster, cluster.host.home / "pki"
        self.expired, self.early, self.stranger = folder / "expired", folder / "early", cluster.new_host("stranger")
        faketime = needs.program("faketime", package="faketime")
        for name, shift in (("expired", "-400d"), ("early", "+2d")):
            subprocess.run(
                [
                    faketime, "-f", shift, str(PROGRAM), "pki", "issue", "worker", f"{name}-worker", "--out",
                    str(folder / name),
                ],
                env=cluster.host.environment, check=True, capture_output=True,
            )  # fmt: skip
        self.stranger.ok("pki", "init", "--advertise", "localhost")
        self.revoked = cluster.worker_host("stolen").home / "pki"
        cluster.host.ok("pki", "revoke", "stolen")

    def openssl(self, *words: str) -> str:
        """Connect with `openssl s_client`; return what it said until the other end closed."""
        words = (
            "-connect", f"127.0.0.1:{self.cluster.port}", "-alpn", "h2", "-servername", "localhost", *words
        )  # fmt: skip
        openssl = needs.program("openssl", package="openssl")
        with subprocess.Popen(
            ["timeout", "15", openssl, "s_client", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            return process.stdout.read()  # its input stays open meanwhile, or it would hang up itself

    def with_files(self, folder: Path, name: str) -> str:
        """Connect with a certificate."""
        return self.openssl("-cert", str(folder / f"{name}.crt"), "-key", str(folder / f"{name}.key"))

    def plain(self, words: bytes) -> bytes:
        """Say something without TLS and hang up; return the answer."""
        with socket.create_connection(("127.0.0.1", self.cluster.port), timeout=10) as sock:
            sock.sendall(words)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := sock.recv(4096):
                    answer += piece
        return answer

    def attack(self) -> dict[str, str]:
        """Come in every way; return what the certificate claimed, by the code that is expected."""
        tls: list[tuple[Callable[[], str], str]] = [
            (self.openssl, "certificate required"),
            (lambda: self.with_files(self.stranger.home / "pki", "operator"), "unknown ca"),
            (lambda: self.with_files(self.expired, "expired-worker"), "certificate expired"),
            (lambda: self.with_files(self.early, "early-worker"), "bad certificate"),
            (lambda: self.with_files(self.revoked, "stolen"), "certificate revoked"),
            (lambda: self.with_files(self.pki, "coordinator"), "unsupported certificate"),
            (lambda: self.openssl("-tls1_2"), "protocol version"),
        ]
        with ThreadPoolExecutor() as pool:  # each is kept open for a second, so that it reads our last word
            for said, (_, alert) in zip(pool.map(lambda row: row[0](), tls), tls, strict=True):
                assert alert in said
            answers = list(
                pool.map(
                    self.plain,
                    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HELLO, b""],
                )
            )
        assert b"fault=http_client" in answers[1]
        return {
            "no_client_cert": "",
            "untrusted_ca": "",  # which certificate of its chain nobody knows is said in the detail
            "cert_expired": "expired-worker",
            "cert_not_yet_valid": "early-worker",
            "cert_revoked": "stolen",
            "wrong_purpose": "coordinator",
            "protocol_version": "",
            "plaintext_client": "",
            "http_client": "",
            "truncated": "",
            "peer_closed": "",
        }


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Service, dict[str, str]]]:
    """Return a coordinator that everybody was refused by."""
    folder = tmp_path_factory.mktemp("faults")
    cluster = Cluster(folder)
    attacker = Attacker(cluster, folder)
    with cluster.coordinator() as coordinator:
        yield cluster, coordinator, attacker.attack()


def test_each_refusal_is_logged_with_address_and_subject(refused: tuple[Cluster, Service, dict[str, str]]) -> None:
    _, coordinator, expected = refused
    for code, subject in expected.items():
        line = coordinator.wait_for(rf"link\.refused .*reason={code} ")
        assert re.search(r"address=127\.0\.0\.1:\d+ ", line)
        assert 'why="' in line
        assert 'fix="' in line
        assert subject in line


def test_each_refusal_is_counted_once(refused: tuple[Cluster, Service, dict[str, str]]) -> None:
    cluster, _, expected = refused
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counted = {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "secure_dagu_tls_handshake_failures_total" and sample.labels["side"] == "server"
    }
    assert {code: counted.get(code) for code in expected} == dict.fromkeys(expected, 1.0)


def test_each_refusal_is_in_the_audit_log(refused: tuple[Cluster, Service, dict[str, str]]) -> None:
    cluster, coordinator, expected = refused
    coordinator.stop()  # what was only noted is on disk within a second, and at the end
    shown = json.loads(cluster.host.ok("audit", "show", "--log=coordinator", "--action=link.refused", "--json"))
    records = {record["reason"]: record for record in shown["records"]}
    assert set(records) == set(expected)
    for code, subject in expected.items():
        record = records[code]
        assert record["outcome"] == "denied"
        assert re.fullmatch(r"127\.0\.0\.1:\d+", record["address"])
        assert record["actor"] == "", "nobody is proven"
        assert subject in json.dumps(record["details"])
        assert bool(record["serial"]) >= bool(subject)
    cluster.host.ok("audit", "verify")
