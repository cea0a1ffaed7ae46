"""Peers with certificates of an enterprise CA: identity by rule in real handshakes, and nobody else gets in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from secure_dagu.errors import ConfigError
from secure_dagu.link import private
from secure_dagu.link.context import client_policy, server_policy
from secure_dagu.security.grants import parse_grants
from secure_dagu.security.mapping import parse_rules
from secure_dagu.security.verdict import LinkRefused
from tests.adversarial.test_certificates_identities import knock, rogue
from tests.link.conftest import Edge, open_dialer, open_edge, through
from tests.pki.forging import SERVER, forge, initialise

RULES = parse_rules(
    [
        {"dns": "{name}.{zone}.workers.internal", "role": "worker", "labels": {"zone": "{zone}"}},
        {"subject": "CN={name},O=Corp dispatchers", "role": "dispatcher"},
        {"dns": "coordinator.internal", "role": "coordinator", "name": "main"},
        {"spiffe": "secure-dagu"},
    ]
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a CA that stands for the enterprise's: its certificates have no spiffe URI."""
    where = tmp_path_factory.mktemp("home")
    initialise(where)
    return where


@pytest.fixture
def folder() -> Iterator[Path]:
    with private.folder() as made:
        yield made


@pytest.fixture
async def edge(home: Path, folder: Path, tmp_path: Path) -> AsyncIterator[Edge]:
    pair = forge(home, tmp_path / "server", dns=["coordinator.internal", "localhost"], usages=(SERVER,))
    policy = server_policy(cert=pair.cert, key=pair.key, client_ca=home / "ca.crt", rules=RULES)
    assert str(policy.identity) == "coordinator/main"
    async with open_edge(policy, folder) as opened:
        yield opened


@pytest.mark.parametrize(
    ("fields", "identity", "labels"),
    [
        ({"dns": ["gpu-1.eu.workers.internal"]}, "spiffe://mapped/worker/gpu-1", "zone=eu"),
        ({"common_name": "cron", "organisation": "Corp dispatchers"}, "spiffe://mapped/dispatcher/cron", ""),
        ({"uris": ["spiffe://secure-dagu/admin/anna"]}, "spiffe://secure-dagu/admin/anna", ""),
    ],
)
async def test_a_peer_is_who_the_rules_say_at_both_ends(
    edge: Edge, home: Path, folder: Path, tmp_path: Path, fields: dict[str, object], identity: str, labels: str
) -> None:
    pair = forge(home, tmp_path / "client", **fields)  # type: ignore[arg-type]
    policy = client_policy(cert=pair.cert, key=pair.key, ca=home / "ca.crt", rules=RULES)
    async with open_dialer(policy, "localhost", edge.port, folder) as dialer:
        _, writer = await through(dialer)
        peer = (await edge.until("opened")).peer
        writer.close()
    assert peer is not None
    assert peer.identity is not None
    assert peer.identity.uri == identity
    assert peer.grants == (parse_grants([labels]) if labels else parse_grants([]))


@pytest.mark.parametrize(
    "fields",
    [
        {"dns": ["gpu-1.eu.other.internal"]},
        {"dns": ["a.eu.workers.internal", "b.eu.workers.internal"]},
        {"common_name": "gpu-1"},
        {"uris": ["spiffe://secure-dagu/worker/a", "spiffe://secure-dagu/worker/b"]},
    ],
)
async def test_whoever_no_rule_names_exactly_once_is_refused(
    edge: Edge, home: Path, folder: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    pair = forge(home, tmp_path / "client", **fields)  # type: ignore[arg-type]
    await asyncio.to_thread(knock, edge.port, home, pair)
    event = await edge.until("refused")
    assert event.verdict is not None
    assert "exactly one must" in event.verdict.detail
    with pytest.raises(ConfigError, match="cannot be used"):
        client_policy(cert=pair.cert, key=pair.key, ca=home / "ca.crt", rules=RULES)


async def test_a_worker_of_the_enterprise_that_serves_is_no_coordinator(
    home: Path, folder: Path, tmp_path: Path
) -> None:
    server = forge(home, tmp_path / "rogue", dns=["a.eu.workers.internal", "localhost"], usages=(SERVER,))
    with pytest.raises(ConfigError, match="clients accept only a coordinator"):
        server_policy(cert=server.cert, key=server.key, client_ca=home / "ca.crt", rules=RULES)
    pair = forge(home, tmp_path / "client", dns=["gpu-1.eu.workers.internal"])
    policy = client_policy(cert=pair.cert, key=pair.key, ca=home / "ca.crt", rules=RULES)
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(rogue(server, []))
        dialer = await stack.enter_async_context(open_dialer(policy, "localhost", port, folder))
        with pytest.raises(LinkRefused) as refusal:
            await dialer.check()
    assert refusal.value.verdict.reason == "not_a_coordinator"
