"""T18: somebody has the CA's key and signs a certificate outside the tool. It is good, and it raises the alarm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from secure_dagu.assembly.ledgered import watching
from secure_dagu.audit.events import Action, Event
from secure_dagu.dispatch.model import Role
from secure_dagu.link import private
from secure_dagu.link.context import server_policy
from secure_dagu.link.register import LinkEvent
from secure_dagu.pki import directory as pki
from secure_dagu.telemetry import metrics
from tests.adversarial.test_certificates_identities import knock
from tests.link.conftest import open_edge
from tests.pki.forging import NOW, Forged, forge, initialise


class Notes:
    """A trail that a test can read."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def record(self, event: Event) -> None:
        self.events.append(event)

    def note(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def folder() -> Iterator[Path]:
    with private.folder() as made:
        yield made


async def opened(home: Path, client: Forged, folder: Path) -> LinkEvent:
    """Return the event of a link that a client opens at a coordinator."""
    policy = server_policy(cert=home / "coordinator.crt", key=home / "coordinator.key", client_ca=home / "ca.crt")
    async with open_edge(policy, folder) as edge:
        await asyncio.to_thread(knock, edge.port, home, client)
        return await edge.until("opened")


async def test_a_certificate_that_the_ledger_does_not_know_raises_the_alarm_and_others_do_not(
    tmp_path: Path, folder: Path
) -> None:
    initialise(tmp_path)
    made = pki.issue(tmp_path, Role.WORKER, "gpu-1", out=None, advertised=(), lifetime=None, force=False, now=NOW)
    forged = forge(tmp_path, tmp_path / "forged", uris=["spiffe://secure-dagu/admin/root"])
    good = await opened(tmp_path, Forged(cert=made.certificate, key=made.key), folder)
    bad = await opened(tmp_path, forged, folder)
    trail, told = Notes(), list[LinkEvent]()
    watch = watching(tmp_path, trail, told.append)
    before = metrics.UNKNOWN_CERTIFICATES._value.get()
    with capture_logs() as logs:
        watch(good)
        assert (trail.events, logs) == ([], [])
        watch(bad)
    assert told == [good, bad]
    (event,) = trail.events
    serial = f"{forged.certificate.serial_number:x}"
    assert (event.action, event.actor, event.target) == (
        Action.CERTIFICATE_UNKNOWN, "spiffe://secure-dagu/admin/root", f"certificate:{serial}",
    )  # fmt: skip
    assert (logs[0]["event"], logs[0]["serial"]) == ("certificate.unknown", serial)
    assert metrics.UNKNOWN_CERTIFICATES._value.get() == before + 1


async def test_certificates_of_another_ca_and_hosts_without_a_ledger_raise_no_alarm(
    tmp_path: Path, folder: Path
) -> None:
    initialise(tmp_path / "ours")
    initialise(tmp_path / "theirs")
    forged = forge(tmp_path / "theirs", tmp_path / "forged", uris=["spiffe://secure-dagu/worker/w"])
    event = await opened(tmp_path / "theirs", forged, folder)
    trail = Notes()
    watching(tmp_path / "ours", trail, lambda event: None)(event)
    (tmp_path / "theirs/ledger.jsonl").unlink()
    watching(tmp_path / "theirs", trail, lambda event: None)(event)
    assert trail.events == []


async def test_a_damaged_ledger_is_said_and_stops_no_link(tmp_path: Path, folder: Path) -> None:
    initialise(tmp_path)
    forged = forge(tmp_path, tmp_path / "forged", uris=["spiffe://secure-dagu/worker/w"])
    event = await opened(tmp_path, forged, folder)
    (tmp_path / "ledger.jsonl").write_text("?\n")
    with capture_logs() as logs:
        watching(tmp_path, Notes(), lambda event: None)(event)
    assert [line["event"] for line in logs] == ["ledger.unreadable"]
