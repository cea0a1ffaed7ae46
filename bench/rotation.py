"""Certificates and the CA are replaced under load: what breaks, and how long a change and a revocation take."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec import Struct, field

from bench.cluster import OPERATOR, Cluster, new_cluster, quantile, task
from bench.runs import Row
from secure_dagu.assembly.reload import Reload, watch
from secure_dagu.config.peers import PeerFiles
from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import LogStream, Role
from secure_dagu.errors import SecureDaguError
from secure_dagu.link import context, dialer, private
from secure_dagu.link.context import ClientPolicy
from secure_dagu.pki import directory, files, pair
from secure_dagu.pki.authority import utc_now
from secure_dagu.pki.files import Pem
from secure_dagu.pki.names import parse_names
from secure_dagu.pki.profiles import load_profiles
from secure_dagu.pki.rotation import Rotation
from secure_dagu.run.model import RunStatus
from secure_dagu.security.identity import Identity
from secure_dagu.security.peer import Peer
from secure_dagu.security.revocation import Revocation, RevocationList, Standing
from secure_dagu.telemetry import metrics
from secure_dagu.wire.routes import WireRoutes

RELOAD = timedelta(milliseconds=200)
MOVED = ("Poll", "WatchCancellations")
"""Calls without an end: a worker that connects anew ends them itself, and begins them again."""
LINES = (
    "steps:\n  - id: a\n"
    "    run: n=0; while [ ! -e {gate} ]; do n=$((n+1)); echo line $n; sleep 0.02; done; echo end $n\n"
)


class Outcome(Struct, kw_only=True):
    """What happened under load."""

    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Calls of the client that ended with an error."""
    refused: Counter[str] = field(default_factory=Counter)
    """Calls that the coordinator ended with an error, by method and status."""
    told: list[str] = field(default_factory=list)
    """What the worker complained of."""
    seen_s: list[float] = field(default_factory=list)
    """From a new certificate on disk to the first handshake that shows it."""
    is_log_whole: bool = False

    @property
    def failures(self) -> int:
        """Return everything that went wrong."""
        return sum(self.failed.values()) + sum(self.refused.values()) + len(self.told) + (not self.is_log_whole)


@asynccontextmanager
async def _current_client(cluster: Cluster) -> AsyncIterator[tuple[Coordinator, dialer.Dialer]]:
    """Open a client that follows its files as a worker does, and a dialer for probes."""
    pki = cluster.pki
    paths = PeerFiles(cert=pki / "operator.crt", key=pki / "operator.key", ca=pki / "ca.crt", source="bench")
    reload: Reload[ClientPolicy] = Reload(
        paths,
        crl_file=None,
        read=lambda of: context.client_material(cert=of.cert, key=of.key, ca=of.ca),
        make=lambda found, lists: context.client_from(found, lists=lists),
    )
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(private.folder())
        dialers = await stack.enter_async_context(dialer.dialers(policy=reload.policy, directory=folder))
        routes = WireRoutes(
            [("localhost", cluster.port)], connect=dialers.connect, recorder=metrics.RPC_CLIENT, is_proven=True
        )
        stack.push_async_callback(routes.close)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        started: list[asyncio.Task[None]] = []

        async def used(policy: ClientPolicy) -> None:
            dialers.use(policy)
            started.append(group.create_task(routes.renew(lambda _address, _problem: None)))

        started.append(group.create_task(watch(reload, RELOAD, told=lambda _change: None, used=used)))
        try:
            yield routes.listed()[0], await dialers.connect("localhost", cluster.port)
        finally:
            for doomed in started:
                doomed.cancel()


async def under_load(cluster: Cluster, *, swaps: int, rotate: bool) -> Outcome:
    """Swap every leaf `swaps` times and rotate the CA, while two clients call and a run logs without rest."""
    outcome = Outcome()
    gate = cluster.root / "gate"
    words = f"--peer.reload-interval={int(RELOAD.total_seconds() * 1000)}ms"
    with cluster.coordinator(words), cluster.worker("w1", words):
        async with _current_client(cluster) as (coordinator, probe):
            run = task("chatty", "r1", LINES.format(gate=gate))
            await coordinator.dispatch(OPERATOR, run)
            done = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for _ in range(2):
                    group.create_task(_call(coordinator, outcome, done))
                for _ in range(swaps):
                    outcome.seen_s.append(await _swap(cluster, probe))
                if rotate:
                    await _rotate(cluster, probe)
                gate.touch()
                await _ended(coordinator)
                done.set()
            log = b"".join([piece async for piece in coordinator.read_log(
                OPERATOR, run=run.run, step="a", stream=LogStream.STDOUT, offset=0
            )])  # fmt: skip
            outcome.is_log_whole = _is_whole(log)
        outcome.refused = _refused(cluster)
    outcome.told = [line for line in _log_of(cluster, "w1").splitlines() if re.search(
        r"coordinator\.(unreachable|refused)|logs\.(interrupted|lost)|not_reconnected|certificate\.refused", line
    )]  # fmt: skip
    return outcome


