"""What the chart renders really runs: its Job makes the certificates, its processes work, strangers are refused.

Up to the line where a cluster would be needed; `node` says what is replaced.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.deploy.certmanager import signed
from tests.deploy.charts import CHART, Document, one, pod_of, shape
from tests.deploy.node import Node, secret
from tests.deploy.operating import FULL, SETUP, PkiJob, dispatched, executed, first_admin, stopped, workers
from tests.system.hosts import PROGRAM, Host


def _made_by_the_helper(folder: Path) -> dict[str, Document]:
    """Run the Job of the chart against an API for Secrets; return what it made."""
    documents = shape("default")
    with PkiJob.of(folder, documents).served() as job:
        first = job.run()
        assert first.returncode == 0, first.stderr
        before = job.versions
        again = job.run()
        assert again.stdout == "nothing to do\n", again.stderr
        assert job.versions == before
        lost = job.api.secrets.pop(f"{FULL}-worker-general-tls")
        assert job.run().returncode == 0
        assert job.api.secrets[f"{FULL}-worker-general-tls"]["data"]["ca.crt"] == lost["data"]["ca.crt"]
        assert job.api.secrets[f"{FULL}-worker-general-tls"]["data"]["tls.key"] != lost["data"]["tls.key"]
    role = one(documents, "Role", f"{FULL}-pki-init")
    named = {name for rule in role["rules"] for name in rule.get("resourceNames", [])}
    assert {line.rpartition("/")[2] for line in job.api.asked if not line.startswith("POST")} <= named
    assert set(job.api.secrets) == named
    return job.api.secrets


def _made_by_cert_manager(folder: Path) -> dict[str, Document]:
    assert folder.is_dir()
    return signed(shape("cert-manager"))


SOURCES = {"default": _made_by_the_helper, "cert-manager": _made_by_cert_manager}


@pytest.mark.parametrize("name", SOURCES)
def test_the_rendered_processes_work_over_mutual_tls_and_refuse_strangers(name: str, tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    node = Node(tmp_path, shape(name), SOURCES[name](tmp_path / "pki"))
    with ExitStack() as stack:
        pod = node.pod("StatefulSet", f"{FULL}-coordinator")
        coordinator = stack.enter_context(pod.service())
        worker = stack.enter_context(node.pod("Deployment", f"{FULL}-worker-general").service())
        assert first_admin(node, "guessed") == 403
        assert first_admin(node, executed(pod, SETUP).strip()) == 200
        assert "succeeded" in dispatched(node, tmp_path)
        assert "general@pod-1" in workers(node, tmp_path)
        test = node.pod("Pod", f"{FULL}-test")
        done = test.run(test.spec["containers"][0])
        assert done.returncode == 0, done.stderr
        assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["refused"] * 3 + ["healthy"]
        stopped(worker, coordinator)


def test_plaintext_works_only_while_its_exception_is_there_and_the_chart_test_tells(tmp_path: Path) -> None:
    granting = Host(tmp_path / "granting")
    granting.home.mkdir()
    granting.ok("exception", "grant", "plaintext", "--owner", "ops", "--reason", "isolated network", "--until", "1d")
    web = trustme.CA()
    leaf = web.issue_cert("localhost")
    secrets = {
        "dagu-exceptions": secret(exceptions_jsonl=(granting.home / "exceptions.jsonl").read_bytes()),
        "dagu-web": secret(
            tls_crt=b"".join(blob.bytes() for blob in leaf.cert_chain_pems),
            tls_key=leaf.private_key_pem.bytes(), ca_crt=web.cert_pem.bytes(),
        ),
    }  # fmt: skip
    node = Node(tmp_path, shape("plaintext"), secrets)
    with ExitStack() as stack:
        coordinator = stack.enter_context(node.pod("StatefulSet", f"{FULL}-coordinator").service())
        worker = stack.enter_context(node.pod("Deployment", f"{FULL}-worker-general").service())
        (tmp_path / "ca.crt").write_bytes(web.cert_pem.bytes())
        ca, peers, ui = str(tmp_path / "ca.crt"), node.ports["50055"], node.ports["8080"]
        told = subprocess.run(
            [sys.executable, CHART / "files/refused.py", f"localhost:{peers}", ca, f"localhost:{ui}", ca],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert told.returncode == 1
        assert "the coordinator answers in plaintext" in told.stderr
        stopped(worker, coordinator)
    empty = Node(tmp_path / "empty", shape("plaintext"), {**secrets, "dagu-exceptions": secret(exceptions_jsonl=b"")})
    with (
        pytest.raises(AssertionError, match="exception grant plaintext"),
        empty.pod("StatefulSet", f"{FULL}-coordinator").service(),
    ):
        pass


def test_every_command_that_a_pod_starts_exists() -> None:
    for name in ("default", "plaintext", "standalone", "everything"):
        for document in shape(name):
            pod = pod_of(document)
            for container in pod["spec"]["containers"] if pod else []:
                if "args" in container:
                    helped = subprocess.run(
                        [PROGRAM, container["args"][0], "--help"], capture_output=True, timeout=60, check=True
                    )
                    assert helped.stdout
                else:
                    assert re.match(r"/opt/secure-dagu/bin/python$", container["command"][0])
