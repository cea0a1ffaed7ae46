"""Machines join the coordinator that the chart renders: its issuing CA comes from the Job, the root is in no pod."""

from __future__ import annotations

import base64
import io
import json
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import pytest
from cryptography import x509

from tests.deploy.charts import shape
from tests.deploy.cluster import ISSUER, Cluster
from tests.deploy.node import Node, Pod, secret
from tests.deploy.operating import FULL, HELLO, TOKEN, PkiJob, dispatched, executed, stopped, workers
from tests.needs import program
from tests.system.hosts import Host, Service

GPU = f"worker_selector: {{gpu: 'true'}}\n{HELLO}"
GPU_POOL, POD = f"{FULL}-worker-gpu", f"{FULL}-worker-gpu-6d4cf56db6-x7k2p"
ROOT, CA, JOIN = (f"{FULL}-{name}" for name in ("root", "ca", "join"))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[PkiJob]:
    """Return the Job of a release that lets machines join, before its first run."""
    (tmp_path / "job").mkdir()
    with PkiJob.of(tmp_path / "job", shape("joining")).served() as job:
        yield job


@pytest.fixture
def secrets(job: PkiJob) -> PkiJob:
    """Return the Job after its first run."""
    done = job.run()
    assert done.returncode == 0, done.stderr
    return job


@pytest.fixture
def node(secrets: PkiJob, tmp_path: Path) -> Node:
    """Return where the release runs."""
    return Node(tmp_path / "node", shape("joining"), secrets.api.secrets, secrets.api.cluster)


@pytest.fixture
def outside(tmp_path: Path) -> Host:
    """Return a machine outside of the cluster."""
    (tmp_path / "outside").mkdir()
    return Host(tmp_path / "outside")


@contextmanager
def coordinating(node: Node) -> Iterator[tuple[Pod, Service]]:
    pod = node.pod("StatefulSet", f"{FULL}-coordinator")
    with pod.service() as running:
        yield pod, running


def _data(job: PkiJob, name: str) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in job.api.secrets[name]["data"].items()}


def _home(job: PkiJob, name: str) -> dict[str, bytes]:
    """Return the files of a packed home."""
    with tarfile.open(fileobj=io.BytesIO(_data(job, name)["home.tar.gz"])) as archive:
        files = {item.name.removeprefix("./"): archive.extractfile(item) for item in archive if item.isfile()}
        return {path: file.read() for path, file in files.items() if file is not None}


def _in(days: int) -> dict[str, str]:
    """Return the variables with which a process believes that so many days have passed."""
    faketime = program("faketime", package="faketime")
    shown = subprocess.run([faketime, "-f", f"+{days}d", "env"], capture_output=True, text=True, check=True).stdout
    preload = dict(line.partition("=")[::2] for line in shown.splitlines() if line.startswith("LD_PRELOAD="))
    return preload | {"FAKETIME": f"+{days}d"}


def test_a_machine_outside_joins_and_works_and_its_token_and_its_rights_go_no_further(
    node: Node, outside: Host, tmp_path: Path
) -> None:
    thief = Host(tmp_path / "thief")
    thief.home.mkdir()
    with coordinating(node) as (pod, running):
        line = executed(pod, TOKEN).strip()
        assert line.endswith(f"@localhost:{node.ports['50055']}")
        with outside.service("join", line, "--worker.health-port=0") as worker:
            worker.wait_for("coordinator.reached")
            found = {row["id"]: row["labels"] for row in json.loads(workers(node, tmp_path))["workers"]}
            assert found == {"gpu-1": {"gpu": "true"}}
            assert "succeeded" in dispatched(node, tmp_path, GPU)
            again = thief.run("join", line, "--no-start")
            assert again.returncode == 4
            assert "did not accept the token" in again.stderr
            running.wait_for('"reason": ?"token"')
            assert worker.stop() == 0, worker.text
        claims = outside.run("worker", "--worker.health-port=0", "--worker.labels=gpu=true,zone=eu")
        assert claims.returncode == 4, claims.stderr
        assert "zone" in claims.stderr
        stopped(running)


def test_tokens_and_ledger_outlive_the_pod(node: Node, outside: Host) -> None:
    with coordinating(node) as (pod, running):
        line = executed(pod, TOKEN).strip()
        stopped(running)
    with coordinating(node) as (pod, running):
        assert outside.run("join", line, "--no-start").returncode == 0
        stopped(running)
    with coordinating(node) as (pod, running):
        assert "gpu-1" in pod.exec("secure-dagu", "pki", "list").stdout
        with outside.service("worker", "--worker.health-port=0") as worker:
            worker.wait_for("coordinator.reached")
            stopped(worker, running)


