"""Revocation, reload and CA rotation with real commands and processes, under load."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bench import rotation as load
from bench.cluster import Cluster as LoadedCluster
from bench.cluster import client, task
from secure_dagu.assembly.trust import is_due, sign_again
from secure_dagu.dispatch.model import Caller, Role
from secure_dagu.errors import SecureDaguError, Unauthenticated
from secure_dagu.link import crl, material
from secure_dagu.security.verdict import LinkRefused
from tests.system.conftest import Cluster
from tests.system.hosts import Host

SLOW = """\
worker_selector:
  pool: "yes"
steps:
  - name: one
    command: n=0; while [ ! -e {gate} ] && [ $n -lt 600 ]; do n=$((n+1)); sleep 0.05; done; echo done
"""
ADMIN = Caller(role=Role.ADMIN, name="second", proven=True)


def member_of_pool(cluster: Cluster, name: str) -> Host:
    """Return the host of a worker whose certificate lets it claim pool=yes."""
    place = cluster.root / f"{name}-pki"
    cluster.host.ok("pki", "issue", "worker", name, "--labels", "pool=yes", "--out", str(place))
    host = cluster.new_host(name)
    shutil.copytree(place, host.home / "pki")
    return host


def scraped(cluster: Cluster) -> str:
    """Return the coordinator's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_a_revoked_worker_is_cut_and_its_task_is_done_once_by_another(cluster: Cluster, tmp_path: Path) -> None:
    gate, dag = tmp_path / "go", cluster.host.home / "slow.yaml"
    dag.write_text(SLOW.format(gate=gate))
    bad, good = member_of_pool(cluster, "bad"), member_of_pool(cluster, "good")
    with cluster.coordinator() as coordinator, cluster.worker("bad", "--worker.labels=pool=yes", host=bad) as revoked:
        cluster.host.ok("dispatch", cluster.operator, "--run-id=r1", str(dag))
        coordinator.wait_for("task.claimed.*worker-id=bad")
        with cluster.worker("good", "--worker.labels=pool=yes", host=good):
            cluster.host.ok("pki", "revoke", "bad", "--reason=keyCompromise")
            written = datetime.now(UTC)
            assert coordinator.at("peers.cut.*cert_revoked") - written < timedelta(seconds=5)
            coordinator.wait_for("task.released.*worker-id=bad")
            coordinator.wait_for("task.claimed.*worker-id=good")
            coordinator.wait_for("link.refused.*cert_revoked")
            revoked.wait_for("revoked")
            told = scraped(cluster)
            assert 'secure_dagu_pki_certificates_revoked_total{reason="keyCompromise"} 1.0' in told
            assert "secure_dagu_crl_entries 1.0" in told
            assert 'secure_dagu_workers_lost_total{reason="revoked"} 1.0' in told
            gate.touch()
            coordinator.wait_for("run.reported_end.*worker-id=good")
    assert len([line for line in coordinator.lines if "task.claimed" in line]) == 2
    assert len([line for line in coordinator.lines if "run.reported_end" in line]) == 1


def test_a_stolen_key_loses_its_open_calls_and_does_not_come_back(cluster: Cluster) -> None:
    """T06: a call in flight ends with the reason, a new link is refused with the alert; neighbours do not notice."""
    pki = cluster.host.home / "pki"
    cluster.host.ok("pki", "issue", "admin", "second", "--out", str(pki))
    with cluster.coordinator(), cluster.worker("w1"):
        asyncio.run(_steal(cluster, pki))


async def _to_the_end(events: AsyncIterator[Any]) -> None:
    async for _ in events:
        pass


async def _steal(cluster: Cluster, pki: Path) -> None:
    reached = LoadedCluster.__new__(LoadedCluster)
    reached.port, reached.pki = cluster.port, pki
    async with asyncio.timeout(60), client(reached, "second") as thief, client(reached, "operator") as neighbour:
        long = task("long", "r1", "steps: [{run: sleep 60}]\n")
        await neighbour.dispatch(ADMIN, long)
        events = thief.follow(ADMIN, run=long.run, with_logs=False)
        await anext(events)
        await asyncio.to_thread(cluster.host.ok, "pki", "revoke", "admin/second")
        with pytest.raises(Unauthenticated, match="revoked"):
            await _to_the_end(events)
        await neighbour.runs(ADMIN, name=None, run_id=None, limit=1)
        error: SecureDaguError | None = None
        while not isinstance(error, LinkRefused):
            try:
                await thief.runs(ADMIN, name=None, run_id=None, limit=1)
                raise AssertionError("a revoked certificate was admitted")
            except SecureDaguError as caught:
                error = caught
        assert error.verdict.label == "cert_revoked"
        await neighbour.runs(ADMIN, name=None, run_id=None, limit=1)


def test_a_coordinator_starts_with_what_it_knew_although_the_list_is_gone(cluster: Cluster) -> None:
    cluster.worker_host("w1")
    cluster.host.ok("pki", "revoke", "w1")
    with cluster.coordinator():
        pass
    (cluster.host.home / "pki" / "ca.crl").unlink()
    with cluster.coordinator() as coordinator, cluster.unready_worker("w1", host=Host(cluster.root / "w1")):
        coordinator.wait_for("link.refused.*cert_revoked")


def test_twenty_swaps_and_a_rotation_under_load_break_nothing(tmp_path: Path) -> None:
    outcome = asyncio.run(load.under_load(LoadedCluster(tmp_path), swaps=20, rotate=True))
    assert outcome.calls > 100
    assert (outcome.failed, outcome.refused, outcome.told, outcome.is_log_whole) == ({}, {}, [], True)
    assert max(outcome.seen_s) < 5


def test_the_commands_of_a_rotation_say_who_is_behind(cluster: Cluster) -> None:
    host = cluster.host
    host.ok("pki", "issue", "worker", "w1")
    host.ok("pki", "rotate", "prepare")
    host.ok("pki", "rotate", "activate")
    report = json.loads(host.ok("pki", "rotate", "status", "--json"))
    assert report["behind"] == ["worker/w1"]
    refused = host.run("pki", "rotate", "retire")
    assert refused.returncode == 3
    assert "worker/w1" in refused.stderr
    host.ok("pki", "rotate", "retire", "--force")
    host.ok("pki", "rotate", "finish")
    assert json.loads(host.ok("pki", "rotate", "status", "--json"))["rotation"] is None


def test_a_list_is_signed_anew_in_good_time_where_the_ca_is(cluster: Cluster) -> None:
    pki = cluster.host.home / "pki"
    cluster.worker_host("w1")
    cluster.host.ok("pki", "revoke", "w1")
    trusted = material.read_trust(pki / "ca.crt")
    first = crl.read(pki / "ca.crl", trusted).revocation
    now = datetime.now(UTC)
    assert not is_due(pki, first, now)
    assert is_due(pki, first, now + timedelta(days=16))
    sign_again(pki, None)
    second = crl.read(pki / "ca.crl", trusted, last=first).revocation
    assert second.number > first.number
    assert second.lists[0].serials == first.lists[0].serials
