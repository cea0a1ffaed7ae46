"""T06: whoever lost its standing gets nothing through a link that is still open: no call of any method, no message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path

import pytest

from secure_dagu.errors import SecureDaguError, Unauthenticated
from secure_dagu.security.admission import DenyReason
from secure_dagu.security.peer import Peer
from secure_dagu.security.roles import RPC_RULES
from secure_dagu.wire.channel import Channel
from secure_dagu.wire.interceptors import Gate
from secure_dagu.wire.server import serve
from tests.wire.conftest import House, channel_to
from tests.wire.test_wall import SERVICE, chunk

__all__ = ["channel_to"]  # a fixture


class Verdict:
    """What the wall is told of everybody, and how often it asked."""

    def __init__(self) -> None:
        self.reason: DenyReason | None = None
        self.asked = 0

    def __call__(self, peer: Peer, now: datetime) -> DenyReason | None:
        self.asked += 1
        return self.reason


@pytest.fixture
def standing() -> Verdict:
    """Return what the wall asks."""
    return Verdict()


@pytest.fixture
async def house(tmp_path: Path, standing: Verdict) -> AsyncIterator[House]:
    """Return a coordinator that asks for the standing of its callers."""
    house = House(str(tmp_path / "s"))
    house.gate = Gate(
        peer_of=lambda _name: house.peer, recorder=house.calls, denied=house.denied.append, standing=standing
    )
    async with serve(socket_paths=[house.path], desk=house.desk, gate=house.gate, grace_s=0.2) as server:
        house.server = server
        yield house


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (DenyReason.CERT_REVOKED, "is revoked"),
        (DenyReason.UNTRUSTED_CA, "no longer trusted"),
        (DenyReason.CRL_STALE, "past its next update"),
    ],
)
async def test_every_method_is_refused_with_the_reason(
    house: House, channel_to: Callable[..., Channel], standing: Verdict, reason: DenyReason, words: str
) -> None:
    standing.reason = reason
    for path in (*RPC_RULES, "/no.such.Service/Method"):
        with pytest.raises(SecureDaguError) as caught:
            await channel_to(house.path).call(path, b"", 5)
        if path in RPC_RULES:
            assert isinstance(caught.value, Unauthenticated), path
            assert words in str(caught.value), path
    assert {denial.reason for denial in house.denied} == {reason.value}
    assert len(house.denied) == len(RPC_RULES) + 1
    assert not house.desk.asked, "nothing behind the wall was reached"


async def test_each_message_of_an_upload_is_judged_anew(
    house: House, channel_to: Callable[..., Channel], standing: Verdict
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for count in (1, 2, 3):
            yield chunk().SerializeToString()
            await house.desk.parts_are(count)
        before = standing.asked
        standing.reason = DenyReason.CERT_REVOKED
        yield chunk().SerializeToString()
        assert before >= 4

    with pytest.raises(Unauthenticated, match="is revoked"):
        await channel_to(house.path).upload(SERVICE + "StreamLogs", chunks(), 5)
    assert [denial.reason for denial in house.denied] == [DenyReason.CERT_REVOKED]
