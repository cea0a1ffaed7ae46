"""deploy/monitoring as its readers use it: promtool reads the rules, a real Prometheus scrapes real processes."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from secure_dagu.telemetry import metrics
from tests.needs import program
from tests.ports import free_port
from tests.system.conftest import Cluster
from tests.system.hosts import PATIENCE_S, Service

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/monitoring"
GUIDE = ROOT / "docs/how-to/monitoring.md"


def promtool(*words: str, text: str | None = None) -> str:
    tool = program("promtool", package="prometheus")
    done = subprocess.run([tool, *words], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    found = YAML(typ="safe").load((MONITORING / "alerts.yml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def queries() -> dict[str, str]:
    """Return every query of the dashboard by panel, with its variables filled in."""
    found = {}
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def known_series() -> Mapping[str, frozenset[str]]:
    """Return the labels of every series that our processes can show, by its name."""
    found = {"up": frozenset[str](), "process_resident_memory_bytes": frozenset[str]()}
    for registry in (metrics.COMMON, metrics.COORDINATOR, metrics.WORKER):
        for collector in list(registry._collector_to_names):
            for family in collector.collect():
                names: tuple[str, ...] = getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())
                labels = frozenset(names) | {label for sample in family.samples for label in sample.labels}
                suffixes = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}
                for suffix in suffixes.get(family.type, ("",)):
                    found[family.name + suffix] = labels
    return found


OF_PROMETHEUS = {"job", "instance", "le"}


def check_names(expr: str, where: str) -> None:
    """Check that a query names series that exist, and only labels that they have."""
    known = known_series()
    used = re.findall(r"\b((?:secure_dagu|dagu|grpc|process)_[a-z0-9_]+)\b(?:\{([^}]*)\})?", expr)
    labels = {"grpc_method", "grpc_code"}  # labels that look like our series
    for name, matchers in used:
        if name in labels:
            continue
        assert name in known, f"{where}: no series is called {name}"
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
            assert label in known[name] | OF_PROMETHEUS or not known[name], f"{where}: {name} has no label {label}"


# -- the files ---------------------------------------------------------------------------------------------------------


def test_the_rules_are_read_and_pass_their_time_travel() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(MONITORING / "alerts.yml"))
    for file in sorted((MONITORING / "tests").glob("*.yml")):
        assert "SUCCESS" in promtool("test", "rules", str(file))


def test_the_chart_brings_the_same_rules() -> None:
    # Helm reads only what lies in the chart, so it has a copy: not a link, which an archive or a checkout may lose.
    chart = ROOT / "deploy/helm/secure-dagu/files/alerts.yml"
    assert not chart.is_symlink()
    assert chart.read_bytes() == (MONITORING / "alerts.yml").read_bytes()


def test_every_alert_is_tested_and_leads_to_its_runbook() -> None:
    tested = "".join(file.read_text() for file in (MONITORING / "tests").glob("*.yml"))
    headings = set(re.findall(r"(?m)^### (\w+)$", GUIDE.read_text()))
    for rule in rules():
        name = rule["alert"]
        assert f"alertname: {name}" in tested, f"{name} is tested by nothing"
        assert name in headings, f"docs/how-to/monitoring.md says nothing of {name}"
        assert rule["annotations"]["runbook_url"] == f"docs/how-to/monitoring.md#{name.lower()}"
    assert headings == {rule["alert"] for rule in rules()}


def test_alerts_and_dashboard_use_series_and_labels_that_exist() -> None:
    for rule in rules():
        check_names(rule["expr"], rule["alert"])
    for where, expr in queries().items():
        check_names(expr, where)


def test_the_dashboard_can_be_imported(tmp_path: Path) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {item["name"] for item in dashboard["templating"]["list"]} == {"datasource", "job", "instance"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    # promtool parses each query as the expression of a rule.
    recorded = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(queries().values())]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", str(file))


# -- the real thing ----------------------------------------------------------------------------------------------------


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        found = self.get("/api/v1/query", query=expr)["result"]
        return [(item["metric"], float(item["value"][1])) for item in found]

    def until(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Ask until there is an answer."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := self.query(expr):
                return found
            threading.Event().wait(0.2)
        raise AssertionError(f"no answer to {expr}: {self.get('/api/v1/targets')['activeTargets']}")


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped configuration; only names of hosts and the pace are changed."""
    binary = program("prometheus", package="prometheus")
    text = (MONITORING / "prometheus.yml").read_text().replace("15s", "1s")
    for shipped, real in targets.items():
        assert shipped in text
        text = text.replace(shipped, real)
    (folder / "prometheus.yml").write_text(text)
    (folder / "alerts.yml").write_bytes((MONITORING / "alerts.yml").read_bytes())
    promtool("check", "config", str(folder / "prometheus.yml"))
    port = free_port()
    process = subprocess.Popen(
        [
            binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    running = Service(process)
    try:
        asked = Prometheus(port)
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                asked.get("/api/v1/status/runtimeinfo")
                break
            except OSError:
                assert process.poll() is None, running.text
                assert time.monotonic() < end, running.text
                threading.Event().wait(0.1)
        yield asked
    finally:
        process.kill()
        running.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("canary-0123456789abcdef\n")
    file.chmod(0o600)
    return file


def test_a_real_prometheus_scrapes_a_coordinator_over_tls_and_a_worker_with_a_token(
    cluster: Cluster, tmp_path: Path, token: Path
) -> None:
    folder = tmp_path / "prometheus"
    pki = folder / "pki"
    pki.mkdir(parents=True)
    cluster.host.ok("pki", "issue", "metrics", "prometheus", "--out", str(pki))
    (pki / "token").write_bytes(token.read_bytes())
    worker_port = free_port()
    scraped = {"coordinator:8091": f"localhost:{cluster.health_port}", "127.0.0.1:8092": f"127.0.0.1:{worker_port}"}
    worker_host = cluster.worker_host("w1")
    (worker_host.home / "config.yaml").write_text(f"metrics_token_file: {token}\n")
    with (
        cluster.coordinator("--coordinator.metrics-access=tls"),
        cluster.worker("w1", f"--worker.health-port={worker_port}", "--worker.metrics-access=token", host=worker_host),
        prometheus(folder, scraped) as asked,
    ):
        up = {labels["job"]: value for labels, value in asked.until("up == 1 and on() (count(up == 1) == 2)")}
        assert up == {"secure-dagu-coordinator": 1, "secure-dagu-worker": 1}
        asked.until('secure_dagu_workers{state="healthy"} == 1')
        [(labels, end)] = asked.until("secure_dagu_peer_certificate_not_after_timestamp_seconds")
        assert labels["worker_id"] == "w1"
        assert 29 < (end - time.time()) / 86400 < 31
        assert asked.query('secure_dagu_security_info{peer_mode="mtls", min_tls_version="1.3"}')
        assert asked.query('secure_dagu_peer_connections{peer_class="worker", tls="mtls", tls_version="TLSv1.3"}')
        for where, expr in queries().items():  # none may be an error; whether it has an answer depends on events
            asked.query(expr)
            if where.startswith(("Coordinators up", "Soonest", "Open connections", "Workers A", "Memory")):
                asked.until(expr)
        loaded = asked.get("/api/v1/rules")["groups"]
        assert sum(len(group["rules"]) for group in loaded) == len(rules())
        assert not [rule for group in loaded for rule in group["rules"] if rule["health"] == "err"]
        assert not [item for item in asked.get("/api/v1/alerts")["alerts"] if item["state"] == "firing"]
