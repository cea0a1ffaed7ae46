"""A hundred machines redeem one token at the same moment, over real TLS (threat T17): one gets a certificate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from secure_dagu.assembly.enrolment import Answering
from secure_dagu.audit.events import Action, Event
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import Refused, SecureDaguError, Unavailable
from secure_dagu.link import enrol, private
from secure_dagu.link.context import join_policy, server_policy
from secure_dagu.link.listener import Limits
from secure_dagu.pki import directory
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.enrolment import Desk, make_token
from secure_dagu.pki.holder import Granted, Wish
from tests.link.conftest import Edge, open_edge


class Log:
    """A trail that remembers, or whose disk is full."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_full = False

    async def record(self, event: Event) -> None:
        """Take an event that must be on disk."""
        if self.is_full:
            raise Unavailable("the disk is full")
        self.events.append(event)

    def note(self, event: Event) -> None:
        """Take an event."""
        self.events.append(event)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a directory with a CA."""
    directory.initialise(tmp_path / "pki", advertised=["localhost"], trust_domain="test.example", now=utc_now())
    return tmp_path / "pki"


@pytest.fixture
def log() -> Log:
    """Return an empty audit log."""
    return Log()


@pytest.fixture
async def edge(place: Path, log: Log) -> AsyncIterator[Edge]:
    """Return a coordinator's edge that enrols."""
    policy = server_policy(cert=place / "coordinator.crt", key=place / "coordinator.key", client_ca=place / "ca.crt")
    with private.folder() as folder:
        async with open_edge(policy, folder, Limits(enrolments=200)) as opened:
            opened.listener.answer = Answering(Desk(place, None), log)
            yield opened


async def test_exactly_one_of_a_hundred_concurrent_redemptions_succeeds(edge: Edge, place: Path, log: Log) -> None:
    token, _ = make_token(place, Role.WORKER, "w1", labels=None, ttl=timedelta(hours=1), now=utc_now())
    wishes = [Wish() for _ in range(100)]
    outcomes: list[Granted | SecureDaguError] = []

    async def redeem(wish: Wish) -> None:
        try:
            request = wish.to_join(token.secret)
            outcomes.append(wish.granted(await enrol.ask(join_policy(token.pin), "localhost", edge.port, request)))
        except SecureDaguError as problem:
            outcomes.append(problem)

    async with asyncio.TaskGroup() as group:
        for wish in wishes:
            group.create_task(redeem(wish))
    granted = [one for one in outcomes if isinstance(one, Granted)]
    refused = [one for one in outcomes if isinstance(one, Refused)]
    assert (len(granted), len(refused)) == (1, 99)
    assert len({(one.what, one.why, one.fix) for one in refused}) == 1, "all refusals look the same"
    assert len([one for one in directory.ledger(place).entries() if one.name == "w1"]) == 1
    assert [one.action for one in log.events].count(Action.JOINED) == 1
    assert not any(token.secret.reveal() in repr(one) for one in log.events)


async def test_what_cannot_be_recorded_is_not_signed(edge: Edge, place: Path, log: Log) -> None:
    token, _ = make_token(place, Role.WORKER, "w1", labels=None, ttl=timedelta(hours=1), now=utc_now())
    log.is_full = True
    wish = Wish()
    answer = await enrol.ask(join_policy(token.pin), "localhost", edge.port, wish.to_join(token.secret))
    with pytest.raises(Refused):
        wish.granted(answer)
    assert directory.ledger(place).current("worker", "w1") is None