async def _call(coordinator: Coordinator, outcome: Outcome, done: asyncio.Event) -> None:
    while not done.is_set():
        try:
            await coordinator.runs(OPERATOR, name=None, run_id=None, limit=1)
        except SecureDaguError as error:
            outcome.failed[str(error)[:120]] += 1
        outcome.calls += 1
        await asyncio.sleep(0.005)


async def _ended(coordinator: Coordinator) -> None:
    async with asyncio.timeout(30):
        while not any(RunStatus(row.status).is_terminal for row in await coordinator.runs(
            OPERATOR, name="chatty", run_id="r1", limit=1
        )):  # fmt: skip
            await asyncio.sleep(0.05)


async def _swap(cluster: Cluster, probe: dialer.Dialer) -> float:
    """Replace the leaf of the coordinator and of the worker; return when the coordinator's was first shown."""
    serial, at = _issue(cluster, Role.COORDINATOR, "coordinator", cluster.pki), time.perf_counter()
    worker = _issue(cluster, Role.WORKER, "w1", cluster.root / "w1" / "pki")
    await _until(lambda: _shows(probe, serial))
    took = time.perf_counter() - at
    await _until(lambda: _says(cluster, "w1", f"certificates.loaded.*{worker:x}"))
    return took


async def _rotate(cluster: Cluster, probe: dialer.Dialer) -> None:
    rotation, theirs = Rotation(cluster.pki), cluster.root / "w1" / "pki"

    def hand_out() -> None:
        files.write(theirs, Pem("ca.crt", (cluster.pki / "ca.crt").read_bytes()), replace=True)

    rotation.prepare(now=utc_now())
    hand_out()
    await _until(lambda: _says(cluster, "coordinator", "certificates.loaded.*cas=2"))
    await _until(lambda: _says(cluster, "w1", "certificates.loaded.*cas=2"))
    rotation.activate(now=utc_now())
    serial = directory.ledger(cluster.pki).current("coordinator", "coordinator")
    assert serial is not None, "activation issues it"
    await _until(lambda: _shows(probe, int(serial.serial, 16)))
    worker = _issue(cluster, Role.WORKER, "w1", theirs)
    await _until(lambda: _says(cluster, "w1", f"certificates.loaded.*{worker:x}"))
    await _until(lambda: _is_new(rotation, worker))
    rotation.retire(now=utc_now())
    hand_out()
    await _until(lambda: _says(cluster, "w1", f"certificates.loaded.*{worker:x}.*cas=1|cas=1.*{worker:x}"))
    await asyncio.sleep(1.0)
    rotation.finish(now=utc_now())


async def _is_new(rotation: Rotation, worker: int) -> bool:
    """Tell whether everybody who is connected presents the new CA's certificates."""
    report = rotation.report(now=utc_now())
    return not report.behind and any(one.serial == f"{worker:x}" and one.seen == "new" for one in report.holders)


def _issue(cluster: Cluster, role: Role, name: str, target: Path) -> int:
    ca = directory.open_ca(cluster.pki)
    before = ca.ledger.current(role.value, name)
    names = parse_names(before.names) if before is not None else ()
    made = ca.issue(load_profiles().roles[role], name, now=utc_now(), names=names)
    pair.write(target, name, certificate=made.certificate, key=made.key)
    return int(made.entry.serial, 16)


async def _until(probe: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            found = probe()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.02)


async def _shows(probe: dialer.Dialer, serial: int) -> bool:
    return (await probe.check()).serial == serial


def _says(cluster: Cluster, name: str, pattern: str) -> bool:
    return re.search(pattern, _log_of(cluster, name)) is not None


def _log_of(cluster: Cluster, name: str) -> str:
    return "".join(path.read_text() for path in sorted((cluster.root / name).glob(f"{name}-*.log")))


