"""`assembly.fleet.Machines` over a real coordinator: what the Web UI shows, and what its buttons do."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable

import pytest

from secure_dagu.assembly.fleet import Machines
from secure_dagu.assembly.operator import operator
from secure_dagu.config.load import load
from secure_dagu.dispatch.model import Caller, Role
from secure_dagu.dispatch.operating import Fleet, WorkerState, WorkerView
from secure_dagu.dispatch.way import Way
from secure_dagu.errors import NotFound, Refused, Unavailable
from tests.system.conftest import Cluster


async def seen(fleet: Fleet, worker: str, holds: Callable[[WorkerView], bool]) -> WorkerView:
    async with asyncio.timeout(60):
        while True:
            for view in await fleet.workers():
                if view.info.worker == worker and holds(view):
                    return view
            await asyncio.sleep(0.05)


async def test_the_fleet_shows_drains_and_revokes(running: Cluster) -> None:
    loaded = load(argparse.Namespace(dagu_home=None, config=None), running.host.environment)
    async with operator(loaded) as (coordinator, caller):
        fleet: Fleet = Machines(loaded, Way(coordinator, caller))
        view = await seen(fleet, "w1", lambda view: bool(view.version and view.identity))
        assert (view.state, view.tls_version, view.is_lost) == (WorkerState.ACTIVE, "TLSv1.3", False)
        assert view.cert_not_after is not None
        assert view.connected_since is not None
        (one,) = await fleet.coordinators()
        assert (one.host, one.port, one.status) == ("localhost", running.port, "active")
        assert await fleet.schedulers() == []
        links = await fleet.links()
        assert {link.role for link in links} >= {"worker", "admin"}
        certificates = await fleet.certificates()
        assert {item.subject for item in certificates if item.in_use} >= {"coordinator", "operator"}
        assert view.serial in {item.serial.lower().lstrip("0") for item in certificates}

        await fleet.drain("w1", draining=True, actor="anna")
        await seen(fleet, "w1", lambda view: view.state is WorkerState.DRAINING)
        await fleet.drain("w1", draining=False, actor="anna")
        await seen(fleet, "w1", lambda view: view.state is WorkerState.ACTIVE)
        with pytest.raises(NotFound):
            await fleet.drain("nobody", draining=True, actor="anna")

        with pytest.raises(NotFound):
            await fleet.revoke("nobody", reason="unspecified", actor="anna")
        with pytest.raises(Refused, match="no reason"):
            await fleet.revoke("w1", reason="because", actor="anna")
        assert await fleet.revoke("w1", reason="keyCompromise", actor="anna") == 1
        (revoked,) = [item for item in await fleet.certificates() if item.revoked_at is not None]
        assert revoked.revocation_reason == "keyCompromise"
        async with asyncio.timeout(60):
            while any(link.role == "worker" for link in await fleet.links()):  # noqa: ASYNC110 - on another host
                await asyncio.sleep(0.05)


async def test_without_the_cas_key_nothing_is_revoked_and_without_a_coordinator_nobody_is_asked(
    cluster: Cluster,
) -> None:
    host = cluster.worker_host("w1")
    loaded = load(argparse.Namespace(dagu_home=None, config=None), host.environment)
    fleet = Machines(loaded, Way(None, Caller(role=Role.ADMIN, name="test", proven=True)))
    with pytest.raises(Refused, match="key is not on this host"):
        await fleet.revoke("w1", reason="unspecified", actor="anna")
    with pytest.raises(Unavailable, match="Coordinator service not configured"):
        await fleet.workers()
    assert await fleet.coordinators() == []
