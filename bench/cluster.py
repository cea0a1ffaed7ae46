"""Real processes to measure: a coordinator, workers, and a client with the operator's certificate."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from secure_dagu.dispatch.api import Coordinator
from secure_dagu.dispatch.model import Caller, Operation, Role, Task
from secure_dagu.link import context, dialer, private
from secure_dagu.run.model import DagRunRef
from secure_dagu.telemetry import metrics
from secure_dagu.wire.routes import WireRoutes
from tests.ports import free_port
from tests.system.hosts import PROGRAM, Host

OPERATOR = Caller(role=Role.ADMIN, name="operator", proven=True)


@dataclass
class Cluster:
    """Folders, certificates and addresses."""

    root: Path
    port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        (self.root / "coordinator").mkdir()
        self.host = Host(self.root / "coordinator")
        self.host.ok("pki", "init", "--advertise", "localhost")
        self.pki = self.host.home / "pki"

    def worker_host(self, name: str) -> Host:
        """Return a host with the certificate of a worker."""
        host = Host(self.root / name)
        host.home.mkdir(exist_ok=True)
        if not (host.home / "pki" / f"{name}.crt").exists():
            self.host.ok("pki", "issue", "worker", name, "--out", str(host.home / "pki"))
        return host

    @contextmanager
    def coordinator(self, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the coordinator."""
        words = [
            "coordinator", f"--coordinator.port={self.port}", f"--coordinator.health-port={self.health_port}",
            "--coordinator.advertise=localhost", *more,
        ]  # fmt: skip
        with process(self.host, "coordinator", words, ready="coordinator.ready") as running:
            yield running

    @contextmanager
    def worker(self, name: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker."""
        words = [
            "worker", f"--worker.id={name}", "--worker.health-port=0", f"--worker.coordinators=localhost:{self.port}",
            *more,
        ]  # fmt: skip
        with process(self.worker_host(name), name, words, ready="coordinator.reached") as running:
            yield running


@contextmanager
def process(host: Host, name: str, words: Sequence[str], *, ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service until its log says `ready`; end it with SIGTERM, then SIGKILL."""
    log = host.home / f"{name}-{time.monotonic_ns()}.log"
    with log.open("wb") as sink:
        running = subprocess.Popen([str(PROGRAM), *words], env=host.environment, stdout=sink, stderr=sink)
    try:
        until = time.monotonic() + 30
        while ready not in log.read_text():
            if running.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{name} did not start:\n{log.read_text()}")
            time.sleep(0.02)
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(timeout=20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


@contextmanager
def new_cluster() -> Iterator[Cluster]:
    """Make a cluster in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="secure-dagu-bench-") as folder:
        yield Cluster(Path(folder))


@asynccontextmanager
async def client(cluster: Cluster, name: str = "operator", folder: Path | None = None) -> AsyncIterator[Coordinator]:
    """Open a client with a certificate of the cluster, over our own edge."""
    pki = folder or cluster.pki
    policy = context.client_policy(cert=pki / f"{name}.crt", key=pki / f"{name}.key", ca=pki / "ca.crt")
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(private.folder())
        dialers = await stack.enter_async_context(dialer.dialers(policy=policy, directory=directory))
        routes = WireRoutes(
            [("localhost", cluster.port)], connect=dialers.connect, recorder=metrics.RPC_CLIENT, is_proven=True
        )
        stack.push_async_callback(routes.close)
        yield routes.listed()[0]


def task(name: str, run_id: str, text: str) -> Task:
    """Return a root task."""
    ref = DagRunRef(name, run_id)
    return Task(operation=Operation.START, run=ref, root=ref, definition=text)


async def run_to_end(coordinator: Coordinator, asked: Task) -> str:
    """Dispatch and follow to the recorded end; return the final document."""
    await coordinator.dispatch(OPERATOR, asked)
    document = ""
    async for event in coordinator.follow(OPERATOR, run=asked.run, with_logs=False):
        document = event.status or document
    return document


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