def test_who_is_revoked_is_out_and_pools_stay(node: Node, outside: Host, tmp_path: Path) -> None:
    with (
        coordinating(node) as (pod, running),
        node.pod("Deployment", f"{FULL}-worker-general").service() as general,
        outside.service("join", executed(pod, TOKEN).strip(), "--worker.health-port=0") as worker,
    ):
        worker.wait_for("coordinator.reached")
        assert pod.exec("secure-dagu", "pki", "revoke", "gpu-1").returncode == 0
        running.wait_for("peers.cut.*cert_revoked")
        worker.wait_for("revoked")
        assert "succeeded" in dispatched(node, tmp_path)
        stopped(general, running)
    with coordinating(node) as (pod, running):
        with outside.service("worker", "--worker.health-port=0") as worker:
            worker.wait_for("revoked")
        assert "coordinator.reached" not in worker.text
        stopped(running)


def test_a_lost_key_is_noticed_and_a_ca_made_anew_believes_nobody_of_before(
    secrets: PkiJob, node: Node, outside: Host, tmp_path: Path
) -> None:
    with coordinating(node) as (pod, running):
        assert outside.run("join", executed(pod, TOKEN).strip(), "--no-start").returncode == 0
        assert pod.exec("secure-dagu", "pki", "revoke", "gpu-1").returncode == 0
        stopped(running)
    del secrets.api.secrets[JOIN]
    assert secrets.run().returncode == 0
    shutil.rmtree(pod.at("/etc/dagu"))  # what is mounted; the data volume stays
    with pytest.raises(AssertionError, match=r"ca\.crl cannot be used"), coordinating(node):
        pass
    for name in (ROOT, CA, JOIN):
        del secrets.api.secrets[name]
    pod.at("/var/lib/dagu/pki/ca.crl").unlink()
    assert secrets.run().returncode == 0
    shutil.rmtree(pod.at("/etc/dagu"))
    with coordinating(node) as (pod, running):
        with outside.service("worker", "--worker.health-port=0") as worker:
            running.wait_for("link.refused")
            assert "coordinator.reached" not in worker.text
        again = Host(tmp_path / "again")
        again.home.mkdir()
        with again.service("join", executed(pod, TOKEN).strip(), "--worker.health-port=0") as worker:
            worker.wait_for("coordinator.reached")
            stopped(worker, running)


def test_a_pod_joins_by_itself_with_a_key_of_its_own_and_renews_its_certificate(node: Node, tmp_path: Path) -> None:
    assert not any("worker-gpu" in name for name in node.secrets), "the pool has no certificate"
    with coordinating(node) as (_, running):
        pod = node.pod("Deployment", GPU_POOL, POD)
        with pod.service() as worker:
            found = {row["id"]: row["labels"] for row in json.loads(workers(node, tmp_path))["workers"]}
            assert found == {POD: {"gpu": "true"}}
            assert "succeeded" in dispatched(node, tmp_path, GPU)
            stopped(worker)
        place = pod.at("/var/lib/dagu/pki")
        assert stat.S_IMODE((place / f"{POD}.key").stat().st_mode) == 0o600
        running.wait_for(f"enrolment.joined.*/worker/{POD}")
        before = (place / f"{POD}.crt").read_bytes()
        with pod.service(is_restart=True, **_in(20)) as late:
            late.wait_for("renewal.done")
            stopped(late)
        assert (place / f"{POD}.crt").read_bytes() != before
        stopped(running)


def test_the_word_of_the_cluster_is_good_once_for_this_pool_and_its_labels(node: Node) -> None:
    with coordinating(node) as (_, running):
        pod = node.pod("Deployment", GPU_POOL, POD)
        (join,) = pod.spec["initContainers"]
        token = pod.at("/etc/dagu/pod/token")
        assert pod.run(join).returncode == 0
        again = pod.run(join)
        assert again.returncode == 4
        assert "did not accept the token" in again.stderr
        running.wait_for("enrolment.refused.*used before")
        audience = json.loads(base64.b64decode(node.secrets[JOIN]["data"]["pods.json"]))["audience"]
        for said, why in (
            (pod.token(audience=audience, account=f"{FULL}-worker-general"), "flows/.*general may not join"),
            (pod.token(audience=audience, namespace="other"), "other/.*gpu may not join"),
            (pod.token(audience=ISSUER), "udience"),
            (Cluster().token(pod=POD, account=GPU_POOL, audience=audience), "ignature"),
        ):
            token.chmod(0o600)
            token.write_text(said)
            assert pod.run(join).returncode == 4
            running.wait_for(f"enrolment.refused.*{why}")
        worker, labels = pod.spec["containers"][0], "--worker.labels=gpu=true,zone=eu"
        claims = pod.run(
            {**worker, "args": [*worker["args"], labels]}, DAGU_WORKER_HEALTH_PORT="0", TMPDIR=gettempdir()
        )
        assert claims.returncode == 4, claims.stderr
        assert "zone" in claims.stderr
        stopped(running)


