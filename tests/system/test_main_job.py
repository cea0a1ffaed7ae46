"""The main job through the real commands: what a person with two machines does."""

from __future__ import annotations

import json
import shutil
import signal
import urllib.request
from pathlib import Path

from tests.system.conftest import Cluster

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def write(folder: Path, name: str, text: str) -> str:
    """Write a workflow; return its path as a word."""
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_sales_example_runs_on_labelled_workers_and_its_report_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "sales", tmp_path / "sales")
    with (
        cluster.coordinator(),
        cluster.worker("etl-1", "--worker.labels=pool=etl"),
        cluster.worker("gpu-1", "--worker.labels=gpu=true"),
    ):
        told = cluster.host.ok(
            "dispatch", str(tmp_path / "sales" / "sales.yaml"), cluster.operator, "--run-id=r1", "--follow"
        )
        assert "report succeeded" in told
        status = json.loads(cluster.host.ok("status", "sales", "-r", "r1", cluster.operator, "--json"))
        assert status["run"]["status"] == "succeeded"
        assert status["run"]["worker"] == "etl-1"
        cluster.host.ok("artifacts", "sales", "-r", "r1", f"--out={tmp_path / 'out'}", cluster.operator)
        report = (tmp_path / "out" / "report.md").read_text()
        assert "1740 orders. Next month is expected to bring" in report
        log = cluster.host.ok("logs", "sales", "-r", "r1", "--step=check", cluster.operator)
        assert log == "1740\n"


def test_a_label_sends_a_run_to_the_worker_that_has_it(cluster: Cluster, tmp_path: Path) -> None:
    dag = write(tmp_path, "pin.yaml", "worker_selector:\n  gpu: 'true'\nsteps:\n  - run: echo pinned\n")
    with cluster.coordinator(), cluster.worker("plain"), cluster.worker("gpu-1", "--worker.labels=gpu=true"):
        for number in range(3):
            cluster.host.ok("dispatch", dag, cluster.operator, f"--run-id=r{number}", "--follow")
            status = json.loads(cluster.host.ok("status", "pin", "-r", f"r{number}", cluster.operator, "--json"))
            assert status["run"]["worker"] == "gpu-1"


def test_a_command_goes_to_the_worker_that_its_label_names(cluster: Cluster) -> None:
    (cluster.host.home / "config.yaml").write_text(f"client: {{coordinators: ['{cluster.address}']}}\n")
    with cluster.coordinator(), cluster.worker("plain"), cluster.worker("gpu-1", "--worker.labels=gpu=true"):
        for words, worker in ((("--worker-label", "gpu=true"), "gpu-1"), ((), "local")):
            told = cluster.host.ok("exec", "-r", f"on-{worker}", *words, "--", "echo", "a b")
            assert told.endswith("\n\nResult: Succeeded\n")
            status = json.loads(cluster.host.ok("status", "exec-echo", "-r", f"on-{worker}", "--json"))
            assert status["run"]["worker"] == worker


def test_a_failed_run_says_so_and_follow_exits_with_one(running: Cluster, tmp_path: Path) -> None:
    dag = write(tmp_path, "bad.yaml", "steps:\n  - id: boom\n    run: echo oops >&2; exit 3\n")
    done = running.host.run("dispatch", dag, running.operator, "--follow")
    assert done.returncode == 1
    assert "boom ! oops" in done.stdout
    assert "exit status 3" in done.stdout


def test_words_after_two_dashes_stay_words_and_win(running: Cluster, tmp_path: Path) -> None:
    dag = write(tmp_path, "say.yaml", "params: [{who: nobody}]\nsteps: [{id: a, run: 'echo \"[${params.who}]\"'}]\n")
    told = running.host.ok("dispatch", dag, running.operator, "--follow", "-p", "who=x", "--", "who=a  b")
    assert "[a  b]" in told


def test_dispatching_the_same_run_id_while_it_is_active_changes_nothing(running: Cluster, tmp_path: Path) -> None:
    dag = write(tmp_path, "slow.yaml", "steps:\n  - run: sleep 60\n")
    first = json.loads(running.host.ok("dispatch", dag, running.operator, "--run-id=one", "--json"))
    again = json.loads(running.host.ok("dispatch", dag, running.operator, "--run-id=one", "--json"))
    assert first["run"]["attemptId"] == again["run"]["attemptId"]
    running.host.ok("cancel", "slow", "-r", "one", running.operator)