def _refused(cluster: Cluster) -> Counter[str]:
    found: Counter[str] = Counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for line in text.splitlines():
        if not line.startswith("grpc_server_handled_total{") or 'grpc_code="OK"' in line:
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        is_move = labels["grpc_method"] in MOVED and labels["grpc_code"] == "Canceled"
        count = int(float(line.rsplit(" ", 1)[1]))
        if count and not is_move:
            found[f"{labels['grpc_method']} {labels['grpc_code']}"] += count
    return found


def _is_whole(log: bytes) -> bool:
    lines = log.decode().splitlines()
    count = len(lines) - 1
    return count > 0 and lines[:-1] == [f"line {n}" for n in range(1, count + 1)] and lines[-1] == f"end {count}"


async def rotation() -> list[Row]:
    """Swap both ends' certificates 100 times and the CA once, under load; time to revoke; cost of the check a call."""
    with new_cluster() as cluster:
        done = await under_load(cluster, swaps=100, rotate=True)
    if done.failures:
        print(json.dumps({"failed": done.failed, "refused": done.refused, "told": done.told[:10]}, indent=1))
    worst = max(done.seen_s)
    revoked = await time_to_revoke()
    check_ns = cost_of_check()
    return [
        ("calls during 100 swaps and one CA rotation", done.calls, "", "", None),
        ("failed calls", sum(done.failed.values()) + sum(done.refused.values()), "", "0", done.failures == 0),
        ("broken log streams, worker complaints", len(done.told) + (not done.is_log_whole), "", "0", not done.told),
        ("new certificate on disk to first handshake with it, worst", worst, "s", "<= 5", worst <= 5),
        ("CRL on disk to links cut, median of 5 (looks every 1 s)", quantile(revoked, 0.5), "s", "<= 2", None),
        ("CRL on disk to links cut, worst of 5", max(revoked), "s", "<= 2", max(revoked) <= 2),
        ("standing check a call, 10,000 revoked", check_ns, "ns", "<= 2000", check_ns <= 2000),
    ]


async def time_to_revoke() -> list[float]:
    """From `ca.crl` on disk to the end of the live link, as its holder sees it, with the default interval of 1 s."""
    from secure_dagu.pki import crl

    took = []
    with new_cluster() as cluster, cluster.coordinator():
        for number in range(5):
            name = f"victim-{number}"
            _issue(cluster, Role.ADMIN, name, cluster.pki)
            policy = context.client_policy(
                cert=cluster.pki / f"{name}.crt", key=cluster.pki / f"{name}.key", ca=cluster.pki / "ca.crt"
            )
            with private.folder() as folder:
                async with dialer.dialers(policy=policy, directory=folder) as dialers:
                    way = await dialers.connect("localhost", cluster.port)
                    reader, writer = await asyncio.open_unix_connection(way.target.removeprefix("unix:"))
                    await reader.read(9)
                    ca = directory.open_ca(cluster.pki)
                    crl.revoke(
                        cluster.pki,
                        [ca],
                        crl.find(ca.ledger, name, now=utc_now()),
                        reason="keyCompromise",
                        now=utc_now(),
                    )
                    began = time.perf_counter()
                    async with asyncio.timeout(10):
                        while await reader.read(1 << 16):
                            pass
                    took.append(time.perf_counter() - began)
                    writer.close()
    return took


def cost_of_check() -> float:
    """Nanoseconds of one look at a peer's standing."""
    issuer = hashlib.sha256(b"ca").hexdigest()
    now = datetime.now(UTC)
    revocation = Revocation(
        lists=(
            RevocationList(
                issuer=issuer, issuer_name="ca", number=1, this_update=now, next_update=now + timedelta(days=1),
                serials=frozenset(hash((n, "x")) << 96 | n for n in range(10_000)),
            ),
        )
    )  # fmt: skip
    standing = Standing(trusted=[issuer], revocation=revocation, grace=timedelta(days=1))
    peer = Peer(
        connection="unix:/x", address="192.0.2.1:1", identity=Identity("example", Role.WORKER, "w1"), serial=1 << 150,
        issuers=(issuer,), not_after=now + timedelta(days=1),
    )  # fmt: skip
    times = 50_000
    found = []
    for _ in range(5):
        began = time.process_time_ns()
        for _ in range(times):
            standing.objection(peer, now)
        found.append((time.process_time_ns() - began) / times)
    return min(found)
