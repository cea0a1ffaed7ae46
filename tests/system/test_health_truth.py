"""What breaks is told by `/health` and `/ready` of whom it concerns, and they are well again when it is mended."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import Host


def asked(url: str) -> tuple[int, Any]:
    """Return status and document."""
    answer = httpx.get(url, timeout=10)
    return answer.status_code, answer.json()


def until(url: str, holds: Callable[[int, Any], bool]) -> Any:
    """Wait until an answer is as wanted."""
    end = time.monotonic() + 60
    while not holds(*(found := asked(url))):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found[1]


def scheduler_runs(base: str) -> float:
    """Return what the metric of a server says of schedulers."""
    found = re.search(r"^dagu_scheduler_running (\S+)$", httpx.get(f"{base}/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def broken(name: str) -> Callable[[int, Any], bool]:
    """Return what tells that one check, and no other, says no."""
    return lambda status, told: (
        status == 503 and [check for check, found in told["checks"].items() if not found["ok"]] == [name]
    )


def well(status: int, told: Any) -> bool:
    """Tell whether somebody says that all is well."""
    return status == 200 and told.get("ready", told.get("status")) in (True, "healthy")


def test_a_data_directory_that_is_lost_is_told_by_everybody_who_needs_it(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    host.home.mkdir()
    host.ok("pki", "init", "--advertise", "localhost")
    web, coordinator, health = free_port(), free_port(), free_port()
    words = [f"--port={web}", "--scheduler.port=0", f"--coordinator.port={coordinator}"]
    words += ["--coordinator.advertise=localhost", f"--coordinator.health-port={health}"]
    base = f"http://127.0.0.1:{web}/api/v1"
    with host.service("start-all", *words) as service:
        service.wait_for(r"msg=ready\s")
        until(f"{base}/health", well)
        (host.home / "data").rename(host.home / "data.gone")
        (host.home / "data").touch()  # a file: nobody makes the folder anew, root neither
        told = until(f"{base}/health", lambda status, told: status == 503 and not told["checks"]["store"]["ok"])
        assert told["status"] == "unhealthy"
        assert "cannot be written" in told["checks"]["store"]["message"]
        assert str(host.home) not in str(told)
        status, told = asked(f"{base}/ready")
        assert (status, told["ready"]) == (503, False)
        assert "store" in told["because"]
        until(f"http://127.0.0.1:{health}/ready", lambda status, _: status == 503)
        assert asked(f"http://127.0.0.1:{health}/health")[0] == 200, "the process lives: a restart would mend nothing"
        (host.home / "data").unlink()
        (host.home / "data.gone").rename(host.home / "data")
        until(f"{base}/health", well)
        until(f"http://127.0.0.1:{health}/ready", well)


def test_a_server_tells_when_its_coordinator_or_every_scheduler_is_gone(cluster: Cluster) -> None:
    port = free_port()
    (cluster.host.home / "config.yaml").write_text("metrics: public\n")
    words = [f"--coordinators={cluster.address}", f"--port={port}"]
    base = f"http://127.0.0.1:{port}/api/v1"
    with cluster.host.service("server", *words) as serving:
        serving.wait_for(r"msg=ready\s")
        with cluster.coordinator() as coordinating:
            until(f"{base}/health", broken("scheduler"))
            assert well(*asked(f"{base}/ready")), "it does its own work"
            with cluster.host.service("scheduler", words[0], "--scheduler.port=0") as scheduling:
                scheduling.wait_for("scheduler.active")
                until(f"{base}/health", well)
                assert scheduler_runs(base) == 1
                coordinating.stop()
                told = until(f"{base}/health", broken("coordinator"))
                assert told["checks"]["coordinator"]["message"]
                assert well(*asked(f"{base}/ready"))
                scheduling.stop()
            until(f"{base}/health", lambda _, told: not told["checks"]["scheduler"]["ok"])
            assert scheduler_runs(base) == 0