def test_cancel_ends_the_run_as_aborted(running: Cluster, tmp_path: Path) -> None:
    dag = write(tmp_path, "slow.yaml", "steps:\n  - id: wait\n    run: echo started; sleep 60\n")
    with running.host.service("dispatch", dag, running.operator, "--run-id=c1", "--follow") as follower:
        follower.wait_for("started")
        running.host.ok("cancel", "slow", "-r", "c1", running.operator)
        assert follower.wait() == 1
        assert "Aborted" in follower.text


def test_health_and_metrics_are_served_on_the_health_port(running: Cluster) -> None:
    base = f"http://127.0.0.1:{running.health_port}"
    with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
        health = json.loads(answer.read())
    assert health["status"] == "healthy"
    assert health["peer"] == "mtls"
    with urllib.request.urlopen(f"{base}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert "secure_dagu_security_info{" in metrics
    assert 'peer_mode="mtls"' in metrics
    assert "secure_dagu_certificate_not_after_timestamp_seconds" in metrics
    assert 'tls_version="TLSv1.3"' in metrics
    assert "grpc_server_handled_total{" in metrics


def test_plaintext_is_loud_everywhere(cluster: Cluster, tmp_path: Path) -> None:
    dag = write(tmp_path, "plain.yaml", "steps:\n  - run: echo plain\n")
    insecure = "--peer.insecure=true"
    host = cluster.new_host("w1")
    with (
        cluster.coordinator(insecure) as coordinator,
        cluster.worker("w1", insecure, host=host),
    ):
        assert "PLAINTEXT" in coordinator.text.upper()
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/health", timeout=5) as answer:
            assert json.loads(answer.read())["peer"] == "insecure"
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.health_port}/metrics", timeout=5) as answer:
            assert 'peer_mode="insecure"' in answer.read().decode()
        cluster.host.ok("dispatch", dag, cluster.operator, insecure, "--follow")


def test_a_worker_that_gets_sigterm_drains_and_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    dag = write(tmp_path, "drain.yaml", "steps:\n  - id: a\n    run: echo begun; sleep 2; echo finished\n")
    with cluster.coordinator(), cluster.worker("w1") as worker:
        with cluster.host.service("dispatch", dag, cluster.operator, "--run-id=d1", "--follow") as follower:
            follower.wait_for("begun")
            worker.signal(signal.SIGTERM)
            assert follower.wait() == 0
        assert worker.wait() == 0
        assert cluster.host.ok("logs", "drain", "-r", "d1", "--step=a", cluster.operator) == "begun\nfinished\n"


def test_a_coordinator_killed_and_back_costs_a_run_nothing(cluster: Cluster, tmp_path: Path) -> None:
    dag = write(
        tmp_path,
        "count.yaml",
        "steps:\n  - id: count\n    run: |\n      for i in $(seq 1 400); do echo line $i; sleep 0.01; done\n",
    )
    with cluster.worker_host("w1").service(
        "worker", "--worker.id=w1", "--worker.health-port=0", f"--worker.coordinators={cluster.address}"
    ) as worker:
        with cluster.coordinator() as coordinator:
            worker.wait_for("coordinator.reached")
            cluster.host.ok("dispatch", dag, cluster.operator, "--run-id=k1")
            worker.wait_for("task.started")
            coordinator.signal(signal.SIGKILL)
            coordinator.wait()
        with cluster.coordinator():
            worker.wait_for("task.ended")
            status = json.loads(cluster.host.ok("status", "count", "-r", "k1", cluster.operator, "--json"))
            assert status["run"]["status"] == "succeeded"
            log = cluster.host.ok("logs", "count", "-r", "k1", "--step=count", cluster.operator)
            assert log == "".join(f"line {number}\n" for number in range(1, 401))


def test_start_sends_a_run_that_selects_workers_to_the_coordinator_that_is_configured(
    running: Cluster, tmp_path: Path
) -> None:
    dag = write(tmp_path, "far.yaml", "worker_selector: {gpu: 'true'}\nsteps:\n  - run: echo done there\n")
    (running.host.home / "config.yaml").write_text(f"client: {{coordinators: ['{running.address}']}}\n")
    with running.worker("w2", "--worker.labels=gpu=true"):
        told = running.host.run("start", dag, "-r", "far1")
        assert (told.returncode, "Result: Succeeded" in told.stdout) == (0, True), told
        assert "Dispatched dag-run" in told.stderr
        document = json.loads(running.host.ok("status", "far", "-r", "far1", running.operator, "--json"))
    assert document["run"]["worker"] == "w2"
    here = write(tmp_path, "here.yaml", "worker_selector: local\nsteps:\n  - run: echo done here\n")
    assert "done here" in running.host.ok("start", here)
