"""Several coordinators, forwarders in the way, drained workers, rolling restarts: the fleet as it is operated."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import PROGRAM, Host, Service

QUICK = "steps:\n  - id: a\n    run: echo done\n"


def until(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Ask again and again until something holds."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it did not come to hold"
        threading.Event().wait(0.05)


def status_of(host: Host, flag: str, dag: str, run_id: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(host.ok("status", dag, "-r", run_id, flag, "--json"))["run"]
    return found


class Forwarder:
    """A TCP forwarder; `freeze` makes what is behind it vanish without a word."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._moves = threading.Event()
        self._moves.set()
        self._is_over = False
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                came, _ = self._listening.accept()
                gone = socket.create_connection(("127.0.0.1", self._to))
                self._open += [came, gone]
                for one, other in ((came, gone), (gone, came)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self._moves.wait()
                if self._is_over:
                    return
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def freeze(self) -> None:
        self._moves.clear()

    def thaw(self) -> None:
        self._moves.set()

    def close(self) -> None:
        self._is_over = True
        self._moves.set()
        for one in (self._listening, *self._open):
            one.close()


@contextmanager
def forwarder(port: int) -> Iterator[Forwarder]:
    made = Forwarder(port)
    try:
        yield made
    finally:
        made.close()


def second_coordinator(cluster: Cluster) -> tuple[Host, int]:
    """Return a host with a coordinator's certificate of the same CA, and a port for it."""
    host = cluster.new_host("second")
    pki = host.home / "pki"
    cluster.host.ok("pki", "issue", "coordinator", "second", "--advertise", "localhost", "--out", str(pki))
    for kind in ("crt", "key"):
        (pki / f"second.{kind}").rename(pki / f"coordinator.{kind}")
    return host, free_port()


@contextmanager
def serving(host: Host, port: int, *more: str) -> Iterator[Service]:
    with host.service(
        "coordinator", f"--coordinator.port={port}", "--coordinator.health-port=0",
        "--coordinator.advertise=localhost", f"--coordinator.id=c@{port}", *more,
    ) as running:  # fmt: skip
        running.wait_for("coordinator.ready")
        yield running


def test_a_killed_coordinator_costs_no_run_at_the_other_and_no_byte_of_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    host, port = second_coordinator(cluster)
    both = f"{cluster.address},localhost:{port}"
    text = "steps:\n  - id: a\n    run: for i in $(seq 1 400); do echo line $i; sleep 0.01; done\n"
    (tmp_path / "long.yaml").write_text(text)
    (tmp_path / "quick.yaml").write_text(QUICK)
    with (
        serving(host, port) as second,
        cluster.coordinator() as first,
        cluster.worker("w1", f"--worker.coordinators={both}") as worker,
    ):
        worker.wait_for(f"coordinator.reached.*{cluster.port}")
        worker.wait_for(f"coordinator.reached.*{port}")
        cluster.host.ok("dispatch", str(tmp_path / "long.yaml"), cluster.operator, "--run-id=r1")
        until(lambda: "line 1\n" in cluster.host.run("logs", "long", "-r", "r1", "--step=a", cluster.operator).stdout)
        first.signal(signal.SIGKILL)
        first.wait()
        told = cluster.host.ok(
            "dispatch", str(tmp_path / "quick.yaml"), f"--coordinators={both}", "--run-id=q1", "--follow"
        )
        assert "done" in told
        took = second.at("run.reported_end.*q1") - second.at("task.dispatched.*q1")
        assert took < timedelta(seconds=6)
        with cluster.coordinator():
            until(lambda: status_of(cluster.host, cluster.operator, "long", "r1")["status"] == "succeeded")
            log = cluster.host.ok("logs", "long", "-r", "r1", "--step=a", cluster.operator)
            assert log == "".join(f"line {number}\n" for number in range(1, 401))


def test_a_vanished_host_does_not_hold_the_only_slot(cluster: Cluster, tmp_path: Path) -> None:
    host, port = second_coordinator(cluster)
    (tmp_path / "quick.yaml").write_text(QUICK)
    with serving(host, port) as second, cluster.coordinator(), forwarder(cluster.port) as way:
        listed = f"--worker.coordinators=localhost:{way.port},localhost:{port}"
        with cluster.worker("w1", listed, "--worker.max-active-runs=1") as worker:
            worker.wait_for(f"coordinator.reached.*{way.port}")
            worker.wait_for(f"coordinator.reached.*{port}")
            way.freeze()
            flag = f"--coordinators=localhost:{port}"
            for number in range(2):
                cluster.host.ok("dispatch", str(tmp_path / "quick.yaml"), flag, f"--run-id=q{number}", "--follow")
                took = second.at(f"run.reported_end.*q{number}") - second.at(f"task.dispatched.*q{number}")
                assert took < timedelta(seconds=6), "a poll's turn would be 10 s"
            way.thaw()
            (tmp_path / "back.yaml").write_text(QUICK)
            cluster.host.ok("dispatch", str(tmp_path / "back.yaml"), cluster.operator, "--run-id=b1", "--follow")


def test_a_forwarded_and_a_direct_worker_mix(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    home = cluster.host.home
    cluster.host.ok(
        "pki", "issue", "coordinator", "coordinator", "--force", "--out", str(home / "pki"),
        "--advertise", "coordinator.internal", "--advertise", "localhost", "--advertise", "127.0.0.1",
    )  # fmt: skip
    (tmp_path / "pair.yaml").write_text(QUICK)
    names = ["--coordinator.advertise=coordinator.internal,localhost"]
    with (
        cluster.coordinator(*names),
        forwarder(cluster.port) as way,
        cluster.worker("far", f"--worker.coordinators=127.0.0.1:{way.port}") as far,
    ):
        cluster.host.ok("dispatch", str(tmp_path / "pair.yaml"), cluster.operator, "--run-id=r1", "--follow")
        assert "owner.unreachable" not in far.text, "the same certificate proves both addresses"
        with cluster.worker("near"):
            for number in range(2, 6):
                told = cluster.host.ok(
                    "dispatch", str(tmp_path / "pair.yaml"), cluster.operator, f"--run-id=r{number}", "--follow"
                )
                assert "done" in told


def test_coordinators_and_workers_find_each_other_in_a_shared_folder(cluster: Cluster, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    config = f"paths:\n  service_registry_dir: {shared}\n"
    host = cluster.worker_host("w1")
    for one in (cluster.host, host):
        (one.home / "config.yaml").write_text(config)
    (tmp_path / "found.yaml").write_text(QUICK)
    with cluster.coordinator() as running:
        (entry,) = (shared / "coordinator").glob("*.json")
        told = json.loads(entry.read_text())
        assert {"id", "host", "port", "pid", "status", "startedAt"} == told.keys()
        assert (entry.stat().st_mode & 0o777, told["port"], told["status"]) == (0o600, cluster.port, 1)
        with host.service("worker", "--worker.id=w1", "--worker.health-port=0") as worker:
            worker.wait_for("worker.coordinators_found")
            worker.wait_for("coordinator.reached")
            assert "done" in cluster.host.ok("dispatch", str(tmp_path / "found.yaml"), "--run-id=r1", "--follow")
            hostile = {"id": "evil@1", "host": "127.0.0.1", "port": free_port(), "pid": 1, "status": 1}
            hostile["startedAt"] = "2099-01-01T00:00:00Z"
            (shared / "coordinator" / "evil_1.json").write_text(json.dumps(hostile))
            assert "done" in cluster.host.ok("dispatch", str(tmp_path / "found.yaml"), "--run-id=r2", "--follow")
        running.stop()
        assert not entry.exists(), "an orderly end takes the entry along"


@pytest.mark.timeout(400)  # some thirty commands one after another
def test_a_drained_worker_gets_nothing_new_over_a_restart_until_it_is_freed(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(QUICK)
    (tmp_path / "long.yaml").write_text("steps:\n  - id: a\n    run: echo begun; sleep 3; echo over\n")

    def runs_on(run_id: str) -> str:
        cluster.host.ok("dispatch", str(tmp_path / "quick.yaml"), cluster.operator, f"--run-id={run_id}", "--follow")
        return status_of(cluster.host, cluster.operator, "quick", run_id)["worker"]

    def worker(name: str) -> dict[str, Any]:
        found = json.loads(cluster.host.ok("workers", cluster.operator, "--json"))["workers"]
        return next((one for one in found if one["id"] == name), {})

    with cluster.coordinator() as first, cluster.worker("w1") as w1:
        cluster.host.ok("dispatch", str(tmp_path / "long.yaml"), cluster.operator, "--run-id=r1")
        until(lambda: status_of(cluster.host, cluster.operator, "long", "r1")["status"] == "running")
        cluster.host.ok("drain", "w1", "--wait", cluster.operator)
        assert status_of(cluster.host, cluster.operator, "long", "r1")["status"] == "succeeded"
        with cluster.worker("w2"):
            assert {runs_on(f"a{number}") for number in range(3)} == {"w2"}
            shown = worker("w1")
            assert (shown["state"], shown["health"]) == ("draining", "healthy")
            assert shown["identity"].endswith("/worker/w1")
            assert shown["tlsVersion"] == "TLSv1.3"
            assert shown["version"]
            first.stop()
            with cluster.coordinator():
                until(lambda: worker("w1").get("health") == "healthy" and bool(worker("w2")))
                assert worker("w1")["state"] == "draining"
                assert {runs_on(f"b{number}") for number in range(3)} == {"w2"}
                cluster.host.ok("drain", "w1", "--undo", cluster.operator)
                assert worker("w1")["state"] == "active"
                assert "w1" in {runs_on(f"c{number}") for number in range(3)}
                w1.stop()
                assert worker("w1")["lost"] is True
                assert cluster.host.run("drain", "nobody", cluster.operator).returncode == 1


def test_workers_restarted_one_after_another_lose_no_run(cluster: Cluster, tmp_path: Path) -> None:
    names = ("w1", "w2", "w3")
    hosts = {name: cluster.worker_host(name) for name in names}
    (tmp_path / "step.yaml").write_text("steps:\n  - id: a\n    run: sleep 0.3; echo done\n")
    sent: list[str] = []
    stop = threading.Event()
    problems: list[str] = []

    def stream() -> None:
        while not stop.is_set():
            run_id = f"r{len(sent)}"
            done = subprocess.run(
                [str(PROGRAM), "dispatch", str(tmp_path / "step.yaml"), cluster.operator, f"--run-id={run_id}"],
                env=cluster.host.environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            sent.append(run_id)
            if done.returncode:
                problems.append(done.stderr)

    with cluster.coordinator(), ExitStack() as stack:
        running = {name: stack.enter_context(cluster.worker(name, host=hosts[name])) for name in names}
        sender = threading.Thread(target=stream)
        sender.start()
        try:
            for name in names:
                before = len(sent)
                until(partial(lambda before: len(sent) >= before + 2, before))
                assert running[name].stop() == 0
                stack.enter_context(cluster.worker(name, host=hosts[name]))
        finally:
            stop.set()
            sender.join()
        assert not problems
        assert len(sent) >= 6

        def are_over() -> bool:
            found = json.loads(cluster.host.ok("status", "--limit=500", cluster.operator, "--json"))["runs"]
            return {one["runId"] for one in found} == set(sent) and all(one["status"] == "succeeded" for one in found)

        until(are_over)
