"""`secure-dagu scheduler` as real processes: what it fires, what it says of itself, who takes over."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.ports import free_port
from tests.system.hosts import PATIENCE_S, Host, Service

DAGS, MISSED = 4, 8


def config(home: Path, text: str = "") -> None:
    (home / "config.yaml").write_text(
        "scheduler: {lock_stale_threshold: 1s, lock_retry_interval: 100ms, zombie_detection_interval: 200ms}\n" + text
    )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    home = tmp_path / "home"
    (home / "dags").mkdir(parents=True)
    config(home)
    return Host(home)


def missed(home: Path, *, minutes: int, dags: list[str]) -> datetime:
    """Say that a scheduler looked last some minutes ago; return that time."""
    at = (datetime.now(UTC) - timedelta(minutes=minutes)).replace(second=30, microsecond=0)
    state = home / "data" / "scheduler" / "state.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text(
        json.dumps({"lastTick": f"{at:%Y-%m-%dT%H:%M:%SZ}", "dags": dict.fromkeys(dags, f"{at:%Y-%m-%dT%H:%M:%SZ}")})
    )
    return at


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def until(condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_it_catches_up_tells_how_it_is_and_stops_in_good_order(host: Host) -> None:
    out, port = host.home / "out", free_port()
    (host.home / "dags" / "job.yaml").write_text(
        f"schedule: '* * * * *'\ncatchup_window: 1h\noverlap_policy: all\nsteps:\n  - id: a\n"
        f"    run: echo ${{context.run.scheduled_at}} ${{context.trigger.type}} | tr ' ' , >> {out}\n"
    )
    at = missed(host.home, minutes=6, dags=["job"]).replace(second=0)
    with host.service("scheduler", f"--scheduler.port={port}") as service:
        service.wait_for("scheduler.ready")
        until(lambda: len(lines(out)) >= 3)
        wanted = [f"{at + timedelta(minutes=number):%Y-%m-%dT%H:%M:%SZ},catchup" for number in range(1, 4)]
        assert lines(out)[:3] == wanted
        status, body = get(port, "/health")
        assert (status, json.loads(body)["role"]) == (200, "active")
        assert get(port, "/ready")[0] == 200
        series = get(port, "/metrics")[1]
        for text in ("dagu_scheduler_running 1.0", 'starts_total{result="started",trigger="catchup"}', "queue_depth"):
            assert text in series
        (registered,) = (host.home / "data" / "service-registry" / "scheduler").glob("*.json")
        assert json.loads(registered.read_text())["status"] == 1
        assert service.stop() == 0
        assert not registered.exists()


def test_what_cannot_work_is_said_at_the_start(host: Host) -> None:
    port = free_port()
    with host.service("scheduler", f"--scheduler.port={port}") as first:
        first.wait_for("scheduler.ready")
        taken = host.run("scheduler", f"--scheduler.port={port}")
        assert (taken.returncode, "scheduler.port" in taken.stderr) == (3, True), taken.stderr
    config(host.home, "tz: Mars/Olympus\n")
    zone = host.run("scheduler")
    assert (zone.returncode, "Mars/Olympus" in zone.stderr) == (3, True), zone.stderr
    config(host.home)
    (host.home / "file").write_text("")
    folder = host.run("scheduler", f"--dags={host.home}/file/dags")
    assert (folder.returncode, "paths.dags_dir" in folder.stderr) == (3, True), folder.stderr


def test_three_schedulers_fire_once_whoever_is_killed_or_paused(host: Host) -> None:
    names = [f"job{number}" for number in range(DAGS)]
    for name in names:
        (host.home / "dags" / f"{name}.yaml").write_text(
            f"schedule: '* * * * *'\ncatchup_window: 1h\noverlap_policy: all\nsteps:\n  - id: a\n"
            f"    run: echo ${{context.run.scheduled_at}} >> {host.home}/{name}.out\n"
        )
    at = missed(host.home, minutes=MISSED + 3, dags=names).replace(second=0)
    wanted = [f"{at + timedelta(minutes=number):%Y-%m-%dT%H:%M:%SZ}" for number in range(1, MISSED + 1)]

    def done() -> int:
        return sum(len(set(lines(host.home / f"{name}.out")) & set(wanted)) for name in names)

    with ExitStack() as stack:
        left: list[Service] = [
            stack.enter_context(host.service("scheduler", f"--scheduler.port={free_port()}")) for _ in range(3)
        ]
        for service in left:
            service.wait_for("scheduler.ready")
        until(lambda: done() >= 1)
        killed = _active(host.home, left)
        os.kill(killed.process.pid, signal.SIGKILL)
        left.remove(killed)
        before = done()
        until(lambda: done() > before)
        paused = _active(host.home, left)
        os.kill(paused.process.pid, signal.SIGSTOP)
        left.remove(paused)
        before = done()
        left[0].wait_for("scheduler.active")
        until(lambda: done() > before or done() == DAGS * MISSED)
        os.kill(paused.process.pid, signal.SIGCONT)
        paused.wait_for("scheduler.fenced")
        until(lambda: done() == DAGS * MISSED)
        assert left[0].stop() == 0
        assert paused.stop() == 0
    for name in names:
        found = lines(host.home / f"{name}.out")
        assert found == sorted(set(found)), "in order, and none twice"
        assert found[:MISSED] == wanted


def _active(home: Path, running: list[Service]) -> Service:
    """Return the scheduler that the registry calls active."""
    while True:
        for path in (home / "data" / "service-registry" / "scheduler").glob("*.json"):
            said = json.loads(path.read_text())
            for service in running:
                if said["status"] == 1 and said["pid"] == service.process.pid:
                    return service
        time.sleep(0.02)


def test_a_run_whose_process_was_killed_is_failed_and_its_queue_goes_on(host: Host) -> None:
    pids, port = host.home / "pids", free_port()
    (host.home / "dags" / "job.yaml").write_text(
        f"steps:\n  - id: a\n    run: echo $$ >> {pids}; test $(wc -l < {pids}) -gt 1 || sleep 60\n"
    )
    with host.service("scheduler", f"--scheduler.port={port}") as service:
        service.wait_for("scheduler.active")
        host.ok("enqueue", "--run-id=first", "job")
        until(lambda: len(lines(pids)) == 1)
        host.ok("enqueue", "--run-id=second", "job")
        shell = int(lines(pids)[0])
        parent = int(Path(f"/proc/{shell}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        service.wait_for("run.zombie")
        until(lambda: len(lines(pids)) == 2)
        assert 'zombie_runs_detected_total{kind="local"} 1.0' in get(port, "/metrics")[1]
        os.kill(shell, signal.SIGKILL)
    assert "process that ran it is gone" in json.dumps(_document(host.home, "job", "first"))


def _document(home: Path, dag: str, run_id: str) -> dict[str, object]:
    where = (home / "data" / "dag-runs" / dag / "ids" / run_id).read_text()
    newest = max((home / "data" / "dag-runs" / dag / where).glob("a_*"))
    return dict(json.loads((newest / "status.jsonl").read_text().splitlines()[-1]))


def test_a_failed_run_is_retried_by_itself(host: Host) -> None:
    tries = host.home / "tries"
    (host.home / "dags" / "job.yaml").write_text(
        "retry_policy: {limit: 2, interval_sec: 1}\n"
        f"steps:\n  - id: a\n    run: echo x >> {tries}; test $(wc -l < {tries}) -ge 2\n"
    )
    with host.service("scheduler", f"--scheduler.port={free_port()}") as service:
        service.wait_for("scheduler.active")
        host.ok("enqueue", "--run-id=one", "job")
        service.wait_for("run.retried")
        until(lambda: _document(host.home, "job", "one").get("status") == 4)
    document = _document(host.home, "job", "one")
    assert (document["autoRetryCount"], document["autoRetryLimit"], len(lines(tries))) == (1, 2, 2)
