"""T06: a worker's key is copied and used on a second host. Both links are good, and together they raise the alarm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from secure_dagu.assembly.copied import Watch
from secure_dagu.audit.events import Action
from secure_dagu.dispatch.model import Role
from secure_dagu.link import private
from secure_dagu.link.context import server_policy
from secure_dagu.pki import directory as pki
from secure_dagu.telemetry import metrics
from tests.adversarial.test_certificates_outside import Notes
from tests.link.conftest import Edge, open_edge
from tests.pki.forging import NOW, initialise


@pytest.fixture
def folder() -> Iterator[Path]:
    with private.folder() as made:
        yield made


def dialled(port: int, certificate: Path, key: Path, source: str) -> ssl.SSLSocket:
    """Open a link from an address of this host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificate, key)
    raw = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
    return context.wrap_socket(raw)


async def until(edge: Edge, count: int) -> None:
    """Wait until so many links are live."""
    while len(edge.register) != count:
        edge.changed.clear()
        await edge.changed.wait()


async def test_a_key_in_use_on_two_hosts_raises_the_alarm_once_and_a_pools_does_not(
    tmp_path: Path, folder: Path
) -> None:
    initialise(tmp_path)

    def issued(role: Role, name: str) -> tuple[Path, Path]:
        made = pki.issue(tmp_path, role, name, out=None, advertised=(), lifetime=None, force=False, now=NOW)
        return made.certificate, made.key

    gpu, pool, operators = issued(Role.WORKER, "gpu-1"), issued(Role.WORKER, "pool"), issued(Role.DISPATCHER, "web")
    policy = server_policy(
        cert=tmp_path / "coordinator.crt", key=tmp_path / "coordinator.key", client_ca=tmp_path / "ca.crt"
    )
    later = datetime.now(UTC)
    async with open_edge(policy, folder) as edge:
        trail = Notes()
        watch = Watch(edge.register.peers, ("pool",), trail, lambda: later)
        with contextlib.ExitStack() as links, capture_logs() as logs:
            # A machine with two links from one address; a pool, and web servers: none of them is a copy.
            for made, source in (
                (gpu, "127.0.0.1"), (gpu, "127.0.0.1"), (pool, "127.0.0.1"), (pool, "127.0.0.2"),
                (operators, "127.0.0.1"), (operators, "127.0.0.2"),
            ):  # fmt: skip
                links.enter_context(await asyncio.to_thread(dialled, edge.port, *made, source))
            await until(edge, 6)
            later = datetime.now(UTC) + timedelta(minutes=2)
            await watch.look()
            assert (trail.events, logs, metrics.COPIED_CERTIFICATES._value.get()) == ([], [], 0)

            with await asyncio.to_thread(dialled, edge.port, *gpu, "127.0.0.3"):
                await until(edge, 7)
                later = datetime.now(UTC) + timedelta(seconds=30)
                await watch.look()
                assert trail.events == [], "a machine that moves leaves its old link behind for a moment"
                later = datetime.now(UTC) + timedelta(minutes=2)
                await watch.look()
                await watch.look()
                assert metrics.COPIED_CERTIFICATES._value.get() == 1
            await until(edge, 6)
            await watch.look()
            assert metrics.COPIED_CERTIFICATES._value.get() == 0
    (event,) = trail.events
    assert (event.action, event.actor, event.reason) == (
        Action.CERTIFICATE_COPIED, "spiffe://secure-dagu/worker/gpu-1", "several_hosts",
    )  # fmt: skip
    assert event.address.startswith("127.0.0.3:")
    (line,) = logs
    assert line["event"] == "certificate.on_several_hosts"
    assert "127.0.0.1:" in line["addresses"]
    assert "127.0.0.3:" in line["addresses"]
    assert "pki revoke gpu-1" in line["fix"]
