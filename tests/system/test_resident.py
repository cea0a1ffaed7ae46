"""What a coordinator and a worker that have nothing to do hold in memory: only what they need for that."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.system.conftest import Cluster
from tests.system.hosts import Host, Service

PROGRAM = """
import os, signal, sys
# Past the buffers, in which the process may be writing a line at this moment.
signal.signal(signal.SIGUSR1, lambda *_: os.write(2, ("\\nmodules: " + " ".join(sys.modules.copy()) + "\\n").encode()))
from secure_dagu.cli import main
sys.exit(main.main(sys.argv[1:]))
"""

NOBODY = (
    r"rich|greenlet|difflib|pydantic\w*|starlette|uvicorn|jinja2|alembic|httpx|httptools|requests|asyncssh|boto3|psycopg|redis"
    r"|zipfile|csv|lzma|bz2|stringprep|importlib\.(metadata\._\w+|resources)|google\.protobuf\.(text_format|internal\.decoder)"
    r"|http\.(client|server)|urllib\.request|socketserver|wsgiref|html|mimetypes|unittest|multiprocessing"
    r"|ruamel|secure_dagu\.dag\.(load|nodes|values)|secure_dagu\.(web|local|scheduler)|secure_dagu\.runner\.(runner|executors)"
)
"""Servers and clients that other commands are, and what comes with the first definition."""
WORKER = (
    r"pickle|zoneinfo|tomllib|h11|sqlalchemy|sqlite3|tarfile|typing_extensions"
    r"|secure_dagu\.coordinator|secure_dagu\.assembly\.(coordinator|enrolment|recording|audit)|secure_dagu\.run\.machine"
    r"|secure_dagu\.pki\.(authority|certificates|directory|enrolment|opening|profiles)"
    r"|secure_dagu\.(audit|dag|runner\.api|dispatch\.operating|security\.compliance)"
    r"|secure_dagu\.worker\.(artifacts|bundles|checks|children|documents|job|logs|statuses)"
)
COORDINATOR = r"secure_dagu\.worker|secure_dagu\.runner|secure_dagu\.assembly\.worker"


@contextmanager
def program(host: Host, *words: str) -> Iterator[Service]:
    """Run a service that tells its modules at SIGUSR1."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], env=host.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    running = Service(process)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        running.wait()
        assert process.stdout is not None
        process.stdout.close()


def modules(service: Service) -> list[str]:
    service.signal(signal.SIGUSR1)
    return service.wait_for("^modules: ").split()[1:]


def unneeded(names: list[str], pattern: str) -> list[str]:
    return [name for name in names if re.match(rf"(?:{pattern})(?:\.|\Z)", name)]


def test_idle_services_hold_nothing_that_only_a_job_or_another_command_needs(cluster: Cluster) -> None:
    """Resident memory is what one pays for each worker of a fleet; a heavy import shows in no other test."""
    with (
        program(
            cluster.host, "coordinator", f"--coordinator.port={cluster.port}", "--coordinator.health-port=0",
            "--coordinator.advertise=localhost",
        ) as coordinator,
    ):  # fmt: skip
        coordinator.wait_for("coordinator.ready")
        host = cluster.worker_host("w1")
        with program(
            host, "worker", "--worker.id=w1", "--worker.health-port=0", f"--worker.coordinators={cluster.address}"
        ) as worker:
            worker.wait_for("coordinator.reached")
            held = {"coordinator": modules(coordinator), "worker": modules(worker)}
    assert "sqlalchemy" in held["coordinator"], "the test looks at the right process"
    assert unneeded(held["coordinator"], f"{NOBODY}|{COORDINATOR}") == []
    assert unneeded(held["worker"], f"{NOBODY}|{WORKER}") == []