def test_new_keys_of_the_cluster_reach_the_coordinator_through_the_job(secrets: PkiJob) -> None:
    before = json.loads(_data(secrets, JOIN)["pods.json"])
    assert before["pools"] == [{"namespace": "flows", "service_account": GPU_POOL, "labels": ["gpu=true"]}]
    assert [key["kid"] for key in before["keys"]] == ["one"]
    assert not [key for key in before["keys"] if "d" in key]
    assert secrets.run().stdout == "nothing to do\n"
    secrets.api.cluster = Cluster(kid="two")
    assert secrets.run().returncode == 0
    after = _data(secrets, JOIN)
    assert [key["kid"] for key in json.loads(after["pods.json"])["keys"]] == ["two"]


def test_the_root_is_in_one_secret_and_the_issuing_key_on_no_disk(secrets: PkiJob, node: Node) -> None:
    root, key = _home(secrets, ROOT)["pki/ca.key"], _data(secrets, JOIN)["issuing.key"]
    assert b"ENCRYPTED PRIVATE KEY" in root
    for name in secrets.api.secrets:
        held = [*_data(secrets, name).values(), *(_home(secrets, name).values() if name in (ROOT, CA) else ())]
        assert any(root in data for data in held) is (name == ROOT), name
        assert any(key in data for data in held) is (name == JOIN), name
    with coordinating(node) as (pod, running):
        pool = node.pod("Deployment", f"{FULL}-worker-general")
        files = [file for each in (pod, pool) for file in each.root.rglob("*") if file.is_file()]
        assert not [file for file in files if root in file.read_bytes()]
        held = [str(file.relative_to(pod.root)) for file in files if not file.is_symlink() and key in file.read_bytes()]
        assert sorted(held) == ["etc/dagu/issuing-key/ca/issuing.key", "etc/dagu/issuing-source/issuing.key"]
        private = pod.at("/etc/dagu/issuing-key/ca/issuing.key").stat()
        assert stat.S_IMODE(private.st_mode) == 0o600
        stopped(running)


def test_what_the_job_signs_stands_under_the_one_root(secrets: PkiJob) -> None:
    (root,) = x509.load_pem_x509_certificates(_data(secrets, JOIN)["ca.crt"])
    issuing = [x509.load_pem_x509_certificate(_data(secrets, JOIN)["issuing.crt"])]
    for name in set(secrets.api.secrets) - {ROOT, CA, JOIN}:
        leaf, above = x509.load_pem_x509_certificates(_data(secrets, name)["tls.crt"])
        leaf.verify_directly_issued_by(above)
        issuing.append(above)
        assert _data(secrets, name)["ca.crt"] == _data(secrets, JOIN)["ca.crt"]
    assert len(set(issuing)) == 2, "one for the Job, one for the coordinator"
    for one in issuing:
        one.verify_directly_issued_by(root)
        assert one.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_issuing_cas_are_renewed_in_the_middle_of_their_lives_with_the_same_key(secrets: PkiJob) -> None:
    before = _data(secrets, JOIN)
    assert secrets.run(**_in(100)).returncode == 0
    assert _data(secrets, JOIN) == before
    done = secrets.run(**_in(200))
    assert done.returncode == 0, done.stderr
    assert f"issuing CA in Secret {CA}" in done.stdout
    after = _data(secrets, JOIN)
    assert (after["issuing.key"], after["ca.crt"]) == (before["issuing.key"], before["ca.crt"])
    old, new = (x509.load_pem_x509_certificate(each["issuing.crt"]) for each in (before, after))
    assert new.not_valid_after_utc > old.not_valid_after_utc
    assert new.public_key() == old.public_key()


def test_a_root_that_was_taken_away_is_asked_for_in_time(secrets: PkiJob) -> None:
    kept = secrets.api.secrets.pop(ROOT)
    assert secrets.run().stdout == "nothing to do\n"
    early = secrets.run(**_in(200))
    assert early.returncode == 0, early.stderr
    assert f"put Secret {ROOT} back" in early.stdout
    assert ROOT not in secrets.api.secrets, "another root would be nobody's"
    assert secrets.run(**_in(320)).returncode == 1
    secrets.api.secrets[ROOT] = kept
    assert secrets.run(**_in(320)).returncode == 0


def test_a_ca_of_before_there_were_roots_goes_on_and_cannot_let_machines_join(job: PkiJob, tmp_path: Path) -> None:
    old = Host(tmp_path / "old")
    old.home.mkdir(mode=0o700)
    wanted = job.pod.at("/etc/dagu/pki/wanted.json")
    names = json.loads(wanted.read_text())["certificates"][0]["advertise"]
    old.ok("pki", "init", "--trust-domain", f"{FULL}.flows", "--advertise", ",".join(names))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(old.home, arcname=".")
    job.api.secrets[CA] = secret(home_tar_gz=packed.getvalue()) | {"metadata": {"name": CA, "resourceVersion": "1"}}
    done = job.run()
    assert done.returncode == 1
    assert f"the CA in Secret {CA} was made without one" in done.stderr
    wanted.write_text(wanted.read_text().replace(f'"join":"{JOIN}"', '"join":""'))
    assert job.run().returncode == 0
    assert _data(job, f"{FULL}-coordinator-tls")["ca.crt"] == (old.home / "pki/ca.crt").read_bytes()
