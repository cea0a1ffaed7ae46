"""A cluster of real processes over mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.hosts import Host, Service
from tests.system.lab import Lab, lab


@dataclass
class Cluster:
    """A coordinator's host with a CA, and worker hosts that got their certificates from it."""

    root: Path
    port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)
    under: tuple[str, ...] = ()
    """What every command runs under (`Host.under`)."""

    def __post_init__(self) -> None:
        self.host = self.new_host("coordinator")
        self.host.ok("pki", "init", "--advertise", "localhost")

    def new_host(self, name: str) -> Host:
        """Return an empty machine."""
        home = self.root / name
        home.mkdir()
        return Host(home, self.under)

    def worker_host(self, name: str, *, labels: str = "") -> Host:
        """Return a machine that holds the certificate of worker `name`, which grants `labels`."""
        host = self.new_host(name)
        granted = ["--labels", labels] if labels else []
        self.host.ok("pki", "issue", "worker", name, "--out", str(host.home / "pki"), *granted)
        return host

    @property
    def address(self) -> str:
        """Return what workers and operators dial."""
        return f"localhost:{self.port}"

    @property
    def operator(self) -> str:
        """Return the flag that points operator commands here."""
        return f"--coordinators={self.address}"

    @contextmanager
    def coordinator(self, *more: str) -> Iterator[Service]:
        """Run the coordinator until it is ready."""
        words = [
            "coordinator",
            f"--coordinator.port={self.port}",
            f"--coordinator.health-port={self.health_port}",
        ]
        if not any(word.startswith("--coordinator.advertise") for word in more):
            words.append("--coordinator.advertise=localhost")
        with self.host.service(*words, *more) as running:
            running.wait_for("coordinator.ready")
            yield running

    @contextmanager
    def worker(self, name: str, *more: str, host: Host | None = None) -> Iterator[Service]:
        """Run worker `name` until it is ready; without a host of its own, its certificate grants its labels."""
        with self.unready_worker(name, *more, host=host) as running:
            running.wait_for("coordinator.reached")
            yield running

    @contextmanager
    def unready_worker(self, name: str, *more: str, host: Host | None = None) -> Iterator[Service]:
        """Run worker `name`, ready or not."""
        words = ["worker", f"--worker.id={name}", "--worker.health-port=0"]
        if not any(word.startswith("--worker.coordinators") for word in more):
            words.append(f"--worker.coordinators={self.address}")
        labels = next((word.partition("=")[2] for word in more if word.startswith("--worker.labels=")), "")
        with (host or self.worker_host(name, labels=labels)).service(*words, *more) as running:
            yield running


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Return a cluster with certificates and nothing running."""
    return Cluster(tmp_path)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Lab]:
    """Return a lab without machines; needs root."""
    with lab(tmp_path) as made:
        yield made


@pytest.fixture
def running(cluster: Cluster) -> Iterator[Cluster]:
    """Return a cluster with a coordinator and the worker `w1` running."""
    with ExitStack() as stack:
        stack.enter_context(cluster.coordinator())
        stack.enter_context(cluster.worker("w1"))
        yield cluster
