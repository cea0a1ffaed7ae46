"""When a certificate is renewed, how failures are spread, and what is said once it is too late."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog

from secure_dagu.assembly.renewal import Renewal
from secure_dagu.dispatch.model import Role
from secure_dagu.errors import Unavailable
from secure_dagu.pki import directory
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.holder import Granted
from secure_dagu.pki.term import read_term


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a worker's certificate in the standard place."""
    place = tmp_path / "pki"
    directory.initialise(place, advertised=["localhost"], trust_domain="test.example", now=utc_now())
    return directory.issue(
        place, Role.WORKER, "w1", out=place, advertised=(), lifetime=None, force=False, now=utc_now()
    ).certificate


class Clock:
    """A wall clock that is set, as that of a machine that sleeps."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now


async def test_failures_are_tried_again_later_and_later_but_well_before_the_end(certificate: Path) -> None:
    tries: list[datetime] = []
    term = read_term(certificate)
    clock = Clock(term.due_at - timedelta(seconds=1))

    async def renew() -> Granted:
        tries.append(clock.now)
        raise Unavailable("the coordinator is down")

    renewal = Renewal(certificate, renew, rejoin="join again", now=clock)
    await renewal.look()
    assert tries == []
    with structlog.testing.capture_logs():
        while clock.now < term.not_after:
            clock.now += timedelta(minutes=1)
            await renewal.look()
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps[0] <= timedelta(minutes=2)
    assert max(gaps) <= timedelta(minutes=62)
    assert len(tries) > 100
    assert term.not_after - tries[-1] < timedelta(minutes=5)


async def test_a_machine_that_woke_up_too_late_says_once_what_brings_it_back(certificate: Path) -> None:
    clock = Clock(read_term(certificate).not_after + timedelta(days=3))

    async def renew() -> Granted:
        raise AssertionError("an ended certificate proves nothing")

    renewal = Renewal(certificate, renew, rejoin="`secure-dagu join LINE`", now=clock)
    with structlog.testing.capture_logs() as said:
        await renewal.look()
        clock.now += timedelta(hours=1)
        await renewal.look()
    assert [(line["event"], line["fix"]) for line in said] == [("renewal.too_late", "`secure-dagu join LINE`")]
