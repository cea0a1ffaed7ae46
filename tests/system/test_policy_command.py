"""`secure-dagu policy` as an operator uses it."""

from __future__ import annotations

import json
from typing import Any

from tests.system.conftest import Cluster


def explain(cluster: Cluster, *words: str) -> tuple[int, dict[str, Any]]:
    """Ask; return the exit code and the document."""
    done = cluster.host.run("policy", "explain", *words, "--json")
    return done.returncode, json.loads(done.stdout)


def test_explain_says_allowed_or_denied_by_which_rule_and_what_is_still_needed(cluster: Cluster) -> None:
    host = cluster.worker_host("gpu-1", labels="gpu=true")
    file = str(host.home / "pki" / "gpu-1.crt")
    for certificate in ("gpu-1", file):
        code, told = explain(cluster, certificate, "Dispatch")
        assert (code, told["allowed"], told["rule"], told["role"]) == (0, True, "roles", "worker")
        assert "the run that it holds" in told["needs"]
        assert (told["labels"], told["revoked"]) == ("gpu=true", False)
        assert told["not_after"] > "2026"
    assert explain(cluster, "gpu-1", "Poll", "--object", "labels:gpu=true", "--object", "worker:gpu-1@9")[0] == 0
    code, told = explain(cluster, file, "Poll", "--object", "labels:gpu=true,zone=eu")
    assert (code, told["rule"], told["reason"]) == (1, "labels", "label_not_granted")
    assert "--labels gpu=true,zone=eu" in told["fix"]
    code, told = explain(cluster, "gpu-1", "GetWorkers")
    assert (code, told["rule"], told["reason"]) == (1, "roles", "role_not_allowed")
    code, told = explain(cluster, "gpu-1", "Poll", "--object", "worker:gpu-2")
    assert (code, told["rule"], told["reason"]) == (1, "own-id", "worker_id_mismatch")
    code, told = explain(cluster, "operator", "Dispach")
    assert (code, told["rule"]) == (1, "table")
    assert "did you mean Dispatch?" in told["checks"][0]["text"]
    text = cluster.host.run("policy", "explain", "gpu-1", "Dispatch").stdout
    assert "allowed  coordinator.v1.CoordinatorService/Dispatch" in text
    assert "labels gpu=true" in text


def test_a_revoked_certificate_is_explained_as_revoked_by_name_and_by_file(cluster: Cluster) -> None:
    host = cluster.worker_host("gpu-1")
    cluster.host.ok("pki", "revoke", "gpu-1")
    for certificate in ("gpu-1", str(host.home / "pki" / "gpu-1.crt")):
        code, told = explain(cluster, certificate, "Poll")
        assert (code, told["revoked"], told["reason"]) == (1, True, "cert_revoked"), certificate


def test_what_cannot_be_asked_is_no_denial(cluster: Cluster) -> None:
    assert cluster.host.run("policy", "explain", "nobody", "Poll").returncode == 3
    assert cluster.host.run("policy", "explain", "operator", "Poll", "--object", "moon:1").returncode == 3
    assert cluster.host.run("policy", "test", "--role", "king").returncode == 2


def test_the_table_and_a_role_can_be_printed(cluster: Cluster) -> None:
    rules = json.loads(cluster.host.ok("policy", "list", "--json"))["rules"]
    poll = next(rule for rule in rules if rule["method"].endswith("/Poll"))
    assert poll == {
        "method": "coordinator.v1.CoordinatorService/Poll", "roles": ["worker"], "object_rule": "own-id",
        "over_plaintext": True,
    }  # fmt: skip
    assert len(cluster.host.ok("policy", "list").splitlines()) == len(rules) + 1
    told = json.loads(cluster.host.ok("policy", "test", "--role", "metrics", "--json"))
    assert not any(method["allowed"] for method in told["methods"])
    assert cluster.host.run("policy", "test", "--role", "worker", "GetWorkers").returncode == 1
    assert cluster.host.run("policy", "test", "--role", "worker", "Poll").returncode == 0
